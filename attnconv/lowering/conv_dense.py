"""Dense convolution on a CPU, and the gradient of its kernel.

XLA's convolution is fast there when the image comes as `[B, *spatial, C]` and the kernel as
`[*window, C, O]`, with neither gaps nor cuts, in at most two dimensions. Everything is written in
terms of that, or of products of views where XLA's convolution would use one core.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from attnconv.lowering.linear import alike
from attnconv.lowering.views import Geometry, Problem, offsets, padded, patches, stock, view

# XLA's convolution to fewer than 128 features uses one core in JAX 0.10, and all of them in 0.12.
ONE_CORE = jax.__version_info__ < (0, 12)
FEW = 32  # numbers that a window sees, up to which the kernel's gradient gathers them
PHASES = 16  # convolutions that one of an image with gaps is split into, at most


def dense(problem: Problem, x: Array, kernel: Array) -> Array:
    geometry = problem.geometry
    if set(geometry.stride) == {1} and 1 < math.prod(geometry.input_dilation) <= PHASES:
        return _phases(problem, x, kernel)
    if min(n for pair in geometry.padding for n in pair) < 0:
        problem, x = _filled(problem, x)
    return stock(problem, x, kernel)


def _phases(problem: Problem, x: Array, kernel: Array) -> Array:
    """An image with gaps: one convolution without them for each remainder of the output's index.

    With gap g and dilation d, output `g m + r` meets the image at `(g m + r + k d - before) / g`
    for the offsets k that make it whole: every `g / gcd(g, d)`-th from the first that does.
    """
    geometry, rank, features = problem.geometry, len(problem.window), kernel.shape[-1]
    gaps = geometry.input_dilation
    each = tuple(-(-n // gap) for n, gap in zip(problem.size, gaps, strict=True))
    none, ones = jnp.zeros((len(x), *each, features), x.dtype), (1,) * rank

    def phase(remainders: tuple[int, ...]) -> Array:
        axes = zip(
            remainders, problem.window, gaps, geometry.dilation, geometry.padding, strict=True
        )
        taps = [_taps(*axis) for axis in axes]
        if None in taps:
            return none
        first, start, step = zip(*taps, strict=True)
        part = kernel[tuple(slice(k, None, n) for k, n in zip(first, step, strict=True))]
        window = part.shape[:rank]
        where = placed(
            stride=ones,
            low=[-n for n in start],
            dilation=[n * d // g for n, d, g in zip(step, geometry.dilation, gaps, strict=True)],
            input_dilation=ones,
            spatial=problem.spatial,
            window=window,
            size=each,
        )
        return dense(Problem(where, 1, problem.spatial, window), x, part)

    phases = jnp.stack([phase(remainders) for remainders in offsets(gaps)])
    phases = phases.reshape(*gaps, *none.shape)
    order = [rank, *(a for i in range(rank) for a in (rank + 1 + i, i)), 2 * rank + 1]
    y = phases.transpose(order).reshape(
        len(x), *(m * g for m, g in zip(each, gaps, strict=True)), features
    )
    return y[tuple(slice(n) for n in (len(x), *problem.size))]


def _taps(
    r: int, window: int, gap: int, dilation: int, padding: tuple[int, int]
) -> tuple[int, int, int] | None:
    """The first offset that remainder r meets the image with, where, and the steps to the next."""
    for k in range(window):
        at, rest = divmod(r + k * dilation - padding[0], gap)
        if rest == 0:
            return k, at, gap // math.gcd(gap, dilation)
    return None


def _filled(problem: Problem, x: Array) -> tuple[Problem, Array]:
    """The same with padding and gaps made of zeros first, where XLA's own way is slow."""
    x, rank = padded(x, problem.geometry), len(problem.window)
    geometry = problem.geometry._replace(padding=((0, 0),) * rank, input_dilation=(1,) * rank)
    return problem._replace(geometry=geometry, spatial=x.shape[1:-1]), x


def dense_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    """A convolution of x, its images as channels, by y, its positions as a window."""
    if max(problem.geometry.input_dilation) > 1:
        problem, x = _filled(problem, x)
    geometry, rank = problem.geometry, len(problem.window)
    channels, features = x.shape[-1], y.shape[-1]
    if channels * math.prod(problem.window) <= FEW:
        seen = patches(
            padded(x, geometry), dict(enumerate(problem.window)), problem.size, geometry
        ).reshape(-1, channels * math.prod(problem.window))
        return (y.reshape(-1, features).T @ seen).T.reshape(*problem.window, channels, features)
    if rank == 3:
        return _planes_kernel_gradient(problem, x, y)
    if by_image(problem, channels, features):
        return _rows_kernel_gradient(problem, x, y)
    across = placed(
        stride=geometry.dilation,
        low=[low for low, _ in geometry.padding],
        dilation=geometry.stride,
        input_dilation=geometry.input_dilation,
        spatial=problem.spatial,
        window=problem.size,
        size=problem.window,
    )
    images = jnp.swapaxes(x, 0, -1)  # [C, *spatial, B]
    windows = jnp.moveaxis(y, 0, rank)  # [*out, B, O]
    gradient = dense(Problem(across, 1, problem.spatial, problem.size), images, windows)
    return jnp.moveaxis(gradient, 0, rank)


