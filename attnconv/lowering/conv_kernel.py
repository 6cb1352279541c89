"""Depthwise convolution in Pallas kernels, by Triton on CUDA, where cuDNN's are slow.

A program is one warp. It has some channels of a block of positions, `ROWS` high and `columns` wide,
of several images or places: all sums stay in registers, and each position that the windows see is
read once for all rows. Beside the products, instructions that find and widen what is read take the
time, so sums share it, as many as registers allow.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from attnconv.lowering import kernels
from attnconv.lowering.kernels import iota, unravel
from attnconv.lowering.views import Problem

THREADS = 32
CHANNELS = 32  # of a program, at most
EACH, EACH_BACK = 4, 2  # numbers that a thread has of a tile; BACK: in the gradient of the kernel
ROWS = 2
COLUMNS = 8  # at most
MOST = 7  # positions of a window along an axis
PROGRAMS = 3072  # of the gradient of the kernel, about: each has sums of its own, added up later


class Tile(NamedTuple):
    """Some rows and channels of arrays `[B, H, W, C]`."""

    image: Array
    row: Array
    there: Array
    channel: Array

    def read(self, x: Any, row: Array, column: Array) -> Float[Array, "R C"]:
        """Of one row for each of the tile and one column; zeros outside."""
        at, there = self._at(x, row, column)
        return kernels.widened(triton.load(x.at[at], mask=there, other=0.0))

    def write(self, x: Any, row: Array, column: Array, found: Float[Array, "R C"]) -> None:
        at, there = self._at(x, row, column)
        triton.store(x.at[at], found.astype(x.dtype), mask=there)

    def _at(self, x: Any, row: Array, column: Array) -> tuple[tuple, Array]:
        _, H, W, C = x.shape
        there = self.there & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        at = self.image[:, None], row[:, None], column, self.channel[None]
        return at, there[:, None] & (self.channel < C)[None]


def refusal(array: str, problem: Problem, a: Any, b: Any) -> str | None:
    """Why `array` is not found by a kernel from the other two; None if it is.

    H200, 64 images in bfloat16, 7x7, ms of XLA, which takes cuDNN's, and of the kernels, for y and
    for the gradient of the kernel: 56x56x96 0.18 to 0.32 and 0.16, 0.16 to 0.19 and 0.18; 14x14x384
    0.11 and 0.04, 0.10 and 0.08; 7x7x768 0.09 and 0.05, 1.25 and 0.06. In float32 56x56x96 0.37 and
    0.14, 9.2 and 0.18. The kernels had an instruction for each product and one for each sum
    then. Since, for y and both gradients, in bfloat16: 56x56x96 0.44 and 0.26, 28x28x192 0.25 and
    0.14, 14x14x384 0.16 and 0.09, 7x7x768 1.14 and 0.05.
    """
    geometry, groups = problem.geometry, problem.groups
    steps = (*geometry.stride, *geometry.dilation, *geometry.input_dilation)
    kernel = {"y": b, "x": a}.get(array)
    inner = 1 if kernel is None else kernel.shape[-2]
    rules = (
        (len(problem.window) == 2, f"{len(problem.window)} spatial axes, not 2"),
        (a.shape[-1] == b.shape[-1] == groups and inner == 1, "several channels in a kernel"),
        (set(steps) == {1}, "steps of more than 1"),
        (max(problem.window) <= MOST, f"a window of more than {MOST}"),
        (a.dtype in kernels.FLOATS and a.dtype == b.dtype, f"dtypes {a.dtype} and {b.dtype}"),
        (a.size and b.size, "an empty array"),
    )
    broken = next((reason for holds, reason in rules if not holds), None)
    return kernels.missing() if broken is None else broken


def convolve(
    problem: Problem,
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "h w 1 C"],
    *,
    interpret: bool = False,
) -> Float[Array, "B *out C"]:
    """`y_i = sum_k x_{i + k - padding} W_k`, each channel with a kernel of its own.

    A number that is not finite reaches rows next to those that see it.
    """
    B, C, (H, W) = len(x), x.shape[-1], problem.size
    wide, high = _box(C, EACH)
    columns = _columns(W)
    (y,) = kernels.call(
        functools.partial(_convolve, problem, columns),
        (x, kernel),
        [jax.ShapeDtypeStruct((B, H, W, C), x.dtype)],
        (pl.cdiv(B * pl.cdiv(H, ROWS), high), pl.cdiv(W, columns), pl.cdiv(C, wide)),
        warps=1,
        stages=1,
        interpret=interpret,
    )
    return y


def kernel_gradient(
    problem: Problem,
    x: Float[Array, "B H W C"],
    y: Float[Array, "B *out C"],
    *,
    interpret: bool = False,
) -> Float[Array, "h w 1 C"]:
    B, C, (H, W) = len(x), x.shape[-1], problem.size
    wide, high = _box(C, EACH_BACK)
    columns = _columns(W)
    tiles, parts = pl.cdiv(B * H, high), (pl.cdiv(W, columns), pl.cdiv(C, wide))
    steps = pl.cdiv(tiles * math.prod(parts), PROGRAMS)
    programs = (pl.cdiv(tiles, steps), *parts)
    (sums,) = kernels.call(
        functools.partial(_of_kernel, problem, columns, steps),
        (x, y),
        [jax.ShapeDtypeStruct((math.prod(programs[:2]), *problem.window, C), jnp.float32)],
        programs,
        warps=1,
        stages=1,
        interpret=interpret,
    )
    return sums.sum(axis=0)[:, :, None].astype(x.dtype)


def _box(C: int, each: int) -> tuple[int, int]:
    """Channels and rows of a tile."""
    wide = min(CHANNELS, pl.next_power_of_2(C))
    return wide, THREADS * each // wide


def _columns(W: int) -> int:
    """As many as leave few programs with columns that are not there."""
    return pl.cdiv(W, pl.cdiv(W, COLUMNS))


def _tile(shape: tuple[int, ...], number: Array, c: Array, each: int, rows: int) -> Tile:
    """A tile of the channels and of every so many of the rows of such an array."""
    B, H, _, C = shape
    wide, high = _box(C, each)
    at, count = number * high + iota(high), pl.cdiv(H, rows)
    image, row = unravel(at, (B, count))
    return Tile(image, row * rows, at < B * count, c * wide + iota(wide))


def _convolve(problem, columns, number, part, c, x, kernel, y):
    (above, _), (before, _) = problem.geometry.padding
    h, w = problem.window
    tile = _tile(y.shape, number, c, EACH, ROWS)
    left = part * columns
    shape = len(tile.row), len(tile.channel)
    channel = jnp.broadcast_to(tile.channel[None], shape)  # as x lies, so that nothing is moved

    def weight(i: Array, j: int) -> Float[Array, "R C"]:
        there = (channel < x.shape[-1]) & (i >= 0) & (i < h)
        return kernels.widened(triton.load(kernel.at[i, j, 0, channel], mask=there, other=0.0))

    def step(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        i = i.astype(jnp.int32)
        weights = [[weight(i - r, j) for j in range(w)] for r in range(ROWS)]
        found = list(sums)
        for column in range(columns + w - 1):
            seen = tile.read(x, tile.row + i - above, left + column - before)
            for r, j in itertools.product(range(ROWS), range(w)):
                if 0 <= column - j < columns:
                    at = r * columns + column - j
                    found[at] = kernels.fma(seen, weights[r][j], found[at])
        return tuple(found)

    nothing = jnp.zeros(shape, jnp.float32)
    sums = lax.fori_loop(0, h + ROWS - 1, step, (nothing,) * (ROWS * columns))
    for at, total in enumerate(sums):
        r, column = divmod(at, columns)
        tile.write(y, tile.row + r, left + column, total)


def _of_kernel(problem, columns, steps, number, part, c, x, y, sums):
    (above, _), (before, _) = problem.geometry.padding
    h, w = problem.window
    left = part * columns

    def step(k: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        at = number * steps + k.astype(jnp.int32)
        tile, found = _tile(y.shape, at, c, EACH_BACK, 1), list(sums)
        cts = [tile.read(y, tile.row, left + column) for column in range(columns)]
        for i, column in itertools.product(range(h), range(columns + w - 1)):
            seen = tile.read(x, tile.row + i - above, left + column - before)
            for j in range(w):
                if 0 <= column - j < columns:
                    found[i * w + j] = kernels.fma(seen, cts[column - j], found[i * w + j])
        return tuple(found)

    wide, high = _box(x.shape[-1], EACH_BACK)
    nothing = jnp.zeros((high, wide), jnp.float32)
    total = lax.fori_loop(0, steps, step, (nothing,) * (h * w))
    channel = c * wide + iota(wide)
    at = number * pl.cdiv(problem.size[1], columns) + part
    for (i, j), found in zip(itertools.product(range(h), range(w)), total, strict=True):
        triton.store(sums.at[at, i, j, channel], found.sum(axis=0), mask=channel < x.shape[-1])
