"""Which blocks of keys a block of queries visits, and what is masked inside of them."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

Window = tuple[int, int] | None

WHOLE = 4096  # keys that a block of queries sees at once
SKIPPED = 512  # keys in a block where some blocks may be left out
INSIDE = 1024  # and where none of the block is


class KeyBlocks:
    """Blocks of `rows` queries, and for each the keys it needs, `width` at a time.

    The last block of either kind is moved back to end with the last row or key; what it shares with
    the block before is left out of it.
    """

    def __init__(self, T: int, S: int, rows: int, fixed: Any, is_causal: bool, window: Window):
        self.T, self.S, self.fixed = T, S, fixed
        # No key further than this behind a query, or ahead of it, is attended to.
        self.behind, self.ahead = (S + T, S + T) if window is None else window
        if is_causal:
            self.ahead = 0
        near = self.behind < T or self.ahead < S  # whether places restrict
        mask, _, key_lengths = fixed
        self.count = -(-T // rows)
        self.rows = -(-T // self.count)
        span = self.rows + self.behind + self.ahead
        dynamic = near or key_lengths is not None or mask is not None
        if span <= min(WHOLE, S):
            self.width = span
        elif dynamic and S > 2 * SKIPPED:
            self.width = SKIPPED
        else:
            self.width = -(-S // -(-S // WHOLE))
        self.alone = span <= self.width or self.width == S
        self.bounds = None if mask is None or self.alone else self._mask_bounds(mask)

    def first_row(self, i: Array) -> Array:
        """Where block i of the queries starts."""
        return jnp.minimum(i * self.rows, self.T - self.rows)

    def is_new(self, i: Array) -> Bool[Array, "rows"] | None:
        """The rows of block i that were not in the block before; None for all."""
        if self.count * self.rows == self.T:
            return None
        return self.first_row(i) + jnp.arange(self.rows) >= i * self.rows

    def visit(
        self,
        b: Array,
        n: Array,
        i: Array,
        step: Callable[[Array, int, Array | None, Any], Any],
        nothing: Any,
        *,
        summed: bool = False,
    ) -> Any:
        """Calls `step(start, width, attend, carry)` for each block of keys that block i needs.

        The block has `width` keys from `start` on, and `attend`, broadcast to `[rows, width]`, says
        which of its scores hold; None for all. Where one block has all keys, carry is None unless
        `summed`.
        """
        at, low, high = self.first_row(i), *self._range(b, n, i)
        if self.alone:
            start = jnp.clip(low, 0, self.S - self.width)
            attend = self._attend(b, n, at, start, start)
            return step(start, self.width, attend, nothing if summed else None)
        wide = max(self.width, min(INSIDE, self.S))
        whole = self._whole(b, i, low, high) // wide

        def inside(c: Array, carry: Any) -> Any:
            return step(c * wide, wide, None, carry)

        def at_edge(c: Array, carry: Any) -> Any:
            first = low + whole * wide + c * self.width
            start = jnp.minimum(first, self.S - self.width)
            return step(start, self.width, self._attend(b, n, at, start, first), carry)

        carry = lax.fori_loop(0, whole, inside, nothing)
        rest = jnp.maximum(high - low - whole * wide, 0)
        return lax.fori_loop(0, (rest + self.width - 1) // self.width, at_edge, carry)

    def _whole(self, b: Array, i: Array, low: Array, high: Array) -> Array:
        """How many of the first keys every query of block i attends to, if that can be told."""
        at = self.first_row(i)
        if self.fixed.mask is not None or self.behind < self.T:
            return jnp.zeros_like(at)
        whole = jnp.minimum(high, at + 1 + self.ahead) if self.ahead < self.S else high
        if self.fixed.query_lengths is not None:
            length = self.fixed.query_lengths[b].astype(at.dtype)
            whole = jnp.where(at + self.rows <= length, whole, 0)
        return whole

    def _attend(
        self, b: Array, n: Array, at: Array, start: Array, first: Array
    ) -> Bool[Array, "#rows #width"] | None:
        """Which scores of the block at row `at`, key `start` hold; keys before `first` do not."""
        rows = at + lax.broadcasted_iota(at.dtype, (self.rows, 1), 0)
        keys = start + lax.broadcasted_iota(at.dtype, (1, self.width), 1)
        mask, query_lengths, key_lengths = self.fixed
        attend = []
        if self.ahead < self.S:
            attend.append(keys <= rows + self.ahead)
        if self.behind < self.T:
            attend.append(keys >= rows - self.behind)
        if key_lengths is not None:
            attend.append(keys < key_lengths[b].astype(at.dtype))
        if query_lengths is not None:
            attend.append(rows < query_lengths[b].astype(at.dtype))
        if mask is not None:
            attend.append(block(mask, b, n, at, start, self.rows, self.width))
        if not self.alone:
            attend.append(keys >= first)
        return functools.reduce(operator.and_, attend) if attend else None

    def _range(self, b: Array, n: Array, i: Array) -> tuple[Array, Array]:
        """The first key that block i of the queries may attend to, and the end of them."""
        at = self.first_row(i)
        low, high = jnp.zeros_like(at), jnp.full_like(at, self.S)
        _, query_lengths, key_lengths = self.fixed
        if self.behind < self.T:
            low = jnp.maximum(low, at - self.behind)
        if self.ahead < self.S:
            high = jnp.minimum(high, at + self.rows + self.ahead)
        if key_lengths is not None:
            high = jnp.minimum(high, key_lengths[b].astype(at.dtype))
        if query_lengths is not None:
            high = jnp.where(at < query_lengths[b].astype(at.dtype), high, low)
        if self.bounds is not None:
            first, end = (x[tuple(corner(x.shape, b, n, i))] for x in self.bounds)
            low, high = jnp.maximum(low, first), jnp.minimum(high, end)
        return low, high

    def _mask_bounds(self, mask: Bool[Array, "#B #N #T #S"]) -> tuple[Array, Array]:
        """For each block of queries the first key that the mask lets through, and their end."""
        if mask.shape[2] > 1:
            starts = [min(i * self.rows, self.T - self.rows) for i in range(self.count)]
            parts = [mask[:, :, at : at + self.rows].any(axis=2) for at in starts]
            some = jnp.stack(parts, axis=2)
        else:
            some = mask
        some = jnp.broadcast_to(some, (*some.shape[:3], self.S))
        index = jnp.arange(self.S)
        return (
            jnp.where(some, index, self.S).min(axis=3),
            jnp.where(some, index + 1, 0).max(axis=3),
        )


def block(x: Array, b: Array, n: Array, at: Array, start: Array, rows: int, width: int) -> Array:
    """The entries of a bias or mask for one block of scores: `[rows|1, width|1]`."""
    extent = [1, 1, min(x.shape[2], rows), min(x.shape[3], width)]
    return lax.dynamic_slice(x, corner(x.shape, b, n, at, start), extent)[0, 0]


def corner(shape: tuple[int, ...], *indices: Array) -> list[Array]:
    """Where a block starts on each axis; the only place on an axis of size 1."""
    axes = zip(shape, indices, strict=True)
    return [index if size > 1 else jnp.zeros_like(index) for size, index in axes]
