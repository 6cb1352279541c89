"""A process of one framework that builds, checks and times programs as the parent asks.

    python -m attnconv.bench.worker jax
    python -m attnconv.bench.worker jax keep_freed

Requests and answers are pickles on standard input and output: `(name, arguments)`, and
`("done", result)` or `("failed", why)`.
"""

import ctypes
import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

from attnconv import allocator
from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays, Program

SAMPLE = 0.02  # seconds; shorter runs are repeated for as long, as one sample
# Seconds of runs that are not timed before each sample: threads that slept start on one core, and
# stay there for up to 0.05 s.
WAKE = 0.1


def _took(program: Program, calls: int) -> float:
    """Seconds of so many runs."""
    began = time.perf_counter()
    if program.queued is not None:
        program.queued(calls)
    else:
        for _ in range(calls):
            program.run()
    return time.perf_counter() - began


class Worker:
    """What the parent may ask, by the names of the methods."""

    def __init__(self, framework: str):
        module = importlib.import_module(f"attnconv.bench.{framework}_programs")
        self.program: Callable[[Case, str], Program] = module.program
        self.free: Callable[[], float] = module.free
        self.programs: dict[str, Program] = {}
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def environment(self) -> dict[str, str]:
        from attnconv import environment

        return environment.describe()

    def rates(self) -> dict[str, float]:
        from attnconv.bench import machine

        return machine.rates()

    def work(self, case: Case) -> dict[str, int]:
        from attnconv.bench import count

        return count.work(case)

    def accelerated(self) -> bool:
        """Whether PyTorch finds a GPU; where it does not, its programs are those of the CPU."""
        import torch

        return torch.cuda.is_available()

    def reference(self, case: Case) -> Arrays:
        from attnconv.bench import reference

        return reference.results(case)

    def read(self, case: Case, peer: str) -> Arrays:
        """The results of a peer, whose program is made and kept."""
        self.programs.pop(peer, None)
        self.programs[peer] = self.program(case, peer)
        return self.programs[peer].read()

    def warm(self, peer: str) -> tuple[float, str]:
        """Seconds of one warm run, and how the peer does it."""
        program = self.programs[peer]
        program.run()
        seconds = _took(program, 1)
        calls = max(1, round(SAMPLE / seconds))
        if program.queued is not None:
            calls = 1  # one run by itself takes longer than one of many
            while (seconds := _took(program, calls) / calls) * calls < SAMPLE:
                calls *= 2
        self.seconds[peer], self.calls[peer] = seconds, calls
        return seconds, program.note

    def time(self, peer: str) -> float:
        """One sample: seconds of a run, or of a step where a run takes several."""
        program, calls = self.programs[peer], self.calls[peer]
        if program.queued is not None:
            program.queued(calls)  # the clock of an accelerator follows its work
        elif self.seconds[peer] < WAKE:
            until = time.perf_counter() + WAKE
            while time.perf_counter() < until:
                program.run()
        return _took(program, calls) / (calls * program.steps)

    def planned(self, peer: str) -> int | None:
        """Bytes of an accelerator that one run needs at its peak, where that is known."""
        program = self.programs[peer]
        return None if program.memory is None else program.memory()

    def forget(self) -> float:
        """Drops the programs; the part of an accelerator's memory that the process may keep."""
        self.programs.clear()
        return self.free()

    def compile(self, case: Case, peer: str) -> float:
        """Seconds of the first compile in this process."""
        program = self.program(case, peer)
        began = time.perf_counter()
        program.compiled()
        return time.perf_counter() - began

    def memory(self, case: Case, peer: str) -> int:
        """Bytes that one run needs at its peak, above the process with inputs and program made."""
        run = self.program(case, peer).compiled()
        ctypes.CDLL(None).malloc_trim(0)  # what compiling left free would hide what the run takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        before = _status("VmRSS")
        result = run()
        peak = _status("VmHWM") - before
        del result
        return max(peak, 0)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main(framework: str, *options: str) -> None:
    if "keep_freed" in options:
        allocator.keep_freed()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    worker = Worker(framework)
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = "done", getattr(worker, name)(*arguments)
        except Exception as error:  # whatever a peer raises is its result
            answer = "failed", f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
