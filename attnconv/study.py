"""The grid of a comparison: model x train size x learning rate x seed, each cell once."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import attnconv
from attnconv import batching, environment, models, results, runs, stats, tasks, train
from attnconv.errors import UsageError
from attnconv.spec import Spec

METRICS = {"label": "accuracy", "labels": "accuracy", "sequence": "exact match"}
RECIPE = train.Recipe()
MOST_SEED = 2**31  # seeds are 32-bit integers on the device
CONFIDENCE = 0.95


class Defaults(NamedTuple):
    """What holds where nothing is asked for, by the kind of task.

    Attributes:
      params: of every family.
      learning_rates: the grid of every family.
      steps: of a run, for each root of the number of training examples.
    """

    params: int
    learning_rates: tuple[float, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared: with the data themselves, all that a result depends on."""

    task: str
    models: tuple[str, ...] = ()  # none are all that can do the task
    data_dir: str | None = None
    train_sizes: tuple[int | None, ...] = (None,)  # None is all
    seeds: int = 5
    learning_rates: tuple[float, ...] = ()  # none are the default ones
    match: Literal["params", "flops", "none"] = "params"
    budget: int | None = None
    steps: int | None = None
    seed: int = 0
    tokens: Literal["words", "characters", "bpe"] | None = None
    vectors: Literal["rows", "pixels", "patches", "one_hot"] | None = None
    pooling: Literal["mean", "max", "attention", "token"] = "mean"
    fields: tuple[str, ...] | None = None
    hold_out: str | None = None

    def __post_init__(self) -> None:
        for field in ("models", "train_sizes", "learning_rates"):
            values = getattr(self, field)
            if (not values and field == "train_sizes") or len(set(values)) != len(values):
                raise UsageError(f"{field}={values}: expected one or more, each once")
        for field in ("seeds", "steps", "budget"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UsageError(f"{field}={value}: expected a positive number")
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise UsageError(f"learning_rates={rate}: expected positive finite numbers")
        if not 0 <= self.seed <= MOST_SEED - self.seeds:
            raise UsageError(
                f"seed={self.seed}: expected a number from 0 to {MOST_SEED - self.seeds}"
            )
        if self.match == "none" and self.budget is not None:
            raise UsageError(f"match=none, budget={self.budget}: expected no budget")
        if self.match == "flops" and self.budget is None:
            raise UsageError("match=flops: expected a budget, how many")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model at one train size: all its seeds and learning rates are trained together."""

    model: str
    train_size: int
    size: models.Size
    params: int
    flops: int
    steps: int


Trainer = Callable[..., list[runs.Trained]]


def plan(config: Config, task: tasks.Task) -> list[Cell]:
    """Every cell of the grid, smallest train size first; what cannot be built is refused here."""
    cells = []
    built = {}
    for name in config.models:
        match = "params" if config.match == "none" else config.match
        size = models.size_for(name, task.spec, budget=config.budget, match=match)
        model = models.shapes(name, task.spec, size)
        built[name] = size, models.parameters(model), models.flops(model, task.spec)
    sizes = {len(task.subset(size, seed=config.seed)) for size in config.train_sizes}
    for train_size in sorted(sizes):
        steps = config.steps
        if steps is None:
            steps = round(defaults(task.spec).steps * train_size**0.5)
        cells += [Cell(name, train_size, *built[name], steps) for name in config.models]
    return cells


def defaults(spec: Spec) -> Defaults:
    """Chosen on validation splits.

    A text of one label is soon learned by heart: at 30, 11 steps for each root the cnn scored 75.2,
    77.0 % on the validation split of the sentences of Pang and Lee 2005.
    """
    if spec.output == "sequence":
        return Defaults(400_000, (0.0003, 0.001, 0.003), 60)
    if spec.output == "labels":
        return Defaults(100_000, (0.001, 0.003, 0.01), 30)
    if spec.vocabulary is not None or spec.graph is not None:
        return Defaults(30_000, (0.001, 0.003, 0.01), 10 if spec.graph is None else 30)
    return Defaults(30_000, (0.003, 0.01, 0.03), 30)


def completed(config: Config, spec: Spec, *, search: bool = True) -> Config:
    """With the default of what is not asked for, but the steps, which depend on the train size.

    Without a search of learning rates the default is the middle of their grid.
    """
    default = defaults(spec)
    names = config.models or tuple(models.fitting(spec))
    budget = config.budget
    if config.match == "params" and budget is None:
        budget = common_budget(names, spec, default.params)
    rates = config.learning_rates or default.learning_rates[slice(None) if search else slice(1, 2)]
    return dataclasses.replace(config, models=names, learning_rates=rates, budget=budget)


def of_lengths(spec: Spec) -> bool:
    """Whether examples have different lengths."""
    return spec.padded or spec.output == "sequence"


def common_budget(names: Sequence[str], spec: Spec, params: int) -> int:
    """The number of parameters, doubled until every family can have it, at most 8 times as large.

    A fully connected layer on a long input is large at a width of one.
    """
    for budget in (params, 2 * params, 4 * params):
        try:
            for name in names:
                models.size_for(name, spec, budget=budget)
        except UsageError:
            continue
        return budget
    return 8 * params


def load(config: Config) -> tasks.Task:
    """The task, in the form that is asked for."""
    task = tasks.load(
        config.task,
        data_dir=config.data_dir,
        seed=config.seed,
        tokens=config.tokens,
        vectors=config.vectors,
        fields=config.fields,
        hold_out=config.hold_out,
    )
    spec = dataclasses.replace(task.spec, pooling=config.pooling)
    return dataclasses.replace(task, spec=spec)


def run(
    config: Config,
    out: Path,
    *,
    keep: bool = True,
    search: bool = True,
    train_runs: Trainer = runs.train_all,
    on_start: Callable[[list[Cell], list[Cell]], None] = lambda cells, finished: None,
    on_steps: Callable[[Cell, int], None] = lambda cell, steps: None,
    on_finish: Callable[[Cell, list[results.Row]], None] = lambda cell, rows: None,
) -> dict[str, Any]:
    """Trains what is not finished in `out`, and returns the summary of all of it.

    Args:
      config: what to compare.
      out: the folder of the results.
      keep: whether to keep what is finished in `out`, or to start again.
      search: whether learning rates that are not given are a grid, or the middle of it.
      train_runs: how the runs of a cell are trained; has the signature of `runs.train_all`.
      on_start: is given all cells and those that are finished.
      on_steps: is told a cell and how many steps of it were done.
      on_finish: is given a cell and its rows.

    Raises:
      UsageError: what cannot be served, before anything is trained; a loss that is not finite.
    """
    task = load(config)
    config = completed(config, task.spec, search=search)
    cells = plan(config, task)
    results.claim(out, identity(config, task))
    if not keep:
        results.forget(out)

    path = out / "results.jsonl"
    rows, finished = [], []
    stored = results.read_rows(path)
    for cell in cells:
        mine = [r for r in stored if (r["model"], r["train_size"]) == (cell.model, cell.train_size)]
        predicted = results.predictions_path(out, cell.model, cell.train_size)
        if len(mine) == config.seeds * len(config.learning_rates) and predicted.exists():
            rows += mine
            finished.append(cell)
    on_start(cells, finished)

    programs: dict[str, train.Programs] = {}
    for cell in cells:
        if cell in finished:
            continue
        if cell.model not in programs:
            make = functools.partial(models.make, cell.model, task.spec, cell.size)
            programs[cell.model] = train.Programs(make, RECIPE, padded=of_lengths(task.spec))
        trainer = functools.partial(train_runs, on_steps=functools.partial(on_steps, cell))
        new = run_cell(config, task, cell, programs[cell.model], trainer, out)
        rows += new
        results.write_rows(path, rows)
        on_finish(cell, new)
    return summary(config, task, cells, rows, out)


def identity(config: Config, task: tasks.Task) -> dict[str, Any]:
    """What results must agree in to stand in one folder; where the data lie does not matter."""
    asked = dataclasses.asdict(config)
    del asked["data_dir"]
    return {
        **asked,
        "data": fingerprint(task),
        "recipe": dataclasses.asdict(RECIPE),
        "version": attnconv.__version__,
    }


def run_cell(
    config: Config,
    task: tasks.Task,
    cell: Cell,
    programs: train.Programs,
    train_runs: Trainer,
    out: Path,
) -> list[results.Row]:
    """Trains a cell's grid of learning rates and seeds, chooses on validation, reads the test.

    The learning rate with the best mean validation accuracy over the seeds is chosen, the lower
    mean validation loss deciding between equals. Only its runs are given the test split.
    """
    grid = []
    if of_lengths(task.spec):
        lengths = batching.lengths(task.train.inputs, task.train.labels)
    for rate in config.learning_rates:
        for seed in run_seeds(config):
            subset = task.subset(cell.train_size, seed=seed)
            order = batching.order(
                subset,
                steps=cell.steps,
                batch=RECIPE.batch,
                seed=seed,
                lengths=lengths[subset] if of_lengths(task.spec) else None,
            )
            grid.append(runs.Run(rate, seed, order))
    data, validation = (train.Data(s.inputs, s.labels) for s in (task.train, task.validation))
    try:
        trained = train_runs(programs, data, grid, validation=validation)
    except UsageError as error:
        raise UsageError(f"{cell.model} at train_size={cell.train_size}: {error}") from None

    scores = np.reshape([t.validation for t in trained], (len(config.learning_rates), -1, 2))
    mean = scores.mean(axis=1)
    chosen = max(range(len(mean)), key=lambda i: (mean[i][0], -mean[i][1]))
    picked = range(chosen * config.seeds, (chosen + 1) * config.seeds)

    test = train.Data(task.test.inputs, task.test.labels)
    predicted = np.stack([train.judged(programs, trained[i].params, test)[0] for i in picked])
    path = results.predictions_path(out, cell.model, cell.train_size)
    results.write_predictions(path, predicted)
    found, of = train.right(predicted, task.test.labels, writes=programs.writes)
    scores_of = dict(zip(picked, found.sum(1) / of.sum(), strict=True))
    rows = []
    for i, (run, result) in enumerate(zip(grid, trained, strict=True)):
        rows.append(
            {
                "task": task.name,
                "model": cell.model,
                "train_size": cell.train_size,
                "seed": run.seed,
                "learning_rate": run.learning_rate,
                "params": cell.params,
                "flops": cell.flops,
                "steps": cell.steps,
                "metric": METRICS[task.spec.output],
                "validation": result.validation.accuracy,
                "test": float(scores_of[i]) if i in scores_of else None,
                "train": result.train.accuracy,
                "seconds": result.seconds,
            }
        )
    return rows


def run_seeds(config: Config) -> range:
    """Seeds of the runs: each draws its own initial weights, training subset and batches."""
    return range(config.seed, config.seed + config.seeds)


def fingerprint(task: tasks.Task) -> str:
    """A digest of every example and label, so that results of other data are never mixed in."""
    digest = hashlib.sha256()
    for split in (task.train, task.validation, task.test):
        digest.update(split.inputs.tobytes())
        digest.update(split.labels.tobytes())
    if task.spec.graph is not None:
        digest.update(task.spec.graph.features.tobytes())
        digest.update(task.spec.graph.adjacency.tobytes())
    return digest.hexdigest()[:16]


def example_scores(task: tasks.Task, predicted: np.ndarray) -> np.ndarray:
    """A score `[seeds, examples]` of each test example, whose mean is the score of its seed.

    Where an example has several labels, its score is the seed's plus what the example adds to it,
    `p + (right_i - p n_i) / mean(n)`: the spread of that is the spread of a ratio of sums (Cochran
    1977, Sampling Techniques, section 6.4), and labels of one example do not count as independent.
    """
    found, of = train.right(predicted, task.test.labels, writes=task.spec.output == "sequence")
    seed = found.sum(1, keepdims=True) / of.sum()
    return seed + (found - seed * of) / of.mean()


def summary(
    config: Config,
    task: tasks.Task,
    cells: Sequence[Cell],
    rows: Sequence[results.Row],
    out: Path,
) -> dict[str, Any]:
    """Everything that the report says, as JSON values."""
    scores = {}
    for cell in cells:
        predicted = np.load(results.predictions_path(out, cell.model, cell.train_size))
        scores[cell.model, cell.train_size] = example_scores(task, predicted)
    intervals = stats.mean_intervals(scores, confidence=CONFIDENCE)
    pairs = [
        ((a, size), (b, size))
        for size in sorted({cell.train_size for cell in cells})
        for i, a in enumerate(config.models)
        for b in config.models[i + 1 :]
    ]
    comparisons = stats.paired_comparisons(scores, pairs, confidence=CONFIDENCE)

    def cell_summary(cell: Cell) -> dict[str, Any]:
        mine = [r for r in rows if (r["model"], r["train_size"]) == (cell.model, cell.train_size)]
        chosen = [r for r in mine if r["test"] is not None]
        rate = chosen[0]["learning_rate"]
        ends = min(config.learning_rates), max(config.learning_rates)
        return {
            "model": cell.model,
            "train_size": cell.train_size,
            "params": cell.params,
            "flops": cell.flops,
            "width": cell.size.width,
            "hidden": cell.size.hidden,
            "steps": cell.steps,
            "seeds": config.seeds,
            "learning_rate": rate,
            "learning_rate_at_edge": len(config.learning_rates) > 1 and rate in ends,
            "validation": float(np.mean([r["validation"] for r in chosen])),
            "train": float(np.mean([r["train"] for r in chosen])),
            "test": dataclasses.asdict(intervals[cell.model, cell.train_size]),
            "test_by_seed": [r["test"] for r in chosen],
            "seconds": float(np.median([r["seconds"] for r in mine])),
        }

    return {
        "task": {
            "name": task.name,
            "source": task.source,
            "example": task.spec.describe(),
            "shape": list(task.spec.shape),
            "classes": task.spec.classes,
            "output": task.spec.output,
            "vocabulary": task.spec.vocabulary,
            "train": len(task.train.labels),
            "validation": len(task.validation.labels),
            "test": len(task.test.labels),
        },
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "environment": environment.describe(),
        "seconds": sum(row["seconds"] for row in rows),
        "runs_at_once": runs.at_once(),
        "metric": METRICS[task.spec.output],
        "confidence": CONFIDENCE,
        "cells": [cell_summary(cell) for cell in cells],
        "comparisons": [
            {
                "train_size": c.a[1],
                "a": c.a[0],
                "b": c.b[0],
                "difference": dataclasses.asdict(c.difference),
                "established": c.established,
            }
            for c in comparisons
        ],
    }
