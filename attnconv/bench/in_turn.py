"""How a case is measured on an accelerator: the peers in turn, each in all its rounds.

First all workers make their programs: at the same time, since it is mostly compiling, but for
convolutions and training steps, of which compilers time several forms on the device. Of the results
of an operator a part is checked, against a dense form in float64, and of training steps the first
losses, against those of ours.
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays
from attnconv.bench.process import REFERENCE, PeerError, Process, ask, worker

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of the norm of each result
STEPS = {"float32": 1e-4, "bfloat16": 1e-2}  # of the norm of the losses
ROUNDS = 7


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
    made, expected = _make(case, peers, processes)
    samples: dict[str, list[float]] = {}
    for peer in peers:
        found = row["peers"][peer]
        try:
            found["difference"] = distance(made[peer].result(), expected.result())
            _check(case, peer, found["difference"])
            _, note = ask(processes, peer, "warm", peer)
            if note:
                found["note"] = note
            samples[peer] = [ask(processes, peer, "time", peer) for _ in range(ROUNDS)]
            found["memory"] = ask(processes, peer, "planned", peer)
        except PeerError as error:
            if peer == peers[0]:
                raise
            found["error"] = str(error).partition("\n")[0]  # compilers add pages to it
    return [dict(zip(samples, taken, strict=True)) for taken in zip(*samples.values(), strict=True)]


def _make(
    case: Case, peers: Sequence[str], processes: Mapping[str, Process]
) -> tuple[dict[str, Future[Arrays]], Future[Arrays]]:
    """What the peers find, with their programs made, and what they should."""
    steps = case.mode == "step"
    with contextlib.ExitStack() as stack:  # leaving the threads waits for all
        threads = {name: stack.enter_context(ThreadPoolExecutor(1)) for name in processes}
        if not steps:
            formula = processes[REFERENCE]
            expected = threads[REFERENCE].submit(formula.ask, "reference", case)
        made: dict[str, Future[Arrays]] = {}
        for peer in peers:
            if steps or case.operator == "conv":
                wait(made.values())  # no search for the fastest form is disturbed
            thread = threads[worker(peer)]
            made[peer] = thread.submit(ask, processes, peer, "read", case, peer)
        return made, made[peers[0]] if steps else expected


def _check(case: Case, peer: str, apart: float) -> None:
    limit = (STEPS if case.mode == "step" else TOLERANCE)[case.dtype]
    if not apart <= limit:
        raise PeerError(f"{peer}: {apart:.1e} of the norm from the reference, {limit:g} at most")
