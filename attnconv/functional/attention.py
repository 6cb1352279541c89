"""Attention with weights computed from products of queries and keys.

`B` batch, `T` queries, `S` keys, `N` heads, `G` heads of keys and values (N is a multiple of G),
`K` features per head. A mask or bias has one entry for each head, query and key, or one for all:
`[B|1, N|1, T|1, S|1]`, where leading axes may be left out.

Everywhere a query whose every key is masked (by any of the ways to mask, or a bias of -inf) gets
zeros with zero gradients. Most other forms average all values there.
"""

import functools
import operator
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attnconv.errors import unknown
from attnconv.functional import masks
from attnconv.functional._scores import (
    attend,
    batched,
    check_axes,
    check_lengths,
    check_matrices,
    check_window,
    dots_of,
    masked,
    softmax,
)
from attnconv.lowering import attention as lowering
from attnconv.lowering.choice import note
from attnconv.lowering.promotion import wide

IMPLEMENTATIONS = ("auto", "reference", "chunked", "cudnn", "pallas")


# The overloads name only the argument that decides the type of the result.
@overload
def dot_product_attention(
    *args: Any, return_residual: Literal[False] = ..., **kwargs: Any
) -> Array: ...
@overload
def dot_product_attention(
    *args: Any, return_residual: Literal[True], **kwargs: Any
) -> tuple[Array, Array]: ...
def dot_product_attention(  # type: ignore[misc]
    query: Float[Array, "*B T N K"],
    key: Float[Array, "*B S G K"],
    value: Float[Array, "*B S G K"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N K"] | tuple[Float[Array, "*B T N K"], Float[Array, "*B T N"]]:
    """`y_i = sum_j softmax_j(scale q_i . k_j + bias_ij) v_j`, over the keys j not masked.

    The signature of `jax.nn.dot_product_attention`, and its numbers wherever a query has a key. On
    a CPU, for one query or few, what is not finite in one head may reach the others.

    Args:
      query: `[B, T, N, K]`, or `[T, N, K]` for one example, in any floating dtype.
      key: `[B, S, G, K]`; query head n reads head `n // (N / G)`.
      value: the shape of `key`.
      bias: added to the scores, `[B|1, N|1, T|1, S|1]`.
      mask: boolean, True = attend, `[B|1, N|1, T|1, S|1]`.
      scale: `1 / sqrt(K)` where None.
      is_causal: only keys at the query's own index and before it, `j <= i`.
      query_seq_lengths: `[B]`, queries from this index on are padding and get zeros.
      key_value_seq_lengths: `[B]`, keys from this index on are padding.
      local_window_size: `(left, right)`, only keys with `i - left <= j <= i + right`, both ends
        inside; one number for both. Every restriction holds at once: with `is_causal`, `right`
        no longer matters.
      implementation: "reference" computes the whole matrix of scores, "chunked" that of some
        queries at a time; "cudnn" is the fused kernel of CUDA, for half precision without bias
        and with no mask but one of keys; "pallas" kernels of Triton on CUDA, which take all of
        these, and are interpreted on a CPU, slowly; on several devices they need `shard_map`.
        "auto" or None chooses by the platform and the shapes; see `explain`.
      return_residual: return `(y, r)` with `r_i = log sum_j exp(score_ij)`, `[B, T, N]`, which has
        no gradient and is -inf where every key is masked.

    Returns:
      The shape and dtype of `query`. Scores and softmax are computed in at least float32.

    Raises:
      ValueError: shapes that do not fit, a mask that is not boolean, or an `implementation` that
        is unknown or cannot take the call.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.1; Ainslie et al. 2023,
    GQA, section 2.2 (grouped heads); Dao 2023, FlashAttention-2, section 3.1.1 (the residual).

    >>> query = key = jnp.array([[[1.0]], [[0.0]]])
    >>> value = jnp.array([[[1.0]], [[3.0]]])
    >>> dot_product_attention(query, key, value, is_causal=True)[:, 0, 0]
    Array([1., 2.], dtype=float32)
    """
    name = "auto" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, IMPLEMENTATIONS)
    lengths = {
        "query_seq_lengths": query_seq_lengths,
        "key_value_seq_lengths": key_value_seq_lengths,
    }
    scores = _checked(query, key, bias, mask, scale, is_causal, lengths, local_window_size)
    axes = "B S G K" if query.ndim == 4 else "S G K"
    check_axes(key=(key, axes), value=(value, axes))
    if name == "reference":
        note("dot_product_attention", "any", "matrix", "implementation is 'reference'")
        y, residual = _reference(batched(value), **scores)
    else:
        y, residual = _lowered(batched(value), implementation=name, **scores)
    y = y.reshape(query.shape)
    if not return_residual:
        return y
    return y, residual.reshape(query.shape[:-1]).astype(query.dtype)


def attention_weights(
    query: Float[Array, "*B T N K"],
    key: Float[Array, "*B S G K"],
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    *,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, "..."] | None = None,
    key_value_seq_lengths: Int[Array, "..."] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
) -> Float[Array, "*B N T S"]:
    """The matrix `w` of `dot_product_attention`: `w_ij = softmax_j(scale q_i . k_j + bias_ij)`.

    The arguments and errors are those of `dot_product_attention`.

    Returns:
      `[B, N, T, S]`, or `[N, T, S]` for one example, in at least float32. A row sums to 1, or to 0
      where every key is masked.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.1.

    >>> query = key = jnp.zeros((3, 1, 4))
    >>> attention_weights(query, key, local_window_size=(1, 0))[0]
    Array([[1. , 0. , 0. ],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]], dtype=float32)
    """
    lengths = {
        "query_seq_lengths": query_seq_lengths,
        "key_value_seq_lengths": key_value_seq_lengths,
    }
    scores = _checked(query, key, bias, mask, scale, is_causal, lengths, local_window_size)
    weights, _ = softmax(_masked_scores(**scores))
    return weights if query.ndim == 4 else weights[0]


