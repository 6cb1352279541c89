"""How a case is measured: checked, then timed peer by peer in rounds; memory and compiles apart.

Peers of a round follow each other in changing order, so that what disturbs the machine disturbs
them alike, and a ratio is taken within its round. Ours, the other JAX peers and PyTorch each have a
process of their own, since a thread pool that waits for work, or an allocator that was left with
what another peer took, disturbs the next.
"""

import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnconv.bench import in_turn
from attnconv.bench.case import SECONDS, Case
from attnconv.bench.forms import Arrays
from attnconv.bench.process import PeerError, Process, ask, installed, worker

Row = dict[str, Any]

TOLERANCE = 1e-4  # of the largest number of each result
ROUNDS, SLOW_ROUNDS, MOST_ROUNDS = 7, 3, 99
SLOW = 1.0  # seconds of a run from which on `SLOW_ROUNDS` are enough
COMPILES = 3
PAUSE = 0.01  # seconds for the threads of the process before to fall asleep


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    {'low': 2.0, 'median': 3.0, 'high': 4.0}
    """
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"low": low, "median": median, "high": high}


def difference(found: Arrays, reference: Arrays) -> float:
    """The largest difference, as a part of the largest number of each result.

    >>> difference({"y": np.array([1.0, 9.0])}, {"y": np.array([1.0, 10.0])})
    0.1
    """
    if {name: x.shape for name, x in found.items()} != {n: x.shape for n, x in reference.items()}:
        return float("nan")
    errors = [np.abs(found[name] - x).max() / np.abs(x).max() for name, x in reference.items()]
    return float(np.max(errors))


def measure(case: Case, processes: Mapping[str, Process], *, seconds: float, memory: bool) -> Row:
    """The row of a case: `error` says what went wrong with it, or with one of its peers.

    Args:
      case: which case.
      processes: the workers by name.
      seconds: how long to go on with rounds beyond the least number of them.
      memory: whether to measure the peak memory, each peer in a fresh process; on Linux only. That
        of an accelerator is measured anyway.
    """
    peers = [peer for peer in case.peers if installed(peer)]
    row: Row = {
        "case": case.name,
        "suite": case.suite,
        "dtype": case.dtype,
        "steps": case.steps,
        "floors": case.floors,
        "most_memory": case.most_memory,
        "most_seconds": SECONDS if case.suite == "compile" else None,
        "peers": {peer: {} for peer in peers},
        "error": None,
    }
    try:
        if case.suite == "compile":
            samples = _compile(case, peers)
        else:
            row |= processes["ours"].ask("work", case)
            if case.platform == "gpu":
                samples = in_turn.measure(case, peers, processes, row)
            else:
                peers = _check(case, peers, processes, row)
                samples = _time(case, peers, processes, row, seconds)
    except PeerError as error:
        row["error"] = str(error)
        return row
    finally:
        for process in processes.values():
            process.forget()
    _summarise(samples, row)
    if memory and case.suite not in ("compile", "gpu") and sys.platform == "linux":
        _memory(case, peers, row)
    row["error"] = "; ".join(p["error"] for p in row["peers"].values() if "error" in p) or None
    return row


def _check(
    case: Case, peers: Sequence[str], processes: Mapping[str, Process], row: Row
) -> list[str]:
    """The peers that agree with the reference, which is the first after ours."""
    if len(peers) < 2:
        raise PeerError(f"expected one of {', '.join(case.peers[1:])} to check against")
    reference = ask(processes, peers[1], "read", case, peers[1])
    agreeing = [peers[1]]
    for peer in (peers[0], *peers[2:]):
        try:
            apart = difference(ask(processes, peer, "read", case, peer), reference)
            row["peers"][peer]["difference"] = apart
            if not apart <= TOLERANCE:
                raise PeerError(f"{peer}: {apart:.1e} of the largest number from {peers[1]}")
            agreeing.append(peer)
        except PeerError as error:
            if peer == peers[0]:
                raise
            row["peers"][peer]["error"] = str(error)
    return [peer for peer in peers if peer in agreeing]


def _time(
    case: Case,
    peers: Sequence[str],
    processes: Mapping[str, Process],
    row: Row,
    seconds: float,
) -> list[dict[str, float]]:
    """Rounds of one sample for each peer."""
    slowest = 0.0
    for peer in peers:
        once, note = ask(processes, peer, "warm", peer)
        slowest = max(slowest, once)
        if note:
            row["peers"][peer]["note"] = note
    least = SLOW_ROUNDS if slowest > SLOW else ROUNDS
    shuffle = random.Random(case.name).sample
    rounds: list[dict[str, float]] = []
    until = time.perf_counter() + seconds
    while len(rounds) < least or (time.perf_counter() < until and len(rounds) < MOST_ROUNDS):
        taken = {}
        for peer in shuffle(peers, len(peers)):
            time.sleep(PAUSE)
            taken[peer] = ask(processes, peer, "time", peer)
        rounds.append(taken)
    return rounds


def _compile(case: Case, peers: Sequence[str]) -> list[dict[str, float]]:
    """Rounds of one compile for each peer, each in a fresh process."""
    rounds = []
    for i in range(COMPILES):
        taken = {}
        for peer in peers[:: (-1) ** i]:
            with Process(worker(peer)) as process:
                taken[peer] = ask({worker(peer): process}, peer, "compile", case, peer)
        rounds.append(taken)
    return rounds


def _summarise(rounds: Sequence[Mapping[str, float]], row: Row) -> None:
    """Fills in the seconds of each peer, and how they compare with ours."""
    ours = "attnconv"
    row["rounds"] = len(rounds)
    for peer in rounds[0]:
        found = row["peers"][peer]
        found["seconds"] = quartiles([taken[peer] for taken in rounds])
        if peer != ours:
            found["ratio"] = quartiles([taken[peer] / taken[ours] for taken in rounds])
            found["saved"] = quartiles([taken[peer] - taken[ours] for taken in rounds])


def _memory(case: Case, peers: Sequence[str], row: Row) -> None:
    for peer in peers:
        with Process(worker(peer)) as process:
            try:
                row["peers"][peer]["memory"] = process.ask("memory", case, peer)
            except PeerError as error:
                row["peers"][peer]["error"] = f"memory of {peer}: {error}"
