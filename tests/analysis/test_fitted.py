"""The nearest convolution: of convolutions themselves, and against normal equations from loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnconv import functional as F
from attnconv.analysis.converters import local_from_conv
from attnconv.analysis.fitted import nearest_convolution
from attnconv.errors import UsageError

pytestmark = pytest.mark.slow


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("grid", "window", "options"),
    [
        ((9,), (3,), {}),
        ((9,), (4,), {"padding": "CAUSAL"}),
        ((7, 8), (3, 2), {"stride": (1, 2)}),
        ((7, 8), (3, 3), {"dilation": (2, 1), "padding": "VALID"}),
        ((7, 8), (2, 3), {"padding": "CIRCULAR"}),
        ((4, 5, 4), (2, 1, 3), {"stride": 2}),
    ],
)
def test_a_convolution_is_found_again(grid, window, options):
    x, kernel, bias = normal(0, (64, *grid, 2)), normal(1, (*window, 2, 3)), normal(2, (3,))
    found = nearest_convolution(x, F.conv(x, kernel, bias, **options), window, **options)
    np.testing.assert_allclose(found.kernel, kernel, atol=1e-5)
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)
    assert found.residue < 1e-10


def test_any_other_layer_leaves_what_the_normal_equations_say():
    x, y = np.float64(normal(0, (6, 5, 4, 2))), np.float64(normal(1, (6, 5, 4, 3)))
    y += 2 * x.sum(-1, keepdims=True)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, targets = [], []
    for b, i, j in np.ndindex(6, 5, 4):
        rows.append([*padded[b, i : i + 3, j : j + 3].ravel(), 1.0])
        targets.append(y[b, i, j])
    rows, targets = np.array(rows), np.array(targets)
    weights = np.linalg.solve(rows.T @ rows, rows.T @ targets)
    left = ((targets - rows @ weights) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum()
    found = nearest_convolution(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), (3, 3))
    np.testing.assert_allclose(found.kernel.reshape(18, 3), weights[:-1], atol=1e-4)
    np.testing.assert_allclose(found.bias, weights[-1], atol=1e-4)
    assert 0.05 < found.residue == pytest.approx(left, rel=1e-4)


def test_a_window_too_small_leaves_the_rest():
    x, kernel = normal(0, (16, 8, 8, 2)), normal(1, (5, 5, 2, 2))
    left = [nearest_convolution(x, F.conv(x, kernel), (w, w)).residue for w in (1, 3, 5)]
    assert left[0] > left[1] + 0.1 > left[2] + 0.2
    assert left[2] < 1e-10


def test_weights_that_are_not_shared_are_no_convolution():
    x = normal(0, (64, 6, 1))
    kernel, bias = local_from_conv(normal(1, (3, 1, 2)), None, (6,))
    shared, free = (F.locally_connected(x, k, bias) for k in (kernel, normal(2, kernel.shape)))
    assert nearest_convolution(x, shared, (3,)).residue < 1e-10
    assert nearest_convolution(x, free, (3,)).residue > 0.3


def test_a_constant_is_a_bias():
    found = nearest_convolution(normal(0, (8, 6, 2)), jnp.full((8, 6, 1), 3.0), (3,))
    assert float(found.bias[0]) == pytest.approx(3)
    assert found.residue == 0


def test_the_outputs_must_fit():
    x = normal(0, (4, 6, 6, 2))
    with pytest.raises(UsageError, match=r"y: expected \[4, 4, 4, O\]"):
        nearest_convolution(x, x, (3, 3), padding="VALID")
    with pytest.raises(UsageError, match="more than 51 positions"):
        nearest_convolution(x[:1], x[:1], (5, 5))
