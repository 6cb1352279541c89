"""Fully connected: every unit sees every input, no weight is shared."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.inputs import Head, Inputs, pooled
from attnconv.models.size import Size
from attnconv.nn import Linear, he_normal
from attnconv.spec import Spec


class MLP(nnx.Module):
    """The example as one long vector, two hidden layers, then one score for each label.

    Where each vector has a label, each is an example of its own: no vector sees another.
    """

    default = Size(width=128, hidden=128)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.whole = pooled(spec)
        self.any_length = not self.whole
        self.inputs = Inputs(spec, rngs=rngs)
        values = spec.values if self.whole else spec.channels
        self.first = Linear(values, size.width, kernel_init=he_normal, rngs=rngs)
        self.second = Linear(size.width, size.hidden, kernel_init=he_normal, rngs=rngs)
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, _ = self.inputs(x, dtype=self.first.kernel.dtype, rng=rng)
        if self.whole:
            x = x.reshape(len(x), 1, -1)  # all of it is the one vector that is pooled
        x = jax.nn.relu(self.first(x))
        x = jax.nn.relu(self.second(x))
        return self.head(x, None, nodes, rng)
