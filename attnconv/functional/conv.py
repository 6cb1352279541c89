"""Convolution: a window of positions, and weights for each offset that all positions share.

`[B, *spatial, C]` images (or one without B), `[*window, C / groups, O]` kernels; 1-, 2- and 3-D.
What the machine learning field calls convolution is a cross-correlation: the kernel is not flipped.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attnconv.errors import unknown
from attnconv.functional import windows
from attnconv.functional.windows import Padding, PerAxis
from attnconv.lowering import conv as lowering
from attnconv.lowering import promotion
from attnconv.lowering.choice import note


def conv(
    x: Float[Array, "*B_spatial C"],
    kernel: Float[Array, "*window I O"],
    bias: Float[Array, "_"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Float[Array, "*B_out O"]:
    """`y_i = b + sum_k x_{i stride + k dilation} W_k`, over the offsets k of the window.

    Output and weights have the dtype of x; half precision is summed in float32. On a CPU, what is
    not finite in one group may reach others, whose products are then taken together.

    Args:
      x: `[B, *spatial, C]` or `[*spatial, C]`, in any floating dtype.
      kernel: `[*window, C / groups, O]`; its rank says whether this is 1-, 2- or 3-D.
      bias: `[O]`.
      stride: steps between windows, an int or one for each axis.
      padding: SAME, VALID, CAUSAL (zeros before the image only, on every axis), CIRCULAR or
        REFLECT (as many as SAME with stride 1, filled from the image), an int, or for each axis an
        int or a pair (before, after). See `windows.place`.
      dilation: steps between the elements of a window, an int or one for each axis.
      groups: the channels fall into as many parts, and output features of one see only its own.
        Depthwise is `groups=C`.

    Returns:
      `[B, *out, O]` or `[*out, O]`.

    Raises:
      ValueError: shapes or dtypes that do not fit, a window larger than the padded image, an
        unknown padding, or a stride, dilation or groups below 1.

    Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning, section 2.

    >>> edges = conv(jnp.array([[0.0], [0.0], [1.0], [1.0]]), jnp.array([[[-1.0]], [[1.0]]]))
    >>> edges[:, 0].tolist()
    [0.0, 1.0, 0.0, -1.0]
    """
    rank = _rank(kernel)
    images = windows.batched(x, rank)
    windows.check_weights(x, kernel.shape[-1:], kernel=kernel, bias=bias)
    _check_channels(x.shape[-1], kernel.shape, groups)
    geometry, _ = windows.place(
        images.shape[1:-1],
        kernel.shape[:rank],
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    images, geometry = windows.extend(images, padding, geometry)
    y = lowering.conv(images, kernel, geometry=geometry, groups=groups)
    y = y if x.ndim == y.ndim else y[0]
    return y if bias is None else promotion.biased(y, bias)


def conv_transpose(
    x: Float[Array, "*B_spatial C"],
    kernel: Float[Array, "*window I O"],
    bias: Float[Array, "_"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
) -> Float[Array, "*B_out O"]:
    """Upsampling by convolution: `stride - 1` zeros between the positions, then stride 1.

    The size of the output is that from which `conv`, with the same stride and padding, makes the
    size of x: `n stride` for SAME, `n stride + max(span - stride, 0)` for VALID, where
    `span = (window - 1) dilation + 1`. The numbers are those of `jax.lax.conv_transpose`; the
    kernel is not flipped.

    Args:
      x: `[B, *spatial, C]` or `[*spatial, C]`.
      kernel: `[*window, C, O]`.
      bias: `[O]`.
      stride: how much finer the output is, an int or one for each axis.
      padding: SAME, VALID, or the zeros around the image with gaps: an int, or for each axis an
        int or a pair (before, after).
      dilation: steps between the elements of a window, an int or one for each axis.

    Raises:
      ValueError: as for `conv`.

    Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning, section 4.

    >>> x, kernel = jnp.array([[1.0], [2.0]]), jnp.array([[[10.0]], [[1.0]]])
    >>> conv_transpose(x, kernel, stride=2)[:, 0].tolist()
    [1.0, 10.0, 2.0, 20.0]
    """
    rank = _rank(kernel)
    images = windows.batched(x, rank)
    windows.check_weights(x, kernel.shape[-1:], kernel=kernel, bias=bias)
    _check_channels(x.shape[-1], kernel.shape, groups=1)
    stride = windows.per_axis("stride", stride, rank)
    dilation = windows.per_axis("dilation", dilation, rank)
    window = windows.per_axis("window", kernel.shape[:rank], rank)
    spans = windows.spans(window, dilation)
    if isinstance(padding, str):
        name = padding.upper()
        pairs = tuple(
            _transposed_pair(name, span, s) for span, s in zip(spans, stride, strict=True)
        )
    else:
        pairs = windows.explicit_pairs(padding, rank)
    axes = zip(images.shape[1:-1], stride, pairs, strict=True)
    windows.check_fits([(n - 1) * s + 1 + sum(pair) for n, s, pair in axes], spans)
    geometry = lowering.Geometry((1,) * rank, pairs, dilation, input_dilation=stride)
    y = lowering.conv(images, kernel, geometry=geometry, groups=1)
    y = y if x.ndim == y.ndim else y[0]
    return y if bias is None else promotion.biased(y, bias)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, by its signature, in the form that is fast on the platform.

    So Flax takes it: `nnx.Conv(..., conv_general_dilated=F.conv_general_dilated)`. Served are
    images with channels last (NHWC, HWIO) and the default precision; everything else, and every
    error, is left to `jax.lax`.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
    >>> numbers = ("NHWC", "HWIO", "NHWC")
    >>> conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)[0, 0, 0]
    Array([18.], dtype=float32)
    """
    stock = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    out = jax.eval_shape(stock, lhs, rhs)  # all checks, with the errors of lax
    if (precision, preferred_element_type, out_sharding, batch_group_count) != (None,) * 3 + (1,):
        excluded: str | None = "a precision, element type, sharding or batch groups are asked for"
    else:
        excluded = _excluded(lhs, rhs, out, dimension_numbers)
    if excluded is not None:
        note("conv_general_dilated", "any", "lax", excluded)
        return stock(lhs, rhs)
    ones = (1,) * (rhs.ndim - 2)
    dilation = ones if rhs_dilation is None else tuple(rhs_dilation)
    if isinstance(padding, str):
        spans = windows.spans(rhs.shape[:-2], dilation)
        padding = lax.padtype_to_pads(lhs.shape[1:-1], spans, window_strides, padding)
    geometry = lowering.Geometry(
        stride=tuple(window_strides),
        padding=tuple((low, high) for low, high in padding),
        dilation=dilation,
        input_dilation=ones if lhs_dilation is None else tuple(lhs_dilation),
    )
    return lowering.conv(lhs, rhs, geometry=geometry, groups=feature_group_count)


