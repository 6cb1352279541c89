"""What every attention shares: the checks of its arrays, and the way from scores to outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from attnconv.lowering.linear import alike, linear
from attnconv.lowering.promotion import wide


def check_axes(**arrays: tuple[Array, str]) -> dict[str, int]:
    """The size of each axis letter, where all arrays agree on it.

    >>> check_axes(query=(jnp.ones((2, 3)), "T K"), key=(jnp.ones((4, 3)), "S K"))
    {'T': 2, 'K': 3, 'S': 4}
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        letters = axes.split()
        expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        if array.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, array.shape, strict=True)
        ):
            raise ValueError(f"{name}: expected shape [{expected}], got {list(array.shape)}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a floating dtype, got {array.dtype}")
    return sizes


def check_matrices(
    sizes: dict[str, int], bias: Array | None, mask: Array | None
) -> tuple[Array | None, Array | None]:
    """Bias and mask with all four axes `[B|1, N|1, T|1, S|1]`."""
    bias, mask = (None if x is None else jnp.asarray(x) for x in (bias, mask))
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"mask: expected a boolean array, True = attend, got {mask.dtype}")
    full = [sizes.get(letter, 1) for letter in "BNTS"]

    def four_axes(name: str, array: Array | None) -> Array | None:
        if array is None:
            return None
        shape = (1,) * (4 - array.ndim) + array.shape
        if len(shape) > 4 or any(size not in (1, n) for size, n in zip(shape, full, strict=True)):
            raise ValueError(
                f"{name}: expected shape [B, N, T, S] = {full}, each axis of this size or 1, "
                f"got {list(array.shape)}"
            )
        return array.reshape(shape)

    if bias is not None and not jnp.issubdtype(bias.dtype, jnp.floating):
        bias = bias.astype(jnp.float32)
    return four_axes("bias", bias), four_axes("mask", mask)


def check_lengths(name: str, lengths: Array, B: int | None, most: int) -> Array:
    """Lengths as int32 `[B]` from 0 to the most.

    One example without a batch axis has a single number, `[]` or `[1]`.
    """
    if not isinstance(lengths, jax.Array):
        lengths = np.asarray(lengths)  # whose 64 bits stay until they are clipped
    shapes = [(1,), ()] if B is None else [(B,)]
    if lengths.shape not in shapes or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected integers of shape {list(shapes[0])}, "
            f"got {lengths.dtype} of shape {list(lengths.shape)}"
        )
    if lengths.dtype.itemsize < 4:  # the most may be none of its numbers
        lengths = lengths.astype(jnp.int32)
    return jnp.asarray(lengths.clip(0, most), jnp.int32).reshape(shapes[0])


