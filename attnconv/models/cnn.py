"""Convolution: a window sees its surroundings, and every window has the same weights."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.size import Size, stage_count
from attnconv.nn import Conv, he_normal
from attnconv.spec import Spec


class CNN(nnx.Module):
    """3x3 convolutions (1-D: 3) in stages; each stage halves the grid and doubles the channels.

    The last convolution makes `hidden` channels. Their mean over positions is one vector of the
    image, whatever its size: what counts is that a pattern is there, not where.
    """

    default = Size(width=24, hidden=96)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        window = (3,) * len(spec.grid)
        plan = [(size.width, 1)]  # features and stride of each layer
        for stage in range(1, stage_count(spec.grid)):
            features = size.width * 2**stage
            plan += [(features, 2), (features, 1)]
        plan[-1] = (size.hidden, plan[-1][1])
        layers, channels = [], spec.channels
        for features, stride in plan:
            layers.append(
                Conv(channels, features, window, stride, kernel_init=he_normal, rngs=rngs)
            )
            channels = features
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(size.hidden, spec.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B classes"]:
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(x.mean(range(1, x.ndim - 1)))
