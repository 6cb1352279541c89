"""Convolution: a window sees its surroundings, and every window has the same weights."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.inputs import Head, Inputs, per_layer, present
from attnconv.models.size import Size, stage_count
from attnconv.nn import Conv, he_normal
from attnconv.spec import Spec

LAYERS = 4  # where each vector has a label
WINDOW = 17  # positions that one of those sees


class CNN(nnx.Module):
    """3x3 convolutions (1-D: 3) in stages; each stage halves the grid and doubles the channels.

    The last convolution makes `hidden` channels. Their mean over positions is one vector of the
    image, whatever its size: what counts is that a pattern is there, not where.

    Where each vector has a label the grid stays whole: layers of one width, each but the first and
    the last added to its input, see `window` positions altogether.
    """

    default = Size(width=24, hidden=96)
    any_length = True

    def __init__(self, spec: Spec, size: Size, *, window: int | None = None, rngs: nnx.Rngs):
        self.inputs = Inputs(spec, rngs=rngs)
        self.whole = spec.output == "labels"
        if self.whole:
            extent = per_layer("cnn", WINDOW if window is None else window, LAYERS)
            plan = [(size.width, 1)] * (LAYERS - 1) + [(size.hidden, 1)]
        else:
            extent = 3
            plan = [(size.width, 1)]  # features and stride of each layer
            for stage in range(1, stage_count(spec.grid)):
                features = size.width * 2**stage
                plan += [(features, 2), (features, 1)]
            plan[-1] = (size.hidden, plan[-1][1])
        layers, channels = [], spec.channels
        for features, stride in plan:
            layers.append(
                Conv(
                    channels,
                    features,
                    (extent,) * len(spec.grid),
                    stride,
                    kernel_init=he_normal,
                    rngs=rngs,
                )
            )
            channels = features
        self.layers = nnx.List(layers)
        if self.whole:
            self.norms = nnx.List(nnx.LayerNorm(size.width, rngs=rngs) for _ in layers[1:])
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, mask = self.inputs(x, dtype=self.layers[0].kernel.dtype, rng=rng)
        if self.whole:
            x = self.layers[0](x)
            for layer, norm in zip(self.layers[1:-1], self.norms[:-1], strict=True):
                x = x + layer(present(jax.nn.relu(norm(x)), mask))
            x = jax.nn.relu(self.layers[-1](present(jax.nn.relu(self.norms[-1](x)), mask)))
            return self.head(x, mask, nodes, rng)
        for layer in self.layers:
            x = jax.nn.relu(layer(present(x, mask)))
            mask = None if mask is None else mask[:, :: layer.strides]
        return self.head(x, mask, nodes, rng)
