"""Errors of equivariance and shifts, against loops and functions whose error is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv import functional as F
from attnconv.analysis.equivariance import equivariance_error, shift


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("by", [(0,), (2,), (-3,), (7,), (-9,)])
def test_shift_of_a_sequence(by):
    x = normal(0, 2, 5, 3)
    expected = np.zeros_like(x)
    for t in range(5):
        if 0 <= t + by[0] < 5:
            expected[:, t + by[0]] = x[:, t]
    np.testing.assert_array_equal(shift(x, by), expected)


@pytest.mark.parametrize("by", list(itertools.product((-1, 0, 2), repeat=2)))
def test_shift_of_an_image(by):
    x = normal(0, 2, 4, 5, 3)
    expected = np.zeros_like(x)
    for i, j in np.ndindex(4, 5):
        if 0 <= i + by[0] < 4 and 0 <= j + by[1] < 5:
            expected[:, i + by[0], j + by[1]] = x[:, i, j]
    np.testing.assert_array_equal(shift(x, by), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: shift(x, by))(x), expected)


def test_shift_of_a_volume_and_what_cannot_be_shifted():
    x = normal(0, 1, 3, 4, 2, 1)
    np.testing.assert_array_equal(shift(x, (0, 1, -1))[0, :, 1:, :1], np.asarray(x)[0, :, :-1, 1:])
    with pytest.raises(ValueError):
        shift(x, (1, 1))


def test_what_overflows_in_half_precision_does_not_in_the_error():
    def scaled(x):
        return x * jnp.arange(4, dtype=x.dtype)

    def moved(x):
        return jnp.roll(x, 1, axis=1)

    x = jnp.full((1, 4), 300.0)
    half, single = (equivariance_error(scaled, x.astype(d), moved) for d in ("float16", "float32"))
    np.testing.assert_allclose(half, single, rtol=1e-3)
    turned = equivariance_error(lambda x: 1j * x, x, lambda x: x, lambda y: -y)
    np.testing.assert_allclose(turned, 2)


def test_the_error_is_that_of_loops():
    x, matrix = normal(0, 5, 4, 3), normal(1, 3, 2)
    weights = normal(2, 4, 1)  # of each place: this is what breaks the symmetry

    def function(x):
        return jnp.tanh(x @ matrix) * weights

    errors = equivariance_error(function, x, lambda x: x[:, ::-1])
    assert errors.shape == (5,)
    of = [np.float64(function(a)) for a in (x, x[:, ::-1])]
    for error, plain, moved in zip(errors, *of, strict=True):
        apart = sum((moved[t, d] - plain[3 - t, d]) ** 2 for t in range(4) for d in range(2))
        size = sum(plain[t, d] ** 2 for t in range(4) for d in range(2))
        assert float(error) == pytest.approx((apart / size) ** 0.5, rel=1e-5)


def test_an_exchange_of_places_is_no_error_of_what_is_the_same_at_each():
    x, order = normal(0, 3, 6, 4), np.random.default_rng(1).permutation(6)

    def inside(x):
        return x[:, order]

    assert (equivariance_error(jnp.sin, x, inside) == 0).all()
    assert (equivariance_error(lambda x: jnp.cumsum(x, 1), x, inside) > 0.1).all()


def test_invariance_is_the_case_in_which_the_outside_stays():
    x = normal(0, 3, 6, 4)

    def inside(x):
        return x[:, ::-1]

    assert (equivariance_error(lambda x: x.max(1), x, inside, lambda y: y) == 0).all()
    errors = equivariance_error(lambda x: x[:, 0], x, inside, lambda y: y)
    expected = np.linalg.norm(x[:, -1] - x[:, 0], axis=1) / np.linalg.norm(x[:, 0], axis=1)
    np.testing.assert_allclose(errors, expected, rtol=1e-5)


def test_the_error_is_relative():
    x = normal(0, 3, 6)
    errors = [
        equivariance_error(lambda x, size=size: size * jnp.cumsum(x, 1), x, lambda x: x[:, ::-1])
        for size in (1.0, 1000.0)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-5)


@pytest.mark.parametrize("stride, by, exact", [(1, 3, True), (2, 4, True), (2, 1, False)])
def test_a_convolution_moves_with_its_input_as_far_as_its_stride_allows(stride, by, exact):
    x = jnp.pad(normal(0, 2, 6, 6, 2), ((0, 0), (0, 0), (6, 6), (0, 0)))
    kernel = normal(1, 3, 3, 2, 4)
    error = equivariance_error(
        lambda x: F.conv(x, kernel, stride=stride),
        x,
        lambda x: shift(x, (0, by)),
        lambda y: shift(y, (0, by // stride)),
    )
    assert (error < 1e-5).all() if exact else (error > 0.1).all()


def test_it_can_be_differentiated_and_compiled():
    x = normal(0, 3, 6)

    def loss(weights):
        return equivariance_error(lambda x: x * weights, x, lambda x: x[:, ::-1]).sum()

    weights = normal(1, 6)
    gradient = jax.jit(jax.grad(loss))(weights)
    step = 1e-2 * normal(2, 6)
    slope = (loss(weights + step) - loss(weights - step)) / 2
    np.testing.assert_allclose(jnp.vdot(gradient, step), slope, rtol=2e-2)
