"""Convolution: a window sees its surroundings, and every window has the same weights."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.size import Size, stage_count
from attnconv.nn import Conv, he_normal
from attnconv.spec import Spec


class CNN(nnx.Module):
    """3x3 convolutions (1-D: 3) in stages; each stage halves the grid and doubles the channels.

    The mean over positions makes one vector of the image, whatever its size: what counts is that
    a pattern is there, not where.
    """

    default = Size(width=32, hidden=128)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        window = (3,) * len(spec.grid)

        def conv(channels: int, features: int, stride: int) -> Conv:
            return Conv(channels, features, window, stride, kernel_init=he_normal, rngs=rngs)

        features = size.width
        layers = [conv(spec.channels, features, 1)]
        for _ in range(stage_count(spec.grid) - 1):
            layers += [conv(features, 2 * features, 2), conv(2 * features, 2 * features, 1)]
            features = 2 * features
        self.layers = nnx.List(layers)
        self.hidden = nnx.Linear(features, size.hidden, kernel_init=he_normal, rngs=rngs)
        self.head = nnx.Linear(size.hidden, spec.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B classes"]:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        x = x.mean(range(1, x.ndim - 1))
        return self.head(jax.nn.relu(self.hidden(x)))
