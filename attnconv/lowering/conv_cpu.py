"""The forms of convolution that are fast on a CPU.

XLA's convolution is fast there when the image comes as `[B, *spatial, C]` and the kernel as
`[*window, C, O]`. In the gradients that JAX derives they come otherwise; XLA moves them into place
outside of loops, and inside falls to code that is a hundred times slower, as it does for groups
everywhere. So the gradients are written as convolutions of arrays moved into place, and groups as
dense convolutions of a part of the channels, or for depthwise kernels as sums of scaled views.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnconv.lowering.views import Geometry, Problem, offsets, padded, patches, stock, view

FEW = 32  # numbers that a window sees, up to which the kernel's gradient gathers them
UNROLL = 64  # multiply-adds that are one expression; larger ones compile for minutes
NARROW = 16  # groups are merged until they have as many channels; see _grouped


def wide(form):
    """With half precision widened to float32, also between the pieces of a sum."""

    @functools.wraps(form)
    def call(problem: Problem, a: Array, b: Array) -> Array:
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        return form(problem, a.astype(dtype), b.astype(dtype)).astype(a.dtype)

    return call


def form(problem: Problem, channels: int, features: int) -> tuple[str, str]:
    """What `convolve` takes, and why.

    "shifts" sums scaled views, "groups" makes dense convolutions of some groups each, "planes"
    convolves the planes of a volume, "images" takes products of views image by image, and "xla" is
    XLA's convolution.
    """
    count, groups = math.prod(problem.window), problem.groups
    if groups == channels == features and count <= UNROLL:
        reason = f"one kernel of {count} <= {UNROLL} offsets for each channel"
        return "shifts", reason
    if groups > 1:
        parts, _ = _parts(groups, channels)
        return "groups", f"{groups} groups of {channels // groups} channels in {parts} parts"
    if len(problem.window) == 3:
        return "planes", "XLA's convolution in three dimensions is slower than in two"
    if _by_image(problem, channels, features):
        reason = f"{channels} to {features} features: XLA's convolution would use one core"
        return "images", reason
    return "xla", f"{channels} to {features} features in one group: as fast as any other form"


@wide
def convolve(
    problem: Problem, x: Float[Array, "B *spatial C"], kernel: Float[Array, "*window I O"]
) -> Float[Array, "B *out O"]:
    """`y_i = sum_k x_{i stride + k dilation - padding} W_k`."""
    name, _ = form(problem, x.shape[-1], kernel.shape[-1])
    forms = {
        "shifts": _shifted_sum,
        "groups": _grouped,
        "planes": _planes,
        "images": _rows,
        "xla": _dense,
    }
    return forms[name](problem, x, kernel)


@wide
def input_gradient(
    problem: Problem, kernel: Float[Array, "*window I O"], y: Float[Array, "B *out O"]
) -> Float[Array, "B *spatial C"]:
    """The x that `<convolve(x, kernel), y>` is the product with: a convolution of y.

    The kernel is mirrored, stride and gaps change places, and zeros fill what the windows missed.
    """
    geometry = problem.geometry
    rank, groups = len(problem.window), problem.groups
    *_, inputs, features = kernel.shape
    low = [
        (k - 1) * step - before
        for k, step, (before, _) in zip(
            problem.window, geometry.dilation, geometry.padding, strict=True
        )
    ]
    back = _placed(
        stride=geometry.input_dilation,
        low=low,
        dilation=geometry.dilation,
        input_dilation=geometry.stride,
        spatial=problem.size,
        window=problem.window,
        size=problem.spatial,
    )
    mirrored = jnp.flip(kernel, range(rank))
    mirrored = mirrored.reshape(*problem.window, inputs, groups, features // groups)
    mirrored = jnp.moveaxis(mirrored, -1, rank)  # [*window, O / groups, I, groups]
    mirrored = jnp.swapaxes(mirrored, -1, -2).reshape(
        *problem.window, features // groups, groups * inputs
    )
    return convolve(Problem(back, groups, problem.size, problem.window), y, mirrored)


@wide
def kernel_gradient(
    problem: Problem, x: Float[Array, "B *spatial C"], y: Float[Array, "B *out O"]
) -> Float[Array, "*window I O"]:
    """The kernel that `<convolve(x, kernel), y>` is the product with."""
    if problem.groups == 1:
        return _dense_kernel_gradient(problem, x, y)
    if form(problem, x.shape[-1], y.shape[-1])[0] == "shifts":
        return _shifted_products(problem, x, y)
    return _grouped_kernel_gradient(problem, x, y)


def _dense(problem: Problem, x: Array, kernel: Array) -> Array:
    if min(n for pair in problem.geometry.padding for n in pair) < 0:
        problem, x = _filled(problem, x)
    return stock(problem, x, kernel)


def _filled(problem: Problem, x: Array) -> tuple[Problem, Array]:
    """The same with padding and gaps made of zeros first, where XLA's own way is slow."""
    x, rank = padded(x, problem.geometry), len(problem.window)
    geometry = problem.geometry._replace(padding=((0, 0),) * rank, input_dilation=(1,) * rank)
    return problem._replace(geometry=geometry, spatial=x.shape[1:-1]), x


