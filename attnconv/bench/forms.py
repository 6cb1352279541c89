"""What the worker of every framework has in common: a peer's form of an operator, a program."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attnconv.bench.case import Case, normal

Arrays = dict[str, np.ndarray]
CHECKED_STEPS = 3  # a training step is checked by the losses of the first few
CACHE = 60e6  # bytes of the largest cache of an accelerator
FEWEST, MOST = 3, 16  # copies of the inputs


@dataclasses.dataclass(frozen=True)
class Form:
    """A peer's function and the layout in which it takes its arrays.

    Attributes:
      function: takes the inputs by name, in the peer's layout, and returns the output `y`.
      axes: for each array that is not in our layout, y included: our axes in the peer's order.
      shapes: what such an array is reshaped to then.
      flipped: the peer's axes along which such an array runs backwards.
    """

    function: Callable[..., Any]
    axes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    flipped: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def into(self, name: str, array: np.ndarray) -> np.ndarray:
        """One of our arrays as the peer takes it."""
        array = array.transpose(self._axes(name, array))
        array = np.flip(array, self.flipped.get(name, ()))
        return np.ascontiguousarray(array.reshape(self.shapes.get(name, array.shape)))

    def back(
        self, name: str, array: np.ndarray, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """One of the peer's arrays as we hold it, of our shape where it was reshaped."""
        axes = self._axes(name, array if shape is None else np.empty(shape))
        if shape is not None:
            array = array.reshape([shape[axis] for axis in axes])
        return np.flip(array, self.flipped.get(name, ())).transpose(np.argsort(axes))

    def _axes(self, name: str, array: np.ndarray) -> tuple[int, ...]:
        return self.axes.get(name, tuple(range(array.ndim)))


@dataclasses.dataclass(frozen=True)
class Program:
    """A peer's program for a case.

    Attributes:
      run: does the work once; its results are there when it returns.
      read: the results in our layout, by name.
      compiled: makes the program ready and returns what `run` is then.
      steps: how many steps one run takes.
      note: how the peer did it, where it had a choice.
      queued: does the work so many times and waits once, at the end; on an accelerator only.
      memory: bytes of an accelerator that one run needs at its peak, above the inputs.
    """

    run: Callable[[], Any]
    read: Callable[[], Arrays]
    compiled: Callable[[], Callable[[], Any]]
    steps: int = 1
    note: str = ""
    queued: Callable[[int], None] | None = None
    memory: Callable[[], int | None] | None = None


def cotangent(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """The gradient of y that every peer is given."""
    return normal(np.random.default_rng(1), shape, dtype)


def copies(size: int) -> int:
    """How many copies of inputs of so many bytes take turns, so that none is read from a cache.

    >>> copies(10_000_000), copies(1_000_000_000)
    (7, 3)
    """
    return min(MOST, max(FEWEST, 1 + math.ceil(CACHE / size)))


def channels_first(case: Case) -> dict[str, tuple[int, ...]]:
    """The axes of a convolution or pool in the layout of Equinox and PyTorch."""
    rank = len(case.arrays["x"]) - 2
    image = (0, rank + 1, *range(1, rank + 1))
    return {"x": image, "y": image, "kernel": (rank + 1, rank, *range(rank))}


def window(case: Case) -> tuple[int, ...]:
    """The extents of a convolution's window."""
    return tuple(case.sizes[axis] for axis in case.arrays["kernel"] if axis.islower())
