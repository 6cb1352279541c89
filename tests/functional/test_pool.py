"""Pools against loops in float64 and the reductions of jax.lax and Flax."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv import functional as F

POOLS = {F.max_pool: np.max, F.avg_pool: np.mean}


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def loops(x, ct, reduce, *, window, stride, pads):
    """y and dx: each window reduced over what it sees of the image; maxima must be unique."""
    x, ct = np.float64(x), None if ct is None else np.float64(ct)
    size = [
        len(range(0, n + lo + hi - k + 1, s))
        for n, k, s, (lo, hi) in zip(x.shape[1:-1], window, stride, pads, strict=True)
    ]
    y, dx = np.zeros((len(x), *size, x.shape[-1])), np.zeros_like(x)
    ct = np.ones_like(y) if ct is None else ct
    axes = tuple(range(1, x.ndim - 1))
    for i in np.ndindex(*size):
        start = [a * s - lo for a, s, (lo, _) in zip(i, stride, pads, strict=True)]
        at = (
            slice(None),
            *(slice(max(a, 0), a + k) for a, k in zip(start, window, strict=True)),
        )
        y[(slice(None), *i)] = reduced = reduce(x[at], axes)
        share = ct[(slice(None), *i)].reshape(len(x), *[1] * len(size), -1)
        if reduce is np.max:
            dx[at] += share * (x[at] == reduced.reshape(share.shape))
        else:
            dx[at] += share / np.prod(x[at].shape[1:-1])
    return y, dx


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    window, stride = each(1, 3), each(1, 4)
    spatial = tuple(k + extra for k, extra in zip(window, each(0, 4), strict=True))
    pads = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in window)
    x = normal(draw(st.integers(0, 99)), (2, *spatial, 3))
    return x, {"window": window, "stride": stride, "pads": pads}


@pytest.mark.parametrize("pool", POOLS)
@settings(deadline=None, derandomize=True, max_examples=6)
@given(case=cases())
def test_values_and_gradients_are_those_of_loops(pool, case):
    x, options = case
    ours = functools.partial(
        pool, **{"padding" if k == "pads" else k: v for k, v in options.items()}
    )
    ct = normal(5, jax.eval_shape(ours, x).shape)

    @jax.jit
    def value_and_vjp(x):
        y, vjp = jax.vjp(ours, x)
        return y, *vjp(ct)

    y, dx = value_and_vjp(x)
    expected = loops(x, ct, POOLS[pool], **options)
    assert y.shape == expected[0].shape
    np.testing.assert_allclose(y, expected[0], atol=1e-5)
    np.testing.assert_allclose(dx, expected[1], atol=1e-5)
    np.testing.assert_allclose(ours(x[0]), y[0], atol=1e-6)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window, stride", [((2, 2), None), ((3, 2), (2, 3)), ((1, 5), 3)])
def test_is_that_of_flax(window, stride, padding):
    x = normal(0, (2, 9, 7, 3))
    steps = window if stride is None else np.broadcast_to(stride, 2).tolist()
    options = {"strides": tuple(steps), "padding": padding}
    ours = functools.partial(F.max_pool, x, window, stride=stride, padding=padding)
    np.testing.assert_allclose(ours(), flax.linen.max_pool(x, window, **options))
    expected = flax.linen.avg_pool(x, window, count_include_pad=False, **options)
    average = F.avg_pool(x, window, stride=stride, padding=padding)
    np.testing.assert_allclose(average, expected, atol=1e-6)


@pytest.mark.parametrize("padding, mode", [("CIRCULAR", "wrap"), ("REFLECT", "reflect")])
@pytest.mark.parametrize("pool", POOLS)
def test_padding_from_the_image(pool, padding, mode):
    x = normal(0, (1, 6, 5, 2))
    image = np.pad(x, [(0, 0), (1, 1), (0, 1), (0, 0)], mode)
    none = {"stride": (1, 1), "pads": ((0, 0), (0, 0))}
    expected, _ = loops(image, None, POOLS[pool], window=(3, 2), **none)
    np.testing.assert_allclose(pool(x, (3, 2), stride=1, padding=padding), expected, atol=1e-6)


def test_padding_neither_wins_nor_counts():
    x = jnp.full((3, 3, 1), -2.0)
    for pool in POOLS:
        y = pool(x, (2, 2), stride=1, padding=1)
        np.testing.assert_array_equal(y, jnp.full((4, 4, 1), -2.0))


def test_equal_maxima_share_the_gradient():
    gradient = jax.grad(lambda x: F.max_pool(x, (2, 2)).sum())(jnp.zeros((4, 4, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((4, 4, 1), 0.25))
    for window, stride in ((3, 1), (16, 16), (17, 2), (17, 17)):
        x = jnp.zeros((51, 1))
        pull = jax.vjp(lambda x, w=window, s=stride: F.max_pool(x, (w,), stride=s), x)[1]
        for at in range((51 - window) // stride + 1):
            (part,) = pull(jnp.zeros(((51 - window) // stride + 1, 1)).at[at].set(1))
            assert part.min() >= 0
            own = part[at * stride : at * stride + window].sum()
            np.testing.assert_allclose([own, part.sum()], 1, rtol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(pool, dtype):
    dtype = jnp.dtype(dtype)
    with jax.enable_x64(dtype == jnp.float64):
        x = normal(0, (2, 6, 4, 3), dtype)
        y = pool(x, (3, 2))
        expected, _ = loops(x, None, POOLS[pool], window=(3, 2), stride=(3, 2), pads=((0, 0),) * 2)
        assert y.dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.float64(y), expected, rtol=eps, atol=eps)


def test_half_precision_is_averaged_in_float32():
    x = jnp.ones((600, 1), jnp.bfloat16).at[300:].set(3)  # bfloat16 sums of ones stop at 256
    assert F.avg_pool(x, (600,)) == 2


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("stride", [1, 7, 20, 40])
def test_large_windows(pool, stride):
    x, options = normal(0, (2, 48, 3)), {"window": (20,), "stride": (stride,)}
    ct = normal(1, (2, len(range(0, 48 + 3 - 19, stride)), 3))
    y, vjp = jax.vjp(functools.partial(pool, padding=[(2, 1)], **options), x)
    expected = loops(x, ct, POOLS[pool], pads=[(2, 1)], **options)
    np.testing.assert_allclose(y, expected[0], atol=1e-5)
    np.testing.assert_allclose(vjp(ct)[0], expected[1], atol=1e-5)


def test_vmap_and_scan():
    x = normal(0, (3, 2, 6, 6, 2))

    @jax.jit
    @jax.grad
    def gradient(x):
        return jnp.sum(jnp.sin(F.avg_pool(F.max_pool(x, (2, 2), stride=1), (3, 3))))

    expected = np.stack([gradient(one) for one in x])
    np.testing.assert_allclose(jax.vmap(gradient)(x), expected, atol=1e-6)
    _, scanned = jax.jit(lambda x: jax.lax.scan(lambda c, one: (c, gradient(one)), 0, x))(x)
    np.testing.assert_allclose(scanned, expected, atol=1e-6)


X = jnp.zeros((2, 8, 8, 4))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "message, change",
    [
        (r"x: .* with 1 spatial axes, came shape \(2, 8, 8, 4\)", {"window": (2,)}),
        (r"image smaller than the kernel: .* \(9, 2\) .*, came \(8, 8\)", {"window": (9, 2)}),
        (r"window: expected a positive int, .*, came \(0, 2\)", {"window": (0, 2)}),
        ("stride: expected a positive int, .*, came 0", {"stride": 0}),
        ("stride: expected an int, or several, came 2.0", {"stride": 2.0}),
        (r"window: expected one number for each spatial axis, came 2", {"window": 2}),
        ("unknown padding 'SANE'; did you mean 'SAME'", {"padding": "SANE"}),
        (r"padding: expected less than the window \(2, 2\) .*, came \(\(2, 2\)", {"padding": 2}),
    ],
)
def test_errors_name_argument_expected_and_came(pool, message, change, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        pool(X, **{"window": (2, 2)} | change)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_padding_is_below_all_numbers_of_a_dtype_without_infinity(dtype):
    y = F.max_pool(jnp.array([[-1.0], [-2.0], [-3.0]], dtype), (2,), stride=1, padding="SAME")
    assert y.astype("float32").ravel().tolist() == [-1, -2, -3]
