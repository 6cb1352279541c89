"""Neighborhood attention in kernels: what a query sees follows from the places, nothing is tabled.

Along each axis positions fall into groups, as in `tiles`; a tile is a box of positions of one.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from attnconv.lowering import attention_loops
from attnconv.lowering.attention_loops import Backward, Places, Sizes, Tile, dot, rows_of
from attnconv.lowering.kernels import call, iota, unravel
from attnconv.lowering.rules import Moving, Residual
from attnconv.lowering.tiles import Axis, Tiling

BOX = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # positions of a tile along each axis
# H200, B 64, 56 x 56, N 8, K 64, bfloat16, window 7, ms: y 0.65, dq 0.94, dk and dv 1.12; with 64
# of a run and two stages 0.77, 1.03, 1.42; with tiles of 16 x 8 0.94 to 1.45, 1.35, 1.55.
SIZES = Sizes(64, 32, 4, 1)
OF_LONG = Sizes(64, 16, 8, 1)  # what longer vectors than those measured leave room for
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
        y, residual = attention_loops.forward(
            self._layout(moving.bias), _flat(moving), _table(moving), interpret=self.interpret
        )
        log, factor = (x.reshape(moving.query.shape[:-1]) for x in residual)
        return y.reshape(moving.query.shape), Residual(log, factor)

    def backward(
        self, moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        del fixed
        layout, table = self._layout(moving.bias), _table(moving)
        log, factor = (_one_axis(x[..., None])[..., 0] for x in residual)
        gradient, given = attention_loops.backward(
            layout,
            _flat(moving),
            table,
            _one_axis(y),
            Residual(log, factor),
            _one_axis(ct),
            interpret=self.interpret,
        )
        dbias = None
        if moving.bias is not None:
            assert table is not None
            found = _bias_gradient(layout, given, table, interpret=self.interpret)
            dbias = found.reshape(moving.bias.shape).astype(moving.bias.dtype)
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
        residues, starts, lengths = self._box(number)
        rows = BOX[len(self.axes)]

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

    def columns(self, number: Array) -> tuple[Int[Array, "R E"], Bool[Array, "R E"]]:
        """Where in the run of a tile the key is that has an entry of the bias, and whether it is.

        For each query of the tile, and each entry.
        """
        _, starts, lengths = self._box(number)
        rows, low, extents = BOX[len(self.axes)], *self._run(starts, lengths, of_keys=False)
        local = unravel(iota(math.prod(rows)), rows)
        column, there = jnp.zeros((1, 1), jnp.int32), jnp.full((1, 1), True)
        for axis, start, size, at, first, extent in zip(
            self.axes, starts, lengths, local, low, extents, strict=True
        ):
            i = (start + at)[:, None]
            least = _first(axis, jnp.minimum(i, size - 1), size)
            if self.by_place:
                j = least + iota(axis.window)[None]
            else:
                j = i + iota(2 * axis.window - 1)[None] - (axis.window - 1)
            seen = (i < size) & (j >= 0) & (j < size) & (j >= least) & (j < least + axis.window)
            shape = len(i), -1
            column = (column[:, :, None] * extent + (j - first)[:, None]).reshape(shape)
            there = (there[:, :, None] & seen[:, None]).reshape(shape)
        return column, there

    def most(self) -> int:
        """Positions that the run of a tile of queries has at most."""
        pairs = zip(self.axes, BOX[len(self.axes)], strict=True)
        return math.prod(min(r + axis.window - 1, axis.length) for axis, r in pairs)

    def _box(self, number: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """Of a tile, along each axis: which group it is of, its start, the group's length."""
        at = unravel(number, self._counts())
        residues, numbers = at[: len(self.axes)], at[len(self.axes) :]
        starts = [i * r for i, r in zip(numbers, BOX[len(self.axes)], strict=True)]
        lengths = [
            (axis.size - r + axis.dilation - 1) // axis.dilation
            for axis, r in zip(self.axes, residues, strict=True)
        ]
        return residues, starts, lengths

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


def _bias_gradient(
    layout: _Grid, given: Backward, table: Float[Array, "N E"], *, interpret: bool
) -> Float[Array, "N E"]:
    """`db_e = sum_ij ds_ij` over what has the entry, first of one tile in all examples."""
    N, sizes = given.query.shape[2], _sizes(given.query)
    tiles, parts = layout.tiles(sizes, of_keys=False), pl.cdiv(layout.most(), sizes.run)
    (sums,) = call(
        functools.partial(_of_tile, layout, sizes, parts),
        (given, table),
        [jax.ShapeDtypeStruct((N, tiles, sizes.own, parts * sizes.run), table.dtype)],
        (1, N, tiles * parts),
        warps=sizes.warps,
        stages=sizes.stages,
        interpret=interpret,
    )

    def add(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
        number, sums = tile
        column, there = layout.columns(number)
        found = jnp.take_along_axis(sums, jnp.where(there, column, 0)[None], axis=2)
        return total + jnp.where(there, found, 0).sum(axis=1), None

    numbers = jnp.arange(tiles, dtype=jnp.int32)
    return lax.scan(add, jnp.zeros_like(table), (numbers, sums.swapaxes(0, 1)))[0]


def _of_tile(layout, sizes, parts, b, n, number, given, table, sums):
    """`ds` of a tile and a part of its run, summed over the examples."""
    number, part = unravel(number, (layout.tiles(sizes, of_keys=False), parts))
    scale, wide = given.scale[0], given.scale.dtype
    g = n // (given.query.shape[2] // given.key.shape[2])

    def step(b: Array, total: Float[Array, "R C"]) -> Float[Array, "R C"]:
        b = b.astype(jnp.int32)
        tile = layout.tile(number, b, table, sizes, of_keys=False)
        keys = tile.part(part)
        rows = rows_of(given, tile.own, b, n)
        k, v = keys.read(given.key, b, g), keys.read(given.value, b, g)
        scores = tile.seen(dot(rows.query, k.T, wide) * scale, tile.own, keys, n)
        return total + rows.of_scores(scores, v)

    total = lax.fori_loop(0, len(given.query), step, jnp.zeros((sizes.own, sizes.run), wide))
    columns = part * sizes.run + iota(sizes.run)
    triton.store(sums.at[n, number, iota(sizes.own)[:, None], columns[None]], total)


def _sizes(query: Any) -> Sizes:
    return OF_LONG if attention_loops.size_of(query) > attention_loops.MEASURED else SIZES


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
