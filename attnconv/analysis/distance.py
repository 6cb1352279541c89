"""How far attention looks."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnconv.errors import UsageError
from attnconv.functional import positions


def attention_distance(weights: Float[Array, "B N T T"], grid: Sequence[int]) -> Float[Array, "N"]:
    """`mean_(b, i) sum_j w_ij |p_i - p_j|` of each head: from a query to what it looks at.

    `|p_i - p_j|` is the Euclidean distance on the grid, in positions: times the side of a patch it
    is in pixels.

    Args:
      weights: of attention, whose rows sum to 1, `[B, N, T, T]`.
      grid: where the vectors are, in row-major order, such as `(H, W)`; T of them.

    Raises:
      UsageError: T is another number than there are positions.

    Source: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, appendix D.7.

    >>> weights = jnp.stack([jnp.eye(4), jnp.full((4, 4), 0.25)])[None]
    >>> attention_distance(weights, (4,)).tolist()
    [0.0, 1.25]
    """
    count = math.prod(grid)
    if weights.ndim != 4 or weights.shape[2:] != (count, count):
        raise UsageError(
            f"weights: expected [B, N, {count}, {count}], a vector for each position of the grid "
            f"{tuple(grid)}, got {list(weights.shape)}"
        )
    at = positions.grid(tuple(grid))
    apart = jnp.sqrt(jnp.square(at[:, None] - at[None]).sum(axis=-1).astype(weights.dtype))
    return jnp.einsum("BNTS,TS->N", weights, apart) / (len(weights) * count)