def _dense_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
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
    if _by_image(problem, channels, features):
        return _rows_kernel_gradient(problem, x, y)
    across = _placed(
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
    gradient = _dense(Problem(across, 1, problem.spatial, problem.size), images, windows)
    return jnp.moveaxis(gradient, 0, rank)


def _planes(problem: Problem, x: Array, kernel: Array) -> Array:
    """The sum over the depth of the kernel of convolutions in two dimensions, planes as images."""
    flat, planes = _flat(problem, x)
    y = sum(_dense(flat, plane, weights) for plane, weights in zip(planes, kernel, strict=True))
    return jnp.reshape(y, (len(x), *problem.size, kernel.shape[-1]))


def _planes_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    flat, planes = _flat(problem, x)
    y = y.reshape(-1, *y.shape[2:])
    return jnp.stack([_dense_kernel_gradient(flat, plane, y) for plane in planes])


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


def _by_image(problem: Problem, channels: int, features: int) -> bool:
    """Whether products image by image are faster than XLA's convolution, which has one core then.

    32x32, 3x3, batch 32, 2 cores, forward and kernel gradient, XLA's time / this:
    32->64 0.8 1.1, 64->64 1.2 1.2, 64->96 1.5 1.9, 96->96 1.1 1.4; 16x16 128->128 0.8 1.0.
    """
    geometry = problem.geometry
    return (
        len(problem.window) == 2
        and set(geometry.stride) == set(geometry.input_dilation) == {1}
        and math.prod(problem.window) >= 9
        and min(channels, features) >= 64
        and features < 128
        and 1024 <= math.prod(problem.size) <= 2048
    )


def _rows(problem: Problem, x: Array, kernel: Array) -> Array:
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
    """`dW_i = sum over images of view_i(gathered)^T y`, the transpose of `_rows`."""
    geometry, size, (height, width) = problem.geometry, problem.size, problem.window
    channels, features = x.shape[-1], y.shape[-1]

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        image, weight = one
        seen = patches(image, {1: width}, size, geometry, first=0)
        weight = weight.reshape(-1, features).T
        rows = (view(seen, {0: i}, size, geometry, first=0) for i in range(height))
        return total + jnp.stack([weight @ row.reshape(-1, row.shape[-1]) for row in rows]), None

    zeros = jnp.zeros((height, features, width * channels), y.dtype)
    total, _ = lax.scan(add, zeros, (padded(x, geometry), y))
    return total.swapaxes(1, 2).reshape(*problem.window, channels, features)


def _grouped(problem: Problem, x: Array, kernel: Array) -> Array:
    """One dense convolution for each part of the channels.

    Parts of less than NARROW channels are merged, with zeros between them.
    """
    parts, merged = _parts(problem.groups, x.shape[-1])
    dense = problem._replace(groups=1)
    kernels = _block_diagonal(kernel, parts, merged)
    images = jnp.moveaxis(x.reshape(*x.shape[:-1], parts, -1), -2, 0)
    y = lax.map(lambda part: _dense(dense, *part), (images, kernels))
    return jnp.moveaxis(y, 0, -2).reshape(*y.shape[1:-1], kernel.shape[-1])


def _grouped_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    parts, merged = _parts(problem.groups, x.shape[-1])
    dense = problem._replace(groups=1)

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(*a.shape[:-1], parts, -1), -2, 0)

    gradient = lax.map(lambda part: _dense_kernel_gradient(dense, *part), (split(x), split(y)))
    rank, features = len(problem.window), y.shape[-1] // problem.groups
    blocks = gradient.reshape(parts, *problem.window, merged, -1, merged, features)
    blocks = jnp.diagonal(blocks, axis1=rank + 1, axis2=rank + 3)  # [parts, *window, I, O', merged]
    blocks = jnp.moveaxis(blocks, (0, -1), (rank + 1, rank + 2))
    return blocks.reshape(*problem.window, -1, y.shape[-1])


