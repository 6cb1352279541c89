"""The derivatives of every order and mode of an attention that has loops or kernels of its own.

The gradient computes the weights again, part by part, rather than keep the matrix of them.
Forward mode, and what is differentiated twice, goes through the plain form.
"""

import functools
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float

from attnconv.lowering.linear import alike, linear


class Moving(NamedTuple):
    """What has a gradient; between the axes of heads, T and S may be grids of positions."""

    query: Float[Array, "B *T N K"]
    key: Float[Array, "B *S G K"]
    value: Float[Array, "B *S G K"]
    bias: Float[Array, "..."] | None
    scale: Float[Array, ""]


@runtime_checkable
class Form(Protocol):
    """One kind of attention, hashable: all that is known of a call when it is traced.

    Each gives `y`, in the dtype of sums, and the logarithm of what divides it. Its own forward and
    backward are for a CPU, or with `everywhere` for every platform.
    """

    everywhere: ClassVar[bool]

    def plain(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        """With operations that JAX differentiates, on any platform."""

    def forward(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        """Its own way."""

    def backward(self, moving: Moving, fixed: Any, y: Array, residual: Array, ct: Array) -> Moving:
        """Its own way, the gradient of `<y, ct>`."""


@functools.partial(jax.jit, static_argnums=0)  # traced once where calls are outside of `jit`
def attend(form: Form, moving: Moving, fixed: Any) -> tuple[Array, Array]:
    """`y` in the dtype of the query, and the residual, which has no gradient."""
    leaves, tree = jax.tree.flatten((moving, fixed))
    moving, fixed = jax.tree.unflatten(tree, alike(*leaves))
    y, residual = _attend(form, moving, fixed)
    return y.astype(moving.query.dtype), residual


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(form: Form, moving: Moving, fixed: Any) -> tuple[Array, Array]:
    own = sequential_vmap(form.forward)
    if form.everywhere:
        return own(moving, fixed)
    return lax.platform_dependent(moving, fixed, cpu=own, default=form.plain)


@_attend.defjvp
def _attend_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    moving, fixed = primals
    y, residual = _attend(form, moving, fixed)

    def tangent(at: Any, along: Moving) -> Array:
        moving, fixed, *_ = at
        return jax.jvp(lambda moving: form.plain(moving, fixed)[0], (moving,), (along,))[1]

    def gradient(at: Any, ct: Array) -> Moving:
        return _gradient(form, *at, ct)

    dy = linear(tangent, gradient, (moving, fixed, y, residual), tangents[0])
    return (y, residual), (dy, jnp.zeros_like(residual))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(
    form: Form, moving: Moving, fixed: Any, y: Array, residual: Array, ct: Array
) -> Moving:
    def plain(moving: Moving, fixed: Any, y: Array, residual: Array, ct: Array) -> Moving:
        return plain_gradient(form, moving, fixed, ct)

    own = sequential_vmap(form.backward)
    args = moving, fixed, y, residual, ct
    if form.everywhere:
        return own(*args)
    return lax.platform_dependent(*args, cpu=own, default=plain)


@_gradient.defjvp
def _gradient_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    moving, fixed, _, _, ct = primals
    along, _, _, _, ct_along = tangents

    def plain(moving: Moving, ct: Array) -> Moving:
        return plain_gradient(form, moving, fixed, ct)

    _, out = jax.jvp(plain, (moving, ct), (along, ct_along))
    return _gradient(form, *primals), out


def plain_gradient(form: Form, moving: Moving, fixed: Any, ct: Array) -> Moving:
    """The gradient of `<y, ct>` as JAX derives it."""
    (gradient,) = jax.vjp(lambda moving: form.plain(moving, fixed)[0], moving)[1](ct)
    return gradient
