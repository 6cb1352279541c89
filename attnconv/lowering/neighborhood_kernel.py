"""Neighborhood attention in Pallas kernels, by Triton on CUDA: scores never leave the chip.

A program has a tile of one head: `R` queries, for which it goes over the run of keys that they see,
or in the gradient of keys and values `R` keys and the run of queries that see them; `C` of a run at
a time, read where they lie. What a query sees follows from the places, so that nothing is tabled.
Sizes are those with which ptxas for Hopper keeps all in registers, or nearly.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from attnconv.lowering import rules
from attnconv.lowering.choice import note
from attnconv.lowering.neighborhood import Tiles
from attnconv.lowering.rules import Moving, plain_gradient
from attnconv.lowering.tiles import Axis, Tiling

ROWS = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # positions of a tile along each axis
RUN = 64  # positions of a run that are taken at once, with vectors of up to SHORT bytes; else fewer
SHORT, LONG = 128, 512  # bytes of a vector: those of most programs, and the most there may be
AFAR = 1 << 30  # before the first position, where no window reaches
LEAST = 16  # features, which Triton's products need; their number is a power of two


def attention(
    moving: Moving, tiling: tuple[Tiling, ...]
) -> tuple[Float[Array, "B *grid N K"], Float[Array, "B *grid N"]]:
    """As `neighborhood.attention`, of whose tiling it takes the axes."""
    if (size := _bytes(moving.query)) > LONG:
        raise ValueError(
            f"query: expected features of at most {LONG} bytes, their number rounded up to a power "
            f"of 2, with implementation 'pallas', got {size}"
        )
    tile = "x".join(map(str, ROWS[len(tiling)]))
    reason = f"implementation is 'pallas'; tiles of {tile}, {_run(moving.query)} keys at once"
    note("neighborhood_attention", "any", "kernel", reason)
    return rules.attend(Kernel(tiling), moving, ())


@dataclasses.dataclass(frozen=True)
class Kernel(Tiles):
    """The same on every platform; where it is not CUDA, Pallas interprets the kernels.

    All is written in the dtype of the query: to move it takes about as long as to compute it.
    """

    everywhere: ClassVar[bool] = True

    def plain(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        y, residual = super().plain(moving, fixed)
        return y.astype(moving.query.dtype), residual

    def forward(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        del fixed
        query, key, value, bias, scale = moving
        flat = [_flat(x) for x in (query, key, value)]
        y, residual = _call(
            functools.partial(_attend, self._axes(), self._by_place(bias)),
            [*flat, _table(bias, scale.dtype), scale.reshape(1)],
            [flat[0], jax.ShapeDtypeStruct(flat[0].shape[:-1], scale.dtype)],
            self._grid(query),
        )
        return y.reshape(query.shape), residual.reshape(query.shape[:-1])

    def backward(self, moving: Moving, fixed: Any, y: Array, residual: Array, ct: Array) -> Moving:
        """The bias has the gradient of the plain form."""
        query, key, value, bias, scale = moving
        wide, axes, by_place = scale.dtype, self._axes(), self._by_place(bias)
        flat = [_flat(x) for x in (query, key, value, ct)]
        of_rows = jax.ShapeDtypeStruct(flat[0].shape[:-1], wide)
        mean = (ct.astype(wide) * y.astype(wide)).sum(axis=-1)
        logs = jnp.where(residual == -jnp.inf, 0, residual)
        rows = [x.reshape(of_rows.shape) for x in (logs, mean)]
        arrays = [*flat, *rows, _table(bias, wide), scale.reshape(1)]
        of_queries = functools.partial(_of_queries, axes, by_place)
        dquery, along = _call(of_queries, arrays, [flat[0], of_rows], self._grid(query))
        of_keys = functools.partial(_of_keys, axes, by_place)
        dkey, dvalue = _call(of_keys, arrays, flat[1:3], self._grid(key))
        return Moving(
            dquery.reshape(query.shape),
            dkey.reshape(key.shape),
            dvalue.reshape(value.shape),
            None if bias is None else plain_gradient(self, moving, fixed, ct).bias,
            along.sum(),
        )

    def _axes(self) -> tuple[Axis, ...]:
        return tuple(t.axis for t in self.tiling)

    def _by_place(self, bias: Array | None) -> bool:
        return bias is not None and bias.shape[1:] == tuple(t.axis.window for t in self.tiling)

    def _grid(self, x: Float[Array, "B *grid N K"]) -> tuple[int, int, int]:
        """A program for each tile of each group of positions, head and example."""
        axes = self._axes()
        return math.prod(_counts(axes)), x.shape[-2], x.shape[0]


class _Tile:
    """The tile of a program: its group of positions, and where along each axis it begins."""

    def __init__(self, axes: Sequence[Axis], number: Array):
        at = _unravel(number, _counts(axes))
        self.axes, self.rows = axes, ROWS[len(axes)]
        self.residues, numbers = at[: len(axes)], at[len(axes) :]
        self.starts = [i * rows for i, rows in zip(numbers, self.rows, strict=True)]
        # Positions of this group along each axis.
        self.lengths = [
            (axis.size - r + axis.dilation - 1) // axis.dilation
            for axis, r in zip(axes, self.residues, strict=True)
        ]

    def own(self) -> "_Places":
        """The positions of the tile itself."""
        count = math.prod(self.rows)
        local = _unravel(jnp.arange(count), self.rows)
        at = [start + i for start, i in zip(self.starts, local, strict=True)]
        return _Places(self, at, jnp.full(count, True))

    def run(self, length: int, *, of_keys: bool) -> tuple[Array, Callable[[Array], "_Places"]]:
        """How many parts of a length the run of keys that the tile sees has, and part i of it.

        With `of_keys` the tile is one of keys, and the run that of the queries that see it.
        """
        low, extents = [], []
        for axis, start, rows, n in zip(
            self.axes, self.starts, self.rows, self.lengths, strict=True
        ):
            last = jnp.minimum(start + rows, n) - 1
            if of_keys:
                first = start - axis.window + 1 + axis.before
                end = last + axis.before + 1
                if axis.shift:
                    first = jnp.where(start < axis.window, 0, first)
                    end = jnp.where(last >= n - axis.window, n, end)
            else:
                first, end = (_first(axis, i, n) for i in (start, last))
                end += axis.window
            first, end = jnp.maximum(first, 0), jnp.minimum(end, n)
            low.append(first)
            extents.append(jnp.where(last < start, 0, jnp.maximum(end - first, 0)))
        size = functools.reduce(operator.mul, extents)

        def part(i: Array) -> _Places:
            number = i * length + jnp.arange(length)
            local = _unravel(number, [jnp.maximum(n, 1) for n in extents])
            at = [first + i for first, i in zip(low, local, strict=True)]
            return _Places(self, at, number < size)

        return (size + length - 1) // length, part


class _Places:
    """Positions of a group, along each axis, and which of them there are."""

    def __init__(self, tile: _Tile, at: list[Array], there: Bool[Array, "R"]):
        self.at, self.there = at, there
        self.flat = jnp.zeros_like(at[0])
        for axis, residue, n, i in zip(tile.axes, tile.residues, tile.lengths, at, strict=True):
            self.there &= i < n
            self.flat = self.flat * axis.size + i * axis.dilation + residue

    def read(self, x: Any, b: Array, n: Array) -> Float[Array, "R K"]:
        at, there = self._of_features(x, b, n)
        return triton.load(x.at[at], mask=there, other=0)

    def write(self, x: Any, b: Array, n: Array, rows: Float[Array, "R K"]) -> None:
        at, there = self._of_features(x, b, n)
        triton.store(x.at[at], rows.astype(x.dtype), mask=there)

    def read_one(self, x: Any, b: Array, n: Array) -> Float[Array, "R"]:
        return triton.load(x.at[b, self.flat, n], mask=self.there, other=0)

    def write_one(self, x: Any, b: Array, n: Array, rows: Float[Array, "R"]) -> None:
        triton.store(x.at[b, self.flat, n], rows, mask=self.there)

    def _of_features(self, x: Any, b: Array, n: Array) -> tuple[tuple, Bool[Array, "R K"]]:
        K = x.shape[-1]
        features = jnp.arange(max(LEAST, pl.next_power_of_2(K)))[None]
        return (b, self.flat[:, None], n, features), self.there[:, None] & (features < K)


def _scores(
    tile: _Tile,
    by_place: bool,
    queries: _Places,
    keys: _Places,
    q: Float[Array, "R K"],
    k: Float[Array, "C K"],
    n: Array,
    table: Any,
    scale: Array,
    *,
    of_keys: bool = False,
) -> Float[Array, "I J"]:
    """Scaled and biased, -inf where a query does not see a key: `[R, C]`, or `[C, R]` of keys."""
    per_query, per_key = (1, 0) if not of_keys else (0, 1)  # the axis that is broadcast

    def expand(x: Array, axis: int) -> Array:
        return lax.expand_dims(x, (axis,))

    a, b = (k, q) if of_keys else (q, k)
    scores = _dot(a, b.T, scale.dtype) * scale
    seen = []
    entry = jnp.zeros((), jnp.int32)
    for axis, length, i, j in zip(tile.axes, tile.lengths, queries.at, keys.at, strict=True):
        # What is not there is taken care of here, for there are far fewer of these than scores.
        i, j = jnp.minimum(i, length - 1), jnp.where(keys.there, j, -AFAR)
        place = expand(j, per_key) - expand(_first(axis, i, length), per_query)
        seen.append(place.astype(jnp.uint32) < axis.window)  # not below 0, too
        if by_place:
            entry = entry * axis.window + place
        else:
            offset = expand(j, per_key) - expand(i, per_query) + axis.window - 1
            entry = entry * (2 * axis.window - 1) + offset
    both = functools.reduce(operator.and_, seen)
    if table is not None:
        scores += triton.load(table.at[n, jnp.where(both, entry, 0)], mask=both, other=0)
    return jnp.where(both, scores, -jnp.inf)


def _attend(axes, by_place, query, key, value, table, scale, y, residual):
    tile, n, b = _Tile(axes, pl.program_id(0)), pl.program_id(1), pl.program_id(2)
    g, scale = n // (query.shape[2] // key.shape[2]), scale[0]
    wide, own = scale.dtype, tile.own()
    q = own.read(query, b, n)
    count, part = tile.run(_run(query), of_keys=False)
    least = float(jnp.finfo(wide).min)  # finite, so that a row without any key gives exp(-inf)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, y = carry
        keys = part(i)
        k, v = keys.read(key, b, g), keys.read(value, b, g)
        scores = _scores(tile, by_place, own, keys, q, k, n, table, scale)
        new = jnp.maximum(top, scores.max(axis=1))
        powers, old = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        total = total * old + powers.sum(axis=1)
        return new, total, y * old[:, None] + _dot(powers.astype(v.dtype), v, wide)

    R = q.shape[0]
    start = jnp.full((R,), least, wide), jnp.zeros((R,), wide), jnp.zeros(q.shape, wide)
    top, total, rows = lax.fori_loop(0, count, step, start)
    # The largest power is 1: a sum below 1 is that of a row without any key.
    own.write(y, b, n, rows / jnp.maximum(total, 1)[:, None])
    own.write_one(residual, b, n, top + jnp.log(total))


def _of_queries(axes, by_place, query, key, value, ct, logs, mean, table, scale, dquery, along):
    """`dq_i = scale sum_j ds_ij k_j` with `ds_ij = p_ij (ct_i . v_j - ct_i . y_i)`.

    `along` is `dq_i . q_i / scale`, which the scale has its gradient from.
    """
    tile, n, b = _Tile(axes, pl.program_id(0)), pl.program_id(1), pl.program_id(2)
    g, scale = n // (query.shape[2] // key.shape[2]), scale[0]
    wide, own = scale.dtype, tile.own()
    q, c = own.read(query, b, n), own.read(ct, b, n)
    log, offset = own.read_one(logs, b, n), own.read_one(mean, b, n)
    count, part = tile.run(_run(query), of_keys=False)

    def step(i: Array, total: Array) -> Array:
        keys = part(i)
        k, v = keys.read(key, b, g), keys.read(value, b, g)
        scores = _scores(tile, by_place, own, keys, q, k, n, table, scale)
        weights = jnp.exp(scores - log[:, None])
        dscores = weights * (_dot(c, v.T, wide) - offset[:, None])
        return total + _dot(dscores.astype(k.dtype), k, wide)

    total = lax.fori_loop(0, count, step, jnp.zeros(q.shape, wide))
    own.write(dquery, b, n, total * scale)
    own.write_one(along, b, n, (total * q.astype(wide)).sum(axis=1))


def _of_keys(axes, by_place, query, key, value, ct, logs, mean, table, scale, dkey, dvalue):
    """`dk_j = scale sum_i ds_ij q_i` and `dv_j = sum_i p_ij ct_i`, over the heads that share j."""
    tile, g, b = _Tile(axes, pl.program_id(0)), pl.program_id(1), pl.program_id(2)
    share, scale = query.shape[2] // key.shape[2], scale[0]
    wide, own = scale.dtype, tile.own()
    k, v = own.read(key, b, g), own.read(value, b, g)
    count, part = tile.run(_run(query), of_keys=True)

    def step(i: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        n, queries = g * share + i // count, part(i % count)
        q, c = queries.read(query, b, n), queries.read(ct, b, n)
        log, offset = queries.read_one(logs, b, n), queries.read_one(mean, b, n)
        scores = _scores(tile, by_place, queries, own, q, k, n, table, scale, of_keys=True)
        weights = jnp.exp(scores - log[None])
        dscores = weights * (_dot(v, c.T, wide) - offset[None])
        return (
            total[0] + _dot(dscores.astype(q.dtype), q, wide),
            total[1] + _dot(weights.astype(c.dtype), c, wide),
        )

    nothing = jnp.zeros(k.shape, wide), jnp.zeros(k.shape, wide)
    dk, dv = lax.fori_loop(0, share * count, step, nothing)
    own.write(dkey, b, g, dk * scale)
    own.write(dvalue, b, g, dv)


def _call(
    kernel: Callable[..., None],
    arrays: Sequence[Array | None],
    out: Sequence[Any],
    grid: tuple[int, int, int],
) -> Sequence[Array]:
    """The results of a kernel, shaped as `out`; an array that is None is given to it as None."""
    given = [x for x in arrays if x is not None]

    def fill(*refs: Any) -> None:
        rest = iter(refs)
        kernel(*(None if x is None else next(rest) for x in arrays), *rest)

    def run(*given: Array, interpret: bool) -> Sequence[Array]:
        varying = jax.typeof(given[0]).manual_axis_type  # under `shard_map`
        return pl.pallas_call(
            fill,
            out_shape=[
                jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in out
            ],
            grid=grid,
            interpret=interpret,
            compiler_params=triton.CompilerParams(
                num_warps=4 if _bytes(given[0]) < LONG else 8,
                # Pipelined, the gathers of a bias would fill the registers.
                num_stages=1 if len(given) == len(arrays) else 2,
            ),
        )(*given)

    kernels = functools.partial(run, interpret=False)
    return lax.platform_dependent(
        *given, cuda=kernels, default=functools.partial(run, interpret=True)
    )


def _dot(a: Array, b: Array, wide: Any) -> Array:
    """Products of float32 in six of bfloat16: as exact, and a matrix unit has these."""
    exact = lax.DotAlgorithmPreset.BF16_BF16_F32_X6 if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=exact, preferred_element_type=wide)


def _bytes(query: Any) -> int:
    """Of a vector, with the features that a program adds to it."""
    return max(LEAST, pl.next_power_of_2(query.shape[-1])) * query.dtype.itemsize


def _run(query: Any) -> int:
    return min(RUN, RUN * SHORT // _bytes(query))


def _first(axis: Axis, query: Array, length: Array) -> Array:
    """The first place of a query's window, which may lie before the first position."""
    first = query - axis.before
    return jnp.clip(first, 0, length - axis.window) if axis.shift else first


def _counts(axes: Sequence[Axis]) -> list[int]:
    """Groups, then tiles of a group, along each axis."""
    tiles = [-(-axis.length // rows) for axis, rows in zip(axes, ROWS[len(axes)], strict=True)]
    return [*(axis.dilation for axis in axes), *tiles]


def _unravel(number: Int[Array, "..."], sizes: Sequence[Any]) -> list[Array]:
    """Where a number of row-major order is along each axis."""
    at: list[Array] = []
    for size in reversed(sizes[1:]):
        at.append(number % size)
        number = number // size
    return [number, *reversed(at)]


def _flat(x: Float[Array, "B *grid N K"]) -> Float[Array, "B T N K"]:
    return x.reshape(len(x), -1, *x.shape[-2:])


def _table(bias: Array | None, dtype: Any) -> Float[Array, "N E"] | None:
    return None if bias is None else bias.astype(dtype).reshape(len(bias), -1)
