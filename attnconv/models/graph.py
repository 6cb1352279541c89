"""Along the edges of a graph: a node sees its neighbours and itself, and no other node."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.inputs import Head, Inputs
from attnconv.models.size import Size
from attnconv.nn import Linear, MultiHeadAttention, he_normal
from attnconv.spec import Graph, Spec

HEADS = 4
LAYERS = 3


class GraphConv(nnx.Module):
    """Every edge has the same weights: `relu(A X W)`, `LAYERS` times.

    `A_ij = 1 / sqrt(d_i d_j)` along edges and loops, d the number of both at a node.

    Source: Kipf and Welling 2017, Semi-Supervised Classification with Graph Convolutional Networks,
    equation 2.
    """

    default = Size(width=64, hidden=64)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.graph = spec.graph
        self.inputs = Inputs(spec, rngs=rngs)
        features = [spec.channels, *[size.width] * (LAYERS - 1), size.hidden]
        self.layers = nnx.List(
            Linear(*pair, kernel_init=he_normal, rngs=rngs) for pair in itertools.pairwise(features)
        )
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(self, x: Array, *, rng: Array | None = None) -> Float[Array, "B classes"]:
        nodes = x
        joined = _joined(self.graph)
        degree = joined.sum(1)
        dtype = self.layers[0].kernel.dtype
        along = jnp.asarray(joined / np.sqrt(degree[:, None] * degree), dtype)
        x, _ = self.inputs(x, dtype=dtype, rng=rng)
        for layer in self.layers:
            x = jax.nn.relu(along @ layer(x))
        return self.head(x, None, nodes, rng)


class GraphAttention(nnx.Module):
    """The weight of an edge depends on what it joins: multi-head attention, `LAYERS` times.

    `elu(concat_n(sum_j softmax_j(q_i . k_j) v_j) W)`, j a neighbour of i or i itself. Nothing is
    added to it: a node of which only its neighbours are known is what they say of it.

    Source: Velickovic et al. 2018, Graph Attention Networks; scores as in Vaswani et al. 2017.
    """

    default = Size(width=64, hidden=64)
    any_length = False
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        self.graph = spec.graph
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Linear(spec.channels, size.width, rngs=rngs)
        self.layers = nnx.List(
            MultiHeadAttention(HEADS, size.width, out_features=out, decode=False, rngs=rngs)
            for out in [*[size.width] * (LAYERS - 1), size.hidden]
        )
        self.head = Head(spec, size.hidden, rngs=rngs)

    def __call__(self, x: Array, *, rng: Array | None = None) -> Float[Array, "B classes"]:
        nodes = x
        along = jnp.asarray(_joined(self.graph))[None, None]
        x, _ = self.inputs(x, dtype=self.embed.kernel.dtype, rng=rng)
        x = self.embed(x)
        for layer in self.layers:
            x = jax.nn.elu(layer(x, mask=along))
        return self.head(x, None, nodes, rng)


def _joined(graph: Graph | None) -> np.ndarray:
    """True along the edges, and from each node to itself."""
    assert graph is not None
    return graph.adjacency | np.eye(len(graph.adjacency), dtype=bool)
