"""What every source of examples returns, and the checks that all of them share."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Shaped

from attnconv.errors import UsageError

Examples = tuple[np.ndarray, np.ndarray]  # inputs [n, *shape], labels [n] in 0..classes-1

# The official names of each split, the first one found is taken.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """What a source returns: examples as they were found, with the splits that are official.

    Attributes:
      name: as `Task.name`.
      source: as `Task.source`.
      class_names: as `Task.class_names`.
      splits: the official ones of `train`, `validation` and `test`; all examples in `train` where
        there is only one.
      one_scale: whether all features are standardised together, not each channel by itself.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    one_scale: bool = False


def official(found: Iterable[str]) -> dict[str, str]:
    """Which of the names found is the train, validation and test split, where there is one.

    >>> official(["test", "dev", "train", "extra"])
    {'train': 'train', 'validation': 'dev', 'test': 'test'}
    """
    found = set(found)
    firsts = {
        split: next((name for name in known if name in found), None)
        for split, known in SPLIT_NAMES.items()
    }
    return {split: name for split, name in firsts.items() if name is not None}


def as_inputs(array: np.ndarray, *, called: str) -> Shaped[np.ndarray, "B *shape"]:
    """The array as images `[B, H, W, C]` or sequences of vectors `[B, T, D]`.

    Rank 4 is images. Rank 3 is grey images `[B, H, W]` where it is uint8, as pixels are stored,
    and sequences of vectors for any other dtype.

    Args:
      array: numbers of any real dtype.
      called: what an error calls the array.

    Raises:
      UsageError: if the rank or the dtype is another one, a size is zero or a value not finite.

    >>> as_inputs(np.zeros([5, 28, 28], np.uint8), called="x").shape
    (5, 28, 28, 1)
    >>> as_inputs(np.zeros([5, 28, 28]), called="x").shape
    (5, 28, 28)
    """
    if array.dtype.kind not in "buif":
        raise UsageError(f"{called}: expected numbers, got dtype {array.dtype}")
    if array.ndim not in (3, 4):
        raise UsageError(
            f"{called}: expected images [n, H, W, C], grey images [n, H, W] of uint8 or sequences "
            f"[n, T, D], got shape {array.shape}"
        )
    if 0 in array.shape:
        raise UsageError(f"{called}: expected no size to be zero, got shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(axis) for axis in np.unravel_index(bad.argmax(), bad.shape))
        raise UsageError(f"{called}: {bad.sum()} values are not finite, the first at {first}")
    return array[..., np.newaxis] if array.ndim == 3 and array.dtype == np.uint8 else array


def validate(raw: Raw) -> None:
    """Refuses splits that do not fit together, and classes too small to be cut.

    Raises:
      UsageError: naming the split or the class.
    """
    classes = len(raw.class_names)
    expected = raw.splits["train"][0]
    for split, (inputs, labels) in raw.splits.items():
        if labels.size < 2:
            raise UsageError(
                f"{raw.name}: expected at least 2 examples in the {split} split, got {labels.size}"
            )
        if (inputs.shape[1:], inputs.dtype) != (expected.shape[1:], expected.dtype):
            raise UsageError(
                f"{raw.name}: expected examples of shape {expected.shape[1:]} and dtype "
                f"{expected.dtype} in every split, as in train, got {inputs.shape[1:]} and "
                f"{inputs.dtype} in {split}"
            )
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            first = int(wrong.argmax())
            raise UsageError(
                f"{raw.name}: expected labels from 0 to {classes - 1}, got {labels[first]} for "
                f"example {first} of the {split} split"
            )
    counts = np.bincount(raw.splits["train"][1], minlength=classes)
    if np.count_nonzero(counts) < 2:
        raise UsageError(
            f"{raw.name}: expected at least 2 classes, found {np.count_nonzero(counts)}"
        )
    needed = 1 + ("validation" not in raw.splits) + ("test" not in raw.splits)
    for index in np.flatnonzero((counts > 0) & (counts < needed))[:1]:
        raise UsageError(
            f"{raw.name}: expected at least {needed} training examples of each class, to cut "
            f"splits from, got {counts[index]} of {raw.class_names[index]!r}"
        )
    for split, (_, labels) in raw.splits.items():
        for index in labels[counts[labels] == 0][:1]:
            raise UsageError(
                f"{raw.name}: class {raw.class_names[index]!r} is in the {split} split and not in "
                "the training split"
            )
