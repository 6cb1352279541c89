"""The grid end to end on real digits, small: what is trained, chosen, stored and said."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from attnconv import results, runs, study, tasks
from attnconv.errors import UsageError

CONFIG = study.Config(
    task="digits",
    models=("mlp", "local"),
    train_sizes=(None, 60),
    seeds=2,
    learning_rates=(0.003, 0.01),
    budget=2_000,
    steps=40,
    seed=3,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, study.run(CONFIG, out)


@pytest.fixture
def copied(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    return out


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_rows_are_the_whole_grid_and_only_chosen_ones_have_a_test_score(finished):
    out, summary = finished
    rows = results.read_rows(out / "results.jsonl")
    grid = [(r["train_size"], r["model"], r["learning_rate"], r["seed"]) for r in rows]
    assert grid == [
        (size, model, rate, seed)
        for size in (60, 1167)
        for model in ("mlp", "local")
        for rate in (0.003, 0.01)
        for seed in (3, 4)
    ]
    for cell in summary["cells"]:
        mine = [
            r for r in rows if (r["model"], r["train_size"]) == (cell["model"], cell["train_size"])
        ]
        mean = {
            rate: np.mean([r["validation"] for r in mine if r["learning_rate"] == rate])
            for rate in (0.003, 0.01)
        }
        assert mean[cell["learning_rate"]] == max(mean.values())
        assert all(
            (r["test"] is None) == (r["learning_rate"] != cell["learning_rate"]) for r in mine
        )
        assert cell["test"]["estimate"] == pytest.approx(np.mean(cell["test_by_seed"]))
        assert cell["params"] == pytest.approx(2_000, rel=0.02)
        assert cell["steps"] == 40
    assert max(r["test"] or 0 for r in rows) > 0.7


def test_test_scores_are_those_of_the_stored_predictions(finished):
    out, summary = finished
    task = tasks.load("digits", seed=3)
    for cell in summary["cells"]:
        path = results.predictions_path(out, cell["model"], cell["train_size"])
        right = np.load(path) == task.test.labels
        assert right.mean(1).tolist() == cell["test_by_seed"]


def test_the_same_configuration_gives_the_same_bits(finished, tmp_path):
    out, _ = finished
    config = dataclasses.replace(CONFIG, train_sizes=(60,))
    study.run(config, tmp_path)
    again = results.read_rows(tmp_path / "results.jsonl")
    stored = results.read_rows(out / "results.jsonl")
    assert without_seconds(again) == without_seconds(stored[:8])


def test_a_cut_file_costs_one_cell(finished, copied):
    _, summary = finished
    path = copied / "results.jsonl"
    rows = results.read_rows(path)
    path.write_bytes(path.read_bytes()[:-30])
    trained = []
    again = study.run(CONFIG, copied, on_finish=lambda cell, rows: trained.append(cell))
    assert [(c.model, c.train_size) for c in trained] == [("local", 1167)]
    assert without_seconds(results.read_rows(path)) == without_seconds(rows)
    assert again["comparisons"] == summary["comparisons"]


def test_a_finished_study_trains_nothing(finished, copied):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    again = study.run(CONFIG, copied, train_runs=refuse)
    assert again["cells"] == finished[1]["cells"]


def test_summary_is_json_and_compares_every_pair_at_every_size(finished):
    _, summary = finished
    assert json.loads(json.dumps(summary)) == summary
    pairs = [(c["train_size"], c["a"], c["b"]) for c in summary["comparisons"]]
    assert pairs == [(60, "mlp", "local"), (1167, "mlp", "local")]
    for comparison in summary["comparisons"]:
        a, b = (
            next(
                c["test"]["estimate"]
                for c in summary["cells"]
                if (c["model"], c["train_size"]) == (comparison[side], comparison["train_size"])
            )
            for side in ("a", "b")
        )
        assert comparison["difference"]["estimate"] == pytest.approx(a - b)


def test_another_configuration_is_refused(copied):
    with pytest.raises(UsageError, match="another configuration's results: steps=40 there, 41"):
        study.run(dataclasses.replace(CONFIG, steps=41), copied)


def test_a_diverged_run_is_named_and_leaves_no_rows(tmp_path):
    def diverge(programs, data, grid, **hooks):
        return runs.check_loss(float("nan"), grid[1], 10)

    message = r"^mlp at train_size=60: learning_rate=0.003: expected a finite loss, got nan before"
    with pytest.raises(UsageError, match=message):
        study.run(CONFIG, tmp_path, train_runs=diverge)
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_sizes": ()}, r"train_sizes=\(\): expected one or more"),
        ({"models": ("mlp", "mlp")}, "each once"),
        ({"seeds": 0}, "seeds=0: expected a positive number"),
        ({"learning_rates": (0.1, -1.0)}, "learning_rates=-1.0: expected positive finite"),
        ({"match": "none"}, "match=none, budget=2000: expected no"),
        ({"match": "flops", "budget": None}, "match=flops: expected a budget"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_configuration_without_sense_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_sizes": (5000,)}, "train_size=5000: digits has 1167 training examples"),
        ({"models": ("mlp", "atention")}, "unknown model 'atention'; did you mean 'attention'"),
        ({"budget": 20}, "budget=20: expected a number of parameters of mlp"),
    ],
)
def test_what_cannot_be_built_is_refused_before_training(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        study.run(dataclasses.replace(CONFIG, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
