"""A linear function that names its own transpose, for any order and mode of differentiation.

`jax.custom_vjp` would shut forward mode out. Under `jax.custom_jvp`, a tangent that is computed
through `linear` is transposed by the function given here rather than by JAX.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[..., chex.ArrayTree]


def linear(fun: Function, transpose: Function, fixed: chex.ArrayTree, x: chex.ArrayTree) -> Any:
    """`fun(fixed, x)`, linear in x; reverse mode takes `transpose(fixed, cotangents of it)`.

    Differentiated in `fixed`, it is `fun` that is differentiated (or `transpose`, once transposed).

    >>> double = lambda fixed, x: 2.0 * x
    >>> jax.grad(lambda x: linear(double, lambda fixed, ct: 7.0 * ct, (), x))(1.0)
    Array(7., dtype=float32, weak_type=True)
    """
    out = jax.tree.structure(jax.eval_shape(fun, fixed, x))
    fixed_leaves, fixed_tree = jax.tree.flatten(fixed)
    leaves, tree = jax.tree.flatten(x)
    count = len(fixed_leaves)

    def flat(f: Function, inner: Any) -> Function:
        def call(*args: Any) -> list[Any]:
            before = jax.tree.unflatten(fixed_tree, args[:count])
            return jax.tree.leaves(f(before, jax.tree.unflatten(inner, args[count:])))

        return call

    results = _linear.bind(
        *fixed_leaves, *leaves, fun=flat(fun, tree), transpose=flat(transpose, out), count=count
    )
    return jax.tree.unflatten(out, results)


def alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, all varying over the mesh axes over which any of them does (in `shard_map`).

    A rule for derivatives then sees one kind of array only, and what became varying here is summed
    over these axes when it is transposed.
    """
    axes = frozenset().union(*(_varying(x) for x in arrays))
    missing = [tuple(axes - _varying(x)) for x in arrays]
    return [
        lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(arrays, missing, strict=True)
    ]


def apart(x: chex.ArrayTree) -> Any:
    """Arrays as they are, across which XLA merges nothing; across their gradient it may.

    On a GPU XLA joins products of one array and then copies them apart, and adds an array that is
    kept for the gradient within a product, in place, for which it copies that first.

    >>> apart(jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    leaves, tree = jax.tree.flatten(x)
    return jax.tree.unflatten(tree, _apart(alike(*leaves)))


@jax.custom_jvp
def _apart(arrays: list[jax.Array]) -> list[jax.Array]:
    return lax.optimization_barrier(arrays)


@_apart.defjvp
def _apart_jvp(primals: Any, tangents: Any) -> Any:
    return _apart(*primals), *tangents


def of_none(function: Function, mapped: Any, *args: Any) -> Any:
    """The results of a `vmap` of size 0; `mapped` says of each array whether it has that axis."""

    def one(x: Any, mapped: bool) -> Any:
        return jax.ShapeDtypeStruct(x.shape[1:] if mapped else x.shape, x.dtype)

    out = jax.eval_shape(function, *jax.tree.map(one, args, tuple(mapped)))
    return jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), out)


def _varying(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _call(*args: Any, fun: Function, transpose: Function, count: int) -> Any:
    del transpose, count
    return fun(*args)


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    fun, count = params["fun"], params["count"]
    fixed, x = primals[:count], primals[count:]
    out = _linear.bind(*primals, **params)
    terms = []
    if any(type(t) is not ad.Zero for t in tangents[count:]):
        terms.append(_linear.bind(*fixed, *map(ad.instantiate_zeros, tangents[count:]), **params))
    moved = [i for i in range(count) if type(tangents[i]) is not ad.Zero]
    if moved:

        def of_moved(*values: Any) -> Any:
            args = list(fixed)
            for i, value in zip(moved, values, strict=True):
                args[i] = value
            return fun(*args, *x)

        here, there = [fixed[i] for i in moved], [tangents[i] for i in moved]
        terms.append(jax.jvp(of_moved, here, there)[1])
    return out, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _transpose(cotangents: Any, *args: Any, fun: Function, transpose: Function, count: int) -> Any:
    fixed = args[:count]
    known = map(ad.instantiate_zeros, cotangents)
    out = _linear.bind(*fixed, *known, fun=transpose, transpose=fun, count=count)
    wanted = zip(args[count:], out, strict=True)
    return [None] * count + [ct if ad.is_undefined_primal(x) else None for x, ct in wanted]


def _batch(args: Any, axes: Any, *, fun: Function, transpose: Function, count: int) -> Any:
    pairs = list(zip(args, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    linear_args = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in pairs[count:]
    ]
    fixed_axes = tuple(axes[:count])

    def batched(f: Function) -> Function:
        def call(*flat: Any) -> Any:
            in_axes = fixed_axes + (0,) * (len(flat) - count)
            return jax.vmap(f, in_axes=in_axes, axis_size=size)(*flat)

        return call

    out = _linear.bind(
        *args[:count], *linear_args, fun=batched(fun), transpose=batched(transpose), count=count
    )
    return out, [0] * len(out)


_linear = Primitive("linear")
_linear.multiple_results = True
_linear.def_impl(_call)
_linear.def_abstract_eval(lambda *avals, fun, **_: jax.make_jaxpr(fun)(*avals).out_avals)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_call, multiple_results=True))
