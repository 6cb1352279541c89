"""Summaries made by hand, so that every sentence and number of a report is known beforehand."""

import pytest

from attnconv.report import values

ALONE = {
    "seeds": 5,
    "edge": (),
    "match": "params",
    "params": {},
    "name": "digits",
    "train": 1167,
    "test": 360,
    "example": "image 8 x 8 x 1: one of 10",
    "output": "label",
    "vocabulary": None,
    "padded": False,
    "graph": False,
    "most_frequent": 0.1,
    "runs_at_once": 2,
    "one_program": False,
    "windows": {},
    "diverged": {},
    "config": {},
}


def interval(estimate, low, high):
    return {"estimate": estimate, "low": low, "high": high}


def summary_of(scores, differences=(), **options):
    """A summary from `{(model, size): (score, low, high)}` and `(size, a, b, (d, low, high))`."""
    options = ALONE | options
    models = list(dict.fromkeys(model for model, _ in scores))
    sizes = sorted({size for _, size in scores})
    cells = [
        {
            "model": model,
            "window": options["windows"].get(model, values.parted(model)[1]),
            "train_size": size,
            "params": options["params"].get(model, 20011),
            "flops": 1234567 * (i + 1),
            "width": 16 + i,
            "steps": 600,
            "seeds": options["seeds"],
            "learning_rate": 0.003,
            "diverged": options["diverged"].get((model, size), []),
            "learning_rate_at_edge": (model, size) in options["edge"],
            "validation": 0.9123,
            "train": 0.9876,
            "test": interval(*scores[model, size]),
            "test_by_seed": [scores[model, size][0]] * options["seeds"],
            "seconds": 1.9 + i,
        }
        for size in sizes
        for i, model in enumerate(models)
    ]
    return {
        "task": {
            "name": options["name"],
            "source": "real scans",
            "shape": [8, 8, 1],
            "classes": 10,
            "example": options["example"],
            "output": options["output"],
            **{k: options[k] for k in ("vocabulary", "padded", "graph", "most_frequent")},
            "train": options["train"],
            "validation": 270,
            "test": options["test"],
        },
        "config": {
            "task": options["name"],
            "models": models,
            "data_dir": None,
            "train_sizes": [100, None],
            "seeds": options["seeds"],
            "learning_rates": [0.001, 0.003, 0.01],
            "match": options["match"],
            "budget": 20000,
            "vectors": None,
            "fields": None,
            "hold_out": None,
            **options["config"],
        },
        "environment": {"python": "3.11.7", "device": "cpu: AMD EPYC, 2 cores"},
        "seconds": 183.2,
        "runs_at_once": options["runs_at_once"],
        "one_program": options["one_program"],
        "metric": "exact match" if options["output"] == "sequence" else "accuracy",
        "confidence": 0.95,
        "cells": cells,
        "comparisons": [
            {
                "train_size": size,
                "a": a,
                "b": b,
                "difference": interval(*ends),
                "established": not ends[1] <= 0 <= ends[2],
            }
            for size, a, b, ends in differences
        ],
    }


def twelve_models():
    """Twelve families of unknown names at three sizes, every pair compared."""
    models, sizes = [f"family_{i}" for i in range(12)], (100, 1000, 1167)
    scores = {
        (model, size): (0.8 + 0.01 * i, 0.78 + 0.01 * i, 0.82 + 0.01 * i)
        for size in sizes
        for i, model in enumerate(models)
    }
    pairs = [
        (size, models[i], models[j], (0.01 * (i - j), 0.01 * (i - j) - 0.05, 0.01 * (i - j) + 0.05))
        for size in sizes
        for i in range(12)
        for j in range(i + 1, 12)
    ]
    return summary_of(scores, pairs)


def windows():
    """Two families by their windows, the whole of one of them too, and one without any."""
    models = ("mlp", "cnn:9", "cnn:17", "cnn:33", "attention:9", "attention:17", "attention")
    estimates = (0.857, 0.91, 0.934, 0.938, 0.905, 0.929, 0.94)
    scores, differences = {}, []
    for size, lower in ((1000, 0.07), (12543, 0.0)):
        for model, estimate in zip(models, estimates, strict=True):
            middle = estimate - lower
            scores[model, size] = (middle, middle - 0.006, middle + 0.005)
        for i, a in enumerate(models):
            for j, b in list(enumerate(models))[i + 1 :]:
                middle = estimates[i] - estimates[j]
                differences.append((size, a, b, (middle, middle - 0.008, middle + 0.008)))
    return summary_of(
        scores,
        differences,
        name="universal_dependencies/en_ewt:1.0.1",
        train=12543,
        test=2077,
        example="up to 160 tokens of 11004: each of 18",
        output="labels",
        vocabulary=11004,
    )


ODD = {
    "one size, one model, one seed": summary_of({("cnn", 1167): (0.9, 0.8, 0.95)}, seeds=1),
    "all wrong, all right": summary_of(
        {("mlp", 10): (0.0, 0.0, 0.01), ("cnn", 10): (1.0, 0.99, 1.0)},
        [(10, "mlp", "cnn", (-1.0, -1.0, -0.99))],
    ),
    "twelve unknown families": twelve_models(),
    "windows": windows(),
    "long name": summary_of({("cnn", 60000): (0.9, 0.8, 0.95)}, name="/a/path/" + 90 * "long_"),
}


@pytest.fixture
def summary():
    """Three families at two sizes: one lead established at the larger size."""
    return summary_of(
        {
            ("mlp", 100): (0.8, 0.77, 0.83),
            ("cnn", 100): (0.82, 0.79, 0.85),
            ("hybrid", 100): (0.81, 0.78, 0.84),
            ("mlp", 1167): (0.97, 0.955, 0.981),
            ("cnn", 1167): (0.989, 0.98, 0.995),
            ("hybrid", 1167): (0.987, 0.977, 0.993),
        },
        [
            (100, "mlp", "cnn", (-0.02, -0.05, 0.01)),
            (100, "mlp", "hybrid", (-0.01, -0.04, 0.02)),
            (100, "cnn", "hybrid", (0.01, -0.02, 0.04)),
            (1167, "mlp", "cnn", (-0.019, -0.032, -0.006)),
            (1167, "mlp", "hybrid", (-0.017, -0.034, -0.0004)),
            (1167, "cnn", "hybrid", (0.002, -0.007, 0.011)),
        ],
        edge=[("mlp", 100)],
    )


@pytest.fixture
def windowed():
    return windows()


@pytest.fixture(params=ODD, ids=list(ODD))
def odd_summary(request):
    return ODD[request.param]


@pytest.fixture
def make_summary():
    return summary_of
