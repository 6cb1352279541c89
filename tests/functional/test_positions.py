"""Positions: what defines each of them, and loops over single numbers."""

import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.functional import positions

few = settings(deadline=None, max_examples=20)


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def test_learned_rows_and_gradient_counts_them():
    table = normal(0, 5, 3)
    np.testing.assert_array_equal(positions.learned(table, 4), table[:4])
    at = jnp.array([[0, 2, 2], [4, 2, 0]])
    looked_up = positions.learned(table, at)
    for b, t in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(looked_up[b, t], table[at[b, t]])
    counts = jax.grad(lambda table: positions.learned(table, at).sum())(table)
    np.testing.assert_array_equal(counts[:, 0], [2, 0, 3, 0, 1])


def test_learned_outside_the_table():
    table = normal(0, 5, 3)
    outside = jax.jit(positions.learned)(table, jnp.array([-1, 5, 4]))
    assert jnp.isnan(outside[:2]).all() and (outside[2] == table[4]).all()
    for positions_ in (6, -1):
        with pytest.raises(ValueError, match=rf"positions: expected 0 .. 5 .*got {positions_}"):
            positions.learned(table, positions_)


def test_sinusoidal_loops():
    features, base = 6, 100.0
    waves = positions.sinusoidal(9, features, base=base)
    for p, i in itertools.product(range(9), range(3)):
        angle = p / base ** (2 * i / features)
        np.testing.assert_allclose(waves[p, 2 * i], math.sin(angle), atol=1e-6)
        np.testing.assert_allclose(waves[p, 2 * i + 1], math.cos(angle), atol=1e-6)
    at = jnp.array([[7, 0], [3, 3]])
    np.testing.assert_array_equal(positions.sinusoidal(at, features, base=base), waves[at])


@few
@given(st.integers(0, 50), st.integers(0, 50))
def test_sinusoidal_offset_is_a_linear_map(p, offset):
    """One rotation for each frequency takes the vector of p to that of p + offset."""
    features = 8
    angle = offset / 10000.0 ** (np.arange(4) * 2 / features)
    sine, cosine = np.asarray(positions.sinusoidal(jnp.array(p), features)).reshape(4, 2).T
    moved = np.asarray(positions.sinusoidal(jnp.array(p + offset), features)).reshape(4, 2).T
    np.testing.assert_allclose(moved[0], sine * np.cos(angle) + cosine * np.sin(angle), atol=1e-5)
    np.testing.assert_allclose(moved[1], cosine * np.cos(angle) - sine * np.sin(angle), atol=1e-5)


