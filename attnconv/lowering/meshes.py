"""Arrays whose shardings are part of their types, as they are over the explicit axes of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def spec_of(x: Any) -> PartitionSpec:
    """How an array is sharded by its type, an entry for each axis."""
    spec = jax.typeof(x).sharding.spec
    return PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))


def sharded(*arrays: Any) -> bool:
    """Whether any of the arrays is sharded by its type."""
    return any(any(spec_of(x)) for x in arrays)


def image_spec(x: Any, kernel: Any) -> PartitionSpec:
    """That of the convolution: of its examples, and of its features where they can have both."""
    examples, features = spec_of(x)[0], spec_of(kernel)[-1]
    if set(jax.tree.leaves(examples)) & set(jax.tree.leaves(features)):
        features = None
    return PartitionSpec(examples, *(None,) * (x.ndim - 2), features)


def attention_specs(query: Any) -> tuple[PartitionSpec, PartitionSpec]:
    """Those of `y` and of the residual, which has no features."""
    *heads, _ = spec_of(query)
    return PartitionSpec(*heads, None), PartitionSpec(*heads)


def by_compiler(function: Callable[..., Any], out: Any, *arrays: Any) -> Any:
    """`function(*arrays)` with the results sharded as `out`; what is between, XLA shares out.

    Forms that reshape, or loop over examples, have no rule of how their parts would be sharded.
    """
    parts = [x for x in jax.tree.leaves(arrays) if sharded(x)]
    if not parts:
        return function(*arrays)
    with jax.sharding.use_abstract_mesh(jax.typeof(parts[0]).sharding.mesh):
        return jax.sharding.auto_axes(function, out_sharding=out)(*arrays)
