"""Neighborhood attention: the window of a convolution, with weights computed from content."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attnconv.errors import UsageError, unknown
from attnconv.functional._scores import check_axes
from attnconv.functional.windows import PerAxis, per_axis
from attnconv.lowering import neighborhood as lowering
from attnconv.lowering import tiles
from attnconv.lowering.promotion import lowest, wide
from attnconv.lowering.rules import Moving

BORDERS = ("shift", "zero")
IMPLEMENTATIONS = ("auto", "pallas")


def neighborhood_attention(
    query: Float[Array, "B *grid N K"],
    key: Float[Array, "B *keys G K"],
    value: Float[Array, "B *keys G K"],
    *,
    window: PerAxis,
    dilation: PerAxis = 1,
    is_causal: bool | Sequence[bool] = False,
    bias: Float[Array, "N *window"] | None = None,
    border: str = "shift",
    scale: float | Float[Array, ""] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B *grid N K"]:
    """`y_i = sum_j softmax_j(scale q_i . k_j + bias_(j-i)) v_j`, over the keys j around i.

    Along an axis of n positions, query i sees `window` keys at steps of `dilation`: with dilation 1

      border    first key                              at the border the window
      "shift"   `clip(i - w // 2, 0, n - w)`           moves inside; it keeps its size
      "zero"    `i - (w - 1) // 2`                     is clipped, as zeros pad a convolution
      (causal)  `i - (w - 1)`                          is clipped

    With dilation d, each of the d sets of every d-th position is such an axis. Memory and time are
    proportional to the number of positions times that of the window. A tile of queries is computed
    at once: what is not finite at a key may reach those of its tile that do not see the key.

    Args:
      query: `[B, *grid, N, K]` with a grid of 1, 2 or 3 axes, in any floating dtype.
      key: `[B, *grid, G, K]`; query head n reads head `n // (N / G)`.
      value: the shape of `key`.
      window: keys that a query sees along each axis, odd or even; one number for all axes.
      dilation: steps between two of them, one for all axes or one for each.
      is_causal: no key after the query along the axis; one for all axes or one for each.
      bias: added to the scores. `[N, *window]` has an entry for each place in the window, from its
        first key on. `[N, *(2 window - 1)]` has one for each offset `(j - i) / dilation`, from
        `-(window - 1)` on; with "shift" a key at the border may have any of these.
      border: "shift" or "zero".
      scale: `1 / sqrt(K)` where None.
      implementation: "pallas" computes tiles in kernels of Triton on CUDA, which are interpreted on
        a CPU, slowly, and on several devices need `shard_map`; "auto" or None does so on a Hopper
        GPU, for dtypes of up to 4 bytes, and takes XLA's operations elsewhere.

    Returns:
      The shape and dtype of `query`. Scores and softmax are computed in at least float32.

    Raises:
      ValueError: shapes that do not fit, an unknown border, an `implementation` that is unknown or
        cannot take the call, or, with "shift", a dilated window larger than the grid.

    Source: Hassani et al. 2023, Neighborhood Attention Transformer, section 3.1; Hassani and Shi
    2022, Dilated Neighborhood Attention Transformer, section 3.2; NATTEN for even windows.
    "zero": Ramachandran et al. 2019, Stand-Alone Self-Attention, section 3.1.

    >>> x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> neighborhood_attention(0 * x, x, x, window=3)[0, :, 0, 0].tolist()
    [1.0, 1.0, 2.0, 3.0, 3.0]
    >>> neighborhood_attention(0 * x, x, x, window=3, border="zero")[0, :, 0, 0].tolist()
    [0.5, 1.0, 2.0, 3.0, 3.5]
    """
    name = "auto" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    rank = query.ndim - 3
    if not 1 <= rank <= 3:
        raise ValueError(
            f"query: expected [B, *grid, N, K] with 1, 2 or 3 grid axes, got {list(query.shape)}"
        )
    grid = " ".join(("T", "HW", "DHW")[rank - 1])
    sizes = check_axes(
        query=(query, f"B {grid} N K"), key=(key, f"B {grid} G K"), value=(value, f"B {grid} G K")
    )
    N, G = sizes["N"], sizes["G"]
    if G == 0 or N % G:
        raise ValueError(f"key: expected heads that divide the {N} of query, got {G}")
    axes = _axes(query.shape[1:-2], window, dilation, is_causal, border)
    _check_bias(bias, N, axes)
    if 0 in query.shape:
        return jnp.zeros_like(query)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return lowering.attention(
        Moving(query, key, value, bias, jnp.asarray(scale, wide(query.dtype))),
        tiles.tile(axes),
        scale=float(scale) if isinstance(scale, int | float) else None,
        implementation=name,
    )


def neighborhood_bias(
    grid: Sequence[int],
    *,
    window: PerAxis,
    dilation: PerAxis = 1,
    is_causal: bool | Sequence[bool] = False,
    bias: Float[Array, "N *window"] | None = None,
    border: str = "shift",
) -> Float[Array, "1 N T S"]:
    """The bias that makes `dot_product_attention` of flattened positions neighborhood attention.

    It is `bias` where a query sees a key and -inf elsewhere, so exact, and as large as all pairs.
    Where the window is as large as the grid, nothing is -inf: neighborhood attention is global.

    Args:
      grid: such as `(H, W)`.
      window, dilation, is_causal, bias, border: as for `neighborhood_attention`.

    Returns:
      `[1, N, T, S]` in the dtype of bias, or float32 where that has no -inf; float32 and `N = 1`
      where bias is None.

    Raises:
      ValueError: as for `neighborhood_attention`.

    >>> neighborhood_bias((3,), window=2, border="zero")[0, 0]
    Array([[  0.,   0., -inf],
           [-inf,   0.,   0.],
           [-inf, -inf,   0.]], dtype=float32)
    """
    axes = _axes(grid, window, dilation, is_causal, border)
    if bias is not None:
        _check_bias(bias, len(bias), axes)
    rank = len(axes)
    by_place = bias is not None and bias.shape[1:] == tuple(axis.window for axis in axes)
    x = jnp.zeros((1,) * (2 * rank + 1)) if bias is None else bias
    dtype = x.dtype if math.isinf(lowest(x.dtype)) else wide(x.dtype)
    x = x.astype(wide(x.dtype))  # in which its gradient is summed
    seen = jnp.ones((1,) * (2 * rank + 1), bool)
    for number, axis in enumerate(axes):
        index = axis.pairs(by_place=by_place)
        if bias is not None:
            x = jnp.take(x, jnp.maximum(index, 0).ravel(), axis=number + 1)
        place = [1] * (2 * rank + 1)
        place[2 * number + 1 : 2 * number + 3] = index.shape
        seen &= (index >= 0).reshape(place)
    if bias is not None:
        x = x.reshape(len(x), *(n for axis in axes for n in (axis.size,) * 2))
    x = jnp.where(seen, x, -jnp.inf)
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    T = math.prod(axis.size for axis in axes)
    return x.transpose(order).reshape(1, len(x), T, T).astype(dtype)


def _axes(
    grid: Sequence[int],
    window: PerAxis,
    dilation: PerAxis,
    is_causal: bool | Sequence[bool],
    border: str,
) -> tuple[tiles.Axis, ...]:
    """The windows along each axis of the grid."""
    rank = len(grid)
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    causal = (
        (is_causal,) * rank
        if isinstance(is_causal, bool | np.bool_)
        else tuple(map(bool, is_causal))
    )
    if len(causal) != rank:
        raise ValueError(f"is_causal: expected one for each of {rank} axes, got {is_causal!r}")
    extents, steps = per_axis("window", window, rank), per_axis("dilation", dilation, rank)
    shift = [border == "shift" and not c for c in causal]
    axes = tuple(map(tiles.Axis, grid, extents, steps, causal, shift))
    for axis in axes:
        if axis.shift and axis.window * axis.dilation > axis.size > 0:
            raise UsageError(
                f"window: expected at most {axis.size // axis.dilation} for {axis.size} positions "
                f"with dilation {axis.dilation} and border='shift', got {axis.window}"
            )
    return axes


def _check_bias(bias: Array | None, N: int, axes: Sequence[tiles.Axis]) -> None:
    if bias is None:
        return
    shapes = [(N, *(a.window for a in axes)), (N, *(2 * a.window - 1 for a in axes))]
    if bias.shape not in shapes:
        raise ValueError(
            f"bias: expected shape {list(shapes[0])}, by place in the window, or "
            f"{list(shapes[1])}, by offset, got {list(bias.shape)}"
        )
