"""The records of a prepared TFDS set as inputs and labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnconv.errors import UsageError
from attnconv.tasks.raw import Examples, as_inputs, objects
from attnconv.tasks.tfds_features import TEXTS, Field


def class_names(connector: Any) -> tuple[str, ...]:
    """The names of the classes of TFDS's feature, or of what a sequence of it holds."""
    connector = getattr(connector, "feature", connector)
    return tuple(getattr(connector, "names", ()))


def examples(
    name: str, read: Mapping[str, Sequence[Mapping[str, Any]]], x: Field, y: Field
) -> dict[str, Examples]:
    """The records of each split as inputs and labels, as `Raw` holds them.

    Args:
      name: what errors call the set.
      read: the records, by split, as TFDS decodes them.
      x: the input.
      y: the label.

    Raises:
      UsageError: naming the set, the split and the record that does not fit.
    """
    every = [record for records in read.values() for record in records]
    ragged = x.kind == "vectors" and len({len(record[x.name]) for record in every}) > 1
    done = {}
    for split, records in read.items():
        called = f"{name} ({split})"
        values = [record[x.name] for record in records]
        if x.kind in TEXTS:
            inputs = objects(_texts(values, x, called, cut=y.kind in TEXTS))
        elif x.kind == "audio":
            inputs = _frames(values, x, called)
        elif ragged:
            inputs = _ragged(values, called)
        else:
            inputs = as_inputs(_stacked(values, called), called=called)
        done[split] = inputs, _labels([record[y.name] for record in records], inputs, y, called)
    return done


def _texts(
    values: Iterable[Any], field: Field, called: str, *, cut: bool, some: bool = True
) -> list[str | tuple[str, ...]]:
    texts: list[str | tuple[str, ...]] = []
    for index, value in enumerate(values):
        try:
            whole = field.kind == "text"
            text = _decoded(value) if whole else tuple(_decoded(token) for token in value)
        except UnicodeDecodeError as error:
            raise UsageError(f"{called}: record {index}: {field.name} is not UTF-8") from error
        pieces = tuple(text.split()) if isinstance(text, str) else text
        if some and not pieces:
            raise UsageError(f"{called}: record {index}: expected some {field.name}, found none")
        texts.append(pieces if cut else text)
    return texts


def _decoded(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _frames(waves: list[np.ndarray], field: Field, called: str) -> np.ndarray:
    from attnconv.tasks import audio  # slow to import, and other sets do without it

    if not field.rate:
        raise UsageError(f"{called}: expected a sampleRate of {field.name} in features.json")
    for index, wave in enumerate(waves):
        if not np.size(wave):
            raise UsageError(f"{called}: record {index}: expected some {field.name}, found none")
    return audio.as_frames(waves, field.rate)


def _ragged(values: list[Any], called: str) -> np.ndarray:
    """Sequences of vectors of different lengths."""
    arrays = [np.asarray(value) for value in values]
    for index, array in enumerate(arrays):
        if not array.size:
            raise UsageError(f"{called}: record {index}: expected some vectors, found none")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise UsageError(
                f"{called}: record {index}: expected vectors of {arrays[0].shape[1]} numbers, got "
                f"{array.shape[1]}"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{called}: record {index}: expected finite numbers")
    return objects(arrays)


def _stacked(images: list[Any], called: str) -> np.ndarray:
    shape = np.shape(images[0])
    for index, other in enumerate(images):
        if np.shape(other) != shape:
            raise UsageError(
                f"{called}: expected images of one shape, got {shape} and, for example {index}, "
                f"{np.shape(other)}"
            )
    return np.stack(images)


def _labels(values: list[Any], inputs: np.ndarray, label: Field, called: str) -> np.ndarray:
    if label.kind == "label":
        return np.array(values, np.int64)
    if label.kind in TEXTS:
        return objects(_texts(values, label, called, cut=True, some=False))
    for index, (of, value) in enumerate(zip(inputs, values, strict=True)):
        if len(of) != len(value):
            raise UsageError(
                f"{called}: record {index}: expected a label of {label.name} for each of its "
                f"{len(of)} inputs, found {len(value)}"
            )
    return objects(np.array(value, np.int64) for value in values)
