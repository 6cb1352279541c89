"""Masks against their definitions, one pair of positions at a time."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.functional import masks

few = settings(deadline=None, max_examples=20)
size = st.sampled_from([1, 4])


def by_pairs(T, S, attends):
    return np.array([[attends(i, j) for j in range(S)] for i in range(T)])[None, None]


@few
@given(size, size)
def test_causal(T, S):
    np.testing.assert_array_equal(masks.causal(T, S), by_pairs(T, S, lambda i, j: j <= i))
    np.testing.assert_array_equal(masks.causal(T), masks.causal(T, T))


@few
@given(size, size, st.integers(0, 4), st.integers(0, 4))
def test_window(T, S, left, right):
    expected = by_pairs(T, S, lambda i, j: i - left <= j <= i + right)
    np.testing.assert_array_equal(masks.window(T, S, left, right), expected)


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_padding(lengths):
    expected = np.array([[[[j < length for j in range(5)]]] for length in lengths])
    np.testing.assert_array_equal(masks.padding(jnp.array(lengths), 5), expected)
    jitted = jax.jit(masks.padding, static_argnums=1)
    np.testing.assert_array_equal(jitted(jnp.array(lengths), 5), expected)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3))
def test_grid_window(axes):
    shape, radius = zip(*axes, strict=True)
    places = list(itertools.product(*map(range, shape)))

    def near(i, j):
        pairs = zip(places[i], places[j], radius, strict=True)
        return all(abs(at - other) <= r for at, other, r in pairs)

    expected = by_pairs(len(places), len(places), near)
    np.testing.assert_array_equal(masks.grid_window(shape, radius), expected)


def test_grid_window_is_the_reach_of_a_convolution():
    """Ones over a 3x3 window of a one-hot image mark exactly the keys that the mask allows."""
    image = jnp.eye(20).reshape(20, 4, 5, 1)
    reach = jax.lax.conv_general_dilated(
        image, jnp.ones((3, 3, 1, 1)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(masks.grid_window((4, 5), 1)[0, 0], reach.reshape(20, 20) > 0)


node = st.integers(0, 4)


@few
@given(st.lists(st.tuples(node, node), max_size=6), st.booleans(), st.booleans())
def test_graph(edges, self_loops, directed):
    """Query i is the target of an edge, key j its source."""

    def attends(i, j):
        backwards = not directed and (i, j) in edges
        return (j, i) in edges or backwards or (self_loops and i == j)

    array = np.array(edges, int).reshape(-1, 2).T
    for edge_list in (array, jnp.asarray(array)):
        mask = masks.graph(edge_list, 5, self_loops=self_loops, directed=directed)
        np.testing.assert_array_equal(mask, by_pairs(5, 5, attends))


def test_masks_compose():
    lengths = jnp.array([2, 4])
    mask = masks.padding(lengths, 4) & (masks.causal(4) | masks.window(4, 4, 0, 1))
    assert mask.shape == (2, 1, 4, 4)
    for b, i, j in itertools.product(range(2), range(4), range(4)):
        assert mask[b, 0, i, j] == (j < lengths[b] and (j <= i or j <= i + 1))


def test_errors_name_the_argument(monkeypatch):
    with pytest.raises(ValueError, match=r"edges: expected nodes 0 .. 2, got 3 \(edge 1: 2 -> 3\)"):
        masks.graph(jnp.array([[0, 2], [1, 3]]), 3)
    with pytest.raises(ValueError, match=r"got -1 \(edge 0: -1 -> 0\)"):
        masks.graph(jnp.array([[-1], [0]]), 3)
    with pytest.raises(ValueError, match=r"left, right: .* got -1, 0"):
        masks.window(3, 3, -1, 0)
    for radius in (-1, (1, 1, 1)):
        with pytest.raises(ValueError, match=r"radius: .* axis of \(2, 2\)"):
            masks.grid_window((2, 2), radius)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"edges: expected shape \[2, E\], got \[3, 2\]"):
        masks.graph(jnp.zeros((3, 2), int), 3)
    with pytest.raises(ValueError, match=r"lengths: expected shape \[B\], got \[\]"):
        masks.padding(jnp.array(3), 5)


def test_unknown_edges_outside_the_graph_are_left_out():
    """Under jit the values are unknown; -1 must not mean the last node."""
    edges = jnp.array([[0, -1, 2], [1, 1, 7]])
    mask = jax.jit(lambda edges: masks.graph(edges, 3, self_loops=False))(edges)
    np.testing.assert_array_equal(mask, masks.graph(edges[:, :1], 3, self_loops=False))


def test_no_edges_are_edges_of_any_dtype(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    np.testing.assert_array_equal(masks.graph(np.zeros((2, 0)), 3)[0, 0], np.eye(3, dtype=bool))


def test_lengths_of_64_bits_are_not_cut_to_32(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    lengths = np.array([2**40, 2**31, 2, 1 - 2**40])
    assert masks.padding(lengths, 3).sum(axis=-1).ravel().tolist() == [3, 3, 2, 0]
