"""Dot-product attention: which form it takes, by the platform and the shapes."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from attnconv.lowering import (
    attention_cpu,
    attention_cudnn,
    attention_kernel,
    attention_loops,
    promotion,
)
from attnconv.lowering.attention_cpu import Fixed
from attnconv.lowering.attention_cudnn import CuDNN
from attnconv.lowering.attention_kernel import Kernel
from attnconv.lowering.choice import note
from attnconv.lowering.key_blocks import Window
from attnconv.lowering.linear import alike
from attnconv.lowering.meshes import attention_specs, by_compiler
from attnconv.lowering.rules import Form, Moving, Residual, Ways, attend, plain_gradient

# (moving, fixed, is_causal, window) -> y, [B, T, N, K], and the residual, [B, T, N].
Reference = Callable[[Moving, Fixed, bool, Window], tuple[Array, Array]]

# 2 cores, [B, T, N, K], ms for value and gradients: jax.nn, matrix, parts, blocks.
#   128 49 4 16   14   11   12   19      64 197 4 32  133  111   73
#   8 256 4 32    27   13   13   22      4 384 8 64    72   65        61
#   8 256 8 64    85   68   56   92      4 512 8 64   158  149        87
MATRIX = 1 << 21  # scores of all examples, up to which their matrix is kept for the gradient
PART = 1 << 19  # scores of the examples that are taken at once
BLOCKS = 384 * 384  # scores of one head, from which on it is taken in blocks
# In a narrow window, T 256 and 383, 8 heads of 64 features, ms for matrix or parts and for blocks:
# 8 examples, 16 keys to both sides 15 9 and 24 12, with gradients 37 28 and 79 46.
BLOCKS_NARROW = 256 * 256
FEW = 64  # queries of all heads, up to which keys and values stay where they lie; see _few
LONG = 4096  # keys, from which on they do for more than one query
AT_ONCE = 1 << 26  # scores of all examples and heads that are there at once on other platforms


def form(
    query: tuple[int, ...], key: tuple[int, ...], is_causal: bool, window: Window
) -> tuple[str, str]:
    """What `attention` takes on a CPU for a query and key of these shapes, and why.

    "matrix" keeps the whole matrix of weights, "few" does so without moving keys and values,
    "parts" takes some examples at a time and "blocks" some queries of one head.
    """
    B, T, N, _ = query
    S, G = key[1:3]
    if 0 in (*query, *key):
        return "matrix", "an axis of size 0"
    if T * N <= FEW and G > 1 and (T == 1 or S >= LONG):
        return "few", f"T N = {T * N} <= {FEW} queries of all heads, for S = {S} keys"
    scores = T * S
    least = BLOCKS_NARROW if attention_cpu.narrow(S, is_causal, window) else BLOCKS
    if scores >= least and T > 1:
        return "blocks", f"T S = {scores} >= {least} scores in a head"
    if B * N * T * S > MATRIX and B > 1:
        return "parts", f"B N T S = {B * N * T * S} > {MATRIX} scores"
    return "matrix", f"B N T S = {B * N * T * S} scores, {scores} in a head: few enough"


@dataclasses.dataclass(frozen=True)  # not tuples, of which two classes may be equal
class _Whole:
    """All keys of a query at once: what is known when a call is traced."""

    folds: ClassVar[bool] = False
    reference: Reference
    is_causal: bool
    window: Window

    def given(self, moving: Moving, fixed: Fixed) -> tuple[Array, Array]:
        """With y in the dtype of the query."""
        return self.reference(moving, fixed, self.is_causal, self.window)

    def plain(self, moving: Moving, fixed: Fixed) -> tuple[Array, Array]:
        """Some queries of all heads at a time, where there are many scores.

        Their weights are not kept, but computed again for the gradient.
        """
        (B, T, N, K), S = moving.query.shape, moving.key.shape[1]
        rows = rows_of(moving)
        if rows == T:
            y, residual = self.given(moving, fixed)
            return y.astype(moving.scale.dtype), residual

        def split(x: Array | None, axis: int) -> Array | None:
            """Blocks of rows, along a first axis; None where one row is for all."""
            if x is None or x.shape[axis] == 1:
                return None
            pad = [(0, 0)] * x.ndim
            pad[axis] = (0, -T % rows)
            x = jnp.pad(x, pad)
            return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, rows, *x.shape[axis + 1 :]), axis, 0)

        # What all blocks see, in the dtype in which the sum of its gradients is taken.
        shared = jax.tree.map(lambda x: x.astype(promotion.wide(x.dtype)), moving)

        @jax.checkpoint
        def step(part: tuple[Array, Array, Array | None, Array | None]) -> tuple[Array, Array]:
            at, query, bias, mask = part
            mask = fixed.mask if mask is None else mask
            attend = self._attend(at + jnp.arange(rows)[:, None], fixed._replace(mask=mask), S)
            own = jax.tree.map(lambda x, whole: x.astype(whole.dtype), shared, moving)
            own = own._replace(query=query, bias=own.bias if bias is None else bias)
            return self.reference(own, Fixed(attend, None, None), False, None)

        parts = split(moving.query, 1), split(moving.bias, 2), split(fixed.mask, 2)
        y, residual = lax.map(step, (jnp.arange(0, T, rows), *parts))
        y = jnp.moveaxis(y, 0, 1).reshape(B, -1, N, K)[:, :T]
        return y.astype(moving.scale.dtype), jnp.moveaxis(residual, 0, 1).reshape(B, -1, N)[:, :T]

    def _attend(
        self, at: Int[Array, "R 1"], fixed: Fixed, S: int
    ) -> Bool[Array, "#B #N #R #S"] | None:
        """Which keys the queries at these rows see; None for all."""
        ahead = jnp.arange(S)[None] - at
        mask, query_lengths, key_lengths = fixed
        seen = [] if mask is None else [mask]
        if self.is_causal:
            seen.append(ahead <= 0)
        if self.window is not None:
            before, after = self.window
            seen.append((ahead >= -before) & (ahead <= after))
        if query_lengths is not None:
            seen.append(at < query_lengths[:, None, None, None])
        if key_lengths is not None:
            seen.append(jnp.arange(S) < key_lengths[:, None, None, None])
        if not seen:
            return None
        attend = functools.reduce(operator.and_, seen)
        return attend.reshape((1,) * (4 - attend.ndim) + attend.shape)


@dataclasses.dataclass(frozen=True)
class _Parts(_Whole):
    """Some examples at a time, so that their scores stay in the cache."""

    def forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        count = _parts(moving)
        out = lax.map(lambda i: self.plain(*_part((moving, fixed), i, count)), jnp.arange(count))
        y, log = (x.reshape(-1, *x.shape[2:]) for x in out)
        return y, Residual(log, jnp.ones_like(log))

    def backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        count, examples = _parts(moving), len(moving.query)

        def step(i: Array, total: Moving) -> Moving:
            gradient = plain_gradient(self, *_part((moving, fixed, ct), i, count))
            return jax.tree.map(
                lambda t, g: t + g.astype(t.dtype) if t.shape == g.shape else t.at[i].set(g),
                total,
                gradient,
            )

        def nothing(x: Array) -> Array:
            if x.shape[:1] == (examples,):
                return alike(jnp.zeros((count, examples // count, *x.shape[1:]), x.dtype), x)[0]
            return alike(jnp.zeros(x.shape, promotion.wide(x.dtype)), x)[0]

        total = lax.fori_loop(0, count, step, jax.tree.map(nothing, moving))
        return jax.tree.map(lambda t, x: t.reshape(x.shape).astype(x.dtype), total, moving)


@dataclasses.dataclass(frozen=True)
class _Blocks(_Whole):
    """Some queries of one head at a time."""

    def forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        return attention_cpu.forward(moving, fixed, is_causal=self.is_causal, window=self.window)

    def backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        return attention_cpu.backward(
            moving, fixed, y, residual, ct, is_causal=self.is_causal, window=self.window
        )


def attention(
    moving: Moving,
    fixed: Fixed,
    *,
    reference: Reference,
    is_causal: bool,
    window: Window,
    scale: float | None,
    implementation: str,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """`y` in the form that is asked for or fast where it runs, and the residual.

    `scale` is that of `moving` where it is known when the call is traced.
    """
    name, reason = form(moving.query.shape, moving.key.shape, is_causal, window)
    if 0 in (*moving.query.shape, *moving.key.shape):
        note("dot_product_attention", "any", name, reason)
        return reference(moving, fixed, is_causal, window)
    window = _within(window, moving.query.shape[1], moving.key.shape[1])
    whole = _Whole(reference, is_causal, window)
    if implementation == "chunked":
        rows = f"{rows_of(moving)} of {moving.query.shape[1]} queries at once"
        note("dot_product_attention", "any", "rows", f"implementation is 'chunked'; {rows}")
        return attend(Form(whole, ()), moving, fixed)
    # As one batch under `vmap`, what is one for all examples would be one for each.
    folds = scale is not None and all(
        x is None or len(x) == len(moving.query) for x in (moving.bias, fixed.mask)
    )
    if implementation == "pallas":
        dtype, moving = moving.query.dtype, attention_loops.promoted(moving)
        reason = f"implementation is 'pallas'; {attention_kernel.tiles(moving.query)}"
        note("dot_product_attention", "cuda", "kernel", reason)
        note("dot_product_attention", "cpu", "interpreted kernel", reason)
        note("dot_product_attention", "other", "rows", "kernels are for CUDA")
        kernel = Kernel(is_causal, window, folds=folds)
        own: Ways = (("cuda", kernel), ("cpu", dataclasses.replace(kernel, interpret=True)))
        y, residual = attend(Form(whole, own), moving, fixed)
        return y.astype(dtype), residual
    refusal = attention_cudnn.refusal(
        moving, fixed, is_causal=is_causal, window=window, scale=scale
    )
    if implementation == "cudnn" and refusal is not None:
        raise ValueError(f"implementation 'cudnn': cannot take {refusal}")
    elsewhere, why = _elsewhere(name, reason, moving)
    note("dot_product_attention", "cpu", name, reason)
    own = ()
    if refusal is None:
        assert scale is not None
        fixed = attention_cudnn.by_example(moving, fixed)
        own = (("cuda", CuDNN(is_causal, window, scale)),)
        note("dot_product_attention", "cuda", "cudnn", "its rules allow it")
    elif (lack := attention_kernel.refusal(moving)) is None:
        own = (("cuda", Kernel(is_causal, window, folds=folds)),)
        tiles = attention_kernel.tiles(moving.query)
        note("dot_product_attention", "cuda", "kernel", f"cudnn cannot take {refusal}; {tiles}")
    else:
        refusals = f"cudnn cannot take {refusal}, and there is no kernel for {lack}; {why}"
        note("dot_product_attention", "cuda", elsewhere, refusals)
    note("dot_product_attention", "other", elsewhere, why)
    if name in ("blocks", "parts"):
        kind = _Blocks if name == "blocks" else _Parts
        own += (("cpu", kind(reference, is_causal, window)),)
    if not own and name == "matrix":
        return reference(moving, fixed, is_causal, window)
    if not own and name == "few":
        few = functools.partial(_few, whole.given)
        choose = functools.partial(lax.platform_dependent, cpu=few, default=whole.given)
        return by_compiler(choose, attention_specs(moving.query), moving, fixed)
    return attend(Form(whole, own), moving, fixed)


def _within(window: Window, T: int, S: int) -> Window:
    """A window no larger than the arrays; None where it leaves out nothing."""
    if window is None:
        return None
    left, right = min(window[0], T - 1), min(window[1], S - 1)
    return None if (left, right) == (T - 1, S - 1) else (left, right)


def rows_of(moving: Moving) -> int:
    """How many queries of all examples and heads are taken at once where it is not a CPU."""
    (B, T, N, _), S = moving.query.shape, moving.key.shape[1]
    blocks = -(-T // max(1, AT_ONCE // (B * N * S)))
    return -(-T // blocks)


def _elsewhere(name: str, reason: str, moving: Moving) -> tuple[str, str]:
    """The form on other platforms, given that on a CPU and its reason, and why."""
    (B, T, N, _), S = moving.query.shape, moving.key.shape[1]
    if name in ("matrix", "few"):
        return "matrix", reason
    rows = rows_of(moving)
    if rows == T:
        return "matrix", f"B N T S = {B * N * T * S} <= {AT_ONCE} scores"
    return "rows", f"B N T S = {B * N * T * S} > {AT_ONCE} scores: {rows} of {T} queries at once"


def _few(
    plain: Callable[[Moving, Fixed], tuple[Array, Array]], moving: Moving, fixed: Fixed
) -> tuple[Array, Array]:
    """All heads of keys as one of G K features, of which a query is zero outside of its own head.

    Keys and values would take longer to move, head by head, than G times the products take. B 8,
    S 4096, N 8, K 64, 2 cores, ms for the matrix and for this: T 1 41 6, T 4 43 10, T 8 49 16, T 16
    50 37. With fewer keys they stay in the cache: T 8, S 64 0.21 0.54; T 4, S 32 0.13 0.24. A
    number that is not finite in one head reaches the others.
    """
    query, key, value, *_ = moving
    (B, T, N, K), (S, G) = query.shape, key.shape[1:3]
    own = (jnp.arange(N)[:, None] // (N // G) == jnp.arange(G)[None])[None, None, :, :, None]
    y, residual = plain(
        moving._replace(
            query=jnp.where(own, query[:, :, :, None], 0).reshape(B, T, N, G * K),
            key=key.reshape(B, S, 1, G * K),
            value=value.reshape(B, S, 1, G * K),
        ),
        fixed,
    )
    return jnp.where(own, y.reshape(B, T, N, G, K), 0).sum(axis=3), residual


def _parts(moving: Moving) -> int:
    """How many parts the examples fall into: as few as have at most PART scores each."""
    B, T, N, _ = moving.query.shape
    most = max(1, PART // (N * T * moving.key.shape[1]))
    return next(n for n in range(1, B + 1) if B % n == 0 and B // n <= most)


def _part(tree: Any, i: Array, count: int) -> Any:
    """Part i of the arrays that have a batch axis, and the others whole."""
    examples = len(jax.tree.leaves(tree)[0])
    return jax.tree.map(
        lambda x: x.reshape(count, -1, *x.shape[1:])[i] if x.shape[:1] == (examples,) else x, tree
    )
