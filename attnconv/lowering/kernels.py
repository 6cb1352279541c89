"""How kernels of Pallas are called, by Triton on CUDA or, very slowly, interpreted, and where."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
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
LOG2E = math.log2(math.e)
_interpreted = contextvars.ContextVar[bool]("interpreted")  # whether what `call` traces is


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
      interpret: as operations of JAX, with `fma` and the like as they are written there.
    """
    leaves, tree = jax.tree.flatten(arrays)
    axes = jax.typeof(leaves[0]).manual_axis_type  # under `shard_map`

    def fill(*refs: Any) -> None:
        number = unravel(pl.program_id(0), programs)
        with _traced(interpret):
            kernel(*number, *jax.tree.unflatten(tree, refs[: len(leaves)]), *refs[len(leaves) :])

    return pl.pallas_call(
        fill,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in out],
        grid=(math.prod(programs),),  # along the only axis that is not short on CUDA
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
    )(*leaves)


@contextlib.contextmanager
def _traced(interpret: bool) -> Iterator[None]:
    token = _interpreted.set(interpret)
    try:
        yield
    finally:
        _interpreted.reset(token)


# XLA has Triton fuse no product with a sum, and take eight instructions for an exponential and
# three to widen two numbers; a kernel that computes rather than waits is as slow as they are many.


def fma(a: Array, b: Array, c: Array) -> Array:
    """`a b + c` of float32."""
    if _interpreted.get():
        return a * b + c
    return _assembled("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", a, b, c)


def exp(x: Array) -> Array:
    """`e^x`, with a relative error of 2^-22 and |x| 2^-24; in float32 zero where below 2^-126."""
    if _interpreted.get() or x.dtype != jnp.float32:
        return jnp.exp(x)
    return _assembled("ex2.approx.ftz.f32 $0, $1;", "=f,f", x * LOG2E)


def widened(x: Array) -> Array:
    """x in float32."""
    if _interpreted.get() or x.dtype != jnp.bfloat16:
        return x.astype(jnp.float32)
    halves = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
    return _assembled(halves, "=r,=r,r", x, pack=2)


def _assembled(asm: str, constraints: str, *args: Array, pack: int = 1) -> Array:
    """A float32 for each element."""
    (found,) = triton.elementwise_inline_asm(
        asm,
        args=args,
        constraints=constraints,
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, jnp.float32)],
    )
    return found


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
    # Where Pallas looks for the GPU that it compiles for.
    chosen = getattr(jax.config, "jax_default_device", None)
    if getattr(chosen, "platform", chosen) not in (None, "gpu", "cuda"):
        return "a default device that is no GPU"
    if not getattr(jax.devices()[0], "compute_capability", "").startswith(f"{HOPPER}."):
        return "a GPU that is no Hopper, on which they were measured"
    return None if alone() else "several devices outside of shard_map"


def alone() -> bool:
    """Whether arrays are all on one device: XLA can only share out what is its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and mesh.are_all_axes_manual)
