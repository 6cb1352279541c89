"""How far a function is from commuting with a change of its input."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Function = Callable[[Array], Array]


def equivariance_error(
    function: Function,
    x: Num[Array, "B *axes"],
    inside: Function,
    outside: Function | None = None,
) -> Float[Array, "B"]:
    """`|f(inside(x)) - outside(f(x))| / |f(x)|` of each example; `outside` is `inside` where None.

    0 says that f commutes with the change (that it is invariant, where `outside` changes nothing).
    It is computed in at least float32. What has no grid, such as scores of classes, is not changed:
    `outside=lambda y: y`.

    >>> x = jnp.arange(8.0).reshape(2, 4)
    >>> equivariance_error(jnp.square, x, lambda x: jnp.roll(x, 1, axis=1))
    Array([0., 0.], dtype=float32)
    """
    outside = inside if outside is None else outside
    plain = function(x)
    numbers = function(inside(x)), outside(plain), plain
    changed, expected, plain = (y.astype(jnp.promote_types(y.dtype, "float32")) for y in numbers)

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.square(jnp.abs(x)).sum(axis=range(1, x.ndim)))

    return norm(changed - expected) / norm(plain)


def shift(x: Float[Array, "B *grid C"], by: tuple[int, ...]) -> Float[Array, "B *grid C"]:
    """The image moved by whole positions along each axis of its grid, zeros coming in.

    Raises:
      ValueError: `by` has not one number for each axis of the grid; so where x, such as the scores
        of classes, has no grid, and `equivariance_error` needs an `outside` of its own.

    >>> shift(jnp.arange(1.0, 4.0).reshape(1, 3, 1), (1,))[0, :, 0].tolist()
    [0.0, 1.0, 2.0]
    """
    grid = x.shape[1:-1]
    if np.shape(by) != (len(grid),):
        raise ValueError(f"by: expected a number for each axis of the grid {list(grid)}, got {by}")
    for axis, (step, size) in enumerate(zip(by, grid, strict=True), start=1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (max(step, 0), max(-step, 0))
        x = jax.lax.slice_in_dim(jnp.pad(x, pad), max(-step, 0), max(-step, 0) + size, axis=axis)
    return x
