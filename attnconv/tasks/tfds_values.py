"""The records of a prepared TFDS set as inputs and labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnconv.errors import UsageError
from attnconv.tasks.raw import Examples, as_inputs, objects
from attnconv.tasks.tfds_features import TEXTS, Field

Records = Mapping[int, Mapping[str, Any]]  # as TFDS decodes them, by their number in the split
NONE = -1  # TFDS's label of a record that has none


def class_names(connector: Any) -> tuple[str, ...]:
    """The names of the classes of TFDS's feature, or of what a sequence of it holds."""
    connector = getattr(connector, "feature", connector)
    return tuple(getattr(connector, "names", ()))


def usable(
    name: str, read: Mapping[str, Sequence[Mapping[str, Any]]], x: Field, y: Field
) -> tuple[dict[str, Records], str]:
    """The records that have an input and a label, and in words which were left out.

    A split that has none of them is left out: often the test split, to be judged elsewhere.

    Raises:
      UsageError: that split is train.
    """
    kept: dict[str, Records] = {}
    told = []
    for split, records in read.items():
        mine = {index: record for index, record in enumerate(records) if _has(record, x, y)}
        if mine:
            kept[split] = mine
        if len(mine) < len(records):
            told.append(f"{len(records) - len(mine)} of {len(records)} in {split}")
    if "train" not in kept:
        raise UsageError(f"{name} (train): expected records with {x.name} and {y.name}, found none")
    without = f", left out for want of {x.name} or {y.name}: {', '.join(told)}" if told else ""
    return kept, without


def _has(record: Mapping[str, Any], x: Field, y: Field) -> bool:
    inputs, label = record[x.name], record[y.name]
    if x.kind == "text":
        inputs = (inputs.decode(errors="replace") if isinstance(inputs, bytes) else inputs).split()
    return np.size(inputs) > 0 and (y.kind in TEXTS or bool(np.any(np.asarray(label) != NONE)))


def examples(name: str, read: Mapping[str, Records], x: Field, y: Field) -> dict[str, Examples]:
    """The records of each split as inputs and labels, as `Raw` holds them.

    Args:
      name: what errors call the set.
      read: the usable records, by split.
      x: the input.
      y: the label.

    Raises:
      UsageError: naming the set, the split and the record that does not fit.
    """
    every = [record for records in read.values() for record in records.values()]
    ragged = x.kind == "vectors" and len({len(record[x.name]) for record in every}) > 1
    done = {}
    for split, records in read.items():
        called = f"{name} ({split})"
        values = {index: record[x.name] for index, record in records.items()}
        labels = {index: record[y.name] for index, record in records.items()}
        if x.kind in TEXTS:
            inputs = objects(_texts(values, x, called, cut=y.kind in TEXTS))
        elif x.kind == "audio":
            inputs = _frames(values, x, called)
        elif ragged:
            inputs = _ragged(values, called)
        else:
            inputs = as_inputs(_stacked(values, called), called=called)
        done[split] = inputs, _labels(labels, inputs, y, called)
    return done


def _texts(
    values: Mapping[int, Any], field: Field, called: str, *, cut: bool
) -> list[str | tuple[str, ...]]:
    texts: list[str | tuple[str, ...]] = []
    for index, value in values.items():
        try:
            whole = field.kind == "text"
            text = _decoded(value) if whole else tuple(_decoded(token) for token in value)
        except UnicodeDecodeError as error:
            raise UsageError(f"{called}: record {index}: {field.name} is not UTF-8") from error
        texts.append(tuple(text.split()) if cut and isinstance(text, str) else text)
    return texts


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _frames(waves: Mapping[int, np.ndarray], field: Field, called: str) -> np.ndarray:
    from attnconv.tasks import audio  # slow to import, and other sets do without it

    if not field.rate:
        raise UsageError(f"{called}: expected a sampleRate of {field.name} in features.json")
    return audio.as_frames(waves.values(), field.rate)


def _ragged(values: Mapping[int, Any], called: str) -> np.ndarray:
    """Sequences of vectors of different lengths."""
    arrays = {index: np.asarray(value) for index, value in values.items()}
    first = next(iter(arrays.values()))
    for index, array in arrays.items():
        if array.shape[1:] != first.shape[1:]:
            raise UsageError(
                f"{called}: record {index}: expected vectors of {first.shape[1]} numbers, got "
                f"{array.shape[1]}"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{called}: record {index}: expected finite numbers")
    return objects(arrays.values())


def _stacked(images: Mapping[int, Any], called: str) -> np.ndarray:
    shape = np.shape(next(iter(images.values())))
    for index, other in images.items():
        if np.shape(other) != shape:
            raise UsageError(
                f"{called}: expected images of one shape, got {shape} and, for example {index}, "
                f"{np.shape(other)}"
            )
    return np.stack(list(images.values()))


def _labels(values: Mapping[int, Any], inputs: np.ndarray, label: Field, called: str) -> np.ndarray:
    if label.kind == "label":
        return np.array(list(values.values()), np.int64)
    if label.kind in TEXTS:
        return objects(_texts(values, label, called, cut=True))
    for (index, value), of in zip(values.items(), inputs, strict=True):
        if len(of) != len(value):
            raise UsageError(
                f"{called}: record {index}: expected a label of {label.name} for each of its "
                f"{len(of)} inputs, found {len(value)}"
            )
    return objects(np.array(value, np.int64) for value in values.values())
