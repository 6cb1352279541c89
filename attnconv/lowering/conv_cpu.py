"""The forms of convolution that are fast on a CPU.

In the gradients that JAX derives, XLA moves the arrays to where its convolution is fast only
outside of loops; inside, and for groups everywhere, it takes code that is a hundred times slower.
So the gradients are written as convolutions of arrays moved into place, and groups as dense
convolutions of a part of the channels, or for depthwise kernels as sums of scaled views.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnconv.lowering import conv_dense, promotion
from attnconv.lowering.conv_dense import (
    by_planes,
    dense,
    dense_kernel_gradient,
    image_parts,
    sum_over_parts,
)
from attnconv.lowering.linear import alike
from attnconv.lowering.views import Problem, mirrored, offsets, padded, view

UNROLL = 64  # multiply-adds that are one expression; larger ones compile for minutes
SHARED = 8  # parts of the channels that XLA can share out among cores; more are a loop
NARROW = 16  # groups are merged until they have as many channels; see _grouped


def wide(form):
    """With half precision widened to float32, also between the pieces of a sum."""

    @functools.wraps(form)
    def call(problem: Problem, a: Array, b: Array) -> Array:
        dtype = promotion.wide(a.dtype)
        return form(problem, a.astype(dtype), b.astype(dtype)).astype(a.dtype)

    return call


def form(problem: Problem, images: int, channels: int, features: int) -> tuple[str, str]:
    """What `convolve` takes, and why.

    "shifts" sums scaled views, "groups" makes dense convolutions of some groups each, "planes"
    convolves the planes of a volume. Of dense ones, "phases" splits an image with gaps, "product"
    multiplies matrices, "wide" places images side by side, and "xla" is XLA's convolution.
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
    return conv_dense.form(problem, images, channels, features)


@wide
def convolve(
    problem: Problem, x: Float[Array, "B *spatial C"], kernel: Float[Array, "*window I O"]
) -> Float[Array, "B *out O"]:
    """`y_i = sum_k x_{i stride + k dilation - padding} W_k`."""
    name, _ = form(problem, len(x), x.shape[-1], kernel.shape[-1])
    forms = {"shifts": _shifted_sum, "groups": _grouped, "planes": by_planes}
    return forms.get(name, dense)(problem, x, kernel)


@wide
def input_gradient(
    problem: Problem, kernel: Float[Array, "*window I O"], y: Float[Array, "B *out O"]
) -> Float[Array, "B *spatial C"]:
    """The x that `<convolve(x, kernel), y>` is the product with: a convolution of y."""
    back, kernel = mirrored(problem, kernel)
    return convolve(back, y, kernel)


@wide
def kernel_gradient(
    problem: Problem, x: Float[Array, "B *spatial C"], y: Float[Array, "B *out O"]
) -> Float[Array, "*window I O"]:
    """The kernel that `<convolve(x, kernel), y>` is the product with."""
    if problem.groups == 1:
        return dense_kernel_gradient(problem, x, y)
    if form(problem, len(x), x.shape[-1], y.shape[-1])[0] == "shifts":
        return _shifted_products(problem, x, y)
    return _grouped_kernel_gradient(problem, x, y)


def _grouped(problem: Problem, x: Array, kernel: Array) -> Array:
    """One dense convolution for each part of the channels.

    Parts of less than NARROW channels are merged, with zeros between them.
    """
    parts, merged = _parts(problem.groups, x.shape[-1])
    kernels = _block_diagonal(kernel, parts, merged)
    alone = functools.partial(dense, problem._replace(groups=1))
    if parts <= SHARED:
        pieces = zip(jnp.split(x, parts, axis=-1), kernels, strict=True)
        return jnp.concatenate([alone(*piece) for piece in pieces], axis=-1)
    y = lax.map(lambda piece: alone(*piece), (_split(x, parts), kernels))
    return jnp.moveaxis(y, 0, -2).reshape(*y.shape[1:-1], kernel.shape[-1])


def _grouped_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    parts, merged = _parts(problem.groups, x.shape[-1])
    # Parts of the images outside of those of the channels: pieces of all images would be in memory.
    images = image_parts(problem, len(x), y.shape[-1] // parts)
    if images > 1:
        form = functools.partial(_grouped_kernel_gradient, problem)
        return sum_over_parts(form, x, y, images)
    alone = functools.partial(dense_kernel_gradient, problem._replace(groups=1))
    if parts <= SHARED:
        pieces = zip(*(jnp.split(a, parts, axis=-1) for a in (x, y)), strict=True)
        gradient = jnp.stack([alone(*piece) for piece in pieces])
    else:
        gradient = lax.map(lambda piece: alone(*piece), (_split(x, parts), _split(y, parts)))
    rank, features = len(problem.window), y.shape[-1] // problem.groups
    blocks = gradient.reshape(parts, *problem.window, merged, -1, merged, features)
    blocks = jnp.diagonal(blocks, axis1=rank + 1, axis2=rank + 3)  # [parts, *window, I, O', merged]
    blocks = jnp.moveaxis(blocks, (0, -1), (rank + 1, rank + 2))
    return blocks.reshape(*problem.window, -1, y.shape[-1])


def _split(x: Array, parts: int) -> Array:
    return jnp.moveaxis(x.reshape(*x.shape[:-1], parts, -1), -2, 0)


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
    weights, ones = kernel.reshape(-1, kernel.shape[-1]), (1,) * (x.ndim - 1)
    y = sum(
        view(image, dict(enumerate(offset)), size, geometry) * w.reshape(*ones, -1)
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

    zeros, _ = alike(jnp.zeros((math.prod(problem.window), channels), y.dtype), y)
    return lax.scan(add, zeros, (image, y))[0].reshape(*problem.window, 1, channels)
