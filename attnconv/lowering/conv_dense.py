"""Dense convolution on a CPU, and the gradient of its kernel.

XLA's convolution is fast there when the image comes as `[B, *spatial, C]` and the kernel as
`[*window, C, O]`, with neither gaps nor cuts, in at most two dimensions. Everything is written in
terms of that, with the images side by side where XLA's convolution would use one core.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from attnconv.lowering.linear import alike
from attnconv.lowering.views import (
    Geometry,
    Problem,
    offsets,
    padded,
    patches,
    placed,
    stock,
    view,
)

# Before JAX 0.12, XLA's convolution shares its work out in blocks of a row's positions and of
# features: narrow images with few features have a single block, and one core.
ONE_CORE = jax.__version_info__ < (0, 12)
WIDE = (448, 1152)  # positions in a row of images side by side
FEW = 32  # numbers that a window sees, up to which the kernel's gradient gathers them
PHASES = 16  # convolutions that one of an image with gaps is split into, at most
PART = 1 << 17  # numbers of y that the gradient of a kernel takes at once
# Features from which on the gradient of a kernel gains by parts even where XLA shares all work out.
# JAX 0.12, batch 32, ms in parts and in one: 32x32 64->64 3x3 11.6 11.0, 5x5 24.1 19.0; 16x16
# 128->128 3x3 18.5 19.6.
SHARED = 128


def form(problem: Problem, images: int, channels: int, features: int) -> tuple[str, str]:
    """What `dense` takes, and why."""
    geometry, size = problem.geometry, problem.size
    if set(geometry.stride) == {1} and 1 < math.prod(geometry.input_dilation) <= PHASES:
        return "phases", "an image with gaps: a convolution for each remainder of the index"
    if math.prod(problem.window) == 1 and max(geometry.input_dilation) == 1:
        return "product", "a window of one position is a product of matrices"
    side = side_by_side(problem, images, channels, features)
    if side > 1:
        return (
            "wide",
            f"{size[-1]} positions in a row: one core, but for {side} images side by side",
        )
    return "xla", f"{channels} to {features} features in one group: as fast as any other form"


def dense(problem: Problem, x: Array, kernel: Array) -> Array:
    geometry = problem.geometry
    name, _ = form(problem, len(x), *kernel.shape[-2:])
    if name == "phases":
        return _phases(problem, x, kernel)
    if name == "product":
        seen = view(
            padded(x, geometry), dict.fromkeys(range(len(problem.size)), 0), problem.size, geometry
        )
        y = seen.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
        return y.reshape(len(x), *problem.size, -1)
    if min(n for pair in geometry.padding for n in pair) < 0:
        problem, x = _filled(problem, x)
    if name == "wide":
        return _wide(problem, x, kernel)
    return stock(problem, x, kernel)


def side_by_side(problem: Problem, images: int, channels: int, features: int) -> int:
    """How many images are placed side by side for XLA's convolution to use all cores; 1 for none.

    It costs two copies and the positions between the images. Batch 32, 2 cores, 3x3, ms for XLA's
    and for this: 32x32 16->16 0.7 0.8, 3->64 0.5 0.8, 32->32 2.5 1.6, 32->64 4.9 3.7, 64->64
    10.1 7.4, 64->96 14.7 8.6; 28x28 32->64 3.9 2.4; 16x16 64->64 2.4 1.7; 8x8 128->64 1.3 1.3.
    """
    if not ONE_CORE or len(problem.window) > 2 or max(problem.geometry.input_dilation) > 1:
        return 1
    size, count = problem.size, math.prod(problem.window)
    width = size[-1]
    products = count * channels * features
    if (
        0 in (images, *size)
        or width >= 96  # more than one block
        or (features >= 128 and count * channels >= 1024)  # the same
        or products < 128 * (channels + features)
        or products * images * math.prod(size) < 5e7
    ):
        return 1
    slot = _slot(problem)
    if slot > 1.2 * width:
        return 1
    least, most = WIDE
    return next(
        (m for m in range(images, 1, -1) if images % m == 0 and least <= m * slot <= most), 1
    )


def _slot(problem: Problem) -> int:
    """The positions in a row from one image to the next, when side by side."""
    low, high = problem.geometry.padding[-1]
    return -(-(problem.spatial[-1] + low + high) // problem.geometry.stride[-1])


def _wide(problem: Problem, x: Array, kernel: Array) -> Array:
    """Some images side by side as one, with their padding between them."""
    geometry, stride, rank = problem.geometry, problem.geometry.stride[-1], len(problem.size)
    side, slot = side_by_side(problem, len(x), *kernel.shape[-2:]), _slot(problem)
    image = padded(x, geometry)
    rest = slot * stride - image.shape[-2]
    image = lax.pad(image, jnp.zeros((), x.dtype), [(0, 0, 0)] * rank + [(0, rest, 0), (0, 0, 0)])
    image = jnp.moveaxis(image.reshape(-1, side, *image.shape[1:]), 1, -3)
    image = image.reshape(*image.shape[:-3], -1, x.shape[-1])
    span = (problem.window[-1] - 1) * geometry.dilation[-1] + 1
    padding = ((0, 0),) * (rank - 1) + ((0, max(0, span - stride)),)
    across = Problem(geometry._replace(padding=padding), 1, image.shape[1:-1], problem.window)
    y = stock(across, image, kernel)
    y = y.reshape(*y.shape[:-2], side, slot, -1)[..., : problem.size[-1], :]
    return jnp.moveaxis(y, -3, 1).reshape(len(x), *problem.size, -1)


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
    if channels * math.prod(problem.window) <= FEW or math.prod(problem.window) == 1:
        seen = patches(
            padded(x, geometry), dict(enumerate(problem.window)), problem.size, geometry
        ).reshape(-1, channels * math.prod(problem.window))
        return (y.reshape(-1, features).T @ seen).T.reshape(*problem.window, channels, features)
    if rank == 3:
        return _planes_kernel_gradient(problem, x, y)
    parts = image_parts(problem, len(x), features) if ONE_CORE or features >= SHARED else 1
    if parts > 1:
        return sum_over_parts(functools.partial(dense_kernel_gradient, problem), x, y, parts)
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


def image_parts(problem: Problem, images: int, features: int) -> int:
    """How many parts of the images the gradient of a kernel is a sum over.

    Each has PART numbers of y or more, which stay in the cache as the kernel of a convolution. 2
    cores, batch 32, 3x3, ms for one part, and for parts of 4, 2, 1 and half of PART: 32x32 64->64
    20.5 18.9 15.9 12.6 15.0, 16->16 1.46 1.42 1.15 1.18 1.87; 16x16 128->128 13.8 10.5 8.5 8.1 7.9.
    In one dimension parts gain nothing.
    """
    if len(problem.window) != 2:
        return 1
    positions = math.prod(problem.size)
    return next(
        n
        for n in range(max(images, 1), 0, -1)
        if n == 1
        or (
            images % n == 0
            and positions * images // n >= 1024
            and positions * images // n * features >= PART
        )
    )


def sum_over_parts(form: Callable[[Array, Array], Array], x: Array, y: Array, parts: int) -> Array:
    """`sum_p form(x_p, y_p)` over parts of the images, one at a time."""
    split = [a.reshape(parts, len(a) // parts, *a.shape[1:]) for a in (x, y)]
    shape = jax.eval_shape(form, split[0][0], split[1][0])
    zeros, _ = alike(jnp.zeros(shape.shape, shape.dtype), y)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + form(*part), None

    return lax.scan(add, zeros, (split[0], split[1]))[0]


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
