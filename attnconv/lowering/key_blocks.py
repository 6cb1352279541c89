"""Which blocks of keys a block of queries visits, and what is masked inside of them."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

Window = tuple[int, int] | None

WHOLE = 4096  # keys that a block of queries sees at once, at most
# Where some keys may be left out, the block is as wide as it must be, in steps. Causal, T 4096, 8
# heads of 64 features, 2 cores, ms: blocks of 512 and 1024 keys 90, steps of 512 up to 4096 65.
STEPS = 8
STEP = 256  # keys in a step, at least
EVEN = 512  # keys in a block where all are alike


class KeyBlocks:
    """Blocks of `rows` queries, and for each the keys it needs, `widths[-1]` or fewer at a time.

    The last block of either kind is moved back to end with the last row or key; what it shares with
    the block before is left out of it. With `even`, the blocks of keys that are visited one after
    the other are as wide as each other, and no visit is a branch, which would copy its carry.
    """

    def __init__(
        self,
        T: int,
        S: int,
        rows: int,
        fixed: Any,
        is_causal: bool,
        window: Window,
        *,
        even: bool = False,
    ):
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
        most = -(-S // -(-S // WHOLE))
        if span <= min(WHOLE, S):
            self.widths = [span]
        elif dynamic and even:
            self.widths = [min(EVEN, most)]
        elif dynamic:
            step = max(STEP, -(-most // STEPS))
            self.widths = [*range(step, most, step), most]
        else:
            self.widths = [most]
        self.alone = self.widths[-1] in (S, span)  # one visit has all keys
        single = self.alone and len(self.widths) == 1
        self.bounds = None if mask is None or single else self._mask_bounds(mask)

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

        def edge(first: Array, carry: Any) -> Any:
            """The keys from `first` on, up to `high` or the largest width."""

            def of_width(width: int) -> Any:
                start = jnp.clip(first, 0, self.S - width)
                return step(start, width, self._attend(b, n, at, start, first, width), carry)

            if len(self.widths) == 1:
                return of_width(self.widths[0])
            narrower = sum((high - first > width).astype(int) for width in self.widths[:-1])
            branches = [functools.partial(of_width, width) for width in self.widths]
            return lax.switch(narrower, branches)

        if self.alone:
            return edge(low, nothing if summed else None)
        most = self.widths[-1]
        whole = self._whole(b, i, low, high) // most
        carry = lax.fori_loop(0, whole, lambda c, carry: step(c * most, most, None, carry), nothing)
        first = low + whole * most
        count = (jnp.maximum(high - first, 0) + most - 1) // most
        return lax.fori_loop(0, count, lambda c, carry: edge(first + c * most, carry), carry)

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
        self, b: Array, n: Array, at: Array, start: Array, first: Array, width: int
    ) -> Bool[Array, "#rows #width"] | None:
        """Which scores of the block at row `at`, key `start` hold; keys before `first` do not."""
        rows = at + lax.broadcasted_iota(at.dtype, (self.rows, 1), 0)
        keys = start + lax.broadcasted_iota(at.dtype, (1, width), 1)
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
            attend.append(block(mask, b, n, at, start, self.rows, width))
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
