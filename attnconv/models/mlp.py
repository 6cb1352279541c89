"""Fully connected: every unit sees every input, no weight is shared."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.size import Size
from attnconv.nn import he_normal
from attnconv.spec import Spec


class MLP(nnx.Module):
    """The example as one long vector, two hidden layers, then one score for each label."""

    default = Size(width=128, hidden=128)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(spec.values, size.width, kernel_init=he_normal, rngs=rngs)
        self.second = nnx.Linear(size.width, size.hidden, kernel_init=he_normal, rngs=rngs)
        self.head = nnx.Linear(size.hidden, spec.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B *shape"]) -> Float[Array, "B classes"]:
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(self.first(x))
        x = jax.nn.relu(self.second(x))
        return self.head(x)
