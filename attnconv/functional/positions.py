"""What a position adds: vectors to add to the inputs, a rotation of queries and keys, or a bias."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from attnconv.functional import windows
from attnconv.lowering import promotion


def learned(table: Float[Array, "S D"], positions: int | Int[Array, "*P"]) -> Float[Array, "*P D"]:
    """One free vector for each position: `y_p = table[p]`.

    Args:
      table: `[S, D]`, the trainable vectors of positions 0 .. S - 1.
      positions: how many, from 0 on; or an integer array of any shape. A position outside the
        table gives NaN, for its value may be unknown until the program runs.

    Raises:
      ValueError: `positions` is a number outside 0 .. S.

    Source: Gehring et al. 2017, Convolutional Sequence to Sequence Learning, section 3.1.

    >>> table = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    >>> learned(table, jnp.array([2, 0]))
    Array([[4., 5.],
           [0., 1.]], dtype=float32)
    """
    if not isinstance(positions, int | np.integer):
        at = jnp.asarray(table, promotion.wide(table.dtype)).at[positions]  # its gradient is a sum
        found = at.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return found.astype(table.dtype)
    if not 0 <= positions <= len(table):
        raise ValueError(f"positions: expected 0 .. {len(table)} (table), got {positions}")
    return table[:positions]


def sinusoidal(
    positions: int | Num[Array, "*P"], features: int, *, base: float = 10000.0
) -> Float[Array, "*P {features}"]:
    """Waves of geometrically growing length: `y_2i = sin(p / base^(2i/D))`, `y_2i+1 = cos(...)`.

    `y_(p+k)` is a linear function of `y_p` that depends on k only.

    Args:
      positions: how many, from 0 on; or an array of any shape.
      features: D, even.
      base: the longest wave is `2 pi base`.

    Returns:
      `[*positions, D]`.

    Raises:
      ValueError: `features` is odd.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.5.

    >>> sinusoidal(2, 2).round(3)
    Array([[0.   , 1.   ],
           [0.841, 0.54 ]], dtype=float32)
    """
    if features % 2:
        raise ValueError(f"features: expected an even number, got {features}")
    at = jnp.arange(positions) if isinstance(positions, int | np.integer) else positions
    angle = _angles(at, features // 2, base)
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return waves.reshape(*angle.shape[:-1], features)


def sinusoidal_grid(
    shape: Sequence[int], features: int, *, base: float = 10000.0
) -> Float[Array, "*grid {features}"]:
    """`sinusoidal` for an image: an equal share of the features for each axis, first axis first.

    Args:
      shape: the grid, such as `(H, W)`.
      features: D, an even number for each axis.
      base: as in `sinusoidal`.

    Returns:
      `[*shape, D]`.

    Raises:
      ValueError: `features` is not a multiple of twice the number of axes.

    Source: Carion et al. 2020, End-to-End Object Detection with Transformers, appendix A.4.

    >>> sinusoidal_grid((2, 3), 4).shape
    (2, 3, 4)
    """
    if not shape:
        raise ValueError("shape: expected one axis at least, got ()")
    if features % (2 * len(shape)):
        raise ValueError(f"features: expected a multiple of {2 * len(shape)}, got {features}")
    at = jnp.indices(tuple(shape))
    share = features // len(shape)
    return jnp.concatenate([sinusoidal(axis, share, base=base) for axis in at], axis=-1)


def rotary(
    x: Float[Array, "*B T N K"],
    positions: Num[Array, "*#B T"] | None = None,
    *,
    base: float = 10000.0,
) -> Float[Array, "*B T N K"]:
    """Rotate each pair of features by an angle that grows with the position.

    `y_c + i y_(c+K/2) = (x_c + i x_(c+K/2)) exp(i p / base^(2c/K))` for `c < K/2`, so that the
    dot product of a rotated query and a rotated key depends on the difference of their positions.
    A pair is feature c of the first half and c of the second; the paper pairs neighbours, which
    is the same up to an order of the features that the projections before it absorb.

    Args:
      x: `[B, T, N, K]` or `[T, N, K]`, queries or keys, K even.
      positions: `[T]` or `[B, T]`; 0 .. T - 1 where None.
      base: the slowest pair turns once in about `2 pi base` positions.

    Returns:
      The shape and dtype of `x`; the rotation itself is computed in at least float32.

    Raises:
      ValueError: K is odd, or x or `positions` has another shape.

    Source: Su et al. 2021, RoFormer, section 3.2.2, equation 34.

    >>> rotary(jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]]))[:, 0].round(3)
    Array([[1.   , 0.   ],
           [0.54 , 0.841]], dtype=float32)
    """
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"x: expected [B, T, N, K] or [T, N, K], K even, got {list(x.shape)}")
    (*examples, length, _, features) = x.shape
    at = jnp.arange(length) if positions is None else positions
    each = zip(at.shape[-2::-1], examples[::-1], strict=False)
    if at.shape[-1:] != (length,) or at.ndim > x.ndim - 2 or any(a not in (1, n) for a, n in each):
        raise ValueError(
            f"positions: expected [T] or [B, T] of x {list(x.shape)}, got {list(at.shape)}"
        )
    angle = _angles(at, features // 2, base)[..., None, :]
    promotion.check_floating(x)
    wide = x.astype(promotion.wide(x.dtype))
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = (promotion.ranked(f(angle).astype(wide.dtype), x.ndim) for f in (jnp.cos, jnp.sin))
    rotated = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def relative_bias(
    table: Float[Array, "N *offsets"],
    queries: int | Sequence[int],
    keys: int | Sequence[int] | None = None,
) -> Float[Array, "1 N T S"]:
    """One free number for each head and offset: `bias[0, n, i, j] = table[n, R + clip(j - i)]`.

    The offset `j - i` (key minus query) is clipped to `-R .. R` along each axis, whose `2 R + 1`
    entries in `table` start at `-R`. On a grid the positions are flattened in row-major order;
    there a table `[N, 2 H - 1, 2 W - 1]` has an entry for every offset, and nothing is clipped.

    Args:
      table: `[N, 2 R + 1]` for a sequence, `[N, 2 R + 1, 2 R' + 1]` for an image, and so on.
      queries: number of queries T, or their grid, such as `(H, W)`.
      keys: number of keys S, or their grid; `queries` where None.

    Raises:
      ValueError: `queries` or `keys` has not one entry for each axis of `table`, or an axis of
        `table` is even.

    Source: Shaw et al. 2018, Self-Attention with Relative Position Representations, section 3.2
    (clipping); Liu et al. 2021, Swin Transformer, section 3.2, equation 4 (the bias, the grid).

    >>> relative_bias(jnp.array([[-1.0, 0.0, 1.0]]), 3)[0, 0]
    Array([[ 0.,  1.,  1.],
           [-1.,  0.,  1.],
           [-1., -1.,  0.]], dtype=float32)
    """
    offsets = table.shape[1:]
    if not all(size % 2 for size in offsets):
        raise ValueError(f"table: expected [N, 2 R + 1, ...], got {list(table.shape)}")
    at_query, at_key = grid(queries), grid(queries if keys is None else keys)
    for name, at in (("queries", at_query), ("keys", at_key)):
        if at.shape[1] != len(offsets):
            raise ValueError(
                f"{name}: expected {len(offsets)} sizes, one for each axis of offsets in table "
                f"{list(table.shape)}, got {at.shape[1]}"
            )
    radius = promotion.ranked(jnp.array(offsets) // 2, 3)
    offset = jnp.clip(at_key[None, :] - at_query[:, None], -radius, radius) + radius
    wide = table.astype(promotion.wide(table.dtype))  # in which its gradient is summed
    return wide[(slice(None), *jnp.moveaxis(offset, -1, 0))][None].astype(table.dtype)


def grid(shape: int | Sequence[int]) -> Int[Array, "V axes"]:
    """The coordinates of every position of a grid, in row-major order.

    >>> grid((2, 2))
    Array([[0, 0],
           [0, 1],
           [1, 0],
           [1, 1]], dtype=int32)
    """
    sizes = windows.each("shape", shape, 1)
    return jnp.stack(jnp.unravel_index(jnp.arange(math.prod(sizes)), sizes), axis=-1)


def _angles(positions: Num[Array, "*P"], pairs: int, base: float) -> Float[Array, "*P {pairs}"]:
    """`p / base^(i/pairs)`, for each position p and each pair i of features."""
    rates = base ** (-jnp.arange(pairs, dtype=float) / pairs)
    return positions[..., None].astype(rates.dtype) * promotion.ranked(rates, positions.ndim + 1)
