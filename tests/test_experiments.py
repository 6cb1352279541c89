"""The entrypoints as a person starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def start(entrypoint: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{entrypoint}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_compare_prints_a_table_and_writes_its_files_and_keeps_them(tmp_path):
    flags = ("--models=mlp,cnn", "--train_sizes=50,100", "--seeds=2", "--learning_rates=0.01")
    flags += ("--budget=3000", "--steps=20", f"--out={tmp_path}")
    done = start("compare", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads((tmp_path / "summary.json").read_text())
    for cell in summary["cells"]:
        assert f"{100 * cell['test']['estimate']:.1f} [" in done.stdout
    assert summary["findings"][0] in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "results.jsonl", "summary.json", "summary.md", "report.html"}
    assert names >= {"accuracy_by_train_size.svg", "accuracy_by_cost.svg", "differences.svg"}
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 8

    again = start("compare", *flags)
    assert "4 of 4 cells are finished already" in again.stdout
    assert summary["findings"][0] in again.stdout


def test_train_writes_one_row_and_its_course(tmp_path):
    done = start("train", "--model=mlp", "--steps=40", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["test"] > 0.9
    course = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in course] == list(range(2, 41, 2))
    assert course[-1]["validation"] == row["validation"]
    assert f"{100 * row['test']:.1f}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("entrypoint", ["train", "compare"])
def test_the_dtype_is_in_the_configuration(entrypoint, tmp_path):
    one = {
        "compare": ["--models=mlp", "--seeds=1", "--learning_rates=0.01"],
        "train": ["--model=mlp"],
    }
    flags = (*one[entrypoint], "--steps=40", "--dtype=bfloat16", f"--out={tmp_path}")
    done = start(entrypoint, *flags)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["recipe"]["dtype"] == "bfloat16"
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["test"] > 0.9


@pytest.mark.parametrize(
    ("entrypoint", "flags", "message"),
    [
        ("compare", ["--task=digit"], "'digit'; did you mean 'digits'"),
        ("compare", ["--models=cnn,atention"], "unknown model 'atention'; did you mean"),
        ("compare", ["--modles=cnn"], "modles"),
        *(
            pytest.param("compare", flags, message, marks=pytest.mark.slow)
            for flags, message in (
                (["--match=param"], "--match=param"),
                (["--dtype=float16"], "--dtype=float16"),
                (["--train_sizes=few"], "train_sizes=few: expected a number"),
                (["--task=mnist", "--data_dir=nowhere"], "nowhere"),
                (["digits"], "unexpected argument 'digits'"),
            )
        ),
        ("train", ["--train_size=9999"], "train_size=9999: digits has 1167 training examples"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(entrypoint, flags, message, tmp_path):
    done = start(entrypoint, *flags, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_help_names_every_flag():
    done = start("compare", "--help")
    for flag in ("task", "models", "train_sizes", "seeds", "learning_rates", "match", "budget"):
        assert f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout
