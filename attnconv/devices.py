"""What this process computes on: its cores, its memory, and all of them at work."""

import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from attnconv.errors import UsageError

RUN_BYTES = 16  # of each parameter in training: float32, itself, its gradient and two moments

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_program() -> bool:
    """Whether several training runs are one program here, and not one on each core."""
    return jax.default_backend() != "cpu"


def at_once(count: int) -> int:
    """How many of so many training runs are trained at the same time."""
    return count if one_program() else min(cores(), count)


def memory() -> int | None:
    """The bytes of the device where it tells, else of the machine; None where neither does."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit


def check_memory(params: int, runs: int, *, called: str) -> None:
    """Refuses as many runs of as many parameters where the memory cannot hold even these.

    Raises:
      UsageError: saying what is `called` so, how much it needs and how much there is.
    """
    there, together = memory(), at_once(runs)
    if there is not None and RUN_BYTES * params * together > there:
        raise UsageError(
            f"{called}: {params:,} parameters need {RUN_BYTES * params * together / 2**30:,.0f} "
            f"GiB of memory, {together} at once; there are {there / 2**30:,.0f}: ask for fewer"
        )


def on_each_core(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    stopped: threading.Event | None = None,
) -> list[Result]:
    """The function's value for each item; every core takes the next one.

    What one call raises, or the person at the keyboard, ends the others: calls that have not begun
    never do, and those that have may look at `stopped`. Compile before: each thread would.
    """
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            if stopped is not None:
                stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
