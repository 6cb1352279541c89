"""What the machine can do at most: the rates of a large matrix product and of a large copy."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TRIALS = 7
SIDE, GPU_SIDE = 2048, 8192  # of the matrices
NUMBERS, GPU_NUMBERS = 1 << 26, 1 << 30  # copied: 256 MiB and 4 GiB, more than a cache holds
QUEUED = 5  # products and copies of an accelerator, for which the host waits once


def rates() -> dict[str, float]:
    """FLOPs and bytes in a second, the best of several: float32, elsewhere than on a CPU also half.

    Float32 products are exact ones: without TF32.
    """
    if jax.default_backend() == "cpu":
        return {"flops": _products("float32", SIDE, 1), "bytes": _copies(NUMBERS, 1)}
    numbers = min(GPU_NUMBERS, jax.local_devices()[0].memory_stats()["bytes_limit"] // 16)
    return {
        "flops": _products("float32", GPU_SIDE, QUEUED),
        "flops_bfloat16": _products("bfloat16", GPU_SIDE, QUEUED),
        "bytes": _copies(numbers, QUEUED),
    }


def _products(dtype: str, side: int, calls: int) -> float:
    square = jnp.ones((side, side), dtype)
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return 2 * side**3 / _best(calls, product, square, square)


def _copies(numbers: int, calls: int) -> float:
    line = jnp.ones(numbers)
    return 2 * line.nbytes / _best(calls, jax.jit(jnp.negative), line)


def _best(calls: int, function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds)
