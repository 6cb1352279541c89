"""Windows on an image: where they lie, and the shifted views that they see."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class Geometry(NamedTuple):
    """Where the windows lie, with one entry for each spatial axis.

    Attributes:
      stride: steps from one window to the next.
      padding: zeros (before, after) the image; below zero the image is cut.
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


class Problem(NamedTuple):
    """A convolution but for its numbers of images, channels and features.

    Attributes:
      geometry: where the windows lie.
      groups: parts that the channels fall into.
      spatial: the image's size along each axis.
      window: the kernel's.
    """

    geometry: Geometry
    groups: int
    spatial: tuple[int, ...]
    window: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return self.geometry.output_size(self.spatial, self.window)


def stock(
    problem: Problem, x: Float[Array, "B *spatial C"], kernel: Float[Array, "*window I O"]
) -> Float[Array, "B *out O"]:
    """XLA's own convolution."""
    geometry, rank = problem.geometry, kernel.ndim - 2
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        feature_group_count=problem.groups,
    )


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
        views = [view(x, {axis: offset}, size, geometry, first=first) for offset in offsets]
        x = jnp.concatenate(views, axis=-1)
    return x


def offsets(window: Iterable[int]) -> Iterable[tuple[int, ...]]:
    """All offsets inside a window, the last axis fastest."""
    return itertools.product(*map(range, window))


def view(
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


def mirrored(problem: Problem, kernel: Float[Array, "*window I O"]) -> tuple[Problem, Array]:
    """The convolution of y that is the gradient of x.

    The kernel is mirrored, stride and gaps change places, and zeros fill what the windows missed.
    """
    geometry, window = problem.geometry, problem.window
    rank, groups = len(window), problem.groups
    *_, inputs, features = kernel.shape
    low = [
        (k - 1) * step - before
        for k, step, (before, _) in zip(window, geometry.dilation, geometry.padding, strict=True)
    ]
    back = placed(
        stride=geometry.input_dilation,
        low=low,
        dilation=geometry.dilation,
        input_dilation=geometry.stride,
        spatial=problem.size,
        window=window,
        size=problem.spatial,
    )
    kernel = jnp.flip(kernel, range(rank))
    kernel = kernel.reshape(*window, inputs, groups, features // groups)
    kernel = jnp.moveaxis(kernel, -1, rank)  # [*window, O / groups, I, groups]
    kernel = jnp.swapaxes(kernel, -1, -2).reshape(*window, features // groups, groups * inputs)
    return Problem(back, groups, problem.size, window), kernel
