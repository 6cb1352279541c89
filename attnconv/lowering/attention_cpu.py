"""Dot-product attention on a CPU, in blocks of queries whose scores stay in the cache.

A loop over heads and blocks of queries. A block sees all of its keys at once where they are few,
else one block of keys after the other, with the softmax corrected as it goes (Milakov and
Gimelshein 2018, Online normalizer calculation for softmax; Dao 2023, FlashAttention-2, algorithms 1
and 2). Keys that causality, a window, lengths or a mask exclude at either end are not visited.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from attnconv.lowering.key_blocks import KeyBlocks, Window, block, corner
from attnconv.lowering.linear import alike
from attnconv.lowering.rules import Moving, Residual, residual_of

ROWS = 512  # queries in a block, forward; twice as many where all see the same few keys
ROWS_BACK = 256  # and backward, which holds twice as many numbers
# A block has the scores of all keys that any of its queries sees. T 4096, 8 heads of 64 features, 2
# cores, ms for 64, 256 and 512 queries in it: windows of 16 keys to both sides 17 36 41, and with
# gradients 90 135 139; of 64 keys 28 38 46 and 122 140 153. In wider ones no number is best.
NARROW, ROWS_NARROW = 128, 64  # keys beside its own that a query sees at most, and queries then


class Fixed(NamedTuple):
    """What only restricts."""

    mask: Bool[Array, "#B #N #T #S"] | None
    query_lengths: Int[Array, "B"] | None
    key_lengths: Int[Array, "B"] | None


def forward(
    moving: Moving, fixed: Fixed, *, is_causal: bool, window: Window
) -> tuple[Float[Array, "B T N K"], Residual]:
    """`y`, not rounded to half precision, and `log sum_j exp(score_ij)`, -inf where none holds."""
    query, key, value, bias, scale = moving
    B, T, N, K = query.shape
    unrestricted = not (is_causal or window or any(x is not None for x in fixed))
    rows = 2 * ROWS if unrestricted and key.shape[1] <= 4 * ROWS else ROWS
    rows = _rows_in(rows, key.shape[1], is_causal, window)
    blocks = KeyBlocks(T, key.shape[1], rows, fixed, is_causal, window)
    wide = scale.dtype
    least = float(jnp.finfo(wide).min)  # finite, so that a row without any key gives exp(-inf)

    def full(shape: tuple[int, ...], number: float = 0.0) -> Array:
        return alike(jnp.full(shape, number, wide), scale)[0]

    def head(index: Array, out: Any) -> Any:
        b, n = index // N, index % N
        g = n // (N // key.shape[2])
        keys, values = (_head(x, b, g).astype(wide) for x in (key, value))

        def of_block(i: Array, out: Any) -> Any:
            at = blocks.first_row(i)
            q = _rows(query, b, at, n, blocks.rows).astype(wide) * scale

            def visit(start: Array, width: int, attend: Array | None, carry: Any) -> Any:
                k, v = (lax.dynamic_slice_in_dim(x, start, width) for x in (keys, values))
                scores = _dot(q, k, 1, 1)
                if bias is not None:
                    scores += block(bias, b, n, at, start, blocks.rows, width).astype(wide)
                scores = scores if attend is None else jnp.where(attend, scores, -jnp.inf)
                top = scores.max(axis=1, initial=least)
                if carry is not None:
                    top = jnp.maximum(top, carry[0])
                powers = jnp.exp(scores - top[:, None])
                total, y = powers.sum(axis=1), _dot(powers, v, 1, 0)
                if carry is not None:
                    old = jnp.exp(carry[0] - top)
                    total, y = total + old * carry[1], y + old[:, None] * carry[2]
                return top, total, y

            nothing = full((blocks.rows,), least), full((blocks.rows,)), full((blocks.rows, K))
            top, total, y = blocks.visit(b, n, i, visit, nothing)
            # The largest power is 1: a sum below 1 is that of a row without any key.
            y = y / jnp.maximum(total, 1)[:, None]
            found = y, *(x[:, None] for x in residual_of(top, total))
            return tuple(_put(x, part, b, at, n) for x, part in zip(out, found, strict=True))

        return lax.fori_loop(0, blocks.count, of_block, out)

    empty = full(query.shape), full((B, T, N, 1)), full((B, T, N, 1))
    y, log, factor = lax.fori_loop(0, B * N, head, empty)
    return y, Residual(log[..., 0], factor[..., 0])


def backward(
    moving: Moving,
    fixed: Fixed,
    y: Float[Array, "B T N K"],
    residual: Residual,
    ct: Float[Array, "B T N K"],
    *,
    is_causal: bool,
    window: Window,
) -> Moving:
    """The gradient of `<forward(moving)[0], ct>`; the weights are computed again from the residual.

    With `p_ij` the weights: `dv_j = sum_i p_ij ct_i`, `ds_ij = p_ij ct_i . (v_j - y_i)`,
    `dq_i = scale sum_j ds_ij k_j`, `dk_j = scale sum_i ds_ij q_i`, and the bias has ds.
    """
    query, key, value, bias, scale = moving
    B, T, N, K = query.shape
    S, G = key.shape[1:3]
    # The gradient of a bias is as large as all scores.
    even = bias is not None
    rows = _rows_in(ROWS_BACK, S, is_causal, window)
    blocks = KeyBlocks(T, S, rows, fixed, is_causal, window, even=even)
    wide = scale.dtype

    def zeros(shape: tuple[int, ...]) -> Array:
        return alike(jnp.zeros(shape, wide), scale)[0]

    def head(index: Array, out: Any) -> Any:
        b, n = index // N, index % N
        g = n // (N // G)
        keys, values = (_head(x, b, g).astype(wide) for x in (key, value))
        queries, cts, ys = (_head(x, b, n).astype(wide) for x in (query, ct, y))
        queries = queries * scale
        logs, factors = (_head(x[..., None], b, n) for x in residual)
        logs, cts = jnp.where(logs == -jnp.inf, 0, logs)[:, 0], cts * factors
        offsets = (cts * ys).sum(axis=1)
        # XLA's products are slow where the longer matrix is transposed, so the shorter ones are.
        queries_t, cts_t = queries.T, cts.T

        def of_block(i: Array, carry: Any) -> Any:
            dquery, dbias, dkey_t, dvalue_t = carry
            at = blocks.first_row(i)
            q, c, offset, log = (
                lax.dynamic_slice_in_dim(x, at, blocks.rows) for x in (queries, cts, offsets, logs)
            )
            new = blocks.is_new(i)  # rows that the block before has not had already
            c_new = c if new is None else jnp.where(new[:, None], c, 0)
            q_t, c_t = (
                lax.dynamic_slice_in_dim(x, at, blocks.rows, axis=1) for x in (queries_t, cts_t)
            )
            if new is not None:
                c_t, offset = jnp.where(new, c_t, 0), jnp.where(new, offset, 0)

            def visit(start: Array, width: int, attend: Array | None, carry: Any) -> Any:
                dq, dbias, dkey_t, dvalue_t = carry
                k, v = (lax.dynamic_slice_in_dim(x, start, width) for x in (keys, values))
                scores = _dot(q, k, 1, 1)
                if bias is not None:
                    scores += block(bias, b, n, at, start, blocks.rows, width).astype(wide)
                scores = scores if attend is None else jnp.where(attend, scores, -jnp.inf)
                p = jnp.exp(scores - log[:, None])
                dscores = p * (_dot(c_new, v, 1, 1) - offset[:, None])
                if bias is not None:
                    dbias = _add_block(dbias, dscores, b, n, at, start)
                dvalue_t = _add(dvalue_t, _dot(c_t, p, 1, 0), start)
                dkey_t = _add(dkey_t, _dot(q_t, dscores, 1, 0), start)
                return dq + _dot(dscores, k, 1, 0), dbias, dkey_t, dvalue_t

            before = zeros((blocks.rows, K)), dbias, dkey_t, dvalue_t
            dq, dbias, dkey_t, dvalue_t = blocks.visit(b, n, i, visit, before, summed=True)
            if new is not None:
                dq = dq + _rows(dquery, b, at, n, blocks.rows)
            return _put(dquery, dq, b, at, n), dbias, dkey_t, dvalue_t

        dquery, dkey, dvalue, dbias = out
        inner = dquery, dbias, zeros((K, S)), zeros((K, S))
        dquery, dbias, dkey_t, dvalue_t = lax.fori_loop(0, blocks.count, of_block, inner)
        dkey, dvalue = (
            _put(total, _head(total, b, g) + more.T, b, 0, g)
            for total, more in ((dkey, dkey_t), (dvalue, dvalue_t))
        )
        return dquery, dkey, dvalue, dbias

    start = zeros(query.shape), zeros(key.shape), zeros(key.shape)
    dbias = None if bias is None else zeros(bias.shape)
    dquery, dkey, dvalue, dbias = lax.fori_loop(0, B * N, head, (*start, dbias))
    return Moving(
        query=(dquery * scale).astype(query.dtype),
        key=dkey.astype(key.dtype),
        value=dvalue.astype(value.dtype),
        bias=None if bias is None else dbias.astype(bias.dtype),
        scale=(dquery * query.astype(wide)).sum(),
    )


def _rows_in(most: int, S: int, is_causal: bool, window: Window) -> int:
    """How many queries a block has: at most these, and few in a narrow window."""
    return min(most, ROWS_NARROW) if narrow(S, is_causal, window) else most


def narrow(S: int, is_causal: bool, window: Window) -> bool:
    """Whether a query sees so few of S keys that small blocks of queries are best."""
    if window is None:
        return False
    return window[0] + (0 if is_causal else window[1]) <= min(NARROW, S // 3)


def _dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())))


def _rows(x: Float[Array, "B T N K"], b: Array, at: Array, n: Array, rows: int) -> Array:
    return lax.dynamic_slice(x, (b, at, n, 0), (1, rows, 1, x.shape[3]))[0, :, 0]


def _head(x: Float[Array, "B T N K"], b: Array, n: Array) -> Float[Array, "T K"]:
    return _rows(x, b, jnp.zeros_like(b), n, x.shape[1])


def _put(out: Array, rows: Array, b: Array, at: Any, n: Array) -> Array:
    return lax.dynamic_update_slice(out, rows[None, :, None], (b, jnp.asarray(at, b.dtype), n, 0))


def _add(total: Float[Array, "K S"], more: Float[Array, "K s"], start: Array) -> Array:
    if more.shape == total.shape:
        return total + more
    before = lax.dynamic_slice_in_dim(total, start, more.shape[1], axis=1)
    return lax.dynamic_update_slice_in_dim(total, before + more, start, axis=1)


def _add_block(total: Array, scores: Array, b: Array, n: Array, at: Array, start: Array) -> Array:
    """Adds one block of scores to a bias, summed over the axes that the bias has one entry for."""
    axes = tuple(axis for axis in (0, 1) if total.shape[2 + axis] == 1)
    more = scores.sum(axis=axes, keepdims=True)[None, None]
    at_corner = corner(total.shape, b, n, at, start)
    before = lax.dynamic_slice(total, at_corner, more.shape)
    return lax.dynamic_update_slice(total, before + more, at_corner)
