"""Locally connected: a window sees its surroundings, but every window has weights of its own."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.inputs import Head, Inputs
from attnconv.models.size import Size, stage_count
from attnconv.nn import Linear, LocallyConnected, he_normal
from attnconv.spec import Spec


class Local(nnx.Module):
    """The receptive fields of a convolutional net without the sharing of weights.

    One layer a stage, since unshared weights cost so many parameters. There is no mean over
    positions: it would only make sense if the same channel meant the same thing everywhere.
    """

    default = Size(width=8, hidden=64)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.inputs = Inputs(spec, rngs=rngs)
        window = (3,) * len(spec.grid)
        grid, channels, features = spec.grid, spec.channels, size.width
        layers = []
        for _ in range(stage_count(spec.grid)):
            layers.append(LocallyConnected(grid, channels, features, window, 2, rngs=rngs))
            grid, channels, features = layers[-1].positions, features, 2 * features
        self.layers = nnx.List(layers)
        self.hidden = Linear(layers[-1].bias.size, size.hidden, kernel_init=he_normal, rngs=rngs)
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B classes"]:
        nodes = x
        x, _ = self.inputs(x, dtype=self.layers[0].kernel.dtype, rng=rng)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        x = jax.nn.relu(self.hidden(x.reshape(len(x), 1, -1)))
        return self.head(x, None, nodes, rng)
