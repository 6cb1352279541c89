"""Local connection against loops in float64, jax.lax, and the convolution it generalises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from attnconv import functional as F


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def loops(x, kernel, bias, ct, *, stride, pads, dilation):
    """y and, for the cotangent ct, the gradients; one position and offset at a time."""
    x, kernel, bias, ct = map(np.float64, (x, kernel, bias, ct))
    rank = kernel.ndim // 2 - 1
    size, window = kernel.shape[:rank], kernel.shape[rank:-2]
    image = np.pad(x, [(0, 0), *pads, (0, 0)])
    y = np.zeros((len(x), *bias.shape)) + bias
    dimage, dkernel = np.zeros_like(image), np.zeros_like(kernel)
    for i in np.ndindex(*size):
        for k in np.ndindex(*window):
            at = tuple(a * s + b * d for a, s, b, d in zip(i, stride, k, dilation, strict=True))
            here = ct[(slice(None), *i)]
            y[(slice(None), *i)] += image[(slice(None), *at)] @ kernel[i + k]
            dimage[(slice(None), *at)] += here @ kernel[i + k].T
            dkernel[i + k] += image[(slice(None), *at)].T @ here
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(pads, x.shape[1:-1], strict=True))
    return y, dimage[(slice(None), *inner)], dkernel, ct.sum(0)


def assert_close(actual, expected, tolerance=1e-4):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=tolerance, atol=tolerance)


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    window, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    spatial = tuple(
        (k - 1) * d + extra for k, d, extra in zip(window, dilation, each(1, 4), strict=True)
    )
    pads = tuple(zip(each(0, 2), each(0, 2), strict=True))
    features, seed = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(st.integers(0, 99))
    size = tuple(
        len(range(0, n + sum(pad) - (k - 1) * d, s))
        for n, k, s, d, pad in zip(spatial, window, stride, dilation, pads, strict=True)
    )
    x, kernel = normal(seed, (2, *spatial, features[0])), normal(seed + 1, size + window + features)
    bias = normal(seed + 2, (*size, features[1]))
    return x, kernel, bias, {"stride": stride, "pads": pads, "dilation": dilation}


@settings(deadline=None, derandomize=True, max_examples=10)
@given(cases())
def test_values_and_gradients_are_those_of_loops(case):
    x, kernel, bias, options = case
    ct = normal(7, (2, *bias.shape))
    local = functools.partial(
        F.locally_connected,
        stride=options["stride"],
        padding=options["pads"],
        dilation=options["dilation"],
    )

    @jax.jit
    def value_and_vjp(*arrays):
        y, vjp = jax.vjp(local, *arrays)
        return y, *vjp(ct)

    assert_close(value_and_vjp(x, kernel, bias), loops(x, kernel, bias, ct, **options))


def test_one_image_without_a_batch_axis():
    x, kernel, bias = normal(0, (2, 4, 3)), normal(1, (4, 3, 3, 5)), normal(2, (4, 5))
    expected = F.locally_connected(x, kernel, bias)[0]
    assert_close([F.locally_connected(x[0], kernel, bias)], [expected], 1e-6)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_is_that_of_lax(padding):
    x, window = normal(0, (2, 9, 8, 3)), (3, 2)
    shape = F.local_kernel_shape((9, 8), window, 3, 4, stride=2, padding=padding)
    kernel = normal(1, shape)
    channels_lead = jnp.moveaxis(kernel, -2, 2).reshape(*shape[:2], 3 * 3 * 2, 4)
    expected = lax.conv_general_dilated_local(
        x, channels_lead, (2, 2), padding, window, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_close([F.locally_connected(x, kernel, stride=2, padding=padding)], [expected])


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", 1])
@pytest.mark.parametrize("stride, dilation", [(1, 1), ((1, 3), (2, 1))])
def test_is_the_convolution_when_all_positions_have_one_kernel(padding, stride, dilation):
    x, shared, bias = normal(0, (2, 8, 7, 3)), normal(1, (3, 2, 3, 4)), normal(2, (4,))
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = F.conv(x, shared, bias, **options)
    shape = F.local_kernel_shape((8, 7), (3, 2), 3, 4, **options)
    assert shape[:2] == expected.shape[1:-1]
    kernel = jnp.broadcast_to(shared, shape)
    tiled = jnp.broadcast_to(bias, expected.shape[1:])
    assert_close([F.locally_connected(x, kernel, tiled, **options)], [expected], 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(dtype):
    dtype = jnp.dtype(dtype)
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = normal(0, (2, 5, 4, 3), dtype), normal(1, (3, 2, 3, 3, 3, 4), dtype)
        ct = normal(2, (2, 3, 2, 4), dtype)

        @jax.jit
        def value_and_vjp(*arrays):
            y, vjp = jax.vjp(functools.partial(F.locally_connected, stride=2), *arrays)
            return y, *vjp(ct)

        actual = value_and_vjp(x, kernel)
        assert all(a.dtype == dtype for a in actual)
        geometry = {"stride": (2, 2), "pads": [(1, 1), (0, 1)], "dilation": (1, 1)}
        *expected, _ = loops(x, kernel, np.zeros((3, 2, 4)), ct, **geometry)
        assert_close(actual, expected, 4 * float(jnp.finfo(dtype).eps))


def test_half_precision_is_summed_in_float32():
    x, kernel = jnp.ones((1, 3, 512), jnp.bfloat16), jnp.ones((1, 3, 512, 1), jnp.bfloat16)
    assert F.locally_connected(x, kernel, padding="VALID") == 3 * 512


def test_vmap_over_kernels_and_scan():
    x, kernels = normal(0, (3, 6, 2)), normal(1, (4, 3, 3, 2, 5))
    local = functools.partial(F.locally_connected, stride=2)
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(local(x, k)))))
    expected = jnp.stack([gradient(k) for k in kernels])
    assert_close([jax.jit(jax.vmap(gradient))(kernels)], [expected])
    _, scanned = jax.jit(lambda ks: lax.scan(lambda c, k: (c, gradient(k)), 0, ks))(kernels)
    assert_close([scanned], [expected])


X, KERNEL = jnp.zeros((2, 8, 8, 4)), jnp.zeros((8, 8, 3, 3, 4, 6))


@pytest.mark.parametrize(
    "message, change",
    [
        (r"kernel: .* each of the \(4, 4\) positions, came \(8, 8\)", {"stride": 2}),
        ("kernel: expected the 4 channels of x, came 3", {"kernel": KERNEL[..., 1:, :]}),
        (r"kernel: .* 1, 2 or 3 window axes, came shape \(8, 3, 3, 4, 6\)", {"kernel": KERNEL[0]}),
        (r"x: .* with 2 spatial axes, came shape \(8, 4\)", {"x": X[0, 0]}),
        (r"image smaller than the kernel: .* came \(2, 8\)", {"x": X[:, :2], "padding": "VALID"}),
        ("unknown padding 'VALIT'; did you mean 'VALID'", {"padding": "VALIT"}),
        (r"bias: expected shape \(8, 8, 6\), came \(6,\)", {"bias": jnp.zeros(6)}),
        ("kernel: .* dtype of x, float32, came float16", {"kernel": KERNEL.astype(jnp.float16)}),
    ],
)
def test_errors_name_argument_expected_and_came(message, change):
    with pytest.raises(ValueError, match=message):
        F.locally_connected(**{"x": X, "kernel": KERNEL} | change)


def test_kernel_shape_of_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match=r"image smaller than the kernel: .* came \(2,\)"):
        F.local_kernel_shape((2,), (3,), 1, 1, padding="VALID")
