"""Promotion of dtypes and ranks, spelled out for who tells JAX not to do it by itself."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array


def wide(dtype: DTypeLike) -> jnp.dtype:
    """The dtype that sums are taken in: float64 and complex ones themselves, else float32.

    >>> [str(wide(dtype)) for dtype in ("bfloat16", "float64", "complex64")]
    ['float32', 'float64', 'complex64']
    """
    same = jnp.dtype(dtype) == "float64" or jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.dtype(dtype if same else "float32")


def lowest(dtype: DTypeLike) -> float:
    """The least number of a floating dtype: -inf, where it has that.

    >>> lowest("bfloat16"), lowest("float8_e4m3fn")
    (-inf, -448.0)
    """
    dtype = jnp.dtype(dtype)
    infinite = np.isinf(np.asarray(-np.inf, dtype))
    return -math.inf if infinite else float(jnp.finfo(dtype).min)


def check_floating(x: Array) -> None:
    """Raises ValueError where x has integers or complex numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected a floating dtype, came {x.dtype}")


def biased(y: Array, bias: Array, dtype: DTypeLike | None = None) -> Array:
    """`y + bias`, the bias for all of y's leading axes and in `dtype`; its gradient is a wide sum.

    What is added in half precision alone XLA sums so on a CPU, where 256 ones and one are 256. So
    the bias is repeated in `wide`, whose transpose is the sum, and rounded then. A vector that is
    so added to each row of a product cuBLASLt adds within it.
    """
    each = jnp.broadcast_to(bias.astype(wide(bias.dtype)), y.shape)
    each = each.astype(bias.dtype if dtype is None else dtype)
    total = jnp.promote_types(y.dtype, each.dtype)
    return y.astype(total) + each.astype(total)


def ranked(x: Array, ndim: int) -> Array:
    """x with as many axes, those of size 1 in front.

    >>> ranked(jnp.ones(3), 2).shape
    (1, 3)
    """
    return x.reshape(*(1,) * (ndim - x.ndim), *x.shape)
