"""The grid of a comparison: model x train size x learning rate x seed, each cell once."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import attnconv
from attnconv import batching, compiled, devices, models, results, runs, search, tasks, train
from attnconv.config import Cell, Config, completed, load, of_lengths, plan
from attnconv.errors import UsageError
from attnconv.summary import METRICS, summary

__all__ = ["Cell", "Config", "Trainer", "completed", "load", "plan", "run"]

Trainer = Callable[..., list[runs.Trained | None]]


def run(
    config: Config,
    out: Path,
    *,
    keep: bool = True,
    tune: bool = True,
    train_runs: Trainer = search.train_all,
    on_start: Callable[[list[Cell], list[Cell]], None] = lambda cells, finished: None,
    on_steps: Callable[[Cell, int], None] = lambda cell, steps: None,
    on_finish: Callable[[Cell, list[results.Row]], None] = lambda cell, rows: None,
) -> dict[str, Any]:
    """Trains what is not finished in `out`, and returns the summary of all of it.

    Args:
      config: what to compare.
      out: the folder of the results.
      keep: whether to keep what is finished in `out`, or to start again.
      tune: whether learning rates that are not given are a grid, or the middle of it.
      train_runs: how the runs of a cell are trained; has the signature of `search.train_all`.
      on_start: is given all cells and those that are finished.
      on_steps: is told a cell and how many steps of it were done.
      on_finish: is given a cell and its rows.

    Raises:
      UsageError: what cannot be served, before anything is trained; a loss that is not finite at
        any learning rate.
    """
    task = load(config)
    config = completed(config, task.spec, tune=tune)
    cells = plan(config, task)
    for cell in cells:
        count = config.seeds * len(config.learning_rates)
        devices.check_memory(cell.params, count, called=f"model {cell.model}")
    results.open_folder(out, identity(config, task), keep=keep)

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

    programs: dict[str, compiled.Programs] = {}
    for cell in cells:
        if cell in finished:
            continue
        if cell.model not in programs:
            make = functools.partial(models.make, cell.model, task.spec, cell.size)
            programs[cell.model] = compiled.Programs(
                make, recipe(config), padded=of_lengths(task.spec)
            )
        trainer = functools.partial(train_runs, on_steps=functools.partial(on_steps, cell))
        new = run_cell(config, task, cell, programs[cell.model], trainer, out)
        rows += new
        results.write_rows(path, rows)
        on_finish(cell, new)
    return summary(config, task, cells, rows, out)


def recipe(config: Config) -> train.Recipe:
    """How the models of a comparison are trained."""
    return train.Recipe(dtype=config.dtype)


def identity(config: Config, task: tasks.Task) -> dict[str, Any]:
    """What results must agree in to stand in one folder; where the data lie does not matter."""
    asked = dataclasses.asdict(config)
    del asked["data_dir"]
    return {
        **asked,
        "data": fingerprint(task),
        "recipe": dataclasses.asdict(recipe(config)),
        "version": attnconv.__version__,
    }


def run_cell(
    config: Config,
    task: tasks.Task,
    cell: Cell,
    programs: compiled.Programs,
    train_runs: Trainer,
    out: Path,
) -> list[results.Row]:
    """Trains a cell's grid of learning rates and seeds, chooses on validation, reads the test.

    The learning rate is that of `search.best_rate`. Only its runs are given the test split. A run
    that diverged has no scores.
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
                batch=recipe(config).batch,
                seed=seed,
                lengths=lengths[subset] if of_lengths(task.spec) else None,
            )
            grid.append(runs.Run(rate, seed, order))
    data, validation = (train.Data(s.inputs, s.labels) for s in (task.train, task.validation))
    try:
        trained = train_runs(programs, data, grid, validation=validation)
        chosen, kept = search.best_rate(trained, config.learning_rates)
    except UsageError as error:
        raise UsageError(f"{cell.model} at train_size={cell.train_size}: {error}") from None
    picked = range(chosen * config.seeds, (chosen + 1) * config.seeds)

    test = train.Data(task.test.inputs, task.test.labels)
    predicted = np.stack([compiled.judged(programs, run.params, test)[0] for run in kept])
    path = results.predictions_path(out, cell.model, cell.train_size)
    results.write_predictions(path, predicted)
    found, of = compiled.right(predicted, task.test.labels, writes=programs.writes)
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
                "validation": None if result is None else result.validation.accuracy,
                "test": float(scores_of[i]) if i in scores_of else None,
                "train": None if result is None or result.train is None else result.train.accuracy,
                "seconds": 0.0 if result is None else result.seconds,
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
