"""What every source of examples returns, and the checks that all of them share."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from attnconv.errors import UsageError, unknown
from attnconv.spec import Graph, Output

Examples = tuple[np.ndarray, np.ndarray]  # inputs and labels, n of each; see Raw

PATCH = 4  # pixels along each side

# The official names of each split, the first one found is taken.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """What a source returns: examples as they were found, with the splits that are official.

    Inputs are one of

    - an array of numbers `[n, *shape]`, images or sequences of vectors of one length;
    - objects `[n]`, each an array `[t, D]`: sequences of vectors of different lengths;
    - objects `[n]`, each a string, or a tuple of strings where the text is cut into tokens;
    - integers `[n]`: nodes of `graph`.

    Labels are, by `output`,

    - "label": integers `[n]`, indices of `class_names`;
    - "labels": objects `[n]`, each an array of such integers, one for each vector or token; -1 for
      none;
    - "sequence": objects `[n]`, each a tuple of strings; `class_names` is empty.

    Attributes:
      name: as `Task.name`.
      source: as `Task.source`.
      class_names: as `Task.class_names`.
      splits: the official ones of `train`, `validation` and `test`; all examples in `train` where
        there is only one.
      output: which kind of output.
      one_scale: whether all features are standardised together, not each channel by itself.
      names: of each example where they have some (that of its file, say), by split.
      graph: whose nodes the examples are.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    output: Output = "label"
    one_scale: bool = False
    names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    graph: Graph | None = None


def objects(items: Iterable[Any]) -> np.ndarray:
    """The items as an array `[n]` of objects, whatever they are.

    >>> objects([("a",), ("b", "c")]).shape
    (2,)
    """
    items = list(items)
    array = np.empty(len(items), object)
    for i, item in enumerate(items):  # an assignment of the list would make a matrix of some
        array[i] = item
    return array


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


def only_official(
    found: Iterable[str], *, path: Path, what: str, suffix: str = ""
) -> dict[str, str]:
    """As `official`, of a path's files, say, whose names have a suffix.

    Raises:
      UsageError: a name is not official, or a split has two.
    """
    found = set(found)
    splits = official(found)
    for name in sorted(found - set(splits.values())):
        for split, known in SPLIT_NAMES.items():
            if name in known:
                raise UsageError(
                    f"{path}: expected one name for the {split} split, found "
                    f"{splits[split]}{suffix} and {name}{suffix}"
                )
        every = [known + suffix for names in SPLIT_NAMES.values() for known in names]
        raise UsageError(f"{path}: {unknown(what, name + suffix, every)}")
    return splits


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


def as_sequences(raw: Raw, vectors: str) -> Raw:
    """Images as sequences: of "rows", of "pixels", or of "patches" of PATCH x PATCH pixels.

    Raises:
      UsageError: the inputs are no images.

    >>> images = Raw("x", "here", ("a", "b"), {"train": (np.zeros((3, 8, 8, 1)), np.arange(3))})
    >>> [as_sequences(images, v).splits["train"][0].shape for v in ("rows", "pixels", "patches")]
    [(3, 8, 8), (3, 64, 1), (3, 4, 16)]
    """
    if any(inputs.ndim != 4 for inputs, _ in raw.splits.values()):
        raise UsageError(f"vectors={vectors}: expected images to cut, {raw.name} has none")
    cut = {"rows": _as_rows, "pixels": _as_pixels, "patches": _as_patches}
    if vectors not in cut:
        raise unknown("vectors", vectors, [*cut, "one_hot"])
    splits = {split: (cut[vectors](x), labels) for split, (x, labels) in raw.splits.items()}
    return dataclasses.replace(
        raw, splits=splits, source=f"{raw.source}, as {vectors}", one_scale=True
    )


def _as_rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(*images.shape[:2], -1)


def _as_pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, images.shape[-1])


def _as_patches(images: np.ndarray) -> np.ndarray:
    n, height, width, channels = images.shape
    rest = [(0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)]
    images = np.pad(images, rest)
    images = images.reshape(n, -(-height // PATCH), PATCH, -(-width // PATCH), PATCH, channels)
    return np.moveaxis(images, 2, 3).reshape(n, -1, PATCH * PATCH * channels)


def validate(raw: Raw) -> None:
    """Refuses splits that do not fit together, and classes too small to be cut.

    Raises:
      UsageError: naming the split or the class.
    """
    expected = raw.splits["train"][0]
    large_enough(raw, raw.splits)
    for split, (inputs, _) in raw.splits.items():
        if (inputs.shape[1:], inputs.dtype) != (expected.shape[1:], expected.dtype):
            raise UsageError(
                f"{raw.name}: expected examples of shape {expected.shape[1:]} and dtype "
                f"{expected.dtype} in every split, as in train, got {inputs.shape[1:]} and "
                f"{inputs.dtype} in {split}"
            )
    if raw.output != "sequence":
        _validate_classes(raw)


def large_enough(raw: Raw, splits: Mapping[str, Examples]) -> None:
    """Refuses splits, official or cut, of too few examples to be trained on or scored.

    Raises:
      UsageError: naming the split.
    """
    for split, (_, labels) in splits.items():
        whole = split in raw.splits and len(raw.splits[split][1]) == len(labels)
        cut = "" if whole else f", cut from {len(raw.splits['train'][1])}"
        least = 1 if cut and split == "validation" else 2
        if len(labels) < least:
            raise UsageError(
                f"{raw.name}: expected at least {least} examples in the {split} split, "
                f"got {len(labels)}{cut}"
            )
        if raw.output == "labels" and not any((of >= 0).any() for of in labels):
            raise UsageError(
                f"{raw.name}: expected a label in the {split} split, got none in "
                f"{len(labels)} examples{cut}"
            )


def _validate_classes(raw: Raw) -> None:
    one = raw.output == "label"
    counts = {}
    for split, (_, labels) in raw.splits.items():
        counts[split] = np.zeros(len(raw.class_names), np.int64)
        for i, of in enumerate(labels):
            of = np.atleast_1d(of)
            wrong = (of < (0 if one else -1)) | (of >= len(raw.class_names))
            if wrong.any():
                raise UsageError(
                    f"{raw.name}: expected labels from 0 to {len(raw.class_names) - 1}, got "
                    f"{of[wrong.argmax()]} for example {i} of the {split} split"
                )
            np.add.at(counts[split], of[of >= 0], 1)
    train = counts["train"]
    if np.count_nonzero(train) < 2:
        raise UsageError(
            f"{raw.name}: expected at least 2 classes, found {np.count_nonzero(train)}"
        )
    needed = 1 + ("validation" not in raw.splits) + ("test" not in raw.splits)
    for index in np.flatnonzero((train > 0) & (train < needed))[: int(one)]:
        raise UsageError(
            f"{raw.name}: expected at least {needed} training examples of each class, to cut "
            f"splits from, got {train[index]} of {raw.class_names[index]!r}"
        )
    for split, found in counts.items():
        for index in np.flatnonzero((found > 0) & (train == 0))[:1]:
            raise UsageError(
                f"{raw.name}: class {raw.class_names[index]!r} is in the {split} split and not in "
                "the training split"
            )
