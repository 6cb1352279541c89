"""Promotion of dtypes and ranks, spelled out for who tells JAX not to do it by itself."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype that sums are taken in: float64 for itself, float32 for any other.

    >>> str(wide("bfloat16")), str(wide("float64"))
    ('float32', 'float64')
    """
    return jnp.dtype("float64" if jnp.dtype(dtype) == "float64" else "float32")


def check_floating(x: Array) -> None:
    """Raises ValueError where x has integers or complex numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected a floating dtype, came {x.dtype}")


def biased(y: Array, bias: Array) -> Array:
    """`y + bias`, the bias for all of y's leading axes; its gradient is summed in `wide`.

    What is added in half precision alone XLA sums so on a CPU, where 256 ones and one are 256. One
    vector for each row is what cuBLASLt adds within the product that makes y.
    """
    dtype = jnp.result_type(y, bias)
    rows = y.reshape(*y.shape[: y.ndim - bias.ndim], bias.size).astype(dtype)
    each = jnp.broadcast_to(bias.reshape(-1).astype(wide(dtype)), rows.shape).astype(dtype)
    return (rows + each).reshape(y.shape)


def ranked(x: Array, ndim: int) -> Array:
    """x with as many axes, those of size 1 in front.

    >>> ranked(jnp.ones(3), 2).shape
    (1, 3)
    """
    return x.reshape(*(1,) * (ndim - x.ndim), *x.shape)
