"""The convolution that is nearest to what any layer does."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv.errors import UsageError
from attnconv.functional.windows import Padding, PerAxis


class Fitted(NamedTuple):
    """A convolution, and how much of a layer it is not.

    Attributes:
      kernel: `[*window, C, O]`.
      bias: `[O]`.
      residue: the part of the variance of the layer's outputs that it leaves unexplained: 0 where
        the layer is a convolution with that window, 1 where a constant would do as well.
    """

    kernel: Float[Array, "*window C O"]
    bias: Float[Array, "O"]
    residue: float


def nearest_convolution(
    x: Float[Array, "B *grid C"],
    y: Float[Array, "B *out O"],
    window: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
) -> Fitted:
    """The `conv` of least squares: `min_(W, b) sum |y - conv(x, W, b)|^2` over all positions.

    `residue = sum |y - conv(x, W, b)|^2 / sum |y - mean y|^2`, the mean of each feature over
    examples and positions. Solved in float64; of several solutions the smallest.

    Args:
      x: what the layer was given, `[B, *grid, C]`.
      y: what it made of it, `[B, *out, O]`.
      window: of the convolution; this, stride, padding and dilation as for `conv`.

    Raises:
      UsageError: y has not the grid that the convolution gives, or there are not more positions
        than weights, so that any y would be fitted.

    >>> x = jax.random.normal(jax.random.key(0), (8, 9, 2))
    >>> layer = nearest_convolution(x, x + jnp.roll(x, 1, axis=1), (3,), padding="CIRCULAR")
    >>> layer.kernel[..., 0, 0].round(3).tolist(), round(layer.residue, 3)
    ([1.0, 1.0, 0.0], 0.0)
    """
    seen = math.prod(window) * x.shape[-1]
    unit = jnp.eye(seen, dtype=x.dtype).reshape(*window, x.shape[-1], seen)
    with jax.default_matmul_precision("highest"):
        patches = F.conv(x, unit, stride=stride, padding=padding, dilation=dilation)
    if patches.shape[:-1] != y.shape[:-1]:
        expected = [*patches.shape[:-1], "O"]
        raise UsageError(f"y: expected [{', '.join(map(str, expected))}], got {list(y.shape)}")
    rows = np.asarray(patches, np.float64).reshape(-1, seen)
    rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=1)
    outputs = np.asarray(y, np.float64).reshape(len(rows), y.shape[-1])
    if len(rows) <= rows.shape[1]:
        raise UsageError(
            f"x: expected more than {rows.shape[1]} positions of all examples together, as many as "
            f"the convolution has weights for a feature, got {len(rows)}"
        )
    weights = np.linalg.lstsq(rows, outputs, rcond=None)[0]
    left = float(np.square(outputs - rows @ weights).sum())
    total = float(np.square(outputs - outputs.mean(axis=0)).sum())
    kernel = weights[:-1].reshape(*window, x.shape[-1], -1)
    return Fitted(
        jnp.asarray(kernel, x.dtype),
        jnp.asarray(weights[-1], x.dtype),
        left / total if total > 0 else 0.0,
    )
