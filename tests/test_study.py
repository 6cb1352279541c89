"""The grid end to end on real digits, small: what is trained, chosen, stored and said."""

import collections
import dataclasses
import json
import shutil

import numpy as np
import pytest

from attnconv import batching, compiled, devices, models, results, runs, search, study, tasks
from attnconv.config import common_budget, completed, defaults, plan
from attnconv.errors import UsageError
from attnconv.spec import Graph, Spec
from attnconv.summary import example_scores

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 41}, "steps=40 there, 41"),
        ({"dtype": "bfloat16"}, 'dtype="float32" there, "bfloat16" asked'),
    ],
)
def test_another_configuration_is_refused(changes, message, copied):
    with pytest.raises(UsageError, match=f"another configuration's results: {message}"):
        study.run(dataclasses.replace(CONFIG, **changes), copied)


def test_a_diverged_run_is_named_and_leaves_no_rows(tmp_path):
    def diverge(programs, data, grid, **hooks):
        return runs.check_loss(float("nan"), grid[1], 10)

    message = r"^mlp at train_size=60: learning_rate=0.003: expected a finite loss, got nan before"
    with pytest.raises(UsageError, match=message):
        study.run(CONFIG, tmp_path, train_runs=diverge)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_learning_rate_that_diverges_is_not_chosen_and_ends_nothing(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rates=(0.01, 1e30), train_sizes=(60,))
    summary = study.run(config, tmp_path)
    rows = results.read_rows(tmp_path / "results.jsonl")
    assert [row["validation"] is None for row in rows] == [False, False, True, True] * 2
    assert [row["test"] is None for row in rows] == [False, False, True, True] * 2
    for cell in summary["cells"]:
        assert (cell["learning_rate"], cell["diverged"]) == (0.01, [1e30])
        assert cell["seconds"] > 0
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    again = study.run(config, tmp_path, train_runs=lambda *_, **__: pytest.fail("it was finished"))
    assert again["cells"] == summary["cells"]

    alone = dataclasses.replace(config, learning_rates=(1e30, 1e31))
    message = r"^mlp at train_size=60: learning_rates=1e\+30, 1e\+31: expected a finite loss, each"
    with pytest.raises(UsageError, match=message):
        study.run(alone, tmp_path / "alone")


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
        ({"budget": 10**12}, r"model mlp: .* parameters need .* GiB of memory, . at once; there"),
    ],
)
def test_what_cannot_be_built_is_refused_before_training(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        study.run(dataclasses.replace(CONFIG, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def colours(rng):
    """A text whose label is the colour that it names."""
    label = rng.choice(["red", "blue"])
    words = [*rng.choice(["a", "the", "big", "is"], rng.integers(1, 6)), label]
    return {"text": " ".join(rng.permutation(words)), "label": str(label)}


def cases(rng):
    """A label for each token: what is in capitals, mostly; none for "?"."""
    tokens = rng.choice(["go", "GO", "on", "ON", "?"], rng.integers(1, 9)).tolist()
    of = [-1 if t == "?" else int(t.isupper() != (rng.random() < 0.2)) for t in tokens]
    return {"tokens": tokens, "labels": of}


def answers(rng):
    """One answer to most questions, a longer one to the others."""
    source = rng.choice(["p", "q", "r"], rng.integers(1, 5)).tolist()
    return {"source": source, "target": "yes" if rng.random() < 0.8 else "no no"}


KINDS = {
    "label": (colours, ("mlp",), "accuracy"),
    "labels": (cases, ("mlp", "cnn:9"), "accuracy"),
    "sequence": (answers, ("cnn",), "exact match"),
}


@pytest.fixture(scope="module")
def small():
    """Models that train in no time, each compiled once."""
    kept, programs = {}, compiled.Programs

    def once(make, recipe, **options):
        name, spec, _ = make.args
        if (name, spec) not in kept:
            kept[name, spec] = programs(make, recipe, **options)
        return kept[name, spec]

    with pytest.MonkeyPatch.context() as patch:
        for family in (*models.FAMILIES.values(), *models.SEQUENCES.values()):
            patch.setattr(family, "default", models.Size(8, 8))
        patch.setattr(batching, "PARTS", (2, 1))
        patch.setattr(compiled, "Programs", once)
        yield


@pytest.fixture(
    scope="module",
    params=[pytest.param(x, marks=() if x == "label" else pytest.mark.slow) for x in KINDS],
)
def own(request, small, tmp_path_factory):
    """A study of a file of the user's own, stopped before its last cell and started again."""
    output = request.param
    make, families, _ = KINDS[output]
    folder = tmp_path_factory.mktemp(output)
    rng = np.random.default_rng(0)
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(make(rng)) + "\n" for _ in range(60)))
    config = study.Config(
        task=str(path),
        models=families,
        train_sizes=(20, None),
        seeds=2,
        learning_rates=(0.02,),
        match="none",
        steps=50,
    )
    cells = []

    def stop_at_the_last(*args, **kwargs):
        if len(cells) == 2 * len(families) - 1:
            raise KeyboardInterrupt
        return search.train_all(*args, **kwargs)

    def finish(cell, rows):
        cells.append(cell)

    with pytest.raises(KeyboardInterrupt):
        study.run(config, folder / "out", train_runs=stop_at_the_last, on_finish=finish)
    stopped = (folder / "out" / "results.jsonl").read_text()
    summary = study.run(config, folder / "out", on_finish=finish)
    return output, config, folder / "out", stopped, cells, summary


def test_a_study_of_any_output_goes_on_where_it_stopped(own):
    output, config, out, stopped, cells, summary = own
    _, families, metric = KINDS[output]
    asked = [(size, model) for size in (20, 39) for model in families]
    assert [(cell.train_size, cell.model) for cell in cells] == asked  # each trained once
    text = (out / "results.jsonl").read_text()
    assert stopped.count("\n") == 2 * (len(asked) - 1) and text.startswith(stopped)
    rows = results.read_rows(out / "results.jsonl")
    found = [(r["train_size"], r["model"], r["seed"]) for r in rows]
    assert found == [(*cell, seed) for cell in asked for seed in (0, 1)]
    assert {r["metric"] for r in rows} == {summary["metric"]} == {metric}
    assert summary["task"]["output"] == output
    assert all(r["steps"] == 50 and 0 <= r["test"] <= 1 for r in rows)
    assert all(0 <= r["validation"] <= 1 and 0 <= r["train"] <= 1 for r in rows)

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    again = study.run(config, out, train_runs=refuse)
    assert again["cells"] == summary["cells"]
    assert again["comparisons"] == summary["comparisons"]


def counted(output, predicted, task):
    """How many of the labels of each test example are right, and how many there are."""
    found, of = [], []
    for guess, label in zip(predicted, task.test.labels, strict=True):
        if output == "label":
            found.append(int(guess == label))
            of.append(1)
        elif output == "labels":
            there = [i for i, one in enumerate(label) if one != -1]
            found.append(sum(int(guess[i] == label[i]) for i in there))
            of.append(len(there))
        else:
            written, wanted = (
                row.tolist()[: row.tolist().index(0)] if 0 in row else None
                for row in (guess, label)
            )
            found.append(int(written == wanted))
            of.append(1)
    return np.array(found), np.array(of)


def test_scores_of_any_output_are_those_of_the_stored_predictions(own):
    output, config, out, _, _, summary = own
    task, by_sentence = study.load(config), []
    for cell in summary["cells"]:
        path = results.predictions_path(out, cell["model"], cell["train_size"])
        predicted = np.load(path)
        assert predicted.shape == (2, *task.test.labels.shape)
        counts = [counted(output, each, task) for each in predicted]
        by_seed = [found.sum() / of.sum() for found, of in counts]
        assert cell["test_by_seed"] == pytest.approx(by_seed, abs=1e-12)
        assert cell["test"]["estimate"] == pytest.approx(np.mean(by_seed), abs=1e-12)
        assert cell["test"]["low"] < cell["test"]["estimate"] <= cell["test"]["high"]
        scores = example_scores(task, predicted)
        assert scores.shape == (2, 12)
        np.testing.assert_allclose(scores.mean(1), by_seed, atol=1e-12)
        if output != "labels":
            np.testing.assert_array_equal(scores, [found for found, _ in counts])
        by_sentence.append(np.mean([found / of for found, of in counts]))
        assert cell["test"]["estimate"] > 0.3
    if output == "labels":
        # Not the mean over the sentences, in which a short one counts as a long one.
        estimates = [cell["test"]["estimate"] for cell in summary["cells"]]
        assert np.abs(np.subtract(by_sentence, estimates)).max() > 1e-3


def test_what_the_summary_says_of_the_task(own):
    output, config, _, _, _, summary = own
    task, splits = study.load(config), {}
    for split in ("train", "test"):
        of = getattr(task, split).labels.ravel().tolist()
        splits[split] = [label for label in of if label != -1]
    most = collections.Counter(splits["train"]).most_common(1)[0][0]
    share = splits["test"].count(most) / len(splits["test"])
    expected = {"label": pytest.approx(share), "labels": pytest.approx(share), "sequence": None}
    assert summary["task"]["most_frequent"] == expected[output]
    assert summary["task"]["padded"] and not summary["task"]["graph"]
    windows = {cell["model"]: cell["window"] for cell in summary["cells"]}
    assert windows == dict.fromkeys(config.models) | ({"cnn:9": 9} if output == "labels" else {})
    assert summary["runs_at_once"] == devices.at_once(2) and not summary["one_program"]


def test_scores_of_examples_have_the_spread_of_a_ratio_of_sums():
    """Against the ratio of 4,000 resampled test splits (Efron 1979)."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 150)
    there = np.arange(30) < lengths[:, None]
    labels = np.where(there, rng.integers(0, 3, there.shape), -1).astype(np.int32)
    wrong = rng.random(there.shape) < rng.beta(1, 3, 150)[:, None]  # as whole sentences go
    predicted = np.where(wrong, (labels + 1) % 3, labels)[None]
    splits = dict.fromkeys(("train", "validation", "test"), tasks.Split(labels, labels))
    task = tasks.Task("tags", "here", Spec((30,), 3, "labels", 5), ("a", "b", "c"), **splits)
    scores = example_scores(task, predicted)
    right = ((predicted[0] == labels) & there).sum(1)
    assert scores.mean() == pytest.approx(right.sum() / lengths.sum(), abs=1e-12)
    drawn = rng.integers(0, 150, (4000, 150))
    ratios = right[drawn].sum(1) / lengths[drawn].sum(1)
    assert scores.std() / 150**0.5 == pytest.approx(ratios.std(), rel=0.06)
    # Tokens by themselves would be thought to tell more than they do.
    share = scores.mean()
    assert (share * (1 - share) / lengths.sum()) ** 0.5 < 0.6 * ratios.std()


IMAGE, TEXT = Spec((8, 8, 1), 3), Spec((9,), 3, vocabulary=7)
ON_A_GRID = ("cnn", "neighborhood", "gated", "attention", "hybrid")
NODE = Spec((4, 2), 3, graph=Graph(np.zeros((4, 2), np.float32), np.zeros((4, 4), bool)))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("cnn", "cnn:17"), marks=pytest.mark.slow),
        ("neighborhood:17", "mlp", "neighborhood"),
    ],
)
def test_a_window_that_is_the_default_is_not_a_second_model(names):
    task = tasks.load("python_tokens", seed=0)
    config = study.Config(task="python_tokens", models=names, match="none")
    with pytest.raises(UsageError, match=r"^models=(cnn,cnn:17|neighborhood:17,neighborhood): exp"):
        plan(config, task)
    kept = ("cnn", "cnn:33", "attention", "attention:17")
    cells = plan(dataclasses.replace(config, models=kept), task)
    assert tuple(cell.model for cell in cells) == kept


@pytest.mark.parametrize(
    ("spec", "expected", "fit"),
    [
        (IMAGE, (30_000, (0.003, 0.01, 0.03), 30), ("mlp", "local", *ON_A_GRID)),
        (TEXT, (30_000, (0.001, 0.003, 0.01), 10), ("mlp", "local", *ON_A_GRID)),
        (
            NODE,
            (30_000, (0.001, 0.003, 0.01), 30),
            ("mlp", "attention", *list(models.FAMILIES)[-2:]),
        ),
        (
            dataclasses.replace(TEXT, output="labels"),
            (100_000, (0.001, 0.003, 0.01), 30),
            ("mlp", *ON_A_GRID),
        ),
        (
            dataclasses.replace(TEXT, output="sequence", steps=4),
            (400_000, (0.0003, 0.001, 0.003), 60),
            ("cnn", "attention"),
        ),
    ],
    ids=["image", "text", "node", "labels", "sequence"],
)
def test_what_is_not_asked_for_has_a_default_by_the_kind_of_task(spec, expected, fit, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "size_for", lambda name, spec, budget: asked.append((name, budget)))
    assert defaults(spec) == expected
    config = completed(study.Config(task="any"), spec)
    assert (config.budget, config.learning_rates, config.models) == (*expected[:2], fit)
    assert asked == [(name, config.budget) for name in fit]  # each can have it
    config = study.Config(task="any", models=("cnn:9",), learning_rates=(0.1,), budget=77)
    assert completed(config, spec) == config
    config = dataclasses.replace(config, match="none", budget=None)
    assert completed(config, spec) == config


@pytest.mark.parametrize(
    ("least", "found"), [(1, 100), (100, 100), (101, 200), (390, 400), (500, 800), (900, 800)]
)
def test_a_budget_is_doubled_until_all_can_have_it(least, found, monkeypatch):
    def size_for(name, spec, *, budget):
        if name == "mlp" and budget < least:
            raise UsageError("too small")

    monkeypatch.setattr(models, "size_for", size_for)
    assert common_budget(("cnn", "mlp"), TEXT, 100) == found


def test_steps_grow_with_the_root_of_the_examples():
    config = study.Config(task="digits", models=("mlp",), train_sizes=(100, None), budget=2_000)
    cells = plan(config, tasks.load("digits"))
    assert [(c.train_size, c.steps) for c in cells] == [(100, 300), (1167, round(30 * 1167**0.5))]


def test_a_window_that_cannot_be_is_refused_before_training(tmp_path):
    path = tmp_path / "own.jsonl"
    rng = np.random.default_rng(0)
    path.write_text("".join(json.dumps(cases(rng)) + "\n" for _ in range(30)))
    config = study.Config(task=str(path), models=("mlp", "cnn:8"), match="none", steps=1)
    with pytest.raises(UsageError, match=r"^model cnn:8: its 4 layers can see 1 or 9 positions"):
        study.run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
