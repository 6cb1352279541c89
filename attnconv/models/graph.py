"""Graph convolution: a node sees its neighbours, and every edge has the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.inputs import Head, Inputs
from attnconv.models.size import Size
from attnconv.nn import he_normal
from attnconv.spec import Spec


class GraphConv(nnx.Module):
    """`relu(A X W)` twice, A the mean over neighbours and the node itself by the degrees' roots.

    `A_ij = 1 / sqrt(d_i d_j)` along edges and loops, d the number of both at a node.

    Source: Kipf and Welling 2017, Semi-Supervised Classification with Graph Convolutional Networks,
    equation 2.
    """

    default = Size(width=64, hidden=64)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.graph = spec.graph
        self.inputs = Inputs(spec, rngs=rngs)
        self.first = nnx.Linear(spec.channels, size.width, kernel_init=he_normal, rngs=rngs)
        self.second = nnx.Linear(size.width, size.hidden, kernel_init=he_normal, rngs=rngs)
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(self, x: Array, *, rng: Array | None = None) -> Float[Array, "B classes"]:
        nodes = x
        assert self.graph is not None
        joined = self.graph.adjacency | np.eye(len(self.graph.adjacency), dtype=bool)
        degree = joined.sum(1)
        along = jnp.asarray(joined / np.sqrt(degree[:, None] * degree), jnp.float32)
        x, _ = self.inputs(x, rng=rng)
        x = jax.nn.relu(along @ self.first(x))
        x = jax.nn.relu(along @ self.second(x))
        return self.head(x, None, nodes, rng)
