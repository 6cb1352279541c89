"""Receptive fields against loops, finite differences and known distributions."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from attnconv import functional as F
from attnconv.analysis.receptive import effective, gaussian_fit, theoretical, width
from attnconv.errors import UsageError

pytestmark = pytest.mark.slow


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("windows", "strides", "dilations"),
    [
        ([5], [3], [2]),
        ([3, 3, 3], [1, 1, 1], [1, 1, 1]),
        ([3, 2, 5], [2, 3, 1], [1, 2, 3]),
        ([7, 1, 3], [2, 2, 2], [1, 4, 2]),
    ],
)
def test_the_theoretical_field_spans_what_an_output_reaches(windows, strides, dilations):
    reached = {0}
    for window, stride, dilation in reversed(list(zip(windows, strides, dilations, strict=True))):
        reached = {i * stride + k * dilation for i in reached for k in range(window)}
    found = theoretical(windows, strides=strides, dilations=dilations)
    assert found == max(reached) - min(reached) + 1


@pytest.mark.parametrize("bad", [{"strides": 0}, {"strides": [1]}, {"dilations": [1, 1, 1]}])
def test_one_number_for_each_layer(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        theoretical([3, 3], **bad)


def test_numbers_of_numpy_are_numbers(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert theoretical(np.array([3, 3]), strides=np.int64(2), dilations=np.array([1, 2])) == 11
    with pytest.raises(UsageError, match=r"strides: expected an int, or several, came 2.0"):
        theoretical([3, 3], strides=2.0)


@pytest.mark.parametrize("at", [(4,), (-1,), (), (0, 0)])
def test_a_position_that_the_output_has_not_is_refused(at):
    with pytest.raises(UsageError, match=r"at: expected a position on the grid \[4\] of"):
        effective(lambda x: x, jnp.zeros((1, 4, 1)), at)


def test_a_field_in_half_precision_is_that_of_float32():
    x = jnp.ones((1, 5, 2), jnp.float16)
    found = effective(lambda x: 1e-4 * x + 2e-4 * jnp.roll(x, 1, axis=1), x, (2,))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0, 0.8, 0.2, 0, 0], atol=2e-3)


def stack(kernels, activation):
    def function(x):
        for kernel in kernels:
            x = activation(F.conv(x, kernel, stride=(1, 2)))
        return x

    return function


@pytest.mark.parametrize("activation", [lambda x: x, jnp.sin], ids=["linear", "sin"])
@pytest.mark.parametrize("at", [(0, 0), (3, 1)])
def test_the_effective_field_is_that_of_finite_differences(activation, at):
    function = stack([normal(0, (3, 3, 2, 3)), normal(1, (3, 3, 3, 2))], activation)
    x = 0.3 * normal(2, (2, 6, 7, 2))
    expected = np.zeros((6, 7))
    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(x))
        exact = stack(
            [
                jnp.asarray(np.float64(normal(0, (3, 3, 2, 3)))),
                jnp.asarray(np.float64(normal(1, (3, 3, 3, 2)))),
            ],
            activation,
        )
        for b, i, j, c in itertools.product(*map(range, x.shape)):
            up, down = (exact(wide.at[b, i, j, c].add(step))[b, *at] for step in (1e-4, -1e-4))
            expected[i, j] += np.square((np.asarray(up) - np.asarray(down)) / 2e-4).sum()
    found = effective(function, x, at)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-3, atol=1e-6)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert (np.asarray(found) > 0).sum() <= theoretical([3, 3]) * theoretical([3, 3], strides=2)


def test_an_output_without_positions():
    x = normal(0, (2, 3, 4))
    weights = normal(1, (3, 4, 5))
    found = effective(lambda x: jnp.einsum("BTC,TCO->BO", x, weights), x, ())
    expected = np.square(weights).sum((1, 2))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


def test_width_is_the_standard_deviation_of_each_marginal():
    field = np.random.default_rng(0).random((5, 8, 3))
    field /= field.sum()
    for axis, found in enumerate(width(jnp.asarray(field, jnp.float32))):
        at = np.indices(field.shape)[axis]
        mean = (at * field).sum()
        assert float(found) == pytest.approx(((at - mean) ** 2 * field).sum() ** 0.5, rel=1e-4)


def test_a_gaussian_is_told_from_a_box():
    at = np.arange(41) - 20.3
    bell = np.exp(-((at / 4) ** 2) / 2)
    box = (np.abs(at) < 9).astype(float)
    both = jnp.asarray(np.outer(bell / bell.sum(), box / box.sum()), jnp.float32)
    of_bell, of_box = (float(r) for r in gaussian_fit(both))
    assert of_bell > 0.9999
    marginal = np.asarray(both, np.float64).sum(0)
    mean = (marginal * np.arange(41)).sum()
    variance = (marginal * (np.arange(41) - mean) ** 2).sum()
    nearest = np.exp(-((np.arange(41) - mean) ** 2) / variance / 2)
    nearest /= nearest.sum()
    expected = 1 - ((marginal - nearest) ** 2).sum() / ((marginal - marginal.mean()) ** 2).sum()
    assert of_box == pytest.approx(expected, rel=1e-4)
    assert of_box < 0.95
