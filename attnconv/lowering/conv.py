"""Convolution on a platform: XLA's own on accelerators, shifted views and products on the CPU.

XLA's convolution on the CPU leaves its fast path inside a loop, for groups, and under `vmap` over
kernels, which makes a grouped convolution of it. Views, sums and matrix products stay fast there,
and automatic differentiation of them gives gradients of the same kind.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

GATHER_ALL = 64  # numbers gathered for each position of the image; see _dense
UNROLL = 64  # multiply-adds that are one expression; larger ones compile for minutes


class Geometry(NamedTuple):
    """Where the windows lie, with one entry for each spatial axis.

    Attributes:
      stride: steps from one window to the next.
      padding: zeros (before, after) the image.
      dilation: steps from one element of the window to the next.
      input_dilation: steps from one position of the image to the next; zeros fill the gaps.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]

    def output_size(self, spatial: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
        """How many windows lie inside the padded image, along each axis; at least none."""
        return tuple(
            max(0, ((n - 1) * gap + 1 + low + high - ((k - 1) * step + 1)) // s + 1)
            for n, k, s, (low, high), step, gap in zip(spatial, window, *self, strict=True)
        )


@functools.partial(jax.jit, static_argnames=("geometry", "groups"))
def conv(
    x: Float[Array, "B *spatial C"],
    kernel: Float[Array, "*window I O"],
    *,
    geometry: Geometry,
    groups: int,
) -> Float[Array, "B *out O"]:
    """Convolution in the form that is fast where it runs; the output size must be positive.

    Compiled, so that a call outside `jit` is traced once for each geometry.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(products, geometry=geometry, groups=groups),
        default=functools.partial(reference, geometry=geometry, groups=groups),
    )


def reference(
    x: Float[Array, "B *spatial C"],
    kernel: Float[Array, "*window I O"],
    *,
    geometry: Geometry,
    groups: int,
) -> Float[Array, "B *out O"]:
    """XLA's own convolution."""
    rank = kernel.ndim - 2
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        feature_group_count=groups,
    )


def products(
    x: Float[Array, "B *spatial C"],
    kernel: Float[Array, "*window I O"],
    *,
    geometry: Geometry,
    groups: int,
) -> Float[Array, "B *out O"]:
    """Matrix products of shifted views; for depthwise kernels a sum of scaled views.

    Half precision is widened first: the sums over offsets, also those of the gradients, are then
    float32, and on the CPU the products take as long.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    size = geometry.output_size(x.shape[1:-1], kernel.shape[:-2])
    image, weights = padded(x.astype(wide), geometry), kernel.astype(wide)
    dense = functools.partial(_dense, size=size, geometry=geometry)
    if groups == 1:
        y = dense(image, weights)
    elif groups == x.shape[-1] and math.prod(kernel.shape[:-2]) <= UNROLL:
        y = _depthwise(image, weights, size=size, geometry=geometry)
    else:  # one dense convolution for each group
        *_, inputs, features = kernel.shape
        image = image.reshape(*image.shape[:-1], groups, inputs)
        weights = weights.reshape(*weights.shape[:-1], groups, features // groups)
        y = jax.vmap(dense, in_axes=(-2, -2), out_axes=-2)(image, weights)
        y = y.reshape(*y.shape[:-2], features)
    return y.astype(x.dtype)


def padded(
    x: Float[Array, "B *spatial C"], geometry: Geometry, value: float = 0.0
) -> Float[Array, "B *padded C"]:
    """The image with its padding, and the gaps of input dilation, filled by the value."""
    axes = zip(geometry.padding, geometry.input_dilation, strict=True)
    inner = [(low, high, gap - 1) for (low, high), gap in axes]
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def patches(
    x: Float[Array, "*axes C"],
    window: Mapping[int, int],
    size: Sequence[int],
    geometry: Geometry,
    *,
    first: int = 1,
) -> Float[Array, "*out KC"]:
    """Gathers what a window sees into the channels: `[..., C]` to `[..., k * C]`, offset-major.

    One axis after the other: the operations are as many as the sum of the extents, not the product.

    Args:
      x: a padded image; its spatial axes start at axis `first`.
      window: its extent along some of the spatial axes; the others stay whole.
      size: number of windows along each spatial axis.
      geometry: where they lie.
      first: the first spatial axis of x.
    """
    for axis in sorted(window, reverse=True):
        offsets = range(window[axis])
        views = [_view(x, {axis: offset}, size, geometry, first=first) for offset in offsets]
        x = jnp.concatenate(views, axis=-1)
    return x


def _dense(x: Array, kernel: Array, *, size: tuple[int, ...], geometry: Geometry) -> Array:
    """`y = sum_i view_i(gathered) @ kernel_i`: gathers some window axes, loops over the others."""
    *window, _, features = kernel.shape
    rank = len(window)
    # Forward + gradient in scan, 2 cores, ms, gathering all axes / the last only: 28x28x3->16
    # 3.2/5.1, x16->32 stride 2 3.7/3.7, x8->16 6.9/5.8, 14x14x32->32 9.3/7.0 (batch 64, 3x3).
    copies = x.shape[-1] * math.prod(window) / math.prod(geometry.stride)
    loops = 0 if copies <= GATHER_ALL else rank - 1
    gathered = patches(x, {axis: window[axis] for axis in range(loops, rank)}, size, geometry)
    depth = gathered.shape[-1]
    weights = kernel.reshape(math.prod(window[:loops]), depth, features)
    positions = x.shape[0] * math.prod(size)
    y = sum(
        _view(gathered, dict(enumerate(offset)), size, geometry).reshape(positions, depth) @ w
        for offset, w in zip(_offsets(window[:loops]), weights, strict=True)
    )
    return jnp.reshape(y, (x.shape[0], *size, features))


def _depthwise(x: Array, kernel: Array, *, size: tuple[int, ...], geometry: Geometry) -> Array:
    """`y = sum_i view_i(x) * kernel_i`, which XLA fuses into one loop."""
    *window, _, features = kernel.shape
    x = jnp.repeat(x, features // x.shape[-1], axis=-1)
    weights = kernel.reshape(math.prod(window), features)
    y = sum(
        _view(x, dict(enumerate(offset)), size, geometry) * w
        for offset, w in zip(_offsets(window), weights, strict=True)
    )
    return jnp.asarray(y)


def _offsets(window: Iterable[int]) -> Iterable[tuple[int, ...]]:
    return itertools.product(*map(range, window))


def _view(
    x: Array,
    offset: Mapping[int, int],
    size: Sequence[int],
    geometry: Geometry,
    *,
    first: int = 1,
) -> Array:
    """What all windows see at one offset; spatial axes without an offset stay whole."""
    start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for axis, k in offset.items():
        at, stride = first + axis, geometry.stride[axis]
        start[at] = k * geometry.dilation[axis]
        limit[at] = start[at] + (size[axis] - 1) * stride + 1
        step[at] = stride
    return lax.slice(x, start, limit, step)
