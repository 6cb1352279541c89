"""Measures operators and training steps on this machine, beside stock JAX, Flax, Equinox, PyTorch.

    python -m experiments.bench --suite=conv
    python -m experiments.bench --suite=attention --cases=causal,window
    python -m experiments.bench --suite=gpu

Each case is checked against stock JAX, then timed in rounds with every peer that is installed. In
--out: bench.json, benchmarks.md and a figure for each suite. What is already there is kept; the
cases that are measured again are replaced. An error of any case makes the exit code 1.

The suite gpu needs a GPU that JAX finds; its measurements are in results/DEVICE.json. All other
suites run on the CPU, also where there is one.
"""

import contextlib
import importlib.metadata
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

from absl import flags

from attnconv.bench import cases, gpu_page, measure, page, store, table
from attnconv.bench.process import REFERENCE, WORKERS, PeerError, Process, installed
from attnconv.errors import UsageError
from experiments import common

flags.DEFINE_string(
    "suite", "all", "attention, conv, train, compile, gpu, all; none writes the page."
)
flags.DEFINE_list("cases", [], "Only cases whose name contains one of these.")
flags.DEFINE_float(
    "seconds", 4.0, "How long a case goes on with rounds beyond the fewest.", lower_bound=0
)
flags.DEFINE_boolean("memory", True, "Measure peak memory too, each peer in a fresh process.")
flags.DEFINE_boolean("docs", False, "Write the page and its figures into docs/ too.")
flags.DEFINE_string("beside", None, "Another bench.json, of another JAX, to show on the page.")
flags.declare_key_flag("list")
flags.declare_key_flag("out")
FLAGS = flags.FLAGS


def main() -> None:
    chosen = [] if FLAGS.suite == "none" else cases.select(FLAGS.suite, tuple(FLAGS.cases))
    out = Path("runs/bench") if FLAGS.out is None else Path(FLAGS.out).expanduser()
    beside = None if FLAGS.beside is None else _measured(Path(FLAGS.beside))
    on_cpu = [case for case in chosen if case.platform == "cpu"]
    on_gpu = [case for case in chosen if case.platform == "gpu"]
    if on_gpu and (device := _device()).startswith("cpu:"):
        if not on_cpu:
            raise UsageError(f"suite=gpu: expected a GPU that JAX finds, found only {device}")
        on_gpu = []
    if on_gpu and installed("torch"):
        with Process("torch", accelerator=True) as process:
            if not process.ask("accelerated"):
                raise UsageError(
                    "suite=gpu: JAX finds a GPU, but PyTorch does not, and would be timed on the "
                    "CPU; install its build for CUDA, or none"
                )
    failed = _run(on_cpu, out) if on_cpu else False
    failed |= _run(on_gpu, out, accelerator=True) if on_gpu else False
    bench, of_gpus = out / "bench.json", list(out.glob("results/*.json"))
    folders = [out, Path("docs")] if FLAGS.docs else [out]
    # Also where nothing was measured now, so that it is said where nothing ever was.
    has_cpu_page = bool(on_cpu) or (not on_gpu and (bench.exists() or not of_gpus))
    for folder in folders:
        if has_cpu_page:
            page.write(_measured(bench), folder, beside)
        for file in of_gpus if folder != out else ():
            (folder / "results").mkdir(exist_ok=True)
            shutil.copy(file, folder / "results")
        gpu_page.append(folder)
    print(f"\nIn {' and '.join(map(str, folders))}: benchmarks.md and figures; numbers in {out}")
    if failed:
        sys.exit(1)


def _device() -> str:
    """What JAX computes on here where it is left the choice."""
    with Process("ours", accelerator=True) as process:
        try:
            return process.ask("environment")["device"]
        except PeerError as error:
            return common.fail(error)


def _measured(path: Path) -> store.Measured:
    measured = store.load(path)
    if measured is None:
        raise UsageError(f"{path}: expected measurements, found no file")
    return measured


def _run(chosen: list[cases.Case], out: Path, *, accelerator: bool = False) -> bool:
    """Measures the cases one after the other into the file; whether any had an error."""
    path, failed = out / "bench.json", False
    with Process("ours", accelerator=accelerator) as process:
        try:
            environment = process.ask("environment") | _versions()
            if accelerator:
                path = out / "results" / f"{store.name(environment['device'])}.json"
            old = store.load(path)
            if old is None and accelerator and FLAGS.docs:  # what the page shows stays there
                old = store.load(Path("docs/results") / path.name)
            measured = store.begin(old, environment, process.ask("rates"))
        except PeerError as error:
            common.fail(error)
    print(table.header())
    for suite, of_suite in itertools.groupby(chosen, lambda case: case.suite):
        with contextlib.ExitStack() as stack:
            processes = {
                name: stack.enter_context(
                    Process(name, keep_freed=suite == "train", accelerator=accelerator)
                )
                for name in (*WORKERS, *([REFERENCE] if accelerator else []))
            }
            for case in of_suite:
                row = measure.measure(case, processes, seconds=FLAGS.seconds, memory=FLAGS.memory)
                row |= {"jax": environment["jax"], "commit": environment["commit"]}
                print(table.line(row), flush=True)
                measured["rows"] = store.merge(measured["rows"], row)
                store.save(path, measured)
                failed |= row["error"] is not None
    return failed


def _versions() -> dict[str, str]:
    """The versions of the peers that are installed, and the commit that is measured."""
    peers = [peer for peer in ("flax", "equinox", "torch") if installed(peer)]
    git = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    commit = found.stdout.strip() or "unknown"
    return {peer: importlib.metadata.version(peer) for peer in peers} | {"commit": commit}


def show_list() -> None:
    for case in cases.select("all"):
        print(f"{case.suite:<10} {case.name}")


if __name__ == "__main__":
    common.launch(main, listing=show_list)
