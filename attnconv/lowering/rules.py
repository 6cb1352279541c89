"""The derivatives of every order and mode of an attention that has loops or kernels of its own.

The gradient computes the weights again, part by part, rather than keep the matrix of them.
Forward mode, and what is differentiated twice, goes through the plain form.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float

from attnconv.lowering.linear import alike, linear, of_none
from attnconv.lowering.meshes import attention_specs, by_compiler


class Moving(NamedTuple):
    """What has a gradient; between the axes of heads, T and S may be grids of positions."""

    query: Float[Array, "B *T N K"]
    key: Float[Array, "B *S G K"]
    value: Float[Array, "B *S G K"]
    bias: Float[Array, "..."] | None
    scale: Float[Array, ""]


class Residual(NamedTuple):
    """What weights are computed from again: `p_ij = factor_i exp(score_ij - log_i)`.

    The factor is 1 but for rounding: far from zero, `log` is too coarse to say by what powers were
    divided. A gradient takes it with the cotangent of y.
    """

    log: Float[Array, "B *T N"]
    factor: Float[Array, "B *T N"]


def residual_of(top: Array, total: Array) -> Residual:
    """That of a largest score and the sum of the powers of the scores less it."""
    log = top + jnp.log(total)
    return Residual(log, jnp.where(total == 0, 1, jnp.exp(log - top) / total))


@runtime_checkable
class Plain(Protocol):
    """One kind of attention with operations that JAX differentiates, on any platform."""

    def plain(self, moving: Moving, fixed: Any) -> tuple[Array, Array]:
        """`y`, in the dtype of sums, and the logarithm of what divides it."""


@runtime_checkable
class Own(Protocol):
    """The same by loops or kernels for one platform."""

    @property
    def folds(self) -> bool:
        """Whether a mapped axis becomes one with that of the examples, which all arrays have.

        Else `vmap` takes one after the other.
        """

    def forward(self, moving: Moving, fixed: Any) -> tuple[Array, Residual]:
        """As `plain`."""

    def backward(
        self, moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        """The gradient of `<y, ct>`."""


Ways = tuple[tuple[str, Own], ...]  # by platform


class Form(NamedTuple):
    """All that is known of a call when it is traced; hashable.

    Attributes:
      kind: what is computed.
      own: how on the platforms that do not take the plain form.
    """

    kind: Plain
    own: Ways

    def choose(self, args: Any, of_own: Callable[[Own], Any], plain: Callable[..., Any]) -> Any:
        """The results of `of_own` of the platform's own way, or of `plain`."""
        ways = {
            platform: (_folded if own.folds else sequential_vmap)(of_own(own))
            for platform, own in self.own
        }
        return lax.platform_dependent(*args, default=plain, **ways)


def _folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which `vmap` calls with more examples; a number is the same for all of them."""
    call = custom_vmap(function)

    @call.def_vmap
    def rule(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        if size == 0:
            out = of_none(call, mapped, *args)
            return out, jax.tree.map(lambda _: True, out)

        def fold(x: Any, mapped: bool) -> Array:
            if x.ndim == mapped:
                return x[0] if mapped else x
            each = x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            return each.reshape(-1, *each.shape[2:])

        def unfold(x: Any) -> Array:
            return jnp.broadcast_to(x, size) if x.ndim == 0 else x.reshape(size, -1, *x.shape[1:])

        out = jax.tree.map(unfold, call(*jax.tree.map(fold, args, tuple(mapped))))
        return out, jax.tree.map(lambda _: True, out)

    return call


@functools.partial(jax.jit, static_argnums=0)  # traced once where calls are outside of `jit`
def attend(form: Form, moving: Moving, fixed: Any) -> tuple[Array, Array]:
    """`y` in the dtype of the query, and the residual, which has no gradient."""
    specs = attention_specs(moving.query)
    return by_compiler(functools.partial(_attended, form), specs, moving, fixed)


def _attended(form: Form, moving: Moving, fixed: Any) -> tuple[Array, Array]:
    leaves, tree = jax.tree.flatten((moving, fixed))
    moving, fixed = jax.tree.unflatten(tree, alike(*leaves))
    y, residual = _attend(form, moving, fixed)
    return y.astype(moving.query.dtype), residual.log


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(form: Form, moving: Moving, fixed: Any) -> tuple[Array, Residual]:
    def plain(moving: Moving, fixed: Any) -> tuple[Array, Residual]:
        y, log = form.kind.plain(moving, fixed)
        return y, Residual(log, jnp.ones_like(log))

    return form.choose((moving, fixed), lambda own: own.forward, plain)


@_attend.defjvp
def _attend_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    moving, fixed = primals
    y, residual = _attend(form, moving, fixed)

    def tangent(at: Any, along: Moving) -> Array:
        moving, fixed, *_ = at
        return jax.jvp(lambda moving: form.kind.plain(moving, fixed)[0], (moving,), (along,))[1]

    def gradient(at: Any, ct: Array) -> Moving:
        moving, fixed, y, residual = at
        return _gradient(form, moving, fixed, y.astype(ct.dtype), residual, ct)

    # What is kept for the gradient: kernels on CUDA have rounded y to the dtype of the query.
    rounded = any(platform == "cuda" for platform, _ in form.own)
    kept = y.astype(moving.query.dtype) if rounded else y
    dy = linear(tangent, gradient, (moving, fixed, kept, residual), tangents[0])
    return (y, residual), (dy, jax.tree.map(jnp.zeros_like, residual))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(
    form: Form, moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array
) -> Moving:
    def plain(moving: Moving, fixed: Any, y: Array, residual: Residual, ct: Array) -> Moving:
        return plain_gradient(form.kind, moving, fixed, ct)

    args = moving, fixed, y, residual, ct
    return form.choose(args, lambda own: own.backward, plain)


@_gradient.defjvp
def _gradient_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    moving, fixed, _, _, ct = primals
    along, _, _, _, ct_along = tangents

    def plain(moving: Moving, ct: Array) -> Moving:
        return plain_gradient(form.kind, moving, fixed, ct)

    _, out = jax.jvp(plain, (moving, ct), (along, ct_along))
    return _gradient(form, *primals), out


def plain_gradient(kind: Plain, moving: Moving, fixed: Any, ct: Array) -> Moving:
    """The gradient of `<y, ct>` as JAX derives it."""
    (gradient,) = jax.vjp(lambda moving: kind.plain(moving, fixed)[0], moving)[1](ct)
    return gradient
