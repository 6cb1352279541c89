"""The distance of attention against loops over queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.analysis.distance import attention_distance
from attnconv.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 3, 2)])
def test_it_is_the_mean_of_loops(grid):
    at = list(np.ndindex(*grid))
    T = len(at)
    scores = np.random.default_rng(0).normal(size=(2, 3, T, T))
    weights = jax.nn.softmax(jnp.asarray(scores, jnp.float32), axis=-1)
    expected = np.zeros(3)
    for b, n, i, j in np.ndindex(2, 3, T, T):
        apart = sum((p - q) ** 2 for p, q in zip(at[i], at[j], strict=True)) ** 0.5
        expected[n] += float(weights[b, n, i, j]) * apart / (2 * T)
    np.testing.assert_allclose(attention_distance(weights, grid), expected, rtol=1e-5)


def test_a_head_that_looks_at_one_offset_has_its_length():
    weights = np.zeros((1, 2, 25, 25), np.float32)
    for query in range(25):
        row, column = divmod(query, 5)
        weights[0, 0, query, query] = 1
        weights[0, 1, query, 5 * ((row + 3) % 5) + (column + 4) % 5] = 1
    near, far = attention_distance(jnp.asarray(weights), (5, 5))
    assert float(near) == 0
    steps = [
        ((3 if r < 2 else 2) ** 2 + (4 if c < 1 else 1) ** 2) ** 0.5 for r, c in np.ndindex(5, 5)
    ]
    assert float(far) == pytest.approx(np.mean(steps), rel=1e-5)


def test_the_grid_must_hold_the_vectors():
    with pytest.raises(UsageError, match=r"expected \[B, N, 6, 6\], .* got \[1, 1, 7, 7\]"):
        attention_distance(jnp.ones((1, 1, 7, 7)), (2, 3))