@functools.partial(jax.jit, static_argnames=("is_causal", "local_window_size"))
def _reference(
    value: Float[Array, "B S G K"], **scores: Any
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """The whole matrix of weights at once."""
    y, residual = attend(_masked_scores(**scores), value, scores["query"].dtype)
    return y, residual.swapaxes(1, 2)


def _lowered(
    value: Float[Array, "B S G K"], *, implementation: str, **scores: Any
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """In a form that has its own way on some platforms."""
    query, key, bias, mask, scale = (
        scores[name] for name in ("query", "key", "bias", "mask", "scale")
    )
    return lowering.attention(
        lowering.Moving(query, key, value, bias, jnp.asarray(scale, wide(query.dtype))),
        lowering.Fixed(mask, scores["query_seq_lengths"], scores["key_value_seq_lengths"]),
        reference=_of_parts,
        is_causal=scores["is_causal"],
        window=scores["local_window_size"],
        scale=float(scale) if isinstance(scale, int | float) else None,
        implementation=implementation,
    )


def _of_parts(
    moving: lowering.Moving,
    fixed: lowering.Fixed,
    is_causal: bool,
    window: tuple[int, int] | None,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """The reference form of the arguments as `lowering` has them."""
    mask, query_lengths, key_lengths = fixed
    return _reference(
        moving.value,
        query=moving.query,
        key=moving.key,
        bias=moving.bias,
        mask=mask,
        scale=moving.scale,
        is_causal=is_causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        local_window_size=window,
    )


@functools.partial(jax.jit, static_argnames=("is_causal", "local_window_size"))
def _masked_scores(
    query: Float[Array, "B T N K"],
    key: Float[Array, "B S G K"],
    bias: Float[Array, "#B #N #T #S"] | None,
    mask: Bool[Array, "#B #N #T #S"] | None,
    *,
    scale: float | Float[Array, ""],
    is_causal: bool,
    query_seq_lengths: Int[Array, "B"] | None,
    key_value_seq_lengths: Int[Array, "B"] | None,
    local_window_size: tuple[int, int] | None,
) -> Float[Array, "B N T S"]:
    """Scaled and biased scores, -inf where masked."""
    B, T, N, K = query.shape
    S, G = key.shape[1:3]
    dtype = wide(query.dtype)
    # The heads that share a key are rows of one product, whose result needs no transposed copy.
    rows = query.swapaxes(1, 2).reshape(B, G, N // G * T, K)
    scale = jnp.asarray(scale, dtype)
    if rows.dtype == dtype:
        scores = dots_of(rows * scale, key, dtype)
    else:  # half precision would round the scaled queries
        scores = dots_of(rows, key, dtype) * scale
    scores = scores.reshape(B, N, T, S)

    restrictions = [] if mask is None else [mask]
    if is_causal:
        restrictions.append(masks.causal(T, S))
    if local_window_size is not None:
        restrictions.append(masks.window(T, S, *local_window_size))
    if key_value_seq_lengths is not None:
        restrictions.append(masks.padding(key_value_seq_lengths, S))
    if query_seq_lengths is not None:
        restrictions.append(masks.padding(query_seq_lengths, T).swapaxes(-1, -2))
    mask = functools.reduce(operator.and_, restrictions) if restrictions else None
    return masked(scores, bias, mask)


def _checked(
    query: Array,
    key: Array,
    bias: Array | None,
    mask: Array | None,
    scale: float | Array | None,
    is_causal: bool,
    lengths: dict[str, Array | None],
    local_window_size: int | tuple[int, int] | None,
) -> dict[str, Any]:
    """The arguments of `_masked_scores`: checked, with a batch axis, no default left open."""
    batch = "B " * (query.ndim != 3)
    sizes = check_axes(query=(query, f"{batch}T N K"), key=(key, f"{batch}S G K"))
    if sizes["G"] == 0 or sizes["N"] % sizes["G"]:
        raise ValueError(
            f"key: expected a number of heads that divides the {sizes['N']} heads of query, "
            f"got {sizes['G']}"
        )
    bias, mask = check_matrices(sizes, bias, mask)
    if scale is not None and jnp.ndim(scale):
        raise ValueError(f"scale: expected one number, got shape {list(jnp.shape(scale))}")
    return {
        "query": batched(query),
        "key": batched(key),
        "bias": bias,
        "mask": mask,
        "scale": max(sizes["K"], 1) ** -0.5 if scale is None else scale,
        "is_causal": is_causal,
        **{
            name: None
            if each is None
            else check_lengths(name, each, sizes.get("B"), sizes["T" if "query" in name else "S"])
            for name, each in lengths.items()
        },
        "local_window_size": check_window("local_window_size", local_window_size),
    }
