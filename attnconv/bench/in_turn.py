"""How a case is measured on an accelerator: the peers in turn, since its memory is not for all.

Each peer is timed in all its rounds and forgotten before the next one. Operators are checked before
that, against a dense form in float64 at fewer examples and heads, all workers at the same time;
training steps by their losses against those of ours.
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays
from attnconv.bench.process import PeerError, Process, ask, worker

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of the norm of each result
STEPS = {"float32": 1e-4, "bfloat16": 1e-2}  # of the norm of the losses
ROUNDS = 7
HELD = 16e9  # bytes of the device, from which on a process that keeps them is ended


def distance(found: Arrays, reference: Arrays) -> float:
    """The norm of the difference, as a part of that of the reference, of the worst result.

    >>> distance({"y": np.array([3.0, 3.0])}, {"y": np.array([3.0, 4.0])})
    0.2
    """
    if {name: x.shape for name, x in found.items()} != {n: x.shape for n, x in reference.items()}:
        return float("nan")
    norm = np.linalg.norm
    return float(np.max([norm(found[name] - x) / norm(x) for name, x in reference.items()]))


def measure(
    case: Case, peers: Sequence[str], processes: Mapping[str, Process], row: dict[str, Any]
) -> list[dict[str, float]]:
    """A sample of each peer for each round; the row is told of errors, differences and memory.

    Raises:
      PeerError: ours could not do it.
    """
    steps = case.mode == "step"
    small = {} if steps else _small(case.checked(), peers, processes)
    losses: dict[str, Arrays] = {}
    samples: dict[str, list[float]] = {}
    for peer in peers:
        found = row["peers"][peer]
        try:
            if steps:
                losses[peer] = ask(processes, peer, "read", case, peer)
                found["difference"] = distance(losses[peer], losses[peers[0]])
            else:
                found["difference"] = distance(small[peer].result(), small["float64"].result())
            _check(case, peer, found["difference"])
            if not steps:
                ask(processes, peer, "make", case, peer)
            _, note = ask(processes, peer, "warm", peer)
            if note:
                found["note"] = note
            samples[peer] = [ask(processes, peer, "time", peer) for _ in range(ROUNDS)]
            found["memory"] = ask(processes, peer, "planned", peer)
        except PeerError as error:
            if peer == peers[0]:
                raise
            found["error"] = str(error).partition("\n")[0]  # compilers add pages to it
        finally:
            _forget(processes[worker(peer)])
    return [dict(zip(samples, taken, strict=True)) for taken in zip(*samples.values(), strict=True)]


def _small(
    case: Case, peers: Sequence[str], processes: Mapping[str, Process]
) -> dict[str, Future[Arrays]]:
    """What the peers find, and float64: leaving the threads, one for each worker, waits for all."""
    with contextlib.ExitStack() as stack:
        threads = {name: stack.enter_context(ThreadPoolExecutor(1)) for name in processes}
        found = {
            peer: threads[worker(peer)].submit(ask, processes, peer, "read", case, peer)
            for peer in peers
        }
        found["float64"] = threads["ours"].submit(processes["ours"].ask, "reference", case)
    return found


def _check(case: Case, peer: str, apart: float) -> None:
    limit = (STEPS if case.mode == "step" else TOLERANCE)[case.dtype]
    if not apart <= limit:
        raise PeerError(f"{peer}: {apart:.1e} of the norm from the reference, {limit:g} at most")


def _forget(process: Process) -> None:
    """Frees what a peer left, with its process where that keeps too much."""
    try:
        if process.child is not None and process.ask("forget") > HELD:
            process.stop()
    except PeerError:  # it died, and the next question starts another
        process.stop()
