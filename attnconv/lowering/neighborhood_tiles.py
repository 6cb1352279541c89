"""Neighborhood attention as attention of tiles of queries to the keys around them.

On a CPU one tile after the other, so that its scores stay in the cache and keys are read where they
lie; elsewhere all at once. `X` groups of positions, of every dilation-th position each; a tile has
`R` queries and `S` keys; `F` of the `B` examples are taken at once.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attnconv.lowering.linear import alike
from attnconv.lowering.rules import Moving, Residual, residual_of
from attnconv.lowering.tiles import Tiling, patterns

PART = 1 << 19  # scores that are taken at once


@dataclasses.dataclass(frozen=True)
class Tiles:
    folds: ClassVar[bool] = False
    tiling: tuple[Tiling, ...]

    def plain(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        del fixed
        query = self._split(moving.query, queries=True)
        key, value = map(self._split, moving[1:3])
        B, N = query.shape[1:3]
        wide = moving.scale.dtype
        addend = self._addend(moving.bias, wide)

        def one(index: Array) -> tuple[Array, Array]:
            at = _Place(self.tiling, index)
            q, k, v = at.queries(query), at.keys(key), at.keys(value)
            dots = jnp.einsum("FGRK,FGSK->FGRS", _by_key(q, k), k, preferred_element_type=wide)
            scores = _added(_by_head(dots, N) * moving.scale, at.pattern(addend))
            least = jnp.finfo(wide).min  # finite, so that a row without any key gives exp(-inf)
            top = lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=least))
            powers = jnp.exp(scores - top)
            total = powers.sum(axis=-1, keepdims=True)
            weights = (powers / jnp.where(total == 0, 1, total)).astype(v.dtype)
            weights = _by_key(weights, v)
            y = jnp.einsum("FGRS,FGSK->FGRK", weights, v, preferred_element_type=wide)
            return _by_head(y, N), lax.stop_gradient(top + jnp.log(total))

        counts = [t.tiles for t in self.tiling]
        rows = [t.rows for t in self.tiling]
        steps, rank = math.prod(counts) * len(query), len(counts)

        def joined(x: Float[Array, "tiles B N R K"]) -> Array:
            x = x.reshape(len(query), *counts, B, N, *rows, x.shape[-1])
            pairs = zip(range(1, rank + 1), range(rank + 3, 2 * rank + 3), strict=True)
            order = (0, rank + 1, rank + 2, *itertools.chain(*pairs), 2 * rank + 3)
            sizes = [count * row for count, row in zip(counts, rows, strict=True)]
            return self._joined(x.transpose(order).reshape(-1, B, N, *sizes, x.shape[-1]))

        y, residual = jax.vmap(one)(jnp.arange(steps))
        return joined(y), joined(residual)[..., 0]

    def forward(self, moving: Moving, fixed: Any) -> tuple[Array, Residual]:
        del fixed
        wide = moving.scale.dtype
        query = self._split(moving.query.astype(wide) * moving.scale, queries=True)
        key, value = (self._split(x.astype(wide)) for x in (moving.key, moving.value))
        addend = self._addend(moving.bias, wide)
        N, examples = query.shape[2], self._examples(moving)
        least = float(jnp.finfo(wide).min)

        def step(index: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
            at = _Place(self.tiling, index, examples, query.shape[1])
            q, k, v = at.queries(query), at.keys(key), at.keys(value)
            scores = _by_head(jnp.einsum("FGRK,FGSK->FGRS", _by_key(q, k), k), N)
            scores = _added(scores, at.pattern(addend))
            top = scores.max(axis=-1, keepdims=True, initial=least)
            powers = jnp.exp(scores - top)
            total = powers.sum(axis=-1, keepdims=True)
            y = _by_head(jnp.einsum("FGRS,FGSK->FGRK", _by_key(powers, v), v), N)
            # The largest power is 1: a sum below 1 is that of a row without any key.
            found = y / jnp.maximum(total, 1), *residual_of(top, total)
            return tuple(at.put_queries(x, rows) for x, rows in zip(out, found, strict=True))

        out = _zeros(query, moving.scale), *[_zeros(query[..., :1], moving.scale)] * 2
        found = lax.fori_loop(0, self._steps(query, examples), step, out)
        y, log, factor = (self._joined(x) for x in found)
        return y, Residual(log[..., 0], factor[..., 0])

    def backward(
        self, moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        """With `p_ij` the weights: `dv_j = sum_i p_ij ct_i`, `ds_ij = p_ij ct_i . (v_j - y_i)`,
        `dq_i = scale sum_j ds_ij k_j`, `dk_j = scale sum_i ds_ij q_i`, and the bias has ds.
        """
        del fixed
        wide = moving.scale.dtype
        log, factor = residual
        ct = ct.astype(wide) * factor[..., None]
        mean = self._split((ct * y).sum(axis=-1, keepdims=True), queries=True)
        logs = self._split(jnp.where(log == -jnp.inf, 0, log)[..., None], queries=True)
        ct = self._split(ct, queries=True)
        query = self._split(moving.query.astype(wide) * moving.scale, queries=True)
        key, value = (self._split(x.astype(wide)) for x in (moving.key, moving.value))
        addend, of_addend = jax.vjp(lambda bias: self._addend(bias, wide), moving.bias)
        N, examples = query.shape[2], self._examples(moving)

        def step(index: Array, out: Any) -> Any:
            dquery, dkey_t, dvalue_t, daddend = out
            at = _Place(self.tiling, index, examples, query.shape[1])
            q, k, v, c = at.queries(query), at.keys(key), at.keys(value), at.queries(ct)
            q, c = _by_key(q, k), _by_key(c, v)
            scores = _by_head(jnp.einsum("FGRK,FGSK->FGRS", q, k), N)
            scores = _added(scores, at.pattern(addend))
            weights = jnp.exp(scores - at.queries(logs))
            dweights = _by_head(jnp.einsum("FGRK,FGSK->FGRS", c, v), N)
            dscores = weights * (dweights - at.queries(mean))
            if daddend is not None:
                daddend = at.add_pattern(daddend, dscores.sum(axis=0, keepdims=True))
            weights, dscores = _by_key(weights, v), _by_key(dscores, k)
            dq = jnp.einsum("FGRS,FGSK->FGRK", dscores, k)
            # The short matrix is the one that is transposed: XLA on a CPU is slow over the other.
            dk_t = jnp.einsum("FGKR,FGRS->FGKS", q.swapaxes(2, 3), dscores)
            dv_t = jnp.einsum("FGKR,FGRS->FGKS", c.swapaxes(2, 3), weights)
            return (
                at.put_queries(dquery, _by_head(dq, N)),
                at.add_keys(dkey_t, dk_t),
                at.add_keys(dvalue_t, dv_t),
                daddend,
            )

        key_t = jnp.moveaxis(key, -1, 3)
        out = (
            _zeros(query, moving.scale),
            _zeros(key_t, moving.scale),
            _zeros(key_t, moving.scale),
            None if moving.bias is None else _zeros(addend, moving.scale),
        )
        dquery, dkey_t, dvalue_t, daddend = lax.fori_loop(
            0, self._steps(query, examples), step, out
        )
        dquery = self._joined(dquery)
        dkey, dvalue = (self._joined(jnp.moveaxis(x, 3, -1)) for x in (dkey_t, dvalue_t))
        return Moving(
            (dquery * moving.scale).astype(moving.query.dtype),
            dkey.astype(moving.key.dtype),
            dvalue.astype(moving.value.dtype),
            None if daddend is None else of_addend(daddend)[0],
            (dquery * moving.query.astype(wide)).sum(),
        )

    def _examples(self, moving: Moving) -> int:
        """How many examples are taken at once: as many as have at most PART scores."""
        scores = moving.query.shape[-2] * math.prod(t.rows * t.columns for t in self.tiling)
        B = len(moving.query)
        return max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * scores <= PART))

    def _steps(self, query: Float[Array, "X B N *T K"], examples: int) -> int:
        return len(query) * math.prod(t.tiles for t in self.tiling) * query.shape[1] // examples

    def _split(
        self, x: Float[Array, "B *grid N K"], *, queries: bool = False
    ) -> Float[Array, "X B N *T K"]:
        """The groups of positions one after the other, heads before positions."""
        rank = len(self.tiling)
        dilations = [t.axis.dilation for t in self.tiling]
        sizes = [t.tiles * t.rows if queries else t.axis.length for t in self.tiling]
        pad = [
            (0, size * step - n)
            for size, step, n in zip(sizes, dilations, x.shape[1 : rank + 1], strict=True)
        ]
        x = jnp.pad(x, ((0, 0), *pad, (0, 0), (0, 0)))
        B, N, K = x.shape[0], *x.shape[-2:]
        x = x.reshape(B, *itertools.chain(*zip(sizes, dilations, strict=True)), N, K)
        places, groups = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
        x = x.transpose(*groups, 0, 2 * rank + 1, *places, 2 * rank + 2)
        return x.reshape(-1, B, N, *sizes, K)

    def _joined(self, x: Float[Array, "X B N *T K"]) -> Float[Array, "B *grid N K"]:
        """The inverse of `_split`."""
        rank = len(self.tiling)
        dilations = [t.axis.dilation for t in self.tiling]
        _, B, N, *sizes, K = x.shape
        x = x.reshape(*dilations, B, N, *sizes, K)
        pairs = zip(range(rank + 2, 2 * rank + 2), range(rank), strict=True)
        x = x.transpose(rank, *itertools.chain(*pairs), rank + 1, 2 * rank + 2)
        x = x.reshape(B, *(m * d for m, d in zip(sizes, dilations, strict=True)), N, K)
        return x[:, *(slice(t.axis.size) for t in self.tiling)]

    def _addend(self, bias: Array | None, dtype: Any) -> Float[Array, "P N R S"]:
        """What each pattern of tiles adds to scores: the bias, and -inf where nothing is seen."""
        rank = len(self.tiling)
        by_place = bias is not None and bias.shape[1:] == tuple(t.axis.window for t in self.tiling)
        x = jnp.zeros((1,) * (rank + 1), dtype) if bias is None else bias.astype(dtype)
        seen = jnp.ones((1,) * (rank + 1), bool)
        found = map(patterns, self.tiling)
        tables = [p.places if by_place else p.offsets for p in found]
        for axis, pattern in enumerate(tables):
            index = pattern.ravel()
            if bias is not None:
                x = jnp.take(x, np.maximum(index, 0), axis=axis + 1)
            seen &= (index >= 0).reshape(*(1,) * (axis + 1), -1, *(1,) * (rank - 1 - axis))
        x = jnp.where(seen, x, -jnp.inf)
        x = x.reshape(-1, *itertools.chain(*(p.shape for p in tables)))
        kinds, rows, columns = (range(1 + i, 1 + 3 * rank, 3) for i in range(3))
        x = x.transpose(*kinds, 0, *rows, *columns)
        R, S = (math.prod(getattr(t, name) for t in self.tiling) for name in ("rows", "columns"))
        return x.reshape(-1, len(x[(0,) * rank]), R, S)


class _Place:
    """One tile of some examples: what it reads and where it writes."""

    def __init__(
        self, tiling: Sequence[Tiling], index: Array, examples: int | None = None, of: int = 1
    ):
        """Of `of` examples, `examples` at a time; all where None."""
        groups = [t.axis.dilation for t in tiling]
        counts = [t.tiles for t in tiling]
        parts = 1 if examples is None else of // examples
        part, *at = jnp.unravel_index(index, (parts, *groups, *counts))
        self.tiling, self.examples = tiling, examples
        self.first = part * (0 if examples is None else examples)
        group, tile = at[: len(groups)], at[len(groups) :]
        self.group = _ravel(group, groups)
        self.rows = [i * t.rows for i, t in zip(tile, tiling, strict=True)]
        self.columns = [
            jnp.asarray(t.key_starts, index.dtype)[i] for i, t in zip(tile, tiling, strict=True)
        ]
        found = [patterns(t) for t in tiling]
        kinds = [
            jnp.asarray(p.which, index.dtype)[g, i]
            for p, g, i in zip(found, group, tile, strict=True)
        ]
        self.kind = _ravel(kinds, [len(p.places) for p in found])

    def queries(self, x: Float[Array, "X B N *T K"]) -> Float[Array, "F N R K"]:
        return self._read(x, self.rows, [t.rows for t in self.tiling])

    def keys(self, x: Float[Array, "X B G *T K"]) -> Float[Array, "F G S K"]:
        return self._read(x, self.columns, [t.columns for t in self.tiling])

    def pattern(self, addend: Float[Array, "P N R S"]) -> Float[Array, "1 N R S"]:
        return lax.dynamic_slice_in_dim(addend, self.kind, 1)

    def put_queries(
        self, x: Float[Array, "X B N *T K"], part: Float[Array, "F N R K"]
    ) -> Float[Array, "X B N *T K"]:
        rows = [t.rows for t in self.tiling]
        part = part.reshape(1, *part.shape[:2], *rows, part.shape[-1])
        return lax.dynamic_update_slice(x, part, self._start(x, self.rows, last=True))

    def add_keys(
        self, x: Float[Array, "X B G K *T"], part: Float[Array, "F G K S"]
    ) -> Float[Array, "X B G K *T"]:
        columns = [t.columns for t in self.tiling]
        part = part.reshape(1, *part.shape[:3], *columns)
        start = self._start(x, self.columns, last=False)
        return lax.dynamic_update_slice(x, lax.dynamic_slice(x, start, part.shape) + part, start)

    def add_pattern(
        self, x: Float[Array, "P N R S"], part: Float[Array, "1 N R S"]
    ) -> Float[Array, "P N R S"]:
        return lax.dynamic_update_slice_in_dim(x, self.pattern(x) + part, self.kind, 0)

    def _read(self, x: Array, start: list[Array], extent: list[int]) -> Array:
        examples = x.shape[1] if self.examples is None else self.examples
        size = (1, examples, x.shape[2], *extent, x.shape[-1])
        part = lax.dynamic_slice(x, self._start(x, start, last=True), size)
        return part.reshape(examples, x.shape[2], -1, x.shape[-1])

    def _start(self, x: Array, start: list[Array], *, last: bool) -> list[Array]:
        """Where a part of x begins; features are its last axis, or before the positions."""
        zero = jnp.zeros_like(self.group)
        middle = [*start, zero] if last else [zero, *start]
        return [self.group, self.first, zero, *middle]


def _added(scores: Array, addend: Array) -> Array:
    """Their sum; -inf where a key is not seen, whatever its score is."""
    return jnp.where(addend == -jnp.inf, -jnp.inf, scores + addend)


def _ravel(at: Sequence[Array], sizes: Sequence[int]) -> Array:
    """The number of a place in row-major order."""
    number = jnp.zeros_like(at[0])
    for i, size in zip(at, sizes, strict=True):
        number = number * size + i
    return number


def _by_key(x: Float[Array, "F N R E"], key: Float[Array, "F G S K"]) -> Float[Array, "F G R2 E"]:
    """The rows of all heads that share a head of keys, one after the other."""
    return x.reshape(len(x), key.shape[1], -1, x.shape[-1])


def _by_head(x: Float[Array, "F G R2 E"], heads: int) -> Float[Array, "F N R E"]:
    """The inverse of `_by_key`."""
    return x.reshape(len(x), heads, -1, x.shape[-1])


def _zeros(like: Array, varying: Array) -> Array:
    return alike(jnp.zeros_like(like), varying)[0]
