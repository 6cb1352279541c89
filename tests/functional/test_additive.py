"""Additive attention against loops, differences and the whole matrix."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from attnconv.functional import additive_attention, masks


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, tolerance, tolerance)


@pytest.fixture
def without_runtime_types(monkeypatch):
    """The checks of the tests would refuse a wrong shape before the function's own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def additive_loops(query, key, value, w_query, w_key, w_score, bias, mask):
    B, T, N, _ = query.shape
    S = key.shape[1]
    y = np.zeros((B, T, N, value.shape[-1]))
    for b, n, i in itertools.product(range(B), range(N), range(T)):
        powers = {}
        for j in range(S):
            if mask[b, 0, 0, j]:
                hidden = np.tanh(query[b, i, n] @ w_query[n] + key[b, j, n] @ w_key[n])
                powers[j] = np.exp(w_score[n] @ hidden + bias[0, n, i, j])
        for j, power in powers.items():
            y[b, i, n] += power / sum(powers.values()) * value[b, j, n]
    return y


@pytest.mark.parametrize(
    ("T", "S", "N", "K", "C", "O", "D"), [(1, 4, 1, 3, 2, 5, 4), (3, 2, 2, 4, 4, 1, 3)]
)
def test_additive_loops(T, S, N, K, C, O, D):  # noqa: E741
    """The second example has no key at all."""
    rng = np.random.default_rng(S)
    mask = masks.padding(jnp.array([S - 1, 0]), S)
    shapes = [(2, T, N, K), (2, S, N, C), (2, S, N, O), (N, K, D), (N, C, D), (N, D), (1, N, T, S)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    expected = additive_loops(*arrays, mask)
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    actual = jax.jit(additive_attention)(*arrays, mask)
    close(actual, expected)
    assert (actual[1] == 0).all()
    query, key, value, *weights, bias = arrays
    one = additive_attention(query[0], key[0], value[0], *weights, bias, mask[:1])
    close(one, expected[0])


def test_additive_gradients():
    shapes = [(2, 3, 2, 4), (2, 5, 2, 3), (2, 5, 2, 6), (2, 4, 7), (2, 3, 7), (2, 7), (1, 2, 3, 5)]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        arrays = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        mask = masks.padding(jnp.array([3, 0]), 5)
        attend = jax.jit(lambda *arrays: additive_attention(*arrays, mask))
        check_grads(attend, arrays, order=1)
        gradients = jax.grad(lambda *arrays: (attend(*arrays) ** 2).sum(), range(7))(*arrays)
        for gradient in gradients[:3]:
            assert (gradient[0] != 0).any() and (gradient[1] == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_additive_dtypes(dtype, tolerance):
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 2, 4), (2, 5, 2, 3), (2, 5, 2, 6), (2, 4, 7), (2, 3, 7), (2, 7)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    y = additive_attention(*arrays)
    assert y.dtype == dtype
    close(
        y.astype(jnp.float32), additive_attention(*[x.astype("float32") for x in arrays]), tolerance
    )


def test_additive_errors_name_the_argument(without_runtime_types):
    x, w, w_score = jnp.zeros((5, 2, 3)), jnp.zeros((2, 3, 4)), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"w_key: expected shape \[2, 3, 4\], got \[2, 4, 4\]"):
        additive_attention(x, x, x, w, jnp.zeros((2, 4, 4)), w_score)
    with pytest.raises(ValueError, match=r"value: expected shape \[5, 2, O\], got \[4, 2, 3\]"):
        additive_attention(x, x, x[:4], w, w, w_score)
    with pytest.raises(ValueError, match=r"mask: .* \[1, 2, 5, 5\], .* got \[4, 5\]"):
        additive_attention(x, x, x, w, w, w_score, mask=jnp.ones((4, 5), bool))
