"""Dot-product attention in kernels, with any bias, mask, lengths and window."""

import dataclasses
import functools
import math
import operator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from attnconv.lowering import attention_loops
from attnconv.lowering.attention_cpu import Fixed
from attnconv.lowering.attention_loops import Backward, Places, Sizes, Tile, dot, rows_of
from attnconv.lowering.kernels import call, iota, unravel
from attnconv.lowering.key_blocks import Window
from attnconv.lowering.rules import Moving, Residual

# H200, B 4, T 4096, N 16, K 128, bfloat16, ms: y 1.45, with 64 queries 1.65, with two stages 1.80;
# dq 1.78, 1.89, 2.10; dk and dv 2.34, with 128 keys 2.74, with 32 queries 2.83.
OF_QUERIES, OF_KEYS = Sizes(128, 64, 8, 3), Sizes(64, 64, 4, 2)
# H200, [B, T, N, K], with a mask, ms of XLA's products and of the kernels, for value and gradients:
#                bfloat16     float32                    bfloat16     float32
#   64 64 4 32   0.05 0.05    0.05 0.05   8 512 8 64     0.36 0.10    0.45 0.48
#   256 49 6 64  0.25 0.10    0.33 0.45   2 1024 8 64    0.37 0.10    0.47 0.47
#   64 197 6 64  0.52 0.27    0.69 0.80   4 4096 16 128  13.2 6.7
FEW = 16  # queries; a tile has more
LEAST = {2: 32 * 32, 4: 1024 * 1024}  # scores of one head, by the bytes of a number
OF_LONG = Sizes(64, 16, 8, 2)  # what longer vectors than those measured leave room for


def refusal(moving: Moving) -> str | None:
    """Why another form than the kernels is taken where nobody asks for them; None if they are."""
    broken = attention_loops.refusal(moving)
    if broken is not None:
        return broken
    if moving.bias is not None and moving.bias.dtype.itemsize < 2:
        return f"a bias of {moving.bias.dtype}"
    T, S, least = moving.query.shape[1], moving.key.shape[1], LEAST[moving.query.dtype.itemsize]
    if T < FEW or least > T * S:
        return f"T = {T} < {FEW} queries or T S = {T * S} < {least} scores in a head"
    return None


