"""Training runs from the first step to the last: one, all as one program, or one on each core."""

import concurrent.futures
import itertools
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnconv.compiled import Programs, Score, evaluate
from attnconv.errors import UsageError
from attnconv.train import Data, TrainState

CHUNK = 100  # steps in one call of a program, and between two looks of the host at the loss
BYTES = 16  # of each parameter in training: float32, itself, its gradient and two moments
HOST_BYTES = 8 << 30  # taken for the device's memory where the device does not tell
PART_BYTES = 1 << 30  # of examples that are sent to the device at once, while it has as many


class Run(NamedTuple):
    """One training run: its peak learning rate, its seed, and which example is in which batch."""

    learning_rate: float
    seed: int
    order: np.ndarray  # [steps, batch], indices into the training data


class Diverged(UsageError):
    """The loss of a run is no longer finite."""


class Trained(NamedTuple):
    """What a run leaves: its parameters, how well they do, and the time that training took."""

    params: chex.ArrayTree
    train: Score
    validation: Score
    seconds: float


def place(data: Data) -> Data:
    """The data on the device when they fit into a quarter of its memory, else as they are."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if data.inputs.nbytes > stats.get("bytes_limit", HOST_BYTES) // 4:
        return data
    return Data(jnp.asarray(data.inputs), jnp.asarray(data.labels))


def most_steps(data: Data, order: np.ndarray, every: int = CHUNK) -> int:
    """How many steps one call of a program may have; of data on the host, as many as fit."""
    if isinstance(data.inputs, jax.Array):
        return CHUNK
    of_step = data.inputs[0].nbytes * order[..., 0, :].size
    return max(1, min(CHUNK, every, PART_BYTES // of_step))


def batches(
    data: Data, order: np.ndarray, start: int, count: int, most: int = CHUNK
) -> tuple[Data, np.ndarray, int]:
    """The arguments of `advance` for these steps: of data on the host only the rows they use.

    The order is filled up to `most` steps, so that one program serves every part.
    """
    part = order[..., start : start + count, :]
    fill = [(0, 0)] * (order.ndim - 2) + [(0, most - count), (0, 0)]
    part = np.pad(part, fill)
    if isinstance(data.inputs, jax.Array):
        return data, part, count
    rows = Data(data.inputs[part.ravel()], data.labels[part.ravel()])
    at = np.arange(part.size, dtype=np.int32).reshape(part.shape)
    return jax.device_put(rows), at, count


def _none(data: Data, order: np.ndarray) -> tuple[Data, np.ndarray, int]:
    """The arguments of `advance` for no step, of the shapes that `course` gives it."""
    return batches(data, order, 0, 0, most_steps(data, order))


class Part(NamedTuple):
    """Some steps of a run, or of several.

    Attributes:
      start, end: how many were done before them, and after.
      state: the state after them, whose buffers the next part takes.
      loss: the mean loss of them; the device need not have finished.
    """

    start: int
    end: int
    state: TrainState
    loss: Array


def course(
    advance: Callable[..., tuple[TrainState, Array]],
    state: TrainState,
    data: Data,
    order: np.ndarray,
    *,
    start: int = 0,
    every: int = CHUNK,
) -> Iterator[Part]:
    """Takes all steps in parts, of at most `most_steps`, up to each multiple of `every`.

    While the device computes a part, the host puts the batches of the next one in order.

    Args:
      advance: that of `Programs`, or its `advance_all`.
      state: where to start, after `start` steps.
      data: what the order refers to.
      order: all batches, `[steps, batch]`, or of several runs `[runs, steps, batch]`.
    """
    ends, steps, most = [start], order.shape[-2], most_steps(data, order, every)
    while ends[-1] < steps:
        ends.append(min(steps, ends[-1] + most, (ends[-1] // every + 1) * every))
    given = (batches(data, order, a, b - a, most) for a, b in itertools.pairwise(ends))
    ready: Any = next(given, None)
    for a, b in itertools.pairwise(ends):
        state, loss = advance(state, *ready)
        ready = next(given, None)
        yield Part(a, b, state, loss)


def train_one(
    programs: Programs,
    data: Data,
    run: Run,
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
    save: Callable[[TrainState, float, float], None] | None = None,
    save_every: int = 1,
    state: TrainState | None = None,
) -> Trained:
    """One run from its initial state, or one that it had reached, to its last step.

    Args:
      programs: of the model and the recipe.
      data: what `run.order` refers to, on the device or on the host.
      run: which run.
      validation: what it is scored on after its last step.
      on_steps: is told how many steps were done.
      save: is given the state, the mean loss of the last steps and the seconds of training, at
        each multiple of `save_every` and at the end.
      save_every: see `save`.
      state: where to go on from.

    Raises:
      Diverged: the loss is no longer finite.
    """
    steps = len(run.order)
    if state is None:
        state = programs.init(run.learning_rate, steps, run.seed)
    start, seconds = int(state.step), 0.0
    losses: list[float] = []
    every = CHUNK if save is None else save_every
    began = time.perf_counter()
    for part in course(programs.advance, state, data, run.order, start=start, every=every):
        state, count = part.state, part.end - part.start
        losses += [check_loss(float(part.loss), run, part.end)] * count
        seconds += time.perf_counter() - began
        on_steps(count)
        if save is not None and (part.end % save_every == 0 or part.end == steps):
            save(state, sum(losses) / len(losses), seconds)
            losses = []
        began = time.perf_counter()
    return scored(programs, data, run, state.params, validation, seconds)


def train_together(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained | None]:
    """All runs, of equally many steps, as one program; each is charged its share of the time.

    None is what a run leaves whose loss is no longer finite.
    """
    order = np.stack([run.order for run in runs])
    steps = order.shape[1]
    rates = np.array([run.learning_rate for run in runs], np.float32)
    seeds = np.array([run.seed for run in runs])
    state = programs.init_all(rates, np.full(len(runs), steps), seeds)
    state, loss = programs.advance_all(state, *_none(data, order))  # compiled before it is timed
    jax.block_until_ready(loss)
    began, finite = time.perf_counter(), np.ones(len(runs), bool)
    for part in course(programs.advance_all, state, data, order):
        state = part.state
        finite &= np.isfinite(part.loss)
        on_steps((part.end - part.start) * len(runs))
    rest = validation, (time.perf_counter() - began) / len(runs)
    return [
        scored(programs, data, run, jax.tree.map(operator.itemgetter(i), state.params), *rest)
        if finite[i]
        else None
        for i, run in enumerate(runs)
    ]


def train_all(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained | None]:
    """Every run, the way that is fastest on this platform; None where its loss is not finite.

    On an accelerator all runs are one program. On a CPU each core takes the next run: on two
    cores, batches of 32 digits, one step of one run took 1.4 ms (cnn), 3.5 ms (attention) alone,
    1.3 and 3.2 as one program of 5 runs, and 0.9 and 2.3 with a run on each core.
    """
    data = place(data)
    if one_program():
        return train_together(programs, data, runs, validation=validation, on_steps=on_steps)
    # Compile before the threads start, or each would.
    state = programs.init(runs[0].learning_rate, len(runs[0].order), runs[0].seed)
    state, _ = programs.advance(state, *_none(data, runs[0].order))
    evaluate(programs, state.params, Data(validation.inputs[:1], validation.labels[:1]))
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
            return train_one(programs, data, run, validation=validation, on_steps=done)
        except Diverged:
            count(left)
            return None

    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        futures = [pool.submit(one, run) for run in runs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            # What a run or the person at the keyboard ended, the other runs need not finish.
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


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


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_program() -> bool:
    """Whether `train_all` trains all runs together."""
    return jax.default_backend() != "cpu"


def at_once(count: int) -> int:
    """How many of so many runs `train_all` trains at the same time."""
    return count if one_program() else min(cores(), count)


def check_memory(params: int, runs: int, *, called: str) -> None:
    """Refuses as many runs of as many parameters where the memory cannot hold even these.

    Raises:
      UsageError: saying what is `called` so, how much it needs and how much there is.
    """
    there = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if there is None and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    together = at_once(runs)
    if there is not None and BYTES * params * together > there:
        raise UsageError(
            f"{called}: {params:,} parameters need {BYTES * params * together / 2**30:,.0f} GiB "
            f"of memory, {together} at once; there are {there / 2**30:,.0f}: ask for fewer"
        )


def scored(
    programs: Programs,
    data: Data,
    run: Run,
    params: chex.ArrayTree,
    validation: Data,
    seconds: float,
) -> Trained:
    """A finished run with its scores on the examples it has seen and on the validation split."""
    seen = np.unique(run.order)
    train = evaluate(programs, params, Data(data.inputs[seen], data.labels[seen]))
    return Trained(params, train, evaluate(programs, params, validation), seconds)


def check_loss(loss: float, run: Run, step: int) -> float:
    """The loss, if it is finite."""
    if not np.isfinite(loss):
        raise Diverged(
            f"learning_rate={run.learning_rate:g}: expected a finite loss, got {loss} "
            f"before step {step} (seed {run.seed})"
        )
    return loss
