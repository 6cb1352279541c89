"""Measures operators and training steps on this machine, beside stock JAX, Flax, Equinox, PyTorch.

    python -m experiments.bench --suite=conv
    python -m experiments.bench --suite=attention --cases=causal,window

Each case is checked against stock JAX, then timed in rounds with every peer that is installed. In
--out: bench.json, benchmarks.md and a figure for each suite. What is already there is kept; the
cases that are measured again are replaced. An error of any case makes the exit code 1.
"""

import contextlib
import importlib.metadata
import itertools
import subprocess
import sys
from pathlib import Path

from absl import flags

from attnconv.bench import cases, measure, page, store, table
from attnconv.bench.process import WORKERS, PeerError, Process, installed
from attnconv.errors import UsageError
from experiments import common

flags.DEFINE_string("suite", "all", "attention, conv, train, compile, all; none writes the page.")
flags.DEFINE_list("cases", [], "Only cases whose name contains one of these.")
flags.DEFINE_float("seconds", 4.0, "How long a case goes on with rounds beyond the fewest.")
flags.DEFINE_boolean("memory", True, "Measure peak memory too, each peer in a fresh process.")
flags.DEFINE_boolean("docs", False, "Write the page and its figures into docs/ too.")
flags.DEFINE_string("beside", None, "Another bench.json, of another JAX, to show on the page.")
flags.declare_key_flag("out")
FLAGS = flags.FLAGS


def main() -> None:
    chosen = [] if FLAGS.suite == "none" else cases.select(FLAGS.suite, tuple(FLAGS.cases))
    out = Path("runs/bench") if FLAGS.out is None else Path(FLAGS.out).expanduser()
    beside = None if FLAGS.beside is None else _measured(Path(FLAGS.beside))
    failed = _run(chosen, out) if chosen else False
    folders = [out, Path("docs")] if FLAGS.docs else [out]
    for folder in folders:
        page.write(_measured(out / "bench.json"), folder, beside)
    print(f"\nIn {' and '.join(map(str, folders))}: benchmarks.md and figures; bench.json in {out}")
    if failed:
        sys.exit(1)


def _measured(path: Path) -> store.Measured:
    measured = store.load(path)
    if measured is None:
        raise UsageError(f"{path}: expected measurements, found no file")
    return measured


def _run(chosen: list[cases.Case], out: Path) -> bool:
    """Measures the cases one after the other into the file; whether any had an error."""
    path, failed = out / "bench.json", False
    with Process("ours") as process:
        try:
            environment = process.ask("environment") | _versions()
            measured = store.begin(store.load(path), environment, process.ask("rates"))
        except PeerError as error:
            common.fail(error)
    print(table.header())
    for suite, of_suite in itertools.groupby(chosen, lambda case: case.suite):
        with contextlib.ExitStack() as stack:
            processes = {
                name: stack.enter_context(Process(name, keep_freed=suite == "train"))
                for name in WORKERS
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


if __name__ == "__main__":
    common.launch(main)
