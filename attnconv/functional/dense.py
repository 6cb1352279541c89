"""Products of weights with the last axes of an array: the fully connected layer of each vector."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# For layers and models, which have no access to lowering.
from attnconv.lowering.linear import apart as apart
from attnconv.lowering.meshes import sharded as sharded
from attnconv.lowering.promotion import biased as biased
from attnconv.lowering.promotion import wide as wide


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    *,
    out_sharding: Any = None,
) -> Array:
    """`jax.lax.dot_general`, by its signature, with the vectors of lhs as the rows of one matrix.

    So Flax takes it: `nnx.Linear(..., dot_general=F.dot_general)`. Where the last axes of lhs are
    contracted with the first of rhs, one product of matrices serves any number of axes, and so do
    its gradients; XLA on a CPU takes up to twice as long over the axes themselves. Everything else,
    arrays sharded over explicit axes of a mesh, and every error, is left to `jax.lax`.

    >>> x, kernel = jnp.ones((2, 5, 3)), jnp.ones((3, 4, 6))
    >>> dot_general(x, kernel, (((2,), (0,)), ((), ()))).shape
    (2, 5, 4, 6)
    """
    options = {
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "out_sharding": out_sharding,
    }
    (over_lhs, over_rhs), batch = dimension_numbers
    count = len(over_lhs)
    served = (
        lhs.ndim > count + 1
        and count > 0
        and out_sharding is None
        and tuple(map(len, batch)) == (0, 0)
        and tuple(over_lhs) == tuple(range(lhs.ndim))[-count:]
        and tuple(over_rhs) == tuple(range(count))
        and lhs.shape[lhs.ndim - count :] == rhs.shape[:count]
        and not sharded(lhs, rhs)
    )
    if not served:
        return lax.dot_general(lhs, rhs, dimension_numbers, **options)
    depth = math.prod(rhs.shape[:count])
    rows = lhs.reshape(math.prod(lhs.shape[: lhs.ndim - count]), depth)
    weights = rhs.reshape(depth, math.prod(rhs.shape[count:]))
    y = lax.dot_general(rows, weights, (((1,), (0,)), ((), ())), **options)
    return jnp.reshape(y, (*lhs.shape[: lhs.ndim - count], *rhs.shape[count:]))


@jax.checkpoint
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, `jax.nn.gelu` with less to keep.

    The gradient keeps x alone and computes the rest again, which is less than to write and read it;
    on a GPU the product that makes x has it as its epilogue, in half precision.

    Source: Hendrycks and Gimpel 2016, Gaussian error linear units.

    >>> f"{gelu(jnp.array(1.0)):.3f}"
    '0.841'
    """
    return jax.nn.gelu(x)
