"""The parent's end of a worker."""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from attnconv import devices

# Ours apart from the rest of JAX: what a peer leaves in the allocator and caches slows it down.
WORKER = {
    **dict.fromkeys(("attnconv", "alone"), "ours"),
    **dict.fromkeys(("jax", "jax cudnn", "flax", "equinox"), "jax"),
    "flex": "torch",
}
WORKERS = ("ours", "jax", "torch")
REFERENCE = "reference"  # the worker that computes what an accelerator must give, on the CPU
HELD = 0.2  # part of an accelerator's memory, from which on a process that keeps it is ended


class PeerError(Exception):
    """A peer could not do what it was asked."""


def worker(peer: str) -> str:
    """The name of the worker that a peer runs in."""
    return WORKER.get(peer, peer)


def framework(worker: str) -> str:
    """What the programs of a worker are written in."""
    return "torch" if worker == "torch" else "jax"


def installed(peer: str) -> bool:
    package = {"alone": "attnconv", "flex": "torch"}.get(peer, peer.split()[0])
    return importlib.util.find_spec(package) is not None


def ask(processes: Mapping[str, "Process"], peer: str, name: str, *arguments: Any) -> Any:
    """The answer of the peer's worker, or the error with the peer's name."""
    try:
        return processes[worker(peer)].ask(name, *arguments)
    except PeerError as error:
        raise PeerError(f"{peer}: {error}") from None


class Process:
    """A worker that is started when it is first asked, and again after it died.

    Args:
      worker: one of WORKERS, or REFERENCE.
      keep_freed: whether the process keeps the memory that it frees, as the experiments do.
      accelerator: whether it takes JAX's default device, else the CPU.
    """

    def __init__(self, worker: str, *, keep_freed: bool = False, accelerator: bool = False):
        # PyTorch's worker has JAX for parameters only, and REFERENCE is on the CPU.
        self.platform = None if accelerator and worker in ("ours", "jax") else "cpu"
        self.arguments = [framework(worker), *(["keep_freed"] if keep_freed else [])]
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer of the worker's method.

        Raises:
          PeerError: the method raised, or the process died of it.
        """
        if self.child is None:
            self.child = _start(self.arguments, self.platform)
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            pickle.dump((name, arguments), self.child.stdin)
            self.child.stdin.flush()
            state, answer = pickle.load(self.child.stdout)
        except (EOFError, BrokenPipeError):
            code = self.child.wait()
            self.stop()
            raise PeerError(f"the process ended with code {code}") from None
        if state == "failed":
            raise PeerError(answer)
        return answer

    def forget(self) -> None:
        """Drops the programs, and a process that keeps much of an accelerator all the same."""
        try:
            if self.child is not None and self.ask("forget") > HELD:
                self.stop()
        except PeerError:  # it died, and the next question starts another
            self.stop()

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


def _start(arguments: list[str], platform: str | None) -> subprocess.Popen[bytes]:
    """A worker with as many threads as cores, and no compile cache."""
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the workers share an accelerator
        "OMP_NUM_THREADS": str(devices.cores()),
    }
    if platform is not None:
        environment["JAX_PLATFORMS"] = platform
    command = [sys.executable, "-m", "attnconv.bench.worker", *arguments]
    pipe = subprocess.PIPE
    # In a session of its own, so that a key that stops the parent does not reach it first.
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True
    )
