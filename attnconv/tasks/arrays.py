"""The user's own arrays in a `.npz`: images or sequences of vectors, or a graph."""

from pathlib import Path

import numpy as np

from attnconv.errors import UsageError, unknown
from attnconv.tasks.folders import labelled
from attnconv.tasks.npz import read_arrays
from attnconv.tasks.raw import Raw, as_inputs

_ARRAYS = {
    "train": ("x", "y"),
    "validation": ("x_validation", "y_validation"),
    "test": ("x_test", "y_test"),
}


def read(path: Path) -> Raw:
    """`x` and `y`, and for official splits `x_test`, `y_test`, `x_validation`, `y_validation`.

    `x` is images `[n, H, W, C]`, grey images `[n, H, W]` of uint8, or sequences of vectors
    `[n, T, D]` of any other dtype; `y` is `[n]`, integers or strings.

    Raises:
      UsageError: naming the array that cannot be read, or what does not fit together.
    """
    stored = _stored(path)
    inputs, labels = {}, {}
    for split, (x, y) in _ARRAYS.items():
        if x in stored:
            inputs[split] = as_inputs(stored[x], called=f"{path}: {x}")
            labels[split] = _labels(stored[y], len(stored[x]), called=f"{path}: {y}", of=x)
    return labelled(path.stem, f"arrays in {path}", inputs, labels)


def _stored(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the task, x and y of each split together; others are left alone."""
    known = [name for pair in _ARRAYS.values() for name in pair]
    stored, names = read_arrays(path, known)
    for name in names:
        if name not in known and name.startswith(("x_", "y_")):  # a misspelt split, most likely
            raise UsageError(f"{path}: {unknown('array', name, known)}")
    for split, pair in _ARRAYS.items():
        lacking = [name for name in pair if name not in stored]
        if lacking and (split == "train" or len(lacking) == 1):
            found = ", ".join(map(repr, sorted(names))) or "nothing"
            raise UsageError(f"{path}: expected an array {lacking[0]!r}, found {found}")
    return stored


def _labels(y: np.ndarray, n: int, *, called: str, of: str) -> list[int] | list[str]:
    if y.shape != (n,):
        raise UsageError(f"{called}: expected shape ({n},), a label for each {of}, got {y.shape}")
    if y.dtype.kind not in "biuU":
        raise UsageError(f"{called}: expected integers or strings, got dtype {y.dtype}")
    return y.tolist()