def check_window(name: str, window: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A local window as `(left, right)`."""
    if window is None:
        return None
    pair = (window, window) if isinstance(window, int | np.integer) else tuple(window)
    if len(pair) != 2 or not all(isinstance(end, int | np.integer) and end >= 0 for end in pair):
        raise ValueError(
            f"{name}: expected an integer >= 0 or a pair (left, right) of them, got {window}"
        )
    return int(pair[0]), int(pair[1])


def batched(x: Float[Array, "*B T N K"]) -> Float[Array, "B T N K"]:
    """With a batch axis, of size 1 where `x` has none."""
    return x if x.ndim == 4 else x[None]


def masked(
    scores: Float[Array, "B N T S"],
    bias: Float[Array, "#B #N #T #S"] | None,
    mask: Bool[Array, "#B #N #T #S"] | None,
) -> Float[Array, "B N T S"]:
    """Scores plus bias, and -inf where masked."""
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    return scores if mask is None else jnp.where(mask, scores, -jnp.inf)


@jax.custom_jvp
def softmax(
    scores: Float[Array, "B N T S"],
) -> tuple[Float[Array, "B N T S"], Float[Array, "B N T"]]:
    """Softmax over the last axis, and the logarithm of its denominator, which has no gradient.

    A row that is -inf throughout gives zeros with zero gradients. The rule for the gradient is
    there so that only the weights are kept for it, not the scores and exponentials too.
    """
    powers, total, residual = _powers(scores)
    return powers / total, residual


def _powers(
    scores: Float[Array, "B N T S"],
) -> tuple[Float[Array, "B N T S"], Float[Array, "B N T 1"], Float[Array, "B N T"]]:
    """The exponentials, what divides them, and its logarithm with nothing taken off.

    The largest power is 1, so a sum below 1 is that of a row without any key. No branch depends on
    a row: `where` in its place keeps XLA on a CPU from one loop for all, and takes half as long
    again.
    """
    top = scores.max(axis=-1, keepdims=True, initial=jnp.finfo(scores.dtype).min)
    powers = jnp.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True)
    return powers, jnp.maximum(total, 1), (top + jnp.log(total))[..., 0]


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    weights, residual = softmax(*primals)
    (tangent,) = tangents
    mean = (weights * tangent).sum(axis=-1, keepdims=True)
    return (weights, residual), (weights * (tangent - mean), jnp.zeros_like(residual))


def attend(
    scores: Float[Array, "B N T S"], value: Float[Array, "B S G K"], dtype: DTypeLike
) -> tuple[Float[Array, "B T N K"], Float[Array, "B N T"]]:
    """`y_i = sum_j softmax_j(s_ij) v_j` in `dtype`, and the logarithm of what divides it.

    The gradient of the scores, `p_ij (ct_i . v_j - sum_k p_ik ct_i . v_k)`, has `ct_i . y_i` for
    the sum: K products in place of S, and the weights are all that is kept.
    """
    return _attend(*alike(scores, value), dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _attend(scores: Array, value: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    powers, total, residual = _powers(scores)
    return weighted_sum(powers, value, dtype, total), residual


@_attend.defjvp
def _attend_jvp(dtype: DTypeLike, primals: tuple, tangents: tuple) -> tuple:
    scores, value = primals
    weights, residual = softmax(scores)
    y = weighted_sum(weights, value, weights.dtype)  # not rounded, for the gradient's differences

    def tangent(at: tuple, along: tuple) -> Array:
        (weights, value, _), (dscores, dvalue) = at, along
        mean = (weights * dscores).sum(axis=-1, keepdims=True)
        dweights = weights * (dscores - mean)
        return weighted_sum(dweights, value, dtype) + weighted_sum(weights, dvalue, dtype)

    def transpose(at: tuple, ct: Array) -> tuple[Array, Array]:
        weights, value, y = at
        B, N, T, S = weights.shape
        G = value.shape[2]

        def rows(x: Array) -> Float[Array, "B G R K"]:
            return x.swapaxes(1, 2).reshape(B, G, N // G * T, x.shape[-1])

        dots = dots_of(rows(ct), value, weights.dtype).reshape(B, N, T, S)
        mean = (rows(ct).astype(weights.dtype) * rows(y)).sum(axis=-1).reshape(B, N, T, 1)
        narrow = weights.astype(value.dtype).reshape(B, G, N // G * T, S)
        # The short matrix is the one that is transposed: XLA on a CPU is slow over the other.
        dvalue = jnp.einsum(
            "BGKR,BGRS->BGKS",
            rows(ct).astype(value.dtype).swapaxes(2, 3),
            narrow,
            preferred_element_type=weights.dtype,
        ).transpose(0, 3, 1, 2)
        return weights * (dots - mean), dvalue.astype(value.dtype)

    dy = linear(tangent, transpose, (weights, value, y), tangents)
    return (y.astype(dtype), residual), (dy, jnp.zeros_like(residual))


def dots_of(
    rows: Float[Array, "B G R K"], key: Float[Array, "B S G K"], dtype: DTypeLike
) -> Float[Array, "B G R S"]:
    """`rows_i . key_j`, for the rows of all heads that share a key."""
    if key.shape[2] == 1:  # as in weighted_sum
        dots = jnp.einsum("BRK,BSK->BRS", rows[:, 0], key[:, :, 0], preferred_element_type=dtype)
        return dots[:, None]
    return jnp.einsum("BGRK,BSGK->BGRS", rows, key, preferred_element_type=dtype)


def weighted_sum(
    weights: Float[Array, "B N T S"],
    value: Float[Array, "B S G K"],
    dtype: DTypeLike,
    total: Float[Array, "B N T 1"] | float = 1.0,
) -> Float[Array, "B T N K"]:
    """`y_i = sum_j w_ij v_j / total_i` in `dtype`; head n reads the values of `n // (N / G)`."""
    B, N, T, S = weights.shape
    G, K = value.shape[2:]
    rows = weights.astype(value.dtype).reshape(B, G, N // G * T, S)
    if G == 1:  # an axis of size 1 between the others would make XLA on a CPU move the values
        y = jnp.einsum(
            "BRS,BSK->BRK", rows[:, 0], value[:, :, 0], preferred_element_type=wide(dtype)
        )
    else:
        y = jnp.einsum("BGRS,BSGK->BGRK", rows, value, preferred_element_type=wide(dtype))
    return (y.reshape(B, N, T, K) / total).swapaxes(1, 2).astype(dtype)
