"""Neighborhood attention in kernels: what a query sees follows from the places, nothing is tabled.

Along each axis positions fall into groups, as in `tiles`; a tile is a box of positions of one.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from attnconv.lowering import kernels
from attnconv.lowering.kernels import Places, Sizes, Tile, iota, unravel
from attnconv.lowering.neighborhood_tiles import Tiles
from attnconv.lowering.rules import Moving, Residual, plain_gradient
from attnconv.lowering.tiles import Axis, Tiling

BOX = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # positions of a tile along each axis
# H200, B 64, 56 x 56, N 8, K 64, bfloat16, window 7, ms: y 0.65, dq 0.94, dk and dv 1.12; with 64
# of a run and two stages 0.77, 1.03, 1.42; with tiles of 16 x 8 0.94 to 1.45, 1.35, 1.55.
SIZES = Sizes(64, 32, 4, 1)
LONG, OF_LONG = 256, Sizes(64, 16, 8, 1)  # bytes of a vector, and what longer ones leave room for
AFAR = 1 << 30  # before the first position, where no window reaches


def tiles(query: Any, rank: int) -> str:
    """What the programs take at once."""
    return f"tiles of {'x'.join(map(str, BOX[rank]))}, {_sizes(query).run} keys at once"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels, on CUDA or, very slowly, interpreted.

    As one batch under `vmap` they have no gradient of a scale.
    """

    tiling: tuple[Tiling, ...]
    interpret: bool = False
    folds: bool = False

    def forward(self, moving: Moving, fixed: Any) -> tuple[Array, Residual]:
        del fixed
        y, residual = kernels.forward(
            self._layout(moving.bias), _flat(moving), _table(moving), interpret=self.interpret
        )
        log, factor = (x.reshape(moving.query.shape[:-1]) for x in residual)
        return y.reshape(moving.query.shape), Residual(log, factor)

    def backward(
        self, moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        """The bias has the gradient of the plain form."""
        log, factor = (_one_axis(x[..., None])[..., 0] for x in residual)
        gradient, _ = kernels.backward(
            self._layout(moving.bias),
            _flat(moving),
            _table(moving),
            _one_axis(y),
            Residual(log, factor),
            _one_axis(ct),
            interpret=self.interpret,
        )
        dbias = None
        if moving.bias is not None:
            dbias = plain_gradient(Tiles(self.tiling), moving, fixed, ct).bias
        query, key, value = (
            dx.reshape(x.shape) for dx, x in zip(gradient[:3], moving[:3], strict=True)
        )
        return Moving(query, key, value, dbias, gradient.scale)

    def _layout(self, bias: Array | None) -> "_Grid":
        axes = tuple(t.axis for t in self.tiling)
        if bias is None:
            return _Grid(axes, None)
        return _Grid(axes, bias.shape[1:] == tuple(axis.window for axis in axes))


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The layout of a grid of positions; the bias is a table of entries.

    Attributes:
      axes: the windows.
      by_place: whether the entries are those of places in the window, or of offsets; None of none.
    """

    axes: tuple[Axis, ...]
    by_place: bool | None

    def sizes(self, query: Any, *, of_keys: bool) -> Sizes:
        del of_keys
        return _sizes(query)

    def tiles(self, sizes: Sizes, *, of_keys: bool) -> int:
        del sizes, of_keys
        return math.prod(self._counts())

    def tile(self, number: Array, b: Array, more: Any, sizes: Sizes, *, of_keys: bool) -> Tile:
        del b
        at = unravel(number, self._counts())
        residues, numbers = at[: len(self.axes)], at[len(self.axes) :]
        rows = BOX[len(self.axes)]
        starts = [i * r for i, r in zip(numbers, rows, strict=True)]
        lengths = [
            (axis.size - r + axis.dilation - 1) // axis.dilation
            for axis, r in zip(self.axes, residues, strict=True)
        ]

        def places(at: list[Array], there: Array) -> Places:
            flat = jnp.zeros_like(at[0])
            for axis, residue, size, i in zip(self.axes, residues, lengths, at, strict=True):
                there &= i < size
                flat = flat * axis.size + i * axis.dilation + residue
            return Places(flat, there, tuple(at))

        count = math.prod(rows)
        local = unravel(iota(count), rows)
        own = places([s + i for s, i in zip(starts, local, strict=True)], jnp.full(count, True))
        low, extents = self._run(starts, lengths, of_keys=of_keys)
        total = functools.reduce(operator.mul, extents)

        def part(i: Array) -> Places:
            number = i * sizes.run + iota(sizes.run)
            local = unravel(number, [jnp.maximum(n, 1) for n in extents])
            return places([first + i for first, i in zip(low, local, strict=True)], number < total)

        def seen(scores: Array, queries: Places, keys: Places, n: Array) -> Array:
            return self._seen(scores, queries, keys, lengths, more, n, of_keys=of_keys)

        return Tile(own, (total + sizes.run - 1) // sizes.run, part, seen)

    def _counts(self) -> list[int]:
        """Groups, then tiles of a group, along each axis."""
        pairs = zip(self.axes, BOX[len(self.axes)], strict=True)
        return [*(axis.dilation for axis in self.axes), *(-(-a.length // r) for a, r in pairs)]

    def _run(
        self, starts: list[Array], lengths: list[Array], *, of_keys: bool
    ) -> tuple[list[Array], list[Array]]:
        """The first position of the run along each axis, and how many it has."""
        low, extents = [], []
        for axis, start, rows, size in zip(
            self.axes, starts, BOX[len(self.axes)], lengths, strict=True
        ):
            last = jnp.minimum(start + rows, size) - 1
            if of_keys:
                first = start - axis.window + 1 + axis.before
                end = last + axis.before + 1
                if axis.shift:
                    first = jnp.where(start < axis.window, 0, first)
                    end = jnp.where(last >= size - axis.window, size, end)
            else:
                first, end = (_first(axis, i, size) for i in (start, last))
                end += axis.window
            first, end = jnp.maximum(first, 0), jnp.minimum(end, size)
            low.append(first)
            extents.append(jnp.where(last < start, 0, jnp.maximum(end - first, 0)))
        return low, extents

    def _seen(
        self,
        scores: Array,
        queries: Places,
        keys: Places,
        lengths: list[Array],
        table: Any,
        n: Array,
        *,
        of_keys: bool,
    ) -> Array:
        per_query, per_key = (0, 1) if of_keys else (1, 0)  # the axis that is broadcast
        seen = []
        entry = jnp.zeros((), jnp.int32)  # of the bias
        for axis, size, i, j in zip(self.axes, lengths, queries.at, keys.at, strict=True):
            # What is not there is taken care of here: there are far fewer of these than scores.
            i, j = jnp.minimum(i, size - 1), jnp.where(keys.there, j, -AFAR)
            first = lax.expand_dims(_first(axis, i, size), (per_query,))
            i, j = lax.expand_dims(i, (per_query,)), lax.expand_dims(j, (per_key,))
            place = j - first
            seen.append(place.astype(jnp.uint32) < axis.window)  # not below 0, too
            if self.by_place:
                entry = entry * axis.window + place
            else:
                entry = entry * (2 * axis.window - 1) + j - i + axis.window - 1
        both = functools.reduce(operator.and_, seen)
        if table is not None:
            scores += triton.load(table.at[n, jnp.where(both, entry, 0)], mask=both, other=0)
        return jnp.where(both, scores, -jnp.inf)


def _sizes(query: Any) -> Sizes:
    return OF_LONG if kernels.size_of(query) > LONG else SIZES


def _first(axis: Axis, query: Array, size: Array) -> Array:
    """The first place of a query's window, which may lie before the first position."""
    first = query - axis.before
    return jnp.clip(first, 0, size - axis.window) if axis.shift else first


def _one_axis(x: Float[Array, "B *grid N K"]) -> Float[Array, "B T N K"]:
    return x.reshape(len(x), -1, *x.shape[-2:])


def _flat(moving: Moving) -> Moving:
    query, key, value = (_one_axis(x) for x in moving[:3])
    return moving._replace(query=query, key=key, value=value)


def _table(moving: Moving) -> Float[Array, "N E"] | None:
    if moving.bias is None:
        return None
    return moving.bias.astype(moving.scale.dtype).reshape(len(moving.bias), -1)
