"""Training the arms of an experiment: the same data, steps, seeds and search for each."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import numpy as np
from flax import nnx
from jaxtyping import Float

from attnconv import batching, compiled, models, runs, search, tasks, train
from attnconv.train import Data

# The most examples that most experiments judge: more hardly narrow an interval.
VALIDATION, TEST = 1000, 5000


@dataclasses.dataclass(frozen=True)
class Fit:
    """One arm, trained from several seeds at the learning rate that validation chose.

    Attributes:
      programs: its compiled functions.
      seeds: of weights, subset and batch order.
      params: of each seed.
      rate: the learning rate.
    """

    programs: compiled.Programs
    seeds: Sequence[int]
    params: list[chex.ArrayTree]
    rate: float

    @property
    def untrained(self) -> list[chex.ArrayTree]:
        """The parameters from which each seed starts."""
        return [self.programs.init(self.rate, 1, seed).params for seed in self.seeds]

    def right(self, test: Data) -> np.ndarray:
        """For each seed and example, the part of its labels that is predicted, `[R, E]`."""
        predicted = np.stack([compiled.judged(self.programs, p, test)[0] for p in self.params])
        found, of = compiled.right(predicted, test.labels, writes=self.programs.writes)
        return found / of


def fit(
    make: Callable[..., nnx.Module],
    data: Data,
    validation: Data,
    *,
    steps: int,
    rates: Sequence[float],
    seeds: Sequence[int],
    subset: Callable[[int], np.ndarray] | None = None,
    recipe: train.Recipe | None = None,
    gradient: train.Gradient | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
) -> Fit:
    """Trains at each learning rate from each seed, and keeps the rate that is best on validation.

    Args:
      make: makes a model, given `rngs`.
      data: all training examples.
      validation: chooses the learning rate, by accuracy and then by loss.
      steps: updates of each run.
      rates: learning rates.
      seeds: of weights, subset and batch order.
      subset: the indices of the training examples of a seed; all where None.
      recipe: how it is trained; `train.Recipe()` where None.
      gradient, augment: as for `compiled.Programs`.
    """
    recipe = train.Recipe() if recipe is None else recipe
    programs = _programs(make, recipe, gradient, augment)
    everything = np.arange(len(data.labels))

    def order(seed: int) -> np.ndarray:
        examples = everything if subset is None else subset(seed)
        return batching.order(examples, steps=steps, batch=recipe.batch, seed=seed)

    grid = [runs.Run(rate, seed, order(seed)) for rate in rates for seed in seeds]
    trained = search.train_all(programs, data, grid, validation=validation, train_score=False)
    best, kept = search.best_rate(trained, rates)
    return Fit(programs, seeds, [run.params for run in kept], rates[best])


def follow(
    programs: compiled.Programs,
    data: Data,
    run: runs.Run,
    looks: Sequence[Data],
    *,
    every: int,
    least: float = 0.0,
) -> list[Float[np.ndarray, "P E 2"]]:
    """For each of `looks` the loss of every example, and whether its one label is predicted.

    Before a run and after every few of its steps; it ends early where the first look has a mean
    loss of `least`.
    """
    state = programs.init(run.learning_rate, len(run.order), run.seed)
    paths: list[list[np.ndarray]] = [[] for _ in looks]
    for start in range(0, len(run.order) + every, every):
        for look, path in zip(looks, paths, strict=True):
            predicted, losses = compiled.judged(programs, state.params, look)
            path.append(np.stack([losses, predicted == look.labels], axis=-1, dtype=float))
        count = min(every, len(run.order) - start)
        if count <= 0 or paths[0][-1][:, 0].mean() <= least:
            break
        state, loss = programs.advance(state, *runs.batches(data, run.order, start, count))
        runs.check_loss(float(loss), run, start + count)
    return [np.array(path) for path in paths]


def at_loss(
    losses: Float[np.ndarray, "P"], values: Float[np.ndarray, "P V"], level: float
) -> Float[np.ndarray, "V"]:
    """The values where the loss first falls to a level, on the line over the log of the loss.

    NaN where it never does, or begins below.

    >>> at_loss(np.array([4.0, 1.0, 0.5]), np.array([[0.0], [1.0], [5.0]]), 2.0)
    array([0.5])
    """
    there = np.flatnonzero(losses <= level)
    if not there.size or there[0] == 0:
        return np.full(values.shape[1], np.nan)
    i = there[0]
    way = np.log(losses[i - 1] / level) / np.log(losses[i - 1] / losses[i])
    return values[i - 1] + way * (values[i] - values[i - 1])


def splits(
    task: tasks.Task, *, validation: int | None = None, test: int | None = None
) -> tuple[Data, Data, Data]:
    """To train on, to choose by and to test on: of the last two the first so many examples."""
    own = Data(task.train.inputs, task.train.labels)
    return own, first(task.validation, validation), first(task.test, test)


def first(data: Data | tasks.Split, count: int | None) -> Data:
    """The first so many examples; all where None."""
    return Data(data.inputs[:count], data.labels[:count])


@functools.lru_cache(maxsize=1)
def _programs(
    make: Callable[..., nnx.Module],
    recipe: train.Recipe,
    gradient: train.Gradient | None,
    augment: Callable[[Any, Any], Any] | None,
) -> compiled.Programs:
    """Kept for the next call, which often is the same arm with more examples: no compiling."""
    return compiled.Programs(make, recipe, gradient=gradient, augment=augment)


def family(name: str, spec: models.Spec, *, params: int) -> Callable[..., nnx.Module]:
    """Makes models of a family with that number of parameters."""
    size = models.size_for(name, spec, budget=params)
    return functools.partial(models.make, name, spec, size)
