"""What a study found, as JSON values: everything that the report says."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnconv import compiled, devices, environment, models, results, stats, tasks
from attnconv.config import Cell, Config

METRICS = {"label": "accuracy", "labels": "accuracy", "sequence": "exact match"}
CONFIDENCE = 0.95


def example_scores(task: tasks.Task, predicted: np.ndarray) -> np.ndarray:
    """A score `[seeds, examples]` of each test example, whose mean is the score of its seed."""
    found, of = compiled.right(predicted, task.test.labels, writes=task.spec.output == "sequence")
    return stats.ratio_scores(found, of)


def most_frequent(task: tasks.Task) -> float | None:
    """The accuracy of always the class most frequent in training; None of sequences."""
    if task.spec.output == "sequence":
        return None
    train, test = (labels[labels >= 0] for labels in (task.train.labels, task.test.labels))
    return float((test == np.bincount(train).argmax()).mean())


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
        path = results.predictions_path(out, cell.model, cell.train_size)
        predicted = results.read_predictions(path)
        scores[cell.model, cell.train_size] = example_scores(task, predicted)
    intervals = stats.mean_intervals(scores, confidence=CONFIDENCE)
    pairs = [
        ((a, size), (b, size))
        for size in sorted({cell.train_size for cell in cells})
        for i, a in enumerate(config.models)
        for b in config.models[i + 1 :]
    ]
    # Seeds draw a small subset, and spread the more, the smaller it is.
    sizes = [size for (_, size), _ in pairs]
    comparisons = stats.paired_comparisons(scores, pairs, groups=sizes, confidence=CONFIDENCE)
    return {
        "task": _about(task),
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "environment": environment.describe(),
        "seconds": sum(row["seconds"] for row in rows),
        "runs_at_once": devices.at_once(config.seeds * len(config.learning_rates)),
        "one_program": devices.one_program(),
        "metric": METRICS[task.spec.output],
        "confidence": CONFIDENCE,
        "cells": [
            _cell(config, task, cell, rows, intervals[cell.model, cell.train_size])
            for cell in cells
        ],
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


def _about(task: tasks.Task) -> dict[str, Any]:
    """The form of a task, and how large it is."""
    return {
        "name": task.name,
        "source": task.source,
        "example": task.spec.describe(),
        "shape": list(task.spec.shape),
        "classes": task.spec.classes,
        "output": task.spec.output,
        "vocabulary": task.spec.vocabulary,
        "padded": task.spec.padded,
        "graph": task.spec.graph is not None,
        "most_frequent": most_frequent(task),
        "train": len(task.train.labels),
        "validation": len(task.validation.labels),
        "test": len(task.test.labels),
    }


def _cell(
    config: Config,
    task: tasks.Task,
    cell: Cell,
    rows: Sequence[results.Row],
    test: stats.Interval,
) -> dict[str, Any]:
    """One model at one train size: what it is, its costs and its scores."""
    mine = [r for r in rows if (r["model"], r["train_size"]) == (cell.model, cell.train_size)]
    chosen = [r for r in mine if r["test"] is not None]
    rate = chosen[0]["learning_rate"]
    ends = min(config.learning_rates), max(config.learning_rates)
    ended = [r["seconds"] for r in mine if r["validation"] is not None]
    return {
        "model": cell.model,
        "window": models.window(cell.model, task.spec),
        "train_size": cell.train_size,
        "params": cell.params,
        "flops": cell.flops,
        "width": cell.size.width,
        "hidden": cell.size.hidden,
        "steps": cell.steps,
        "seeds": config.seeds,
        "learning_rate": rate,
        "diverged": sorted({r["learning_rate"] for r in mine if r["validation"] is None}),
        "learning_rate_at_edge": len(config.learning_rates) > 1 and rate in ends,
        "validation": float(np.mean([r["validation"] for r in chosen])),
        "train": float(np.mean([r["train"] for r in chosen])),
        "test": dataclasses.asdict(test),
        "test_by_seed": [r["test"] for r in chosen],
        "seconds": float(np.median(ended)),
    }
