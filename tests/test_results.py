"""Results on disk: whole or absent, of one configuration, and gone on with."""

import json

import numpy as np
import pytest

from attnconv import results
from attnconv.errors import UsageError


def row(**changes):
    values = dict.fromkeys(results.COLUMNS, 0)
    return {**values, "task": "digits", "model": "mlp", "test": None, **changes}


def test_rows_come_back_as_written(tmp_path):
    rows = [row(seed=1, validation=0.1 + 0.2), row(seed=2, test=1 / 3)]
    results.write_rows(tmp_path / "results.jsonl", rows)
    assert results.read_rows(tmp_path / "results.jsonl") == rows
    assert results.read_rows(tmp_path / "absent.jsonl") == []
    assert list(tmp_path.iterdir()) == [tmp_path / "results.jsonl"]


def test_a_line_that_was_cut_is_not_read(tmp_path):
    path = tmp_path / "results.jsonl"
    results.write_rows(path, [row(seed=1), row(seed=2)])
    whole = path.read_bytes()
    for cut in (1, 2, 40):
        path.write_bytes(whole[:-cut])
        assert [r["seed"] for r in results.read_rows(path)] == [1]


def test_a_broken_line_before_the_last_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "results.jsonl"
    results.write_rows(path, [row(seed=1), row(seed=2)])
    path.write_text("{oops\n" + path.read_text())
    with pytest.raises(UsageError, match=r"results.jsonl line 1: expected a JSON row"):
        results.read_rows(path)
    path.write_text(json.dumps({"task": "digits"}) + "\n")
    with pytest.raises(UsageError, match=r"line 1: expected the columns task model"):
        results.read_rows(path)


def test_a_folder_belongs_to_one_configuration(tmp_path):
    out = tmp_path / "a" / "b"
    results.open_folder(out, {"task": "digits", "sizes": (1, None)})
    results.open_folder(out, {"task": "digits", "sizes": (1, None)})
    with pytest.raises(UsageError, match=r'another configuration.*task="digits" there, "mnist"'):
        results.open_folder(out, {"task": "mnist", "sizes": (1, None)})
    assert json.loads((out / "config.json").read_text()) == {"task": "digits", "sizes": [1, None]}


def test_beginning_again_removes_what_was_trained_and_nothing_else(tmp_path):
    results.open_folder(tmp_path, {"steps": 20})
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    for name in ("results.jsonl", "metrics.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    results.open_folder(tmp_path, {"steps": 30}, keep=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "notes.txt"}
    assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 30}


def test_beginning_again_leaves_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"port": 8080}')
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="another configuration's results: port=8080 there"):
        results.open_folder(tmp_path, {"steps": 30}, keep=False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"expected a config.json beside its checkpoints"):
        results.open_folder(tmp_path, {"steps": 30}, keep=False)
    assert (tmp_path / "checkpoints").is_dir()


def test_beginning_a_run_again_leaves_a_comparison(tmp_path):
    results.open_folder(tmp_path, {"models": ["mlp", "cnn"], "seeds": 5})
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UsageError, match="another configuration's results: models="):
        results.open_folder(tmp_path, {"models": ["cnn"], "seeds": 1}, keep=False)
    assert (tmp_path / "results.jsonl").exists()


def test_a_folder_that_cannot_be_claimed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder that can be made and written"):
        results.open_folder(tmp_path / "file", {})
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"expected a config.json beside its results.jsonl"):
        results.open_folder(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"expected a JSON object in config.json"):
        results.open_folder(tmp_path, {})


def test_predictions_come_back(tmp_path):
    path = results.predictions_path(tmp_path, "cnn", 100)
    results.write_predictions(path, np.arange(6).reshape(2, 3))
    assert results.read_predictions(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kept", [0, 40, 130])
def test_broken_predictions(tmp_path, kept):
    path = results.predictions_path(tmp_path, "cnn", 100)
    results.write_predictions(path, np.arange(6).reshape(2, 3))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"cnn-100.npy: expected predictions, remove it to train"):
        results.read_predictions(path)
