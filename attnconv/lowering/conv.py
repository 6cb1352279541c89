"""Convolution on a platform, and its derivatives of every order and mode.

With weights for the outputs, convolution is one number that is linear in each of three arrays,
`<conv(x, kernel), y>`. With y left open it is the convolution; with x or the kernel left open it is
their gradient; and the derivatives of each of the three are the other two.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from attnconv.lowering import conv_cpu, conv_kernel
from attnconv.lowering.choice import note
from attnconv.lowering.linear import alike, linear, of_none
from attnconv.lowering.meshes import by_compiler, image_spec
from attnconv.lowering.promotion import wide
from attnconv.lowering.views import Geometry, Problem, mirrored, padded, patches, stock

Form = Callable[[Problem, Array, Array], Array]

_ARRAYS = ("x", "kernel", "y")
# H200, a step of the network of Flax's MNIST example, 128 images, with 32 seeds, ms: grouped
# convolutions 5.9, products of patches 4.0, 32 steps 26; in bfloat16 2.9, 2.3, 23.
SMALL = 1 << 24  # numbers that the windows of one kernel see, from which on it fills a device
MOST = 1 << 29  # those of all kernels


def conv(
    x: Float[Array, "B *spatial C"],
    kernel: Float[Array, "*window I O"],
    *,
    geometry: Geometry,
    groups: int,
) -> Float[Array, "B *out O"]:
    """Convolution in the form that is fast where it runs; the output size must be positive."""
    problem = Problem(geometry, groups, x.shape[1:-1], kernel.shape[:-2])
    if 0 in (*x.shape, *kernel.shape):
        note("conv", "any", "xla", "an axis of size 0")
        return stock(problem, x, kernel)
    note("conv", "cpu", *conv_cpu.form(problem, len(x), x.shape[-1], kernel.shape[-1]))
    refusal = conv_kernel.refusal("y", problem, x, kernel)
    if refusal is None:
        note("conv", "cuda", "kernel", "one small kernel for each channel")
    else:
        note("conv", "cuda", "xla", f"there is no kernel for {refusal}")
    note("conv", "other", "xla", "XLA's own is fast there")
    return _compiled(problem, x, kernel)


@functools.partial(jax.jit, static_argnums=0)  # traced once where calls are outside of `jit`
def _compiled(problem: Problem, x: Array, kernel: Array) -> Array:
    def of_images(*arrays: Array) -> Array:
        return _open("y", problem, *alike(*arrays))

    return by_compiler(of_images, image_spec(x, kernel), x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _open(array: str, problem: Problem, a: Array, b: Array) -> Array:
    """The form with one array left open, as a function of the other two in their order."""
    if conv_kernel.refusal(array, problem, a, b) is None:
        on_cuda = _batched(array, problem, _KERNELS)
    else:
        small = _STOCK if problem.groups > 1 else _PRODUCTS
        on_cuda = _batched(array, problem, _STOCK, small)
    return lax.platform_dependent(
        a,
        b,
        cpu=_batched(array, problem, _CPU),
        cuda=on_cuda,
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


def _batched(
    array: str,
    problem: Problem,
    forms: Mapping[str, Form],
    small: Mapping[str, Form] | None = None,
) -> Callable:
    """Under `vmap` more images where one kernel serves all.

    JAX would make one grouped convolution of many kernels. Here one is taken after the other, or
    all together in the forms for small ones.
    """
    call = custom_vmap(functools.partial(forms[array], problem))

    @call.def_vmap
    def rule(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        if size == 0:
            return of_none(call, batched, a, b), True
        images = {"y": [True, False], "x": [False, True]}
        if batched == images.get(array):
            a, b = (
                x.reshape(-1, *x.shape[2:]) if more else x
                for x, more in zip((a, b), batched, strict=True)
            )
            out = call(a, b)
            return out.reshape(size, -1, *out.shape[1:]), True
        count = _seen(array, problem, a, b, batched)
        if small is not None and size > 1 and count <= SMALL and size * count <= MOST:
            together = functools.partial(small[array], problem)
            return jax.vmap(together, [0 if more else None for more in batched])(a, b), True

        def one(i: Array) -> Array:
            return call(*(x[i] if more else x for x, more in zip((a, b), batched, strict=True)))

        return lax.map(one, jnp.arange(size)), True

    return call


def _seen(array: str, problem: Problem, a: Array, b: Array, batched: Sequence[bool]) -> int:
    """How many numbers the windows of one kernel see, each counted as often as it is seen."""
    images, mapped, places = a, batched[0], problem.size
    if array == "x":  # a convolution of y
        images, mapped, places = b, batched[1], problem.spatial
    return images.shape[int(mapped)] * images.shape[-1] * math.prod((*places, *problem.window))


def _rows(problem: Problem, x: Array) -> Array:
    """What each window sees, as a row of one matrix, which cuBLAS also takes for its transpose."""
    window = dict(enumerate(problem.window))
    seen = patches(padded(x, problem.geometry), window, problem.size, problem.geometry)
    return seen.reshape(-1, seen.shape[-1])


def _by_patches(problem: Problem, x: Array, kernel: Array) -> Array:
    y = _rows(problem, x) @ kernel.reshape(-1, kernel.shape[-1])
    return y.reshape(len(x), *problem.size, kernel.shape[-1])


def _patches_back(problem: Problem, kernel: Array, y: Array) -> Array:
    """The gradient of x by the form whose windows hold fewer numbers."""
    inputs, features = kernel.shape[-2:]
    if features < inputs:
        return _mirrored(_by_patches, problem, kernel, y)
    rows = y.reshape(-1, features) @ kernel.reshape(-1, features).T
    rows = rows.astype(wide(y.dtype))  # in which XLA sums without writing it
    x, _ = alike(jnp.zeros((len(y), *problem.spatial, inputs), rows.dtype), rows)
    return jax.linear_transpose(functools.partial(_rows, problem), x)(rows)[0].astype(y.dtype)


def _mirrored(form: Form, problem: Problem, kernel: Array, y: Array) -> Array:
    """The gradient of x by a form of convolution."""
    back, kernel = mirrored(problem, kernel)
    return form(back, y, kernel)


def _stock_input_gradient(problem: Problem, kernel: Array, y: Array) -> Array:
    shape = (len(y), *problem.spatial, kernel.shape[-2] * problem.groups)
    x, _ = alike(jnp.zeros(shape, y.dtype), y)
    return jax.linear_transpose(lambda x: stock(problem, x, kernel), x)(y)[0]


def _kernel_gradient(form: Form, problem: Problem, x: Array, y: Array) -> Array:
    """That of a form of convolution, as JAX derives it."""
    shape = (*problem.window, x.shape[-1] // problem.groups, y.shape[-1])
    kernel, _ = alike(jnp.zeros(shape, x.dtype), y)
    return jax.linear_transpose(lambda kernel: form(problem, x, kernel), kernel)(y)[0]


_CPU: dict[str, Form] = {
    "y": conv_cpu.convolve,
    "x": conv_cpu.input_gradient,
    "kernel": conv_cpu.kernel_gradient,
}
_STOCK: dict[str, Form] = {
    "y": stock,
    "x": _stock_input_gradient,
    "kernel": functools.partial(_kernel_gradient, stock),
}
_PRODUCTS: dict[str, Form] = {
    "y": _by_patches,
    "x": _patches_back,
    "kernel": functools.partial(_kernel_gradient, _by_patches),
}
_KERNELS: dict[str, Form] = {
    "y": conv_kernel.convolve,
    "x": functools.partial(_mirrored, conv_kernel.convolve),
    "kernel": conv_kernel.kernel_gradient,
}
