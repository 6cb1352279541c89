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
from attnconv.functional.dense import wide

he_normal = nnx.initializers.he_normal()


def check_axes(name: str, sizes: Any) -> None:
    """Refuses one number where the number of axes is not known otherwise."""
    if np.ndim(sizes) != 1:
        raise UsageError(f"{name}: expected one number for each axis, as in (7, 7), got {sizes!r}")


# Flax adds a bias in the dtype of the products, and XLA sums what was added in half precision in
# half precision, where 256 ones and one more are 256: the gradient of the bias would be wrong. So
# a layer is made with products that are widened, and a bias that is, and its output is narrowed.


def dot_general(*args: Any, **kwargs: Any) -> Array:
    """That of `functional`, in float32 where it is in half precision."""
    y = F.dot_general(*args, **kwargs)
    return y.astype(wide(y.dtype))


def promoted(arrays: tuple[Any, ...], /, *, dtype: Any = None, **kwargs: Any) -> tuple[Any, ...]:
    """Inputs, kernel and bias as Flax promotes them, but the bias in float32 or wider."""
    *others, bias = promote_dtype(arrays, dtype=dtype, **kwargs)
    return (*others, None if bias is None else arrays[-1].astype(wide(bias.dtype)))


def narrowed(layer: Any, inputs: Any, y: Array) -> Array:
    """The output of a layer in the dtype in which Flax has it."""
    if layer.promote_dtype is not promoted:
        return y
    bias, preferred = layer.bias, layer.preferred_element_type
    parameters = layer.kernel[...], None if bias is None else bias[...]
    dtype = canonicalize_dtype(inputs, *parameters, dtype=layer.dtype)
    if preferred is not None:
        dtype = preferred if bias is None else jnp.promote_types(preferred, dtype)
    return y.astype(dtype)


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with `functional.dot_general`.

    >>> Linear(3, 8, rngs=nnx.Rngs(0))(jnp.ones((4, 5, 3))).shape
    (4, 5, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if "dot_general" not in kwargs:
            kwargs = {"promote_dtype": promoted, "dot_general": dot_general, **kwargs}
        super().__init__(*args, **kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Array:
        return narrowed(self, inputs, super().__call__(inputs, *args, **kwargs))


class PositionEmbedding(nnx.Module):
    """A learned vector for each position, added to the input: `a_i <- a_i + e_i`.

    >>> PositionEmbedding(5, 8, rngs=nnx.Rngs(0))(jnp.zeros((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        # As large as what it is added to: on digits, 97.8 % on validation against 97.1 % at 0.02.
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (length, features)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        vectors = F.positions.learned(self.embedding[...], x.shape[1])
        dtype = wide(x.dtype)  # in which the gradient is summed
        return (x.astype(dtype) + vectors.astype(dtype)[None]).astype(x.dtype)
