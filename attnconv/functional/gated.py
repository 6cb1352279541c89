"""Gated positional attention: each head mixes where to look by content with where by position."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attnconv.functional._scores import batched, masked, softmax, weighted_sum
from attnconv.functional.attention import dot_product_attention
from attnconv.lowering.promotion import ranked, wide


def gated_positional_attention(
    query: Float[Array, "*B T N K"],
    key: Float[Array, "*B S N K"],
    value: Float[Array, "*B S N K"],
    position: Float[Array, "#N T S"],
    gate: Float[Array, "N"],
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
) -> Float[Array, "*B T N K"]:
    """`y_i = sum_j ((1 - g) softmax_j(scale q_i . k_j) + g softmax_j(p_ij)) v_j`.

    `g = sigmoid(gate)`: `inf` looks by position only, `-inf` is `dot_product_attention`.

    Args:
      query: `[B, T, N, K]`, or `[T, N, K]` for one example.
      key: `[B, S, N, K]`.
      value: `[B, S, N, K]`.
      position: p, a score for each head, query and key, `[N|1, T, S]`.
      gate: one number for each head, `[N]`.
      mask: boolean, True = attend, `[B|1, N|1, T|1, S|1]`; of both.
      scale: `1 / sqrt(K)` where None.

    Returns:
      The shape and dtype of `query`. Scores and softmax are computed in at least float32.

    Raises:
      ValueError: shapes that do not fit, or a mask that is not boolean.

    Source: d'Ascoli et al. 2021, ConViT, section 3, equations 7 and 8. Rows of both terms sum to 1,
    so that the normalisation of equation 8 changes nothing.

    >>> query, value = jnp.zeros((2, 1, 1)), jnp.array([[[1.0]], [[3.0]]])
    >>> there = jnp.array([[[0.0, -jnp.inf], [-jnp.inf, 0.0]]])
    >>> gated_positional_attention(query, query, value, there, jnp.array([0.0]))[:, 0, 0].tolist()
    [1.5, 2.5]
    """
    by_content = dot_product_attention(query, key, value, mask=mask, scale=scale)
    (T, N), S = query.shape[-3:-1], key.shape[-3]
    if position.ndim != 3 or position.shape[0] not in (1, N) or position.shape[1:] != (T, S):
        raise ValueError(f"position: expected [{N}|1, {T}, {S}], got {list(position.shape)}")
    if gate.shape != (N,):
        raise ValueError(f"gate: expected [{N}], got {list(gate.shape)}")
    dtype = wide(query.dtype)
    scores = ranked(position, 4).astype(dtype)
    if mask is not None:
        mask = ranked(mask, 4)
        scores = jnp.broadcast_to(scores, jnp.broadcast_shapes(scores.shape, mask.shape))
    weights, _ = softmax(masked(scores, None, mask))
    values = batched(value)
    weights = jnp.broadcast_to(weights, (len(values), N, T, S))
    by_position = weighted_sum(weights, values, dtype).reshape(query.shape)
    share = jax.nn.sigmoid(gate.astype(dtype)).reshape(*(1,) * (query.ndim - 2), N, 1)
    return ((1 - share) * by_content.astype(dtype) + share * by_position).astype(query.dtype)