def _parts(groups: int, channels: int) -> tuple[int, int]:
    """How many parts the groups are merged into, and how many groups make a part."""
    enough = (
        m for m in range(1, groups + 1) if groups % m == 0 and channels // groups * m >= NARROW
    )
    merged = next(enough, groups)
    return groups // merged, merged


def _block_diagonal(kernel: Array, parts: int, merged: int) -> Array:
    """`[*window, I, O]` of groups to `[parts, *window, merged I, O / parts]`, zeros between."""
    *window, inputs, features = kernel.shape
    blocks = kernel.reshape(*window, inputs, parts, merged, -1)
    blocks = jnp.einsum("...ipmo,mn->p...nimo", blocks, jnp.eye(merged, dtype=kernel.dtype))
    return blocks.reshape(parts, *window, merged * inputs, features // parts)


def _shifted_sum(problem: Problem, x: Array, kernel: Array) -> Array:
    """`y = sum_k view_k(x) W_k`, which XLA makes one loop of."""
    image, geometry, size = padded(x, problem.geometry), problem.geometry, problem.size
    weights = kernel.reshape(-1, kernel.shape[-1])
    y = sum(
        view(image, dict(enumerate(offset)), size, geometry) * w
        for offset, w in zip(offsets(problem.window), weights, strict=True)
    )
    return jnp.asarray(y)


def _shifted_products(problem: Problem, x: Array, y: Array) -> Array:
    """`dW_k = sum_i view_k(x)_i y_i`, image by image: a sum over positions is a product by ones."""
    image, geometry, size = padded(x, problem.geometry), problem.geometry, problem.size
    channels, ones = y.shape[-1], jnp.ones((math.prod(size),), y.dtype)

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        seen, weight = one
        products = (
            view(seen, dict(enumerate(offset)), size, geometry, first=0) * weight
            for offset in offsets(problem.window)
        )
        return total + jnp.stack([ones @ p.reshape(-1, channels) for p in products]), None

    zeros = jnp.zeros((math.prod(problem.window), channels), y.dtype)
    return lax.scan(add, zeros, (image, y))[0].reshape(*problem.window, 1, channels)


def _placed(*, stride, low, dilation, input_dilation, spatial, window, size) -> Geometry:
    """The geometry that starts at `low` and has as much padding after the image as `size` takes."""
    axes = zip(spatial, window, size, stride, low, dilation, input_dilation, strict=True)
    padding = tuple(
        (before, (m - 1) * s + (k - 1) * step + 1 - ((n - 1) * gap + 1) - before)
        for n, k, m, s, before, step, gap in axes
    )
    return Geometry(tuple(stride), padding, tuple(dilation), tuple(input_dilation))
