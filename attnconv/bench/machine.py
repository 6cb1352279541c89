"""What the machine can do at most: the rates of a large matrix product and of a large copy."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TRIALS = 7
SIDE = 2048  # of the matrices
NUMBERS = 1 << 26  # copied: 256 MiB, more than a cache holds


def rates() -> dict[str, float]:
    """FLOPs and bytes in a second, float32, the best of several."""
    square = jnp.ones((SIDE, SIDE))
    line = jnp.ones(NUMBERS)
    product = _best(jax.jit(jnp.matmul), square, square)
    copy = _best(jax.jit(jnp.negative), line)
    return {"flops": 2 * SIDE**3 / product, "bytes": 2 * line.nbytes / copy}


def _best(function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
