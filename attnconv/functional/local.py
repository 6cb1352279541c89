"""Local connection: the windows of a convolution, with weights of its own for each position."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnconv.functional import windows
from attnconv.functional.windows import Padding, PerAxis
from attnconv.lowering import promotion, views


def locally_connected(
    x: Float[Array, "*B_spatial C"],
    kernel: Float[Array, "*out_window I O"],
    bias: Float[Array, "*out_bias O"] | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
) -> Float[Array, "*B_out O"]:
    """`y_i = b_i + sum_k x_{i stride + k dilation} W_{i,k}`, over the offsets k of the window.

    One matrix product for each position, all in one batch. Output and weights have the dtype of x;
    half precision is summed in float32.

    Args:
      x: `[B, *spatial, C]` or `[*spatial, C]`; 1-, 2- and 3-D.
      kernel: `[*out, *window, C, O]`, as `local_kernel_shape` says.
      bias: `[*out, O]`.
      stride: steps between windows, an int or one for each axis.
      padding: as for `conv`.
      dilation: steps between the elements of a window, an int or one for each axis.

    Returns:
      `[B, *out, O]` or `[*out, O]`.

    Raises:
      ValueError: as for `conv`, or a kernel made for another number of positions.

    Source: LeCun 1989, Generalization and network design strategies.

    >>> x, kernel = jnp.ones((3, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1)
    >>> locally_connected(x, kernel, padding="VALID")[:, 0].tolist()
    [1.0, 5.0]
    """
    rank = _rank(kernel)
    images = windows.batched(x, rank)
    out, window, features = kernel.shape[:rank], kernel.shape[rank:-2], kernel.shape[-1]
    windows.check_weights(x, (*out, features), kernel=kernel, bias=bias)
    if kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"kernel: expected the {x.shape[-1]} channels of x, came {kernel.shape[-2]} in shape "
            f"{kernel.shape}"
        )
    geometry, size = windows.place(
        images.shape[1:-1], window, stride=stride, padding=padding, dilation=dilation
    )
    if out != size:
        raise ValueError(
            f"kernel: expected [*out, *window, C, O] with a window for each of the {size} "
            f"positions, came {out} in shape {kernel.shape}"
        )
    images, geometry = windows.extend(images, padding, geometry)
    # Positions lead in the batched product; it is cheaper to move the image than its patches.
    image = jnp.moveaxis(views.padded(images, geometry), 0, -2)
    seen = views.patches(image, dict(enumerate(window)), size, geometry, first=0)
    positions, depth = math.prod(size), seen.shape[-1]
    y = jnp.einsum(
        "pbk,pko->pbo",
        seen.reshape(positions, len(images), depth),
        kernel.reshape(positions, depth, features),
        preferred_element_type=promotion.wide(x.dtype),
    ).astype(x.dtype)
    y = jnp.moveaxis(y, 1, 0).reshape(len(images), *size, features)
    y = y if x.ndim == y.ndim else y[0]
    return y if bias is None else promotion.biased(y, bias)


def local_kernel_shape(
    input_spatial: Sequence[int],
    window: Sequence[int],
    features_in: int,
    features_out: int,
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
) -> tuple[int, ...]:
    """The shape of the kernel of `locally_connected`: `[*out, *window, C, O]`.

    >>> local_kernel_shape((8, 8), (3, 3), 1, 16, stride=2)
    (4, 4, 3, 3, 1, 16)

    Raises:
      ValueError: as for `conv`.
    """
    _, size = windows.place(
        input_spatial, window, stride=stride, padding=padding, dilation=dilation
    )
    return (*size, *window, features_in, features_out)


def _rank(kernel: Array) -> int:
    if kernel.ndim not in (4, 6, 8):
        raise ValueError(
            f"kernel: expected [*out, *window, C, O] with 1, 2 or 3 window axes, "
            f"came shape {kernel.shape}"
        )
    return kernel.ndim // 2 - 1
