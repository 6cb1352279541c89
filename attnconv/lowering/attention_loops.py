"""Attention in Pallas kernels, whichever query sees which key: scores never leave the chip.

A program has a tile of one head: `R` queries, for which it goes over the run of keys that they see,
or in the gradient of keys and values `R` keys and the run of queries that see them; `C` of a run at
a time, read where they lie. A layout says where tiles and runs are, and which query sees which key.
Their sizes are the fastest of those measured on an H200 that keep all in registers, or nearly.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from attnconv.lowering import kernels
from attnconv.lowering.kernels import call, iota
from attnconv.lowering.rules import Moving, Residual, residual_of

MEASURED, MOST = 256, 512  # bytes of a vector: up to which sizes were measured, and at most
LEAST = 16  # features, which Triton's products need; their number is a power of two


class Sizes(NamedTuple):
    """What a program takes at once.

    Attributes:
      own: positions of a tile.
      run: positions of a part of a run.
      warps: how many share the program.
      stages: how many parts are there at once, as the next ones are read ahead.
    """

    own: int
    run: int
    warps: int
    stages: int


class Places(NamedTuple):
    """Some positions of a sequence.

    Attributes:
      flat: where they lie.
      there: whether there is such a position.
      at: the same along each axis of a grid, as the layout counts them.
    """

    flat: Int[Array, "R"]
    there: Bool[Array, "R"]
    at: tuple[Int[Array, "R"], ...] = ()

    def read(self, x: Any, b: Array, n: Array) -> Float[Array, "R K"]:
        at, there = self._of_features(x, b, n)
        return triton.load(x.at[at], mask=there, other=0.0)

    def write(self, x: Any, b: Array, n: Array, rows: Float[Array, "R K"]) -> None:
        at, there = self._of_features(x, b, n)
        triton.store(x.at[at], rows.astype(x.dtype), mask=there)

    def read_one(self, x: Any, b: Array, n: Array, other: float) -> Float[Array, "R"]:
        return triton.load(x.at[b, self.flat, n], mask=self.there, other=other)

    def write_one(self, x: Any, b: Array, n: Array, rows: Float[Array, "R"]) -> None:
        triton.store(x.at[b, self.flat, n], rows, mask=self.there)

    def _of_features(self, x: Any, b: Array, n: Array) -> tuple[tuple, Bool[Array, "R K"]]:
        K = x.shape[-1]
        features = iota(max(LEAST, pl.next_power_of_2(K)))[None]
        return (b, self.flat[:, None], n, features), self.there[:, None] & (features < K)


class Tile(NamedTuple):
    """What a program is about: its own positions, and the run of the others.

    Attributes:
      own: the positions.
      parts: how many the run has.
      part: part i of it.
      seen: `(scores, own or part, part or own, n)`: the scores of these queries and keys with the
        bias of head n, -inf where a query does not see a key. They are `[queries, keys]`, or where
        the tile is one of keys `[keys, queries]`.
    """

    own: Places
    parts: Array
    part: Callable[[Array], Places]
    seen: Callable[[Array, Places, Places, Array], Array]


@runtime_checkable
class Layout(Protocol):
    """Hashable: all of a call but its arrays."""

    def sizes(self, query: Any, *, of_keys: bool) -> Sizes:
        """Those of programs with a tile of queries like this one, or of its keys."""

    def tiles(self, sizes: Sizes, *, of_keys: bool) -> int:
        """How many tiles a head has."""

    def tile(self, number: Array, b: Array, more: Any, sizes: Sizes, *, of_keys: bool) -> Tile:
        """A tile of queries, or of keys, of example b.

        `more` is what the layout has read, such as a bias.
        """


def forward(
    layout: Layout, moving: Moving, more: Any, *, interpret: bool
) -> tuple[Float[Array, "B T N K"], Residual]:
    """`y` and the residual, in the dtype of sums; all arrays have one axis of positions."""
    query, key, value, _, scale = moving
    rows = jax.ShapeDtypeStruct(query.shape[:-1], scale.dtype)
    sizes = layout.sizes(query, of_keys=False)
    y, *residual = call(
        functools.partial(_attend, layout, sizes),
        (query, key, value, more, scale.reshape(1)),
        [query, rows, rows],
        (len(query), query.shape[2], layout.tiles(sizes, of_keys=False)),
        warps=sizes.warps,
        stages=sizes.stages,
        interpret=interpret,
    )
    # y is written in the dtype of the query: to move it takes about as long as to compute it.
    return y.astype(scale.dtype), Residual(*residual)


class Backward(NamedTuple):
    """What the kernels of the gradient read, but for what the layout does."""

    query: Float[Array, "B T N K"]
    key: Float[Array, "B S G K"]
    value: Float[Array, "B S G K"]
    ct: Float[Array, "B T N K"]
    logs: Float[Array, "B T N"]
    mean: Float[Array, "B T N"]
    scale: Float[Array, "1"]


class Rows(NamedTuple):
    """What the gradient of some queries of a head is reckoned from."""

    query: Float[Array, "R K"]
    ct: Float[Array, "R K"]
    log: Float[Array, "R"]
    offset: Float[Array, "R"]

    def of_scores(
        self, scores: Float[Array, "R C"], value: Float[Array, "C K"]
    ) -> Float[Array, "R C"]:
        """`ds_ij = p_ij (ct_i . v_j - ct_i . y_i)`."""
        products = dot(self.ct, value.T, scores.dtype)
        return kernels.exp(scores - self.log[:, None]) * (products - self.offset[:, None])


def rows_of(given: Backward, queries: Places, b: Array, n: Array) -> Rows:
    log = queries.read_one(given.logs, b, n, jnp.inf)
    offset = queries.read_one(given.mean, b, n, 0.0)
    return Rows(queries.read(given.query, b, n), queries.read(given.ct, b, n), log, offset)


def backward(
    layout: Layout,
    moving: Moving,
    more: Any,
    y: Array,
    residual: Residual,
    ct: Array,
    *,
    interpret: bool,
) -> tuple[Moving, Backward]:
    """The gradient but for that of the bias, and what another kernel needs for it."""
    query, key, value, _, scale = moving
    log, factor = residual
    ct = ct * factor[..., None]
    given = Backward(
        query,
        key,
        value,
        ct.astype(query.dtype),
        # Weights are zero where no key is seen, as everywhere with this logarithm.
        jnp.where(log == -jnp.inf, jnp.inf, log),
        (ct * y).sum(axis=-1),
        scale.reshape(1),
    )
    sizes = layout.sizes(query, of_keys=False)
    dquery, along = call(
        functools.partial(_of_queries, layout, sizes),
        (given, more),
        [query, jax.ShapeDtypeStruct(query.shape[:-1], scale.dtype)],
        (len(query), query.shape[2], layout.tiles(sizes, of_keys=False)),
        warps=sizes.warps,
        stages=sizes.stages,
        interpret=interpret,
    )
    sizes = layout.sizes(query, of_keys=True)
    dkey, dvalue = call(
        functools.partial(_of_keys, layout, sizes),
        (given, more),
        [key, value],
        (len(key), key.shape[2], layout.tiles(sizes, of_keys=True)),
        warps=sizes.warps,
        stages=sizes.stages,
        interpret=interpret,
    )
    return Moving(dquery, dkey, dvalue, None, along.sum()), given


def size_of(query: Any) -> int:
    """Bytes of a vector, with the features that a program adds to it."""
    return max(LEAST, pl.next_power_of_2(query.shape[-1])) * query.dtype.itemsize


def refusal(moving: Moving) -> str | None:
    """Why another form than kernels is taken where nobody asks for them; None if they are."""
    query, key, value, *_ = moving
    rules = (
        (query.dtype in kernels.FLOATS, f"dtype {query.dtype}"),
        (query.dtype == key.dtype == value.dtype, "arrays of several dtypes"),
        (size_of(query) <= MEASURED, f"K = {query.shape[-1]} in {query.dtype}"),
    )
    broken = next((reason for holds, reason in rules if not holds), None)
    return kernels.missing() if broken is None else broken


def promoted(moving: Moving) -> Moving:
    """With query, key and value in one dtype, as products need them, of two bytes at least.

    Raises:
      ValueError: vectors are too long for the chip.
    """
    dtype = jnp.result_type(*moving[:3])
    if dtype.itemsize == 1:
        dtype = jnp.dtype(jnp.bfloat16)
    if dtype.itemsize > moving.scale.dtype.itemsize:  # float64, of which there are no products
        dtype = moving.scale.dtype
    query, key, value = (x.astype(dtype) for x in moving[:3])
    if (size := size_of(query)) > MOST:
        raise ValueError(
            f"query: expected features of at most {MOST} bytes, their number rounded up to a power "
            f"of 2, with implementation 'pallas', got {size}"
        )
    return moving._replace(query=query, key=key, value=value)


def dot(a: Array, b: Array, wide: Any) -> Array:
    """Products of float32 in six of bfloat16: as exact, and a matrix unit has these."""
    exact = lax.DotAlgorithmPreset.BF16_BF16_F32_X6 if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=exact, preferred_element_type=wide)


def _attend(layout, sizes, b, n, number, query, key, value, more, scale, y, log, factor):
    scale = scale[0]
    wide, g = scale.dtype, n // (query.shape[2] // key.shape[2])
    tile = layout.tile(number, b, more, sizes, of_keys=False)
    q = tile.own.read(query, b, n)
    least = float(jnp.finfo(wide).min)  # finite, so that a row without any key gives exp(-inf)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, y = carry
        keys = tile.part(i)
        k, v = keys.read(key, b, g), keys.read(value, b, g)
        scores = tile.seen(dot(q, k.T, wide) * scale, tile.own, keys, n)
        new = jnp.maximum(top, scores.max(axis=1))
        powers, old = kernels.exp(scores - new[:, None]), kernels.exp(top - new)
        total = total * old + powers.sum(axis=1)
        return new, total, y * old[:, None] + dot(powers.astype(v.dtype), v, wide)

    R = q.shape[0]
    start = jnp.full((R,), least, wide), jnp.zeros((R,), wide), jnp.zeros(q.shape, wide)
    top, total, rows = lax.fori_loop(0, tile.parts, step, start)
    # The largest power is 1: a sum below 1 is that of a row without any key.
    tile.own.write(y, b, n, rows / jnp.maximum(total, 1)[:, None])
    found = residual_of(top, total)
    tile.own.write_one(log, b, n, found.log)
    tile.own.write_one(factor, b, n, found.factor)


def _of_queries(layout, sizes, b, n, number, given, more, dquery, along):
    """`dq_i = scale sum_j ds_ij k_j`.

    `along` is `dq_i . q_i / scale`, which the scale has its gradient from.
    """
    scale = given.scale[0]
    wide, g = scale.dtype, n // (given.query.shape[2] // given.key.shape[2])
    tile = layout.tile(number, b, more, sizes, of_keys=False)
    rows = rows_of(given, tile.own, b, n)

    def step(i: Array, total: Array) -> Array:
        keys = tile.part(i)
        k, v = keys.read(given.key, b, g), keys.read(given.value, b, g)
        scores = tile.seen(dot(rows.query, k.T, wide) * scale, tile.own, keys, n)
        return total + dot(rows.of_scores(scores, v).astype(k.dtype), k, wide)

    total = lax.fori_loop(0, tile.parts, step, jnp.zeros(rows.query.shape, wide))
    tile.own.write(dquery, b, n, total * scale)
    tile.own.write_one(along, b, n, (total * rows.query.astype(wide)).sum(axis=1))


def _of_keys(layout, sizes, b, g, number, given, more, dkey, dvalue):
    """`dk_j = scale sum_i ds_ij q_i` and `dv_j = sum_i p_ij ct_i`, over the heads that share j."""
    scale = given.scale[0]
    wide, share = scale.dtype, given.query.shape[2] // given.key.shape[2]
    tile = layout.tile(number, b, more, sizes, of_keys=True)
    k, v = tile.own.read(given.key, b, g), tile.own.read(given.value, b, g)

    def step(i: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        n, queries = g * share + lax.div(i, tile.parts), tile.part(lax.rem(i, tile.parts))
        q, c, log, offset = rows_of(given, queries, b, n)
        scores = tile.seen(dot(k, q.T, wide) * scale, queries, tile.own, n)
        weights = kernels.exp(scores - log[None])
        dscores = weights * (dot(v, c.T, wide) - offset[None])
        return (
            total[0] + dot(dscores.astype(q.dtype), q, wide),
            total[1] + dot(weights.astype(c.dtype), c, wide),
        )

    nothing = jnp.zeros(k.shape, wide), jnp.zeros(k.shape, wide)
    dk, dv = lax.fori_loop(0, share * tile.parts, step, nothing)
    tile.own.write(dkey, b, g, dk * scale)
    tile.own.write(dvalue, b, g, dv)
