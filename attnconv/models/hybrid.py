"""Convolution first, where patterns are local; then self-attention between what it found."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.attention import HEADS, Encoder
from attnconv.models.inputs import Inputs, present, vectors
from attnconv.models.size import Size, stage_count
from attnconv.nn import Conv, he_normal
from attnconv.spec import Spec


class Hybrid(nnx.Module):
    """Convolution stages make the vectors, encoder blocks relate them.

    The order of CoAtNet (Dai et al. 2021): the layers with the larger bias come first. Where each
    vector has a label there is one stage, and the grid stays whole.
    """

    default = Size(width=16, hidden=128)
    any_length = True
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.inputs = Inputs(spec, rngs=rngs)
        window = (3,) * len(spec.grid)
        channels, features = spec.channels, size.width
        stages = 1 if spec.output == "labels" else stage_count(spec.grid)
        layers = []
        for stage in range(stages):
            stride = 1 if stage == 0 else 2
            layers.append(
                Conv(channels, features, window, stride, kernel_init=he_normal, rngs=rngs)
            )
            channels, features = features, 2 * features
        self.layers = nnx.List(layers)
        count = vectors(spec, (2 ** (stages - 1),) * len(spec.grid))
        self.encoder = Encoder(spec, count, channels, size.hidden, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, mask = self.inputs(x, dtype=self.layers[0].kernel.dtype, rng=rng)
        for layer in self.layers:
            x = jax.nn.relu(layer(present(x, mask)))
            mask = None if mask is None else mask[:, :: layer.strides]
        return self.encoder(x.reshape(len(x), -1, x.shape[-1]), mask, nodes, rng)
