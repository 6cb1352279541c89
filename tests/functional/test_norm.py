"""Normalisation against NumPy in float64 and the layers of Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv import functional as F
from attnconv.functional import norm


@pytest.fixture(autouse=True, params=["derived", "rule"], scope="module")
def derivative(request):
    """All tests with the derivative that JAX finds, and with ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "LARGE", 1 << 60 if request.param == "derived" else 0)
        jax.clear_caches()  # of what was traced the other way
        yield


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def standardised(x, epsilon, centre=True):
    """Each row of x [rows, values], in float64."""
    centred = x - x.mean(1, keepdims=True) if centre else x
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon)


def layer_norm(x, scale, bias, epsilon):
    return standardised(x.reshape(-1, x.shape[-1]), epsilon).reshape(x.shape) * scale + bias


def rms_norm(x, scale, bias, epsilon):
    return standardised(x.reshape(-1, x.shape[-1]), epsilon, centre=False).reshape(x.shape) * scale


def group_norm(x, scale, bias, epsilon):
    """Three groups, one image and group at a time."""
    y, width = np.empty_like(x), x.shape[-1] // 3
    for b in range(len(x)):
        for part in (slice(g * width, (g + 1) * width) for g in range(3)):
            values = x[b][..., part]
            y[b][..., part] = standardised(values.reshape(1, -1), epsilon).reshape(values.shape)
    return y * scale + bias


CASES = {
    "layer": (F.layer_norm, layer_norm, lambda **kw: nnx.LayerNorm(6, rngs=nnx.Rngs(0), **kw)),
    "rms": (
        lambda x, scale=None, bias=None, **kw: F.rms_norm(x, scale, **kw),
        rms_norm,
        lambda **kw: nnx.RMSNorm(6, rngs=nnx.Rngs(0), **kw),
    ),
    "group": (
        functools.partial(F.group_norm, groups=3),
        group_norm,
        lambda **kw: nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0), **kw),
    ),
}
each_norm = pytest.mark.parametrize("ours, oracle, twin", CASES.values(), ids=CASES)


@each_norm
@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    spatial=st.lists(st.integers(1, 5), max_size=3),
    epsilon=st.sampled_from([1e-6, 1e-5, 0.1]),
    offset=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_values(ours, oracle, twin, spatial, epsilon, offset, seed):
    x = normal(seed, (2, *spatial, 6)) + offset
    scale, bias = normal(seed + 1, (6,)), normal(seed + 2, (6,))
    weighted, plain = jax.jit(lambda *a: (ours(*a, epsilon=epsilon), ours(x, epsilon=epsilon)))(
        x, scale, bias
    )
    expected = oracle(*map(np.float64, (x, scale, bias)), epsilon)
    np.testing.assert_allclose(weighted, expected, atol=2e-5)
    np.testing.assert_allclose(plain, oracle(np.float64(x), 1.0, 0.0, epsilon), atol=2e-5)


@each_norm
def test_gradients_are_finite_differences(ours, oracle, twin):
    arrays = normal(0, (2, 3, 2, 6)), normal(1, (6,)), normal(2, (6,))
    ct = np.float64(normal(3, (2, 3, 2, 6)))
    _, vjp = jax.vjp(lambda *a: ours(*a, epsilon=1e-3), *arrays)
    for at, gradient in enumerate(vjp(jnp.asarray(ct, jnp.float32))):
        wide = [np.float64(a) for a in arrays]
        expected = np.empty(arrays[at].shape)
        for i in np.ndindex(*expected.shape):
            step = np.zeros_like(expected)
            step[i] = 1e-6
            up, down = (
                oracle(*[a + s * step if j == at else a for j, a in enumerate(wide)], 1e-3)
                for s in (1, -1)
            )
            expected[i] = np.sum(ct * (up - down)) / 2e-6
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


@each_norm
def test_is_that_of_flax(ours, oracle, twin):
    x = normal(0, (2, 4, 4, 6))
    stock = twin(epsilon=1e-4)
    stock.scale[...] = normal(1, (6,))
    bias = None
    if hasattr(stock, "bias"):
        bias = stock.bias[...] = normal(2, (6,))
    actual = ours(x, stock.scale[...], bias, epsilon=1e-4)
    np.testing.assert_allclose(actual, stock(x), atol=1e-5)


@each_norm
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(ours, oracle, twin, dtype):
    dtype = jnp.dtype(dtype)
    with jax.enable_x64(dtype == jnp.float64):
        x, scale, bias = normal(0, (2, 5, 6), dtype), normal(1, (6,)), normal(2, (6,))
        y = ours(x, scale, bias)
        assert y.dtype == dtype
        expected = oracle(*map(np.float64, (x, scale, bias)), 1e-6)
        eps = float(jnp.finfo(dtype).eps) * (1 if dtype.itemsize < 4 else 8)
        np.testing.assert_allclose(np.float64(y), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("name", ["layer", "group"])
def test_a_large_offset_costs_no_digits(name):
    ours, oracle, _ = CASES[name]
    x = normal(0, (2, 50, 6)) + 4096  # mean(x^2) - mean(x)^2 in float32 would be off by 2
    expected = oracle(np.float64(x), 1.0, 0.0, 1e-6)
    np.testing.assert_allclose(ours(x), expected, atol=2e-3)


def test_half_precision_statistics_are_float32():
    x = jnp.full((4, 300), 300.0, jnp.float16)  # squares and sums overflow float16
    np.testing.assert_array_equal(F.rms_norm(x), 1.0)
    np.testing.assert_array_equal(F.layer_norm(x), 0.0)
    np.testing.assert_array_equal(F.group_norm(x, groups=2), 0.0)


@each_norm
def test_a_constant_has_finite_gradients(ours, oracle, twin):
    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(ours(x))))(jnp.zeros((2, 3, 6)))
    assert jnp.isfinite(gradient).all()


@each_norm
def test_vmap_and_scan(ours, oracle, twin):
    x = normal(0, (3, 2, 5, 6))
    expected = np.stack([oracle(np.float64(one), 1.0, 0.0, 1e-6) for one in x])
    np.testing.assert_allclose(jax.vmap(ours)(x), expected, atol=2e-5)
    _, scanned = jax.lax.scan(lambda c, one: (c, ours(one)), 0, x)
    np.testing.assert_allclose(scanned, expected, atol=2e-5)


@each_norm
def test_errors_name_argument_expected_and_came(ours, oracle, twin):
    with pytest.raises(ValueError, match=r"scale: expected shape \(6,\), came \(1,\)"):
        ours(jnp.zeros((2, 6)), jnp.zeros(1))


@pytest.mark.parametrize("groups", [0, 4])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(ValueError, match=f"groups: .* divisor of the 6 channels .*, came {groups}"):
        F.group_norm(jnp.zeros((2, 6)), groups=groups)


def test_forward_and_reverse_mode_agree(derivative):
    x, dx, ct = (normal(seed, (5, 8)) for seed in range(3))
    _, dy = jax.jvp(F.layer_norm, (x,), (dx,))
    _, transpose = jax.vjp(F.layer_norm, x)
    np.testing.assert_allclose((dy * ct).sum(), (transpose(ct)[0] * dx).sum(), rtol=1e-4)
    hessian = jax.jacfwd(jax.grad(lambda x: (F.layer_norm(x) ** 3).sum()))(x[0])
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4)
