"""Layers on each vector alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype, promote_dtype
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv.errors import UsageError
from attnconv.functional.dense import biased, sharded, wide

he_normal = nnx.initializers.he_normal()


def check_axes(name: str, sizes: Any) -> None:
    """Refuses one number where the number of axes is not known otherwise."""
    if np.ndim(sizes) != 1:
        raise UsageError(f"{name}: expected one number for each axis, as in (7, 7), got {sizes!r}")


# XLA on a CPU sums what was added in half precision in half precision, where 256 ones and one are
# 256: the gradient of a bias that Flax adds would be wrong. So Flax adds zeros, which XLA leaves
# out, and the bias is added to its output.


def without_bias(arrays: tuple[Any, ...], /, **kwargs: Any) -> tuple[Any, ...]:
    """Inputs, kernel and bias as Flax promotes them, with zeros for the bias."""
    *others, bias = promote_dtype(arrays, **kwargs)
    return (*others, None if bias is None else jnp.zeros_like(bias))


def with_bias(layer: Any, inputs: Any, y: Array) -> Array:
    """The output of a layer of Flax with the bias that `without_bias` left out."""
    if layer.bias is None or layer.promote_dtype is not without_bias:
        return y
    bias = jnp.asarray(layer.bias[...])
    dtype = canonicalize_dtype(inputs, layer.kernel[...], bias, dtype=layer.dtype)
    if sharded(y, bias):
        return biased(y, bias, dtype)
    rows = y.reshape(*y.shape[: y.ndim - bias.ndim], bias.size)  # which cuBLASLt adds it to
    return biased(rows, bias.reshape(-1), dtype).reshape(y.shape)


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with `functional.dot_general`.

    >>> Linear(3, 8, rngs=nnx.Rngs(0))(jnp.ones((4, 5, 3))).shape
    (4, 5, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        own = {"promote_dtype": without_bias, "dot_general": F.dot_general}
        super().__init__(*args, **own | kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Array:
        return with_bias(self, inputs, super().__call__(inputs, *args, **kwargs))


class PositionEmbedding(nnx.Module):
    """A learned vector for each position, added to the input: `a_i <- a_i + e_i`.

    Args:
      length: how many positions there are; the input has at most as many.
      features: of each vector.

    >>> PositionEmbedding(5, 8, rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        # As large as what it is added to: on digits, 97.8 % on validation against 97.1 % at 0.02.
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (length, features)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if x.ndim != 3:
            raise ValueError(f"x: expected vectors [B, T, D], got an array of shape {x.shape}")
        vectors = F.positions.learned(self.embedding[...], x.shape[1])
        dtype = wide(x.dtype)  # in which the gradient is summed
        return (x.astype(dtype) + vectors.astype(dtype)[None]).astype(x.dtype)