def by_planes(problem: Problem, x: Array, kernel: Array) -> Array:
    """The sum over the depth of the kernel of convolutions in two dimensions, planes as images."""
    flat, planes = _flat(problem, x)
    y = sum(dense(flat, plane, weights) for plane, weights in zip(planes, kernel, strict=True))
    return jnp.reshape(y, (len(x), *problem.size, kernel.shape[-1]))


def _planes_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    flat, planes = _flat(problem, x)
    y = y.reshape(-1, *y.shape[2:])
    return jnp.stack([dense_kernel_gradient(flat, plane, y) for plane in planes])


def _flat(problem: Problem, x: Array) -> tuple[Problem, list[Array]]:
    """The problem of one plane, and for each depth of the kernel the planes that it meets."""
    geometry = problem.geometry
    whole = geometry._replace(
        padding=(geometry.padding[0], (0, 0), (0, 0)),
        input_dilation=(geometry.input_dilation[0], 1, 1),
    )
    across = Geometry(
        geometry.stride[1:],
        geometry.padding[1:],
        geometry.dilation[1:],
        geometry.input_dilation[1:],
    )
    image = padded(x, whole)
    seen = [view(image, {0: k}, problem.size, geometry) for k in range(problem.window[0])]
    planes = [plane.reshape(-1, *plane.shape[2:]) for plane in seen]
    return Problem(across, 1, problem.spatial[1:], problem.window[1:]), planes


def by_image(problem: Problem, channels: int, features: int) -> bool:
    """Whether products image by image are faster than XLA's convolution, which has one core then.

    32x32, 3x3, batch 32, 2 cores, forward and kernel gradient, XLA's time / this:
    32->64 0.8 1.1, 64->64 1.2 1.2, 64->96 1.5 1.9, 96->96 1.1 1.4; 16x16 128->128 0.8 1.0.
    """
    geometry = problem.geometry
    return (
        ONE_CORE
        and len(problem.window) == 2
        and set(geometry.stride) == set(geometry.input_dilation) == {1}
        and math.prod(problem.window) >= 9
        and min(channels, features) >= 64
        and features < 128
        and 1024 <= math.prod(problem.size) <= 2048
    )


def by_rows(problem: Problem, x: Array, kernel: Array) -> Array:
    """`y = sum_i view_i(gathered) W_i` image by image: gathers the last axis, sums over the first.

    What one image takes stays in the cache.
    """
    geometry, size, (height, width) = problem.geometry, problem.size, problem.window
    weights = kernel.reshape(height, -1, kernel.shape[-1])

    def one(image: Array) -> Array:
        seen = patches(image, {1: width}, size, geometry, first=0)
        rows = (view(seen, {0: i}, size, geometry, first=0) for i in range(height))
        return sum(row.reshape(-1, row.shape[-1]) @ w for row, w in zip(rows, weights, strict=True))

    return lax.map(one, padded(x, geometry)).reshape(len(x), *size, -1)


def _rows_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    """`dW_i = sum over images of view_i(gathered)^T y`, the transpose of `by_rows`."""
    geometry, size, (height, width) = problem.geometry, problem.size, problem.window
    channels, features = x.shape[-1], y.shape[-1]

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        image, weight = one
        seen = patches(image, {1: width}, size, geometry, first=0)
        weight = weight.reshape(-1, features).T
        rows = (view(seen, {0: i}, size, geometry, first=0) for i in range(height))
        return total + jnp.stack([weight @ row.reshape(-1, row.shape[-1]) for row in rows]), None

    zeros, _ = alike(jnp.zeros((height, features, width * channels), y.dtype), y)
    total, _ = lax.scan(add, zeros, (padded(x, geometry), y))
    return total.swapaxes(1, 2).reshape(*problem.window, channels, features)


def placed(
    *,
    stride: Sequence[int],
    low: Sequence[int],
    dilation: Sequence[int],
    input_dilation: Sequence[int],
    spatial: Sequence[int],
    window: Sequence[int],
    size: Sequence[int],
) -> Geometry:
    """The geometry that starts at `low` and has as much padding after the image as `size` takes."""
    axes = zip(spatial, window, size, stride, low, dilation, input_dilation, strict=True)
    padding = tuple(
        (before, (m - 1) * s + (k - 1) * step + 1 - ((n - 1) * gap + 1) - before)
        for n, k, m, s, before, step, gap in axes
    )
    return Geometry(tuple(stride), padding, tuple(dilation), tuple(input_dilation))
