"""Convolution on a platform, and its derivatives of every order and mode.

With weights for the outputs, convolution is one number that is linear in each of three arrays,
`<conv(x, kernel), y>`. With y left open it is the convolution; with x or the kernel left open it is
their gradient; and the derivatives of each of the three are the other two.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from attnconv.lowering import conv_cpu
from attnconv.lowering.choice import note
from attnconv.lowering.linear import alike, linear
from attnconv.lowering.views import Geometry, Problem, stock

_ARRAYS = ("x", "kernel", "y")


def conv(
    x: Float[Array, "B *spatial C"],
    kernel: Float[Array, "*window I O"],
    *,
    geometry: Geometry,
    groups: int,
) -> Float[Array, "B *out O"]:
    """Convolution in the form that is fast where it runs; the output size must be positive."""
    problem = Problem(geometry, groups, x.shape[1:-1], kernel.shape[:-2])
    note("conv", "cpu", *conv_cpu.form(problem, len(x), x.shape[-1], kernel.shape[-1]))
    note("conv", "other", "xla", "cuDNN or XLA's own is fast there")
    return _compiled(problem, x, kernel)


@functools.partial(jax.jit, static_argnums=0)  # traced once where calls are outside of `jit`
def _compiled(problem: Problem, x: Array, kernel: Array) -> Array:
    return _open("y", problem, *alike(x, kernel))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _open(array: str, problem: Problem, a: Array, b: Array) -> Array:
    """The form with one array left open, as a function of the other two in their order."""
    return lax.platform_dependent(
        a,
        b,
        cpu=_one_by_one(array, functools.partial(_CPU[array], problem)),
        default=functools.partial(_STOCK[array], problem),
    )


@functools.partial(_open.defjvp, symbolic_zeros=True)
def _jvp(array: str, problem: Problem, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    names = [name for name in _ARRAYS if name != array]
    given = dict(zip(names, primals, strict=True))

    def along(name: str, tangent: Array) -> Array:
        (other,) = given.keys() - {name}

        def at(open_array: str) -> Callable[[Array, Array], Array]:
            free = array if open_array == name else name

            def call(fixed: Array, x: Array) -> Array:
                by_name = {other: fixed, free: x}
                return _open(open_array, problem, *(by_name[n] for n in _ARRAYS if n in by_name))

            return call

        return linear(at(array), at(name), given[other], tangent)

    terms = [
        along(name, tangent)
        for name, tangent in zip(names, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return _open(array, problem, *primals), sum(terms[1:], terms[0])


def _one_by_one(array: str, form: Callable[[Array, Array], Array]) -> Callable:
    """Under `vmap` more images where one kernel serves all, else one call after the other.

    JAX would make one grouped convolution of many kernels.
    """
    form = custom_vmap(form)

    @form.def_vmap
    def rule(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        images = {"y": [True, False], "x": [False, True]}
        if batched == images.get(array):
            a, b = (
                x.reshape(-1, *x.shape[2:]) if more else x
                for x, more in zip((a, b), batched, strict=True)
            )
            out = form(a, b)
            return out.reshape(size, -1, *out.shape[1:]), True

        def one(i: Array) -> Array:
            return form(*(x[i] if more else x for x, more in zip((a, b), batched, strict=True)))

        return lax.map(one, jnp.arange(size)), True

    return form


def _stock_input_gradient(problem: Problem, kernel: Array, y: Array) -> Array:
    shape = (len(y), *problem.spatial, kernel.shape[-2] * problem.groups)
    x, _ = alike(jnp.zeros(shape, y.dtype), y)
    return jax.linear_transpose(lambda x: stock(problem, x, kernel), x)(y)[0]


def _stock_kernel_gradient(problem: Problem, x: Array, y: Array) -> Array:
    shape = (*problem.window, x.shape[-1] // problem.groups, y.shape[-1])
    kernel, _ = alike(jnp.zeros(shape, x.dtype), y)
    return jax.linear_transpose(lambda kernel: stock(problem, x, kernel), kernel)(y)[0]


_CPU = {
    "y": conv_cpu.convolve,
    "x": conv_cpu.input_gradient,
    "kernel": conv_cpu.kernel_gradient,
}
_STOCK = {"y": stock, "x": _stock_input_gradient, "kernel": _stock_kernel_gradient}
