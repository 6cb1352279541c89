"""What a model costs: its parameters, and the FLOPs of one forward pass."""

import math
from typing import Any

import jax
from flax import nnx
from jax.extend import core

from attnconv.spec import Spec


def parameters(model: nnx.Module) -> int:
    """Number of trainable values.

    Without the table of token embeddings, which is as large in every family.

    >>> parameters(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    16
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    names = [[getattr(part, "key", None) for part in path] for path, _ in leaves]
    return sum(
        math.prod(p.shape)
        for name, (_, p) in zip(names, leaves, strict=True)
        if not {"inputs", "embedding"} <= set(name)
    )


def flops(model: nnx.Module, spec: Spec) -> int:
    """FLOPs of the forward pass of one example: two for each multiply-add of a product.

    Counted are matrix products and convolutions of the reference forms, as the field does, so the
    number does not depend on the machine. Every tap of a window counts, also over padding, and
    every score that is computed, also one that a mask hides.

    >>> from attnconv.models.mlp import MLP, Size
    >>> spec = Spec((4, 4, 1), classes=10)
    >>> flops(MLP(spec, Size(width=8, hidden=8), rngs=nnx.Rngs(0)), spec)  # 2 (16*8 + 8*8 + 8*10)
    544
    """
    graph, state = nnx.split(model)
    forward = jax.make_jaxpr(lambda state, *x: nnx.merge(graph, state)(*x))(state, *_example(spec))
    return _count(forward.jaxpr)


def _example(spec: Spec) -> tuple[jax.ShapeDtypeStruct, ...]:
    """What a model is called with, for one example."""
    numbers = spec.graph is None and spec.vocabulary is None
    shape = () if spec.graph is not None else spec.shape
    x = jax.ShapeDtypeStruct((1, *shape), jax.numpy.float32 if numbers else jax.numpy.int32)
    if spec.output != "sequence":
        return (x,)
    return x, jax.ShapeDtypeStruct((1, spec.steps), jax.numpy.int32)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    operands = [v.aval.shape for v in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(operands[0][axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel, out_axis = operands[1], params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]
    if name == "cond":
        # The last branch is the default of a platform_dependent: the reference form.
        return _count(params["branches"][-1].jaxpr)
    if name == "while":
        raise ValueError("flops: expected a forward pass without a while loop, got one")
    repeats = params["length"] if name == "scan" else 1
    inner = [p for p in params.values() if isinstance(p, core.Jaxpr | core.ClosedJaxpr)]
    return repeats * sum(_count(j.jaxpr if isinstance(j, core.ClosedJaxpr) else j) for j in inner)
