"""The entrypoint of the benchmark as a person starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.bench", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_bench_prints_a_line_for_each_case_and_writes_its_files(tmp_path):
    case = "--cases=attention-small-b8-t16-forward"
    done = start("--suite=attention", case, "--seconds=0", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("case")
    assert lines[1].startswith("attention-small-b8-t16-forward")
    measured = json.loads((tmp_path / "bench.json").read_text())
    (row,) = measured["rows"]
    assert row["error"] is None
    assert row["jax"] == measured["environment"]["jax"]
    assert row["peers"]["jax"]["ratio"]["median"] > 0
    assert 0 <= row["peers"]["attnconv"]["memory"] < 1e9
    assert row["flops"] == 4 * 8 * 2 * 16 * 16 * 8

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"bench.json", "benchmarks.md", "benchmarks-attention.svg"}
    page = start("--suite=none", f"--out={tmp_path}")
    assert page.returncode == 0, page.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite=atention"], "unknown suite 'atention'; did you mean 'attention'"),
        (["--suite=conv", "--cases=depthwize"], "unknown case 'depthwize'; did you mean"),
        pytest.param(
            ["--suite=none"], "expected measurements, found no file", marks=pytest.mark.slow
        ),
        pytest.param(["--seconds=-1"], "--seconds=-1", marks=pytest.mark.slow),
        (["--suite=gpu"], "suite=gpu: expected a GPU that JAX finds, found only cpu: "),
        pytest.param(["--case=small"], "Unknown command line flag 'case'", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(flags, message, tmp_path):
    done = start(*flags, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_pytorch_must_find_the_gpu_that_jax_finds():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("it does here")
    code = (
        "from experiments import bench, common\n"
        "bench._device = lambda: '1 x NVIDIA H100'\n"
        "common.launch(bench.main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--suite=gpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "JAX finds a GPU, but PyTorch does not, and would be timed on the CPU" in done.stderr
