"""Where windows lie on an image: what conv, locally_connected and the pools share."""

import operator
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attnconv.errors import UsageError, unknown
from attnconv.lowering.promotion import check_floating
from attnconv.lowering.views import Geometry

# One number for every axis, or one for each.
PerAxis = int | Sequence[int]
# A name, or how many zeros: on both sides of every axis, or for each axis (before, after) or both.
Padding = str | int | Sequence[int | Sequence[int]]

_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
_NAMES = ("SAME", "VALID", "CAUSAL", *_MODES)


def per_axis(name: str, value: PerAxis, rank: int) -> tuple[int, ...]:
    """One positive int for each of the window's axes.

    >>> per_axis("stride", 2, 3)
    (2, 2, 2)

    Raises:
      ValueError: another number of ints, or one below 1.
    """
    values = each(name, value, rank)
    if len(values) != rank or any(v < 1 for v in values):
        raise UsageError(
            f"{name}: expected a positive int, or one for each of the {rank} window axes, "
            f"came {value!r}"
        )
    return values


def each(name: str, value: PerAxis, count: int) -> tuple[int, ...]:
    """The ints that were given, or as many of the one.

    Raises:
      ValueError: what is no int.
    """
    given = value if isinstance(value, Sequence | np.ndarray) else (value,) * count
    try:
        return tuple(map(operator.index, given))
    except TypeError:
        raise UsageError(f"{name}: expected an int, or several, came {value!r}") from None


def place(
    spatial: Sequence[int],
    window: Sequence[int],
    *,
    stride: PerAxis,
    padding: Padding,
    dilation: PerAxis,
) -> tuple[Geometry, tuple[int, ...]]:
    """Where the windows lie on an image, and how many there are along each axis.

    With `span = (window - 1) dilation + 1`, an axis of n positions gets these zeros in all:

      SAME      as few as give `ceil(n / stride)` windows; the odd one goes after the image
      VALID     none
      CAUSAL    span - 1 before the image, on every axis
      CIRCULAR  span - 1, as SAME with stride 1, and filled with the image continued periodically
      REFLECT   the same, filled with the image mirrored at its border

    >>> place((8, 8), (3, 3), stride=2, padding="SAME", dilation=1)[1]
    (4, 4)

    Raises:
      ValueError: unknown padding, a wrong number of entries, or a window that does not fit.
    """
    rank = len(spatial)
    window = per_axis("window", window, rank)
    stride, dilation = per_axis("stride", stride, rank), per_axis("dilation", dilation, rank)
    extents = spans(window, dilation)
    if isinstance(padding, str):
        axes = zip(spatial, extents, stride, strict=True)
        pairs = tuple(_named_pair(padding.upper(), *axis) for axis in axes)
    else:
        pairs = explicit_pairs(padding, rank)
    check_fits([n + sum(pair) for n, pair in zip(spatial, pairs, strict=True)], extents)
    geometry = Geometry(stride, pairs, dilation, input_dilation=(1,) * rank)
    return geometry, geometry.output_size(spatial, window)


def spans(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How many positions a dilated window covers along each axis.

    >>> spans((3, 5), (1, 2))
    (3, 9)
    """
    return tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))


def extend(
    x: Float[Array, "B *spatial C"], padding: Padding, geometry: Geometry
) -> tuple[Float[Array, "B *extended C"], Geometry]:
    """Continues the image beyond its border where the padding is CIRCULAR or REFLECT.

    The geometry that comes back is left with the zeros that are still to be padded.
    """
    mode = _MODES.get(padding.upper()) if isinstance(padding, str) else None
    if mode is None:
        return x, geometry
    none = ((0, 0),) * len(geometry.padding)
    return jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)), mode), geometry._replace(padding=none)


def explicit_pairs(padding: int | Sequence[int | Sequence[int]], rank: int) -> tuple:
    """(before, after) for each axis, from ints and pairs of them.

    >>> explicit_pairs([1, (0, 2)], rank=2)
    ((1, 1), (0, 2))
    """
    if isinstance(padding, np.ndarray):
        padding = padding.tolist()
    try:
        entries = tuple(padding) if isinstance(padding, Sequence) else (padding,) * rank
        pairs = tuple(
            (low, high) for low, high in (e if isinstance(e, Sequence) else (e, e) for e in entries)
        )
        fits = len(pairs) == rank and min(operator.index(n) for p in pairs for n in p) >= 0
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UsageError(
            f"padding: expected {', '.join(_NAMES)}, a non-negative int, or a (before, after) "
            f"pair for each of the {rank} window axes, came {padding!r}"
        )
    return pairs


def check_fits(sizes: Sequence[int], spans: Sequence[int]) -> None:
    """Raises ValueError where a window spans more than the padded image has."""
    if any(n < span for n, span in zip(sizes, spans, strict=True)):
        raise UsageError(
            f"x: image smaller than the kernel: expected at least {tuple(spans)} positions, "
            f"padding included, came {tuple(sizes)}"
        )


def batched(x: Float[Array, "*axes C"], rank: int) -> Float[Array, "B *spatial C"]:
    """x with a batch axis, whether or not it came with one.

    Raises:
      ValueError: neither `[B, *spatial, C]` nor `[*spatial, C]`, or not floating.
    """
    check_floating(x)
    if x.ndim not in (rank + 1, rank + 2):
        raise ValueError(
            f"x: expected [B, *spatial, C] or [*spatial, C] with {rank} spatial axes, "
            f"came shape {x.shape}"
        )
    return x if x.ndim == rank + 2 else x[None]


def check_weights(
    x: Array, bias_shape: Sequence[int], *, kernel: Array, bias: Array | None
) -> None:
    """Raises ValueError for a dtype other than x's, or a bias of another shape."""
    for name, array in {"kernel": kernel, "bias": bias}.items():
        if array is not None and array.dtype != x.dtype:
            raise ValueError(f"{name}: expected the dtype of x, {x.dtype}, came {array.dtype}")
    if bias is not None and bias.shape != tuple(bias_shape):
        raise ValueError(f"bias: expected shape {tuple(bias_shape)}, came {bias.shape}")


def _named_pair(padding: str, n: int, span: int, stride: int) -> tuple[int, int]:
    if padding == "SAME":
        total = max((-(-n // stride) - 1) * stride + span - n, 0)
    elif padding in _MODES:
        total = span - 1
    elif padding == "CAUSAL":
        return span - 1, 0
    elif padding == "VALID":
        return 0, 0
    else:
        raise unknown("padding", padding, _NAMES)
    return total // 2, total - total // 2
