"""The grid of a comparison: model x train size x learning rate x seed, each cell once."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import attnconv
from attnconv import environment, models, results, runs, stats, tasks, train
from attnconv.errors import UsageError

METRIC = "accuracy"
RECIPE = train.Recipe()
MOST_SEED = 2**31  # seeds are 32-bit integers on the device
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared: with the data themselves, all that a result depends on."""

    task: str
    models: tuple[str, ...]
    data_dir: str | None = None
    train_sizes: tuple[int | None, ...] = (None,)  # None is all
    seeds: int = 5
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    match: Literal["params", "flops", "none"] = "params"
    budget: int | None = None
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("models", "train_sizes", "learning_rates"):
            values = getattr(self, field)
            if not values or len(set(values)) != len(values):
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
        if (self.match == "none") != (self.budget is None):
            raise UsageError(
                f"match={self.match}, budget={self.budget}: expected a budget to match params or "
                f"flops to, and none with match=none"
            )


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
        steps = train.default_steps(train_size) if config.steps is None else config.steps
        cells += [Cell(name, train_size, *built[name], steps) for name in config.models]
    return cells


def run(
    config: Config,
    out: Path,
    *,
    keep: bool = True,
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
      train_runs: how the runs of a cell are trained; has the signature of `runs.train_all`.
      on_start: is given all cells and those that are finished.
      on_steps: is told a cell and how many steps of it were done.
      on_finish: is given a cell and its rows.

    Raises:
      UsageError: what cannot be served, before anything is trained; a loss that is not finite.
    """
    task = tasks.load(config.task, data_dir=config.data_dir, seed=config.seed)
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
            make = functools.partial(models.family(cell.model), task.spec, cell.size)
            programs[cell.model] = train.Programs(make, RECIPE)
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
    for rate in config.learning_rates:
        for seed in run_seeds(config):
            subset = task.subset(cell.train_size, seed=seed)
            order = runs.batch_order(subset, steps=cell.steps, batch=RECIPE.batch, seed=seed)
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

    predicted = np.stack(
        [train.predict(programs, trained[i].params, task.test.inputs).argmax(-1) for i in picked]
    )
    path = results.predictions_path(out, cell.model, cell.train_size)
    results.write_predictions(path, predicted)
    test = dict(zip(picked, (predicted == task.test.labels).mean(1), strict=True))
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
                "metric": METRIC,
                "validation": result.validation.accuracy,
                "test": float(test[i]) if i in test else None,
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
    return digest.hexdigest()[:16]


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
        scores[cell.model, cell.train_size] = (predicted == task.test.labels).astype(np.float64)
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
            "shape": list(task.spec.shape),
            "classes": task.spec.classes,
            "train": len(task.train.labels),
            "validation": len(task.validation.labels),
            "test": len(task.test.labels),
        },
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "environment": environment.describe(),
        "seconds": sum(row["seconds"] for row in rows),
        "runs_at_once": runs.at_once(),
        "metric": METRIC,
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
