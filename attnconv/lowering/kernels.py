"""How kernels of Pallas are called, by Triton on CUDA or, very slowly, interpreted, and where."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Int

FLOATS = ("bfloat16", "float16", "float32")
HOPPER = 9  # the major compute capability


def call(
    kernel: Callable[..., None],
    arrays: Any,
    out: list[Any],
    programs: tuple[int, int, int],
    *,
    warps: int,
    stages: int,
    interpret: bool,
) -> Any:
    """The results of a kernel, shaped as `out`.

    Args:
      kernel: takes the three numbers of a program, as of an example, a head and a tile, then the
        tree of arrays and the results, as references.
      programs: how many numbers there are of each kind.
      warps: how many share a program.
      stages: how many steps of a loop have what they read there at once.
    """
    leaves, tree = jax.tree.flatten(arrays)
    axes = jax.typeof(leaves[0]).manual_axis_type  # under `shard_map`

    def fill(*refs: Any) -> None:
        number = unravel(pl.program_id(0), programs)
        kernel(*number, *jax.tree.unflatten(tree, refs[: len(leaves)]), *refs[len(leaves) :])

    return pl.pallas_call(
        fill,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in out],
        grid=(math.prod(programs),),  # along the only axis that is not short on CUDA
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
    )(*leaves)


def iota(size: int) -> Int[Array, "size"]:
    """In 32 bits, whatever JAX takes integers to be."""
    return jnp.arange(size, dtype=jnp.int32)


def unravel(number: Int[Array, "..."], sizes: Sequence[Any]) -> list[Array]:
    """Where a number of row-major order is along each axis."""
    at: list[Array] = []
    for size in reversed(sizes[1:]):
        size = np.int32(size) if isinstance(size, int) else size
        at.append(lax.rem(number, size))  # as none is negative, without what % does for it
        number = lax.div(number, size)
    return [number, *reversed(at)]


def missing() -> str | None:
    """What the machine lacks for kernels to be taken where nobody asks for them."""
    if jax.default_backend() != "gpu":
        return "a call without a CUDA device"
    if not getattr(jax.devices()[0], "compute_capability", "").startswith(f"{HOPPER}."):
        return "a GPU that is no Hopper, on which they were measured"
    return None if alone() else "several devices outside of shard_map"


def alone() -> bool:
    """Whether arrays are all on one device: XLA can only share out what is its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and mesh.are_all_axes_manual)
