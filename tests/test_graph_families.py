"""Families on the nodes of a graph: each sum written out, how far a node sees."""

import itertools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from flax import nnx
from small_models import CLUB, NODES, ON_A_GRAPH, made, on_a_graph, scores

from attnconv import models
from attnconv.models.inputs import Inputs


def features_of(state, *names):
    """Parameters by name, in float64."""
    for name in names:
        state = state[name]
    return {key: np.asarray(value.get_value(), np.float64) for key, value in state.items()}


def through(x, layer):
    return np.tensordot(x, layer["kernel"], layer["kernel"].ndim - 1) + layer["bias"]


def neighbours(graph):
    return [[i, *np.flatnonzero(row)] for i, row in enumerate(graph.adjacency)]


def test_graph_convolution_is_the_sum_over_neighbours():
    """Kipf and Welling 2017, equation 2, one node at a time."""
    structure, params = made("graph_conv", ON_A_GRAPH)
    around = neighbours(ON_A_GRAPH.graph)
    x = ON_A_GRAPH.graph.features.astype(np.float64)
    for layer in range(3):
        y = through(x, features_of(params, "layers", layer))
        x = np.array(
            [
                np.maximum(sum(y[j] / (len(around[i]) * len(around[j])) ** 0.5 for j in of), 0)
                for i, of in enumerate(around)
            ]
        )
    expected = through(x, features_of(params, "head", "scores"))
    asked = np.array([3, 12, 3, 6, 0, 8])
    np.testing.assert_allclose(scores(structure, params, asked), expected[asked], rtol=1e-5)


def test_graph_attention_is_the_weighted_sum_over_neighbours():
    """Softmax over the neighbours and itself, one head and one node at a time."""
    structure, params = made("graph_attention", ON_A_GRAPH)
    around = neighbours(ON_A_GRAPH.graph)
    x = through(ON_A_GRAPH.graph.features.astype(np.float64), features_of(params, "embed"))
    for layer in range(3):
        query, key, value = (
            np.einsum("vd,dnk->vnk", x, part["kernel"]) + part["bias"]
            for part in (features_of(params, "layers", layer, p) for p in ("query", "key", "value"))
        )
        out = features_of(params, "layers", layer, "out")
        heads = np.zeros_like(value)
        for i, n in itertools.product(range(NODES), range(value.shape[1])):
            weights = np.exp(key[around[i], n] @ query[i, n] / value.shape[-1] ** 0.5)
            heads[i, n] = weights / weights.sum() @ value[around[i], n]
        x = np.einsum("vnk,nkd->vd", heads, out["kernel"]) + out["bias"]
        x = np.where(x > 0, x, np.expm1(x))
    expected = through(x, features_of(params, "head", "scores"))
    asked = np.array([3, 12, 3, 6, 0, 8])
    np.testing.assert_allclose(scores(structure, params, asked), expected[asked], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "hops"), [("mlp", 0), ("graph_conv", 3), ("graph_attention", 3), ("attention", NODES)]
)
def test_a_node_sees_as_far_as_its_layers_go(name, hops, monkeypatch):
    structure, params = made(name, ON_A_GRAPH)

    def of(features):
        monkeypatch.setattr(Inputs, "__call__", lambda self, x, **_: (features[None], None))
        return nnx.merge(structure, params)(jnp.arange(NODES)).sum(-1)

    found = jax.jit(jax.jacrev(of))(ON_A_GRAPH.graph.features)
    far = np.array(
        [[networkx.shortest_path_length(CLUB, i, j) for j in range(NODES)] for i in range(NODES)]
    )
    assert far.max() == 8
    seen = np.abs(np.asarray(found)).max(-1)
    assert (seen[far > hops] == 0).all()
    # A ReLU may pass nothing on from one node to another, but hardly to any.
    assert (seen[far <= hops] > 1e-7).mean() > 0.95


@pytest.mark.parametrize("name", models.fitting(ON_A_GRAPH))
def test_the_order_of_nodes_says_nothing(name):
    order = np.random.default_rng(1).permutation(NODES)
    structure, params = made(name, ON_A_GRAPH)
    shuffled, _ = made(name, on_a_graph(order))
    every = np.arange(NODES)
    expected = np.asarray(scores(structure, params, every))
    found = scores(shuffled, params, every)
    np.testing.assert_allclose(found, expected[order], rtol=1e-5, atol=1e-5)
    assert np.abs(expected[0] - expected[NODES - 1]).max() > 1e-3
