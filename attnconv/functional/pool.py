"""Pooling: one number of a window, for each channel. 1-, 2- and 3-D, by the window's length.

A rectangle is reduced one axis at a time: by a reshape where windows lie side by side, by shifted
views where they overlap. Forward and gradient in scan, 2 cores, the maximum over 2x2 of
64x28x28x32 takes 3 ms so, over 3x3 with stride 2 4 ms; the window reduction of XLA 16 and 20.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from attnconv.errors import UsageError
from attnconv.functional import windows
from attnconv.functional.windows import Padding, PerAxis
from attnconv.lowering import promotion, views
from attnconv.lowering.linear import linear

UNROLL = 16  # views; longer expressions compile for seconds, and go to XLA's window reduction


def max_pool(
    x: Float[Array, "*B_spatial C"],
    window: Sequence[int],
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "*B_out C"]:
    """`y_i = max_k x_{i stride + k}`, over the offsets k of the window; padding never wins.

    Of equal maxima some have the gradient, which one may have whole or several share.

    Args:
      x: `[B, *spatial, C]` or `[*spatial, C]`, with as many spatial axes as the window has.
      window: its extent along each axis.
      stride: steps between windows; by default the window, so that they tile the image.
      padding: as for `conv`; every window must see a position of the image.

    Returns:
      `[B, *out, C]` or `[*out, C]`, in the dtype of x.

    Raises:
      ValueError: shapes that do not fit, a window larger than the padded image, padding as large
        as the window, an unknown padding, a stride or window below 1.

    >>> max_pool(jnp.array([[1.0], [3.0], [2.0], [0.0]]), (2,))[:, 0].tolist()
    [3.0, 2.0]
    """
    promotion.check_floating(x)
    return _pool(x, window, stride, padding, lax.max, promotion.lowest(x.dtype))[0]


def avg_pool(
    x: Float[Array, "*B_spatial C"],
    window: Sequence[int],
    *,
    stride: PerAxis | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "*B_out C"]:
    """`y_i = mean_k x_{i stride + k}`, over the offsets k of the window that lie on the image.

    Zeros of the padding do not count, so an image of one value stays so up to its border
    (`count_include_pad=False` of Flax and PyTorch). Half precision is summed in float32.

    Args, Returns, Raises: as for `max_pool`.

    >>> avg_pool(jnp.array([[1.0], [3.0], [5.0]]), (2,), padding="SAME")[:, 0].tolist()
    [2.0, 5.0]
    """
    promotion.check_floating(x)
    wide = promotion.wide(x.dtype)
    total, counts = _pool(x.astype(wide), window, stride, padding, lax.add, 0.0)
    count = promotion.ranked(jnp.asarray(counts[..., None], wide), total.ndim)
    return (total / count).astype(x.dtype)


def _pool(
    x: Array,
    window: Sequence[int],
    stride: PerAxis | None,
    padding: Padding,
    combine: Callable[[Array, Array], Array],
    neutral: float,
) -> tuple[Array, np.ndarray]:
    """The windows reduced, and how many positions of the image each of them sees, `[*out]`."""
    if not np.ndim(window):
        raise UsageError(f"window: expected one number for each spatial axis, came {window!r}")
    images = windows.batched(x, len(window))
    geometry, size = windows.place(
        images.shape[1:-1],
        window,
        stride=window if stride is None else stride,
        padding=padding,
        dilation=1,
    )
    images, geometry = windows.extend(images, padding, geometry)
    if any(max(pair) >= k for pair, k in zip(geometry.padding, window, strict=True)):
        raise UsageError(
            f"padding: expected less than the window {tuple(window)} on each side, so that every "
            f"window sees the image, came {geometry.padding}"
        )
    y = views.padded(images, geometry, neutral)
    identity = np.asarray(neutral, y.dtype)
    for axis, (k, stride, out) in enumerate(zip(window, geometry.stride, size, strict=True), 1):
        if stride == k or out == 1:  # windows side by side
            y = lax.slice_in_dim(y, 0, out * k, axis=axis)
            y = y.reshape(*y.shape[:axis], out, k, *y.shape[axis + 1 :])
            if k > UNROLL:
                y = lax.reduce(y, identity, combine, (axis + 1,))
            elif combine is lax.add:
                y = _sum(y, axis + 1)
            else:
                y = _reduce(combine, y, axis + 1)
        elif k <= UNROLL:
            seen = (
                lax.slice_in_dim(y, at, at + (out - 1) * stride + 1, stride, axis)
                for at in range(k)
            )
            y = functools.reduce(combine, seen)
        else:
            extents, steps = ([n if a == axis else 1 for a in range(y.ndim)] for n in (k, stride))
            y = lax.reduce_window(y, identity, combine, extents, steps, "VALID")
    on_axis = [
        _count(n, k, s, before, out)
        for n, k, s, (before, _), out in zip(
            images.shape[1:-1], window, geometry.stride, geometry.padding, size, strict=True
        )
    ]
    counts = functools.reduce(np.multiply.outer, on_axis)
    return (y if x.ndim == y.ndim else y[0]), counts


def _reduce(combine: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    """`lax.reduce` of a short axis, as one expression of its elements; faster on a CPU."""
    parts = (lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis]))
    return functools.reduce(combine, parts)


def _sum(x: Array, axis: int) -> Array:
    """The sum over a short axis, whose gradient is a copy for each element."""
    copies = x.shape[axis]
    return linear(
        lambda _, x: _reduce(lax.add, x, axis),
        lambda _, ct: jnp.repeat(jnp.expand_dims(ct, axis), copies, axis),
        (),
        x,
    )


def _count(n: int, window: int, stride: int, before: int, out: int) -> np.ndarray:
    """How many of n positions each window sees along one axis."""
    start = np.arange(out) * stride - before
    return np.minimum(start + window, n) - np.maximum(start, 0)