def _excluded(
    lhs: Array, rhs: Array, out: jax.ShapeDtypeStruct, dimension_numbers: Any
) -> str | None:
    """Why the lowering does not take these arrays; None where it does."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    image = (0, lhs.ndim - 1, *range(1, lhs.ndim - 1))
    kernel = (rhs.ndim - 1, rhs.ndim - 2, *range(rhs.ndim - 2))
    if (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) != (image, kernel, image):
        return "channels are not last"
    if not jnp.issubdtype(lhs.dtype, jnp.floating):
        return f"{lhs.dtype} is not floating point"
    if min(lhs.size, rhs.size, out.size) == 0 or lhs.ndim == 2:
        return "an array is empty, or has no spatial axis"
    return None


def _rank(kernel: Array) -> int:
    if not 3 <= kernel.ndim <= 5:
        raise ValueError(
            f"kernel: expected [*window, C / groups, O] with 1, 2 or 3 window axes, "
            f"came shape {kernel.shape}"
        )
    return kernel.ndim - 2


def _check_channels(channels: int, kernel_shape: tuple[int, ...], groups: int) -> None:
    *_, inputs, outputs = kernel_shape
    if groups < 1 or channels % groups or outputs % groups:
        raise ValueError(
            f"groups: expected a divisor of the {channels} channels of x and of the {outputs} "
            f"features of the kernel, came {groups}"
        )
    if inputs != channels // groups:
        raise ValueError(
            f"kernel: expected C / groups = {channels} / {groups} = {channels // groups} input "
            f"channels, came {inputs} in shape {kernel_shape}"
        )


def _transposed_pair(padding: str, span: int, stride: int) -> tuple[int, int]:
    """Zeros around the image with gaps, so that stride 1 gives the size `conv` started from."""
    if padding == "SAME":
        total = span + stride - 2
        before = span - 1 if stride >= span else -(-total // 2)
    elif padding == "VALID":
        total = span + stride - 2 + max(span - stride, 0)
        before = span - 1
    else:
        raise unknown("padding", padding, ("SAME", "VALID"))
    return before, total - before
