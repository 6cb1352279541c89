"""Convolution first, where patterns are local; then self-attention between what it found."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.size import Size, stage_count
from attnconv.nn import Conv, EncoderBlock, PositionEmbedding, he_normal
from attnconv.spec import Spec

HEADS = 4
BLOCKS = 2


class Hybrid(nnx.Module):
    """Convolution stages make the vectors, encoder blocks relate them.

    The order of CoAtNet (Dai et al. 2021): the layers with the larger bias come first.
    """

    default = Size(width=16, hidden=128)
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        window = (3,) * len(spec.grid)
        channels, features, vectors = spec.channels, size.width, 1
        stages = stage_count(spec.grid)
        layers = []
        for stage in range(stages):
            stride = 1 if stage == 0 else 2
            layers.append(
                Conv(channels, features, window, stride, kernel_init=he_normal, rngs=rngs)
            )
            channels, features = features, 2 * features
        for side in spec.grid:
            vectors *= -(-side // 2 ** (stages - 1))
        self.layers = nnx.List(layers)
        self.position = PositionEmbedding(vectors, channels, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(channels, size.hidden, heads=HEADS, rngs=rngs) for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.head = nnx.Linear(channels, spec.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B classes"]:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        x = self.position(x.reshape(x.shape[0], -1, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
