"""Gated positional attention against loops over single numbers in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from attnconv import functional as F

pytestmark = pytest.mark.slow

B, T, S, N, K = 2, 4, 5, 3, 2


def random_case(seed=0, *, heads=N, dtype=np.float32):
    """Query, key, value, position, gate."""
    rng = np.random.default_rng(seed)
    shapes = [(B, T, N, K), (B, S, N, K), (B, S, N, K), (heads, T, S), (N,)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def softmax(scores):
    """Of the scores of the keys that are there, `{j: score}`; of nothing, nothing."""
    powers = {j: math.exp(score) for j, score in scores.items()}
    total = sum(powers.values())
    return {j: power / total for j, power in powers.items() if total}


def loops(query, key, value, position, gate, mask=None, scale=None):
    query, key, value, position, gate = map(np.float64, (query, key, value, position, gate))
    scale = 1 / math.sqrt(K) if scale is None else scale
    there = np.broadcast_to(True if mask is None else mask, (B, N, T, S))
    position = np.broadcast_to(position, (N, T, S))
    y = np.zeros((B, T, N, K))
    for b, n, i in itertools.product(range(B), range(N), range(T)):
        keys = [j for j in range(S) if there[b, n, i, j]]
        share = 1 / (1 + math.exp(-gate[n]))
        by_content = softmax({j: scale * query[b, i, n] @ key[b, j, n] for j in keys})
        by_position = softmax({j: position[n, i, j] for j in keys})
        for j in keys:
            weight = (1 - share) * by_content[j] + share * by_position.get(j, 0)
            y[b, i, n] += weight * value[b, j, n]
    return y


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(np.float64(actual), np.float64(expected), tolerance, tolerance)


def mask_of(*shape):
    mask = np.random.default_rng(9).random(shape) < 0.6
    mask[..., 0] = True
    return jnp.asarray(mask)


MASKS = {
    "none": None,
    "keys of each example": mask_of(B, 1, 1, S),
    "pairs": mask_of(T, S),
    "heads": mask_of(1, N, 1, S),
    "all axes": mask_of(B, N, T, S),
}


@pytest.mark.parametrize("heads", [1, N])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_is_what_loops_say(mask, heads, scale):
    arrays, mask = random_case(heads=heads), MASKS[mask]
    expected = loops(*arrays, mask, scale)

    def attend(*arrays):
        return F.gated_positional_attention(*arrays, mask, scale=scale)

    close(attend(*arrays), expected)
    close(jax.jit(attend)(*arrays), expected)


def test_one_example_without_a_batch_axis():
    query, key, value, position, gate = random_case()
    mask = mask_of(N, T, S)
    whole = F.gated_positional_attention(query, key, value, position, gate, mask)
    one = F.gated_positional_attention(query[1], key[1], value[1], position, gate, mask)
    close(one, whole[1])


def test_gates_at_infinity_leave_one_of_the_two():
    query, key, value, position, _ = random_case()
    mask = MASKS["all axes"]

    def attend(gate):
        return F.gated_positional_attention(query, key, value, position, jnp.full(N, gate), mask)

    close(attend(-jnp.inf), F.dot_product_attention(query, key, value, mask=mask), 1e-6)
    by_position = F.dot_product_attention(0 * query, key, value, position[None], mask)
    close(attend(jnp.inf), by_position)
    close(attend(0.0), (attend(-jnp.inf) + attend(jnp.inf)) / 2)


@pytest.mark.parametrize("gate", [-jnp.inf, jnp.inf])
def test_gradients_at_infinite_gates_are_finite_and_those_of_one_of_the_two(gate):
    query, key, value, position, _ = random_case()
    gates = jnp.full(N, gate)

    def loss(*arrays):
        return jnp.sin(F.gated_positional_attention(*arrays)).sum()

    gradients = jax.jit(jax.grad(loss, range(5)))(query, key, value, position, gates)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)
    by_query, by_key, _, by_position, by_gate = gradients
    assert (by_gate == 0).all(), "the gate is where its sigmoid is flat"
    idle = (by_query, by_key) if gate > 0 else (by_position,)
    busy = (by_position,) if gate > 0 else (by_query, by_key)
    assert all((g == 0).all() for g in idle)
    assert all((g != 0).any() for g in busy)


@pytest.mark.parametrize("heads", [1, N])
def test_gradients_of_both_modes_and_of_second_order(heads):
    with jax.enable_x64(True):
        arrays = random_case(heads=heads, dtype=np.float64)
        mask = MASKS["all axes"]
        attend = jax.jit(lambda *arrays: F.gated_positional_attention(*arrays, mask))
        y = attend(*arrays)
        assert y.dtype == jnp.float64
        close(y, loops(*arrays, mask), 1e-13)
        check_grads(attend, arrays, order=2, atol=1e-5, rtol=1e-5)


def test_a_query_whose_every_key_is_masked_gets_zeros_with_zero_gradients():
    arrays = random_case()
    mask = jnp.ones((T, S), bool).at[1].set(False)

    def attend(*arrays):
        return F.gated_positional_attention(*arrays, mask)

    def loss(*arrays):
        return (attend(*arrays)[:, 1] ** 2).sum() + (attend(*arrays)[:, 1]).sum()

    with jax.debug_nans(True):
        y = attend(*arrays)
        gradients = jax.grad(loss, range(5))(*arrays)
    assert (y[:, 1] == 0).all() and (y[:, 0] != 0).all()
    assert all((g == 0).all() for g in gradients)


def test_positions_that_exclude_a_key_exclude_it_for_position_only():
    query, key, value, position, gate = random_case()
    position = position.at[:, :, 0].set(-jnp.inf).at[0, 2].set(-jnp.inf)
    assert position[0, 2].max() == -jnp.inf, "of this query nothing is left"
    expected = np.zeros((B, T, N, K))
    share = 1 / (1 + np.exp(-np.float64(gate)))[:, None]
    content = np.float64(F.dot_product_attention(query, key, value))
    for b, i, n in itertools.product(range(B), range(T), range(N)):
        weights = softmax(
            {j: float(position[n, i, j]) for j in range(1, S) if position[n, i, j] > -jnp.inf}
        )
        expected[b, i, n] = sum((w * np.float64(value[b, j, n]) for j, w in weights.items()), 0)
    expected = (1 - share) * content + share * expected
    close(F.gated_positional_attention(query, key, value, position, gate), expected)

    def loss(position):
        return jnp.sin(F.gated_positional_attention(query, key, value, position, gate)).sum()

    gradient = jax.grad(loss)(position)
    assert jnp.isfinite(gradient).all() and (gradient[:, :, 0] == 0).all()


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision(dtype, tolerance):
    arrays = random_case(dtype=dtype)
    y = F.gated_positional_attention(*arrays)
    assert y.dtype == dtype
    close(y, loops(*arrays), tolerance)
    mixed = F.gated_positional_attention(*arrays[:3], *random_case()[3:])  # as parameters are
    assert mixed.dtype == dtype, "the output follows the query"

    def loss(*arrays):
        return (F.gated_positional_attention(*arrays).astype(jnp.float32) ** 2).sum()

    wide = [x.astype(jnp.float32) for x in arrays]
    gradient = jax.jit(jax.grad(loss, range(5)))
    gradients = (gradient(*of) for of in (arrays, wide))
    for x, actual, expected in zip(arrays, *gradients, strict=True):
        assert actual.dtype == x.dtype
        close(actual, expected, 8 * tolerance)


def test_scores_of_positions_beyond_the_range_of_float16():
    query, key, value, _, gate = random_case(dtype="float16")
    position = jnp.full((1, T, S), -1e6).at[..., 3].set(1e6)
    y = F.gated_positional_attention(query, key, value, position, jnp.full_like(gate, jnp.inf))
    close(y, jnp.broadcast_to(value[:, 3:4], y.shape), 0)


def test_vmap_and_scan_equal_the_batch():
    query, key, value, position, gate = random_case()
    expected = F.gated_positional_attention(query, key, value, position, gate)

    def one(arrays):
        return F.gated_positional_attention(*arrays, position, gate)

    close(jax.vmap(one)((query, key, value)), expected)
    _, scanned = jax.lax.scan(lambda c, x: (c, one(x)), 0, (query, key, value))
    close(scanned, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"position": jnp.zeros((N, S, T))}, r"position: expected \[3\|1, 4, 5\], got \[3, 5, 4\]"),
        ({"position": jnp.zeros((2, T, S))}, r"position: expected .*, got \[2, 4, 5\]"),
        ({"position": jnp.zeros((T, S))}, r"position: expected .*, got \[4, 5\]"),
        ({"gate": jnp.zeros(N + 1)}, r"gate: expected \[3\], got \[4\]"),
        ({"mask": jnp.zeros((T, S))}, "mask: expected a boolean array"),
        ({"mask": jnp.zeros((S, T), bool)}, r"mask: expected shape .* got \[5, 4\]"),
        ({"key": jnp.zeros((B, S, N, K + 1))}, "key: expected shape"),
    ],
)
def test_errors_name_argument_expected_and_came(monkeypatch, change, message):
    # The checks of the tests would refuse a wrong shape before the function's own message.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    names = ("query", "key", "value", "position", "gate")
    with pytest.raises(ValueError, match=message):
        F.gated_positional_attention(**dict(zip(names, random_case(), strict=True)) | change)
