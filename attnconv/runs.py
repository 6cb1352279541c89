"""Training runs from the first step to the last: one, all as one program, or one on each core."""

import concurrent.futures
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from attnconv.errors import UsageError
from attnconv.train import Data, Programs, Recipe, Score, TrainState, evaluate

CHUNK = 100  # steps between two looks of the host at the loss
HOST_BYTES = 8 << 30  # taken for the device's memory where the device does not tell


class Run(NamedTuple):
    """One training run: its peak learning rate, its seed, and which example is in which batch."""

    learning_rate: float
    seed: int
    order: np.ndarray  # [steps, batch], indices into the training data


class Trained(NamedTuple):
    """What a run leaves: its parameters, how well they do, and the time that training took."""

    params: chex.ArrayTree
    train: Score
    validation: Score
    seconds: float


def batch_order(examples: np.ndarray, recipe: Recipe, *, seed: int) -> np.ndarray:
    """Indices `[steps, batch]`: seeded permutations of the examples one after the other."""
    rng = np.random.default_rng(seed)
    count = recipe.steps * recipe.batch
    passes = [rng.permutation(examples) for _ in range(-(-count // len(examples)))]
    return np.concatenate(passes)[:count].reshape(recipe.steps, recipe.batch).astype(np.int32)


def place(data: Data) -> Data:
    """The data on the device when they fit into a quarter of its memory, else as they are."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if data.inputs.nbytes > stats.get("bytes_limit", HOST_BYTES) // 4:
        return data
    return Data(jnp.asarray(data.inputs), jnp.asarray(data.labels))


def chunk_of(data: Data, order: Any, start: int, stop: int) -> tuple[Data, Any, int, int]:
    """The arguments of `advance` for these steps: of data on the host only the rows they use."""
    if isinstance(data.inputs, jax.Array):
        return data, order, start, stop
    rows = np.asarray(order)[..., start:stop, :]
    part = Data(data.inputs[rows.ravel()], data.labels[rows.ravel()])
    return part, np.arange(rows.size, dtype=np.int32).reshape(rows.shape), 0, stop - start


def train_one(
    programs: Programs,
    data: Data,
    run: Run,
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
    on_chunk: Callable[[TrainState, int, float], None] = lambda state, step, loss: None,
    chunk: int = CHUNK,
    resume: tuple[TrainState, int] | None = None,
) -> Trained:
    """One run from its initial state, or one that it had reached, to its last step.

    Args:
      programs: of the model and the recipe.
      data: what `run.order` refers to, on the device or on the host.
      run: which run.
      validation: what it is scored on after its last step.
      on_steps: is told how many steps were done.
      on_chunk: is given the state, the steps so far and the mean loss of the last ones.
      chunk: steps between two calls of the two above.
      resume: a state, and the steps that led to it.

    Raises:
      UsageError: the loss is no longer finite.
    """
    if resume is None:
        state, first = programs.init(jnp.float32(run.learning_rate), run.seed), 0
    else:
        state, first = resume
    began = time.perf_counter()
    order = jnp.asarray(run.order)
    for start in range(first, programs.recipe.steps, chunk):
        stop = min(start + chunk, programs.recipe.steps)
        state, loss = programs.advance(state, *chunk_of(data, order, start, stop))
        check_loss(float(loss), run, stop)
        on_chunk(state, stop, float(loss))
        on_steps(stop - start)
    seconds = time.perf_counter() - began
    seen = score_seen(programs, data, run, state.params)
    return Trained(state.params, seen, evaluate(programs, state.params, validation), seconds)


def train_together(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained]:
    """All runs as one batched program; each is charged its share of the time."""
    rates = jnp.array([run.learning_rate for run in runs], jnp.float32)
    state = programs.init_all(rates, jnp.array([run.seed for run in runs]))
    order = jnp.asarray(np.stack([run.order for run in runs]))
    began = time.perf_counter()
    for start in range(0, programs.recipe.steps, CHUNK):
        stop = min(start + CHUNK, programs.recipe.steps)
        state, losses = programs.advance_all(state, *chunk_of(data, order, start, stop))
        for loss, run in zip(np.asarray(losses), runs, strict=True):
            check_loss(float(loss), run, stop)
        on_steps((stop - start) * len(runs))
    seconds = (time.perf_counter() - began) / len(runs)

    def params_of(i: int) -> chex.ArrayTree:
        return jax.tree.map(lambda p: p[i], state.params)

    trained = []
    for i, run in enumerate(runs):
        params = params_of(i)
        seen = score_seen(programs, data, run, params)
        trained.append(Trained(params, seen, evaluate(programs, params, validation), seconds))
    return trained


def train_all(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    validation: Data,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained]:
    """Every run, the way that is fastest on this platform.

    On an accelerator all runs are one program. On a CPU batching 15 runs of a small cnn took
    30 s, one after the other 26 s, and one on each of two cores 17 to 20 s: there each core takes
    the next run.
    """
    data = place(data)
    if jax.default_backend() != "cpu":
        return train_together(programs, data, runs, validation=validation, on_steps=on_steps)
    # Compile before the threads start, or each would.
    state = programs.init(jnp.float32(0), 0)
    first = min(CHUNK, programs.recipe.steps)
    *chunk, start, _ = chunk_of(data, jnp.asarray(runs[0].order), 0, first)
    programs.advance(state, *chunk, start, start)
    one = functools.partial(train_one, programs, data, validation=validation, on_steps=on_steps)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, runs))


def score_seen(programs: Programs, data: Data, run: Run, params: chex.ArrayTree) -> Score:
    """How well a run does on the examples that it was trained on."""
    seen = np.unique(run.order)
    return evaluate(programs, params, Data(data.inputs[seen], data.labels[seen]))


def check_loss(loss: float, run: Run, step: int) -> None:
    """Refuses a loss that is not finite."""
    if not np.isfinite(loss):
        raise UsageError(
            f"learning_rate={run.learning_rate:g}: expected a finite loss, got {loss} "
            f"before step {step} (seed {run.seed})"
        )
