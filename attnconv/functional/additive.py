"""Attention whose scores come from a small network on each pair of query and key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from attnconv.functional._scores import (
    attend,
    batched,
    check_axes,
    check_matrices,
    masked,
)
from attnconv.lowering.promotion import wide


def additive_attention(
    query: Float[Array, "*B T N K"],
    key: Float[Array, "*B S N C"],
    value: Float[Array, "*B S N O"],
    w_query: Float[Array, "N K D"],
    w_key: Float[Array, "N C D"],
    w_score: Float[Array, "N D"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "*B T N O"]:
    """`y_i = sum_j softmax_j(u . tanh(W q_i + V k_j) + bias_ij) v_j`, over the keys j not masked.

    Args:
      query: `[B, T, N, K]`, or `[T, N, K]` for one example. The paper's single head is `N = 1`.
      key: `[B, S, N, C]`; keys, queries and values may differ in their number of features.
      value: `[B, S, N, O]`.
      w_query: W of each head, `[N, K, D]`.
      w_key: V of each head, `[N, C, D]`.
      w_score: u of each head, `[N, D]`.
      bias: added to the scores, `[B|1, N|1, T|1, S|1]`.
      mask: boolean, True = attend, `[B|1, N|1, T|1, S|1]`.

    Returns:
      `[B, T, N, O]` in the dtype of `query`. Scores and softmax are computed in at least float32.

    Raises:
      ValueError: shapes that do not fit, or a mask that is not boolean.

    Source: Bahdanau et al. 2015, Neural Machine Translation by Jointly Learning to Align and
    Translate, section 3.1 and appendix A.1.2.

    >>> key = value = jnp.array([[[1.0]], [[3.0]]])
    >>> one = jnp.ones((1, 1, 1))
    >>> additive_attention(jnp.zeros((1, 1, 1)), key, value, one, one, jnp.zeros((1, 1)))
    Array([[[2.]]], dtype=float32)
    """
    batch = "B " * (query.ndim != 3)
    sizes = check_axes(
        query=(query, f"{batch}T N K"),
        key=(key, f"{batch}S N C"),
        value=(value, f"{batch}S N O"),
        w_query=(w_query, "N K D"),
        w_key=(w_key, "N C D"),
        w_score=(w_score, "N D"),
    )
    bias, mask = check_matrices(sizes, bias, mask)
    dtype = wide(query.dtype)  # XLA on a CPU has no product of some halves that is a float32
    from_query = jnp.einsum("BTNK,NKD->BNTD", *(x.astype(dtype) for x in (batched(query), w_query)))
    from_key = jnp.einsum("BSNC,NCD->BNSD", *(x.astype(dtype) for x in (batched(key), w_key)))
    scores = _additive_scores(from_query, from_key, w_score)
    y, _ = attend(masked(scores, bias, mask), batched(value), query.dtype)
    return y if query.ndim == 4 else y[0]


@jax.checkpoint  # computes [B, N, T, S, D] again for the gradient rather than keep it
def _additive_scores(
    query: Float[Array, "B N T D"], key: Float[Array, "B N S D"], w_score: Float[Array, "N D"]
) -> Float[Array, "B N T S"]:
    hidden = jnp.tanh(query[:, :, :, None] + key[:, :, None])
    # A product and a sum fuse with the tanh into one loop; a contraction would not.
    return (hidden * w_score.astype(hidden.dtype)[None, :, None, None]).sum(axis=-1)
