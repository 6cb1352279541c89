"""Convolutions, and their layers without shared weights."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv.functional import windows
from attnconv.nn.dense import check_axes, with_bias, without_bias


class Conv(nnx.Conv):
    """`flax.nnx.Conv` that convolves with `functional.conv_general_dilated`.

    >>> layer = Conv(3, 8, (3, 5), strides=2, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 16, 16, 3))).shape
    (4, 8, 8, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        own = {"promote_dtype": without_bias, "conv_general_dilated": F.conv_general_dilated}
        super().__init__(*args, **own | kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Array:
        if self.padding == "VALID":
            rank = len(self.kernel_size)
            dilation = 1 if self.kernel_dilation is None else self.kernel_dilation
            spans = windows.spans(self.kernel_size, windows.per_axis("dilation", dilation, rank))
            windows.check_fits(inputs.shape[-rank - 1 : -1], spans)
        return with_bias(self, inputs, super().__call__(inputs, *args, **kwargs))


class LocallyConnected(nnx.Module):
    """A convolution whose weights are not shared: one kernel for each output position.

    Parameters: `kernel [*positions, *window, C, O]` and `bias [*positions, O]`.

    Args:
      input_size: the extents of the grid that goes in.
      in_features: C.
      out_features: O.
      kernel_size, strides, padding: as of `functional.locally_connected`, which has the formula,
        the errors and the source.

    >>> layer = LocallyConnected((8, 8), 1, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    >>> layer.kernel.shape
    (4, 4, 3, 3, 1, 4)
    """

    def __init__(
        self,
        input_size: Sequence[int],
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ):
        check_axes("input_size", input_size)
        check_axes("kernel_size", kernel_size)
        shape = F.local_kernel_shape(
            tuple(input_size),
            tuple(kernel_size),
            in_features,
            out_features,
            stride=strides,
            padding=padding,
        )
        rank = len(kernel_size)
        self.positions = shape[:rank]
        init = nnx.initializers.variance_scaling(
            2.0,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(rank, 2 * rank + 1)),
            out_axis=-1,
            batch_axis=tuple(range(rank)),
        )
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jax.numpy.zeros((*self.positions, out_features)))
        self.strides, self.padding = strides, padding

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *positions O"]:
        return F.locally_connected(
            x, self.kernel[...], self.bias[...], stride=self.strides, padding=self.padding
        )