def tiles(query: Any) -> str:
    """What the programs take at once."""
    queries, keys = (_sizes(query, of_keys=of_keys) for of_keys in (False, True))
    return f"{queries.own} queries and {queries.run} keys at once, or {keys.own} and {keys.run}"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels, on CUDA or, very slowly, interpreted.

    As one batch under `vmap` they have no gradient of a scale.
    """

    is_causal: bool
    window: Window
    interpret: bool = False
    folds: bool = False

    def forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        layout, more = self._layout(moving, fixed), _more(moving, fixed)
        return attention_loops.forward(layout, moving, more, interpret=self.interpret)

    def backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        layout, more = self._layout(moving, fixed), _more(moving, fixed)
        gradient, given = attention_loops.backward(
            layout, moving, more, y, residual, ct, interpret=self.interpret
        )
        if moving.bias is None:
            return gradient
        B, N, T, S = moving.bias.shape
        sizes = _sizes(moving.query, of_keys=True)
        (dbias,) = call(
            functools.partial(_of_bias, layout, sizes),
            (given, more),
            [moving.bias],
            (B, N, pl.cdiv(T, sizes.own) * pl.cdiv(S, sizes.run)),
            warps=sizes.warps,
            stages=sizes.stages,
            interpret=self.interpret,
        )
        return gradient._replace(bias=dbias)

    def _layout(self, moving: Moving, fixed: Fixed) -> "_Sequence":
        T, S = moving.query.shape[1], moving.key.shape[1]
        read = [x for x in (moving.bias, fixed.mask) if x is not None and x.shape[2:] == (T, S)]
        of_score = sum(x.dtype.itemsize for x in read)
        return _Sequence(T, S, self.is_causal, self.window, of_score)


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """The layout of T queries and S keys; it reads a bias and what is in `Fixed`.

    For each score that is `of_score` bytes.
    """

    T: int
    S: int
    is_causal: bool
    window: Window
    of_score: int = 0

    def sizes(self, query: Any, *, of_keys: bool) -> Sizes:
        sizes = _sizes(query, of_keys=of_keys)
        # More than those of a float32 bias find no room beside three parts of keys.
        return sizes if self.of_score <= 4 else sizes._replace(stages=min(sizes.stages, 2))

    def tiles(self, sizes: Sizes, *, of_keys: bool) -> int:
        return pl.cdiv(self.S if of_keys else self.T, sizes.own)

    def tile(self, number: Array, b: Array, more: Any, sizes: Sizes, *, of_keys: bool) -> Tile:
        start, length = number * sizes.own, sizes.run
        low, end = self._run(start, sizes.own, b, more[1], of_keys=of_keys)
        low = low // length * length

        def part(i: Array) -> Places:
            return self.places(low + i * length, length, of_keys=not of_keys)

        def seen(scores: Array, queries: Places, keys: Places, n: Array) -> Array:
            return self.seen(scores, queries, keys, b, n, more, of_keys=of_keys)

        own = self.places(start, sizes.own, of_keys=of_keys)
        return Tile(own, jnp.maximum(end - low + length - 1, 0) // length, part, seen)

    def places(self, start: Array, length: int, *, of_keys: bool) -> Places:
        at = start + iota(length)
        return Places(at, at < (self.S if of_keys else self.T))

    def _run(
        self, start: Array, count: int, b: Array, fixed: Any, *, of_keys: bool
    ) -> tuple[Array, Array]:
        """Between which positions all lie that the tile sees, or that see it."""
        _, query_lengths, key_lengths = fixed
        lengths, own = (query_lengths, key_lengths)[:: 1 if of_keys else -1]
        low = jnp.int32(0)
        end = jnp.int32(self.T if of_keys else self.S) if lengths is None else lengths[b]
        before, after = (None, None) if self.window is None else self.window
        if self.is_causal:
            after = 0
        if of_keys:
            before, after = after, before
        if before is not None:
            low = jnp.maximum(start - before, 0)
        if after is not None:
            end = jnp.minimum(end, start + count + after)
        return low, end if own is None else jnp.where(start < own[b], end, low)

    def seen(
        self,
        scores: Array,
        queries: Places,
        keys: Places,
        b: Array,
        n: Array,
        more: Any,
        *,
        of_keys: bool,
    ) -> Array:
        """As `Tile.seen`, of example b."""
        bias, (mask, query_lengths, key_lengths) = more
        i, j = (
            lax.expand_dims(places.flat, (axis,))
            for places, axis in ((queries, 0 if of_keys else 1), (keys, 1 if of_keys else 0))
        )

        def read(x: Any) -> Array:
            """The entries of a matrix of which an axis of size 1 is for all."""
            nothing = jnp.zeros_like(b)
            places = zip((b, n, i, j), x.shape, strict=True)
            at = [at if size > 1 else nothing for at, size in places]
            there = [at < size for at, size in zip((i, j), x.shape[2:], strict=True) if size > 1]
            inside = functools.reduce(operator.and_, there) if there else None
            return triton.load(x.at[tuple(at)], mask=inside, other=0 if there else None)

        if bias is not None:
            scores += read(bias).astype(scores.dtype)
        seen = [j < (self.S if key_lengths is None else key_lengths[b])]
        if query_lengths is not None:
            seen.append(i < query_lengths[b])
        if self.is_causal:
            seen.append(j <= i)
        if self.window is not None:
            before, after = self.window
            seen += [j >= i - before, j <= i + after]
        if mask is not None:
            seen.append(read(mask) != 0)
        return jnp.where(functools.reduce(operator.and_, seen), scores, -jnp.inf)


def _sizes(query: Any, *, of_keys: bool) -> Sizes:
    if attention_loops.size_of(query) > attention_loops.MEASURED:
        return OF_LONG
    sizes = OF_KEYS if of_keys else OF_QUERIES
    # A product of float32 is one of three numbers, which take registers.
    return sizes if query.dtype.itemsize == 2 else sizes._replace(run=sizes.run // 2)


def _more(moving: Moving, fixed: Fixed) -> tuple[Array | None, Fixed]:
    """What the layout reads: no booleans, of which a kernel has no references."""
    mask = fixed.mask
    if mask is not None:
        # What is in bytes is addressed with 32 bits up to 4 GB, half of them below zero.
        mask = mask.astype(jnp.int8 if mask.size < 1 << 31 else jnp.int16)
    return moving.bias, fixed._replace(mask=mask)


def _of_bias(
    layout: _Sequence,
    sizes: Sizes,
    b: Array,
    n: Array,
    number: Array,
    given: Backward,
    more: Any,
    dbias: Any,
) -> None:
    """`db_ij = ds_ij` of a tile of the bias, summed over what it is one for."""
    query, key = given.query, given.key
    (B, T, N, _), (S, G), R, C = query.shape, key.shape[1:3], sizes.own, sizes.run
    scale, wide = given.scale[0], given.scale.dtype
    parts = B, N, pl.cdiv(T, R), pl.cdiv(S, C)
    own = *dbias.shape[:2], pl.cdiv(dbias.shape[2], R), pl.cdiv(dbias.shape[3], C)
    summed = [1 if count > 1 else whole for count, whole in zip(own, parts, strict=True)]
    first = b, n, *unravel(number, own[2:])

    def at(i: Array) -> tuple[Array, Array, Places, Places]:
        b, n, r, c = (start + x for start, x in zip(first, unravel(i, summed), strict=True))
        queries = layout.places(r * R, R, of_keys=False)
        return b, n, queries, layout.places(c * C, C, of_keys=True)

    def step(i: Array, total: Float[Array, "R C"]) -> Float[Array, "R C"]:
        b, n, queries, keys = at(i.astype(jnp.int32))
        g = n // (N // G)
        rows = rows_of(given, queries, b, n)
        k, v = keys.read(key, b, g), keys.read(given.value, b, g)
        scores = dot(rows.query, k.T, wide) * scale
        scores = layout.seen(scores, queries, keys, b, n, more, of_keys=False)
        return total + rows.of_scores(scores, v)

    total = lax.fori_loop(0, math.prod(summed), step, jnp.zeros((R, C), wide))
    b, n, queries, keys = at(jnp.int32(0))
    rows, columns = queries.flat[:, None], keys.flat[None]
    if dbias.shape[2] == 1:
        total, rows = total.sum(axis=0)[None], jnp.zeros((1, 1), jnp.int32)
    if dbias.shape[3] == 1:
        total, columns = total.sum(axis=1)[:, None], jnp.zeros((1, 1), jnp.int32)
    there = (rows < dbias.shape[2]) & (columns < dbias.shape[3])
    triton.store(dbias.at[b, n, rows, columns], total.astype(dbias.dtype), mask=there)