def test_sinusoidal_grid_is_one_wave_for_each_axis():
    grid = positions.sinusoidal_grid((3, 4), 8)
    for h, w in itertools.product(range(3), range(4)):
        np.testing.assert_allclose(grid[h, w, :4], positions.sinusoidal(3, 4)[h], atol=1e-6)
        np.testing.assert_allclose(grid[h, w, 4:], positions.sinusoidal(4, 4)[w], atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_rotary_is_a_product_with_a_complex_number(batch):
    x = normal(0, *batch, 5, 3, 6)
    first, second = np.split(np.asarray(x, np.float64), 2, axis=-1)
    expected = first + 1j * second
    for p, c in itertools.product(range(5), range(3)):
        expected[..., p, :, c] *= np.exp(1j * p / 500.0 ** (2 * c / 6))
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    np.testing.assert_allclose(positions.rotary(x, base=500.0), expected, atol=1e-5)


@few
@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_rotary_scores_depend_on_the_offset_only_and_norms_stay(query_at, key_at, shift):
    query, key = normal(0, 1, 1, 8), normal(1, 1, 1, 8)

    def score(shift):
        rotated = positions.rotary(query, jnp.array([query_at + shift]))
        np.testing.assert_allclose(jnp.linalg.norm(rotated), jnp.linalg.norm(query), rtol=1e-5)
        return (rotated * positions.rotary(key, jnp.array([key_at + shift]))).sum()

    np.testing.assert_allclose(score(shift), score(0), atol=2e-4)


def test_rotary_positions_of_each_example():
    """Decoding step by step gives the rows of the whole sequence."""
    x = normal(0, 2, 4, 3, 6)
    whole = positions.rotary(x)
    at = jnp.array([[1, 0], [3, 2]])
    rows = x[jnp.arange(2)[:, None], at]
    picked = positions.rotary(rows, at)
    np.testing.assert_allclose(picked, whole[jnp.arange(2)[:, None], at], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_rotary_dtypes(dtype, tolerance):
    x = normal(0, 1, 300, 1, 4).astype(dtype)
    rotated = positions.rotary(x)
    assert rotated.dtype == dtype
    expected = positions.rotary(x.astype(jnp.float32))
    np.testing.assert_allclose(
        rotated.astype(jnp.float32), expected, atol=tolerance, rtol=tolerance
    )


def test_rotary_gradient_turns_back():
    """A rotation is orthogonal, so its gradient is the rotation by the opposite angle."""
    x, direction = normal(0, 5, 2, 4), normal(1, 5, 2, 4)
    gradient = jax.grad(lambda x: (positions.rotary(x) * direction).sum())(x)
    np.testing.assert_allclose(gradient, positions.rotary(direction, -jnp.arange(5)), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "keys", "offsets"),
    [
        ([4], [6], [5]),  # clipped
        ([3], [3], [5]),  # every offset has its own entry
        ([2, 3], [3, 2], [5, 3]),
        ([2, 1, 2], [1, 3, 2], [1, 5, 3]),
    ],
)
def test_relative_bias_loops_and_gradient_counts_the_pairs(queries, keys, offsets):
    table = normal(0, 2, *offsets)
    places = list(itertools.product(*map(range, queries)))
    others = list(itertools.product(*map(range, keys)))
    expected = np.zeros((1, 2, len(places), len(others)))
    counts = np.zeros(table.shape)
    for (i, query), (j, key) in itertools.product(enumerate(places), enumerate(others)):
        index = tuple(
            max(-(size // 2), min(size // 2, k - q)) + size // 2
            for q, k, size in zip(query, key, offsets, strict=True)
        )
        expected[0, :, i, j] = table[(slice(None), *index)]
        counts[(slice(None), *index)] += 1

    @jax.jit
    def run(table):
        bias, transposed = jax.vjp(lambda t: positions.relative_bias(t, queries, keys), table)
        return bias, transposed(jnp.ones_like(bias))[0]

    bias, gradient = run(table)
    np.testing.assert_array_equal(bias, expected)
    np.testing.assert_array_equal(gradient, counts)


def test_relative_bias_of_a_number_and_of_the_same_grid():
    table = normal(0, 3, 5)
    bias = positions.relative_bias(table, 4, 6)
    np.testing.assert_array_equal(bias, positions.relative_bias(table, (4,), (6,)))
    np.testing.assert_array_equal(bias[0, :, 1, 0], table[:, 1])
    same = positions.relative_bias(table, 4)
    np.testing.assert_array_equal(same, positions.relative_bias(table, 4, 4))


@pytest.mark.parametrize(
    "x, at, fits",
    [
        ((5, 2, 4), (5,), True),
        ((3, 5, 2, 4), (5,), True),
        ((3, 5, 2, 4), (1, 5), True),
        ((3, 5, 2, 4), (3, 5), True),
        ((2, 3, 5, 2, 4), (2, 1, 5), True),
        ((2, 3, 5, 2, 4), (3, 5), True),
        ((5, 2, 4), (3, 5), False),
        ((1, 5, 2, 4), (3, 5), False),
        ((3, 5, 2, 4), (1,), False),
        ((3, 5, 2, 4), (3, 4), False),
        ((3, 5, 2, 4), (), False),
        ((2, 3, 5, 2, 4), (2, 5), False),
    ],
)
def test_positions_of_a_rotation_are_those_of_its_vectors(x, at, fits, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    ones, places = jnp.ones(x), jnp.zeros(at)
    if fits:
        np.testing.assert_array_equal(positions.rotary(ones, places), ones)
    else:
        with pytest.raises(ValueError, match=r"positions: expected \[T\] or \[B, T\] of x"):
            positions.rotary(ones, places)


def test_numbers_of_numpy_are_numbers(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    table = jnp.arange(5.0)[None]
    np.testing.assert_array_equal(
        positions.relative_bias(table, np.int64(3)), positions.relative_bias(table, 3)
    )
    np.testing.assert_array_equal(positions.grid(np.array([2, 3])), positions.grid((2, 3)))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="features: expected an even number, got 3"):
        positions.sinusoidal(2, 3)
    with pytest.raises(ValueError, match="features: expected a multiple of 4, got 6"):
        positions.sinusoidal_grid((2, 2), 6)
    with pytest.raises(ValueError, match=r"x: expected .* K even, got \[2, 1, 3\]"):
        positions.rotary(jnp.ones((2, 1, 3)))
    with pytest.raises(ValueError, match=r"shape: expected one axis at least, got \(\)"):
        positions.sinusoidal_grid((), 4)
    with pytest.raises(ValueError, match=r"table: expected \[N, 2 R \+ 1, ...\], got \[1, 4\]"):
        positions.relative_bias(jnp.ones((1, 4)), 3)
    with pytest.raises(ValueError, match=r"queries: expected 1 sizes.*\[1, 3\], got 2"):
        positions.relative_bias(jnp.ones((1, 3)), (2, 2))
    with pytest.raises(ValueError, match=r"keys: expected 2 sizes.*\[1, 3, 3\], got 1"):
        positions.relative_bias(jnp.ones((1, 3, 3)), (2, 2), 4)
