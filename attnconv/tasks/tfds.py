"""Image sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow.

A prepared set is the folder `data_dir/name[/config]/version`. Nothing here touches the network.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from attnconv.errors import UsageError, unknown
from attnconv.tasks.raw import Examples, Raw, as_inputs, official

_NAME = re.compile(r"(?P<set>\w+(?:/\w[\w.+-]*)?)(?::(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def find(name: str, data_dir: Path) -> Path | None:
    """The folder of a prepared set, of its newest version if none is named; None if not there.

    Args:
      name: `mnist`, `name/config`, `mnist:3.0.1` or `name/config:version`.
      data_dir: the folder that holds the prepared sets.

    Raises:
      UsageError: if the set is there, in other versions or configurations only.

    >>> find("mnist", Path("no such folder")) is None
    True
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    folder = data_dir / parts["set"]
    versions = _versions(folder)
    if not versions:
        configs = [f"{parts['set']}/{path.name}" for path in folder.glob("*") if _versions(path)]
        if configs:
            raise UsageError(f"task {name!r}: name one of its parts: {_list(configs)}")
        return None
    version = parts["version"] or versions[-1]
    if version not in versions:
        raise UsageError(f"task {name!r}: data_dir holds version {', '.join(versions)} of it")
    return folder / version


def prepared(data_dir: Path) -> list[str]:
    """The names of the sets in a folder, sorted: `name`, or `name/config`.

    >>> prepared(Path("no such folder"))
    []
    """
    sets = [path for path in (*data_dir.glob("*"), *data_dir.glob("*/*")) if _versions(path)]
    return sorted(path.relative_to(data_dir).as_posix() for path in sets)


def missing(name: str, data_dir: Path | None, embedded: Sequence[str]) -> UsageError:
    """The error for a name that nothing answers to: what was looked for, and the near matches.

    >>> print(missing("mnist", None, ["digits"]))  # doctest: +ELLIPSIS
    unknown task 'mnist'. Known: digits. No data_dir was given to look for ...
    """
    known = [*embedded, *(prepared(data_dir) if data_dir is not None else [])]
    where = (
        "No data_dir was given to look for a TFDS set of that name"
        if data_dir is None
        else f"There is no TFDS set of that name in data_dir={str(data_dir)!r}"
    )
    return UsageError(
        f"{unknown('task', name, known)}. {where}, and no such file or folder; "
        "a TFDS set must be prepared first, see BUILD.md"
    )


def read(name: str, folder: Path) -> Raw:
    """The examples of a prepared set with one image (or tensor of rank 2 or 3) and one label.

    Args:
      name: what errors and results call it.
      folder: of one version, as `find` returns it.

    Raises:
      UsageError: if its features are others or it cannot be read without TensorFlow.
    """
    import tensorflow_datasets as tfds  # slow to import, and other tasks do without it
    from google.protobuf import json_format

    with _quiet():
        try:
            builder = tfds.builder_from_directory(folder)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{name}: its features cannot be read without {error.name}; expected one image "
                "and one class label"
            ) from error
        except (OSError, ValueError, json_format.ParseError) as error:
            raise UsageError(
                f"{name}: expected a whole prepared set in {folder}, got {_one_line(error)}"
            ) from error
        image, label, class_names = _features(name, builder.info.features, tfds.features)
        there = list(builder.info.splits)
        found = {"train": there[0]} if len(there) == 1 else official(there)
        if "train" not in found:
            raise UsageError(f"{name}: expected a split named train, found {_list(there)}")
        splits = {
            split: _examples(name, builder, called, image, label) for split, called in found.items()
        }
    source = f"TensorFlow Datasets, {name.partition(':')[0]} {folder.name}"
    return Raw(name=name, source=source, class_names=class_names, splits=splits)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _versions(folder: Path) -> list[str]:
    """The prepared versions in a folder, oldest first."""
    found = [path.parent.name for path in folder.glob("*/features.json")]
    numbers = [version for version in found if _VERSION.fullmatch(version)]
    return sorted(numbers, key=lambda version: [int(part) for part in version.split(".")])


def _features(name: str, features: Any, kinds: Any) -> tuple[str, str, tuple[str, ...]]:
    """The names of the one input feature and of the one label feature, and the class names."""
    labels = [key for key, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, kinds.Image)
        or (isinstance(feature, kinds.Tensor) and len(feature.shape) in (2, 3))
    ]
    if len(images) != 1 or len(labels) != 1:
        found = _list(f"{key} ({type(features[key]).__name__})" for key in features)
        raise UsageError(f"{name}: expected one image and one class label, found {found}")
    return images[0], labels[0], tuple(features[labels[0]].names)


def _examples(name: str, builder: Any, split: str, image: str, label: str) -> Examples:
    called = f"{name} ({split})"
    try:
        source = builder.as_data_source(split)
        examples = source.__getitems__(range(len(source)))
    except NotImplementedError as error:
        raise UsageError(
            f"{name}: expected files in the format array_record, found "
            f"{builder.info.file_format.value}; prepare it again, see BUILD.md"
        ) from error
    except (RuntimeError, OSError, ValueError) as error:  # a missing file, a broken image, ...
        raise UsageError(f"{called}: cannot be read: {' '.join(str(error).split())}") from error
    images = [example[image] for example in examples]
    shape = images[0].shape
    for index, other in enumerate(images):
        if other.shape != shape:
            raise UsageError(
                f"{called}: expected images of one shape, got {shape} and, for example {index}, "
                f"{other.shape}"
            )
    labels = np.array([example[label] for example in examples], np.int64)
    return as_inputs(np.stack(images), called=called), labels


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the advice to install OpenCV and TensorFlow: neither is needed."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
