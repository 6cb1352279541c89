"""One training run, from its first step to its last."""

import itertools
import time
from collections.abc import Callable, Iterator
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
    train: Score | None  # on the examples it has seen; None: not asked for
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


def no_steps(data: Data, order: np.ndarray, every: int = CHUNK) -> tuple[Data, np.ndarray, int]:
    """The arguments of `advance` for no step, of the shapes that `course` gives it."""
    return batches(data, order, 0, 0, most_steps(data, order, every))


class Chunk(NamedTuple):
    """Some steps of a run, or of several.

    Attributes:
      start, end: how many were done before them, and after.
      state: the state after them, whose buffers the next chunk takes.
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
) -> Iterator[Chunk]:
    """Takes all steps in chunks, of at most `most_steps`, up to each multiple of `every`.

    While the device computes a chunk, the host puts the batches of the next one in order.

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
        yield Chunk(a, b, state, loss)


def warm(programs: Programs, data: Data, run: Run, *, validation: Data, every: int = CHUNK) -> None:
    """Compiles what `train_one` calls, before it is timed and before several threads would."""
    state = programs.init(run.learning_rate, len(run.order), run.seed)
    state, _ = programs.advance(state, *no_steps(data, run.order, every))
    evaluate(programs, state.params, Data(validation.inputs[:1], validation.labels[:1]))


def train_one(
    programs: Programs,
    data: Data,
    run: Run,
    *,
    validation: Data,
    train_score: bool = True,
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
      train_score: whether it is scored on the examples it has seen, too.
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
    for chunk in course(programs.advance, state, data, run.order, start=start, every=every):
        state, count = chunk.state, chunk.end - chunk.start
        losses += [check_loss(float(chunk.loss), run, chunk.end)] * count
        seconds += time.perf_counter() - began
        on_steps(count)
        if save is not None and (chunk.end % save_every == 0 or chunk.end == steps):
            save(state, sum(losses) / len(losses), seconds)
            losses = []
        began = time.perf_counter()
    seen = data if train_score else None
    return scored(programs, run, state.params, seen, validation, seconds)


def scored(
    programs: Programs,
    run: Run,
    params: chex.ArrayTree,
    data: Data | None,
    validation: Data,
    seconds: float,
) -> Trained:
    """A finished run with its scores: of the examples it has seen in `data`, and of validation."""
    train = None
    if data is not None:
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
