"""The runs of a search: all as one program, or one on each core; and what it chooses."""

import concurrent.futures
import operator
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from attnconv import devices, runs
from attnconv.compiled import Programs
from attnconv.runs import Diverged, Run, Trained
from attnconv.train import Data


def train_all(
    programs: Programs,
    data: Data,
    grid: Sequence[Run],
    *,
    validation: Data,
    train_score: bool = True,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained | None]:
    """Every run, the way that is fastest on this platform; None where its loss is not finite.

    On an accelerator all runs are one program. On a CPU each core takes the next run: on two
    cores, batches of 32 digits, one step of one run took 1.4 ms (cnn), 3.5 ms (attention) alone,
    1.3 and 3.2 as one program of 5 runs, and 0.9 and 2.3 with a run on each core.
    """
    data = runs.place(data)
    options: dict[str, Any] = {"validation": validation, "train_score": train_score}
    if devices.one_program():
        return train_together(programs, data, grid, on_steps=on_steps, **options)
    runs.warm(programs, data, grid[0], validation=validation)
    stopped = threading.Event()

    def count(steps: int) -> None:
        if stopped.is_set():
            raise concurrent.futures.CancelledError
        on_steps(steps)

    def one(run: Run) -> Trained | None:
        left = len(run.order)

        def done(steps: int) -> None:
            nonlocal left
            left -= steps
            count(steps)

        try:
            return runs.train_one(programs, data, run, on_steps=done, **options)
        except Diverged:
            count(left)
            return None

    return devices.on_each_core(one, grid, stopped=stopped)


def train_together(
    programs: Programs,
    data: Data,
    grid: Sequence[Run],
    *,
    validation: Data,
    train_score: bool = True,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained | None]:
    """All runs, of equally many steps, as one program; each is charged its share of the time.

    None is what a run leaves whose loss is no longer finite.
    """
    order = np.stack([run.order for run in grid])
    steps = order.shape[1]
    rates = np.array([run.learning_rate for run in grid], np.float32)
    seeds = np.array([run.seed for run in grid])
    state = programs.init_all(rates, np.full(len(grid), steps), seeds)
    # Compile before it is timed.
    state, loss = programs.advance_all(state, *runs.no_steps(data, order))
    jax.block_until_ready(loss)
    began, finite = time.perf_counter(), np.ones(len(grid), bool)
    for chunk in runs.course(programs.advance_all, state, data, order):
        state = chunk.state
        finite &= np.isfinite(chunk.loss)
        on_steps((chunk.end - chunk.start) * len(grid))
    seconds, seen = (time.perf_counter() - began) / len(grid), data if train_score else None

    def ended(i: int, run: Run) -> Trained:
        params = jax.tree.map(operator.itemgetter(i), state.params)
        return runs.scored(programs, run, params, seen, validation, seconds)

    return [ended(i, run) if finite[i] else None for i, run in enumerate(grid)]


def best_rate(
    trained: Sequence[Trained | None], rates: Sequence[float]
) -> tuple[int, list[Trained]]:
    """Which learning rate has the best mean validation accuracy over its runs, and these.

    The lower mean validation loss decides between equals. A rate of which a run diverged is none.

    Args:
      trained: equally many runs of each rate, those of the first rate first.
      rates: the learning rates.

    Raises:
      Diverged: none is left.
    """
    count = len(trained) // len(rates)
    ended, means = {}, {}
    for i in range(len(rates)):
        ended[i] = [run for run in trained[i * count : (i + 1) * count] if run is not None]
        if len(ended[i]) == count:
            accuracy, loss = np.mean([run.validation for run in ended[i]], axis=0)
            means[i] = accuracy, -loss
    if not means:
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise Diverged(f"learning_rates={tried}: expected a finite loss, each diverged")
    best = max(means, key=means.__getitem__)
    return best, ended[best]
