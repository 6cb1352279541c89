"""Where PyTorch computes a case, and how it is settled, compiled and waited for there."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from attnconv.bench.case import Case
from attnconv.bench.forms import Program


def device(case: Case) -> str:
    """A case for an accelerator is computed on the CPU where there is none, as in the tests."""
    return "cuda" if case.platform == "gpu" and torch.cuda.is_available() else "cpu"


def settle(case: Case) -> None:
    """On an accelerator: float32 as such, and the fastest of cuDNN's algorithms."""
    if device(case) == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def compiled(case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for the shapes of each call where the case is for an accelerator."""
    return torch.compile(function, dynamic=False) if case.platform == "gpu" else function


def tensor(array: np.ndarray, device: str) -> torch.Tensor:
    """The array, also of bfloat16, which NumPy and PyTorch do not know of each other."""
    if array.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def wait(case: Case) -> None:
    if device(case) == "cuda":
        torch.cuda.synchronize()


def queued(case: Case, program: Program, start: Callable[[int], Any]) -> Program:
    """The program with what an accelerator adds: `start(i)` begins run i without waiting for it."""
    if case.platform == "cpu":
        return program

    def several(calls: int) -> None:
        for i in range(calls):
            start(i)
        wait(case)

    def memory() -> int | None:
        if device(case) == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        several(1)
        return torch.cuda.max_memory_allocated() - before

    return dataclasses.replace(program, queued=several, memory=memory)


def free() -> float:
    """Gives back what no program needs; the part of an accelerator's memory that is kept then."""
    gc.collect()
    if torch.cuda.is_available():
        torch._dynamo.reset()  # it compiles a piece of code only so often
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1]
    return 0.0
