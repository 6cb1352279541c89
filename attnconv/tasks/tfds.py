"""Sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow.

A prepared set is the folder `data_dir/name[/config]/version`. Nothing here touches the network.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from attnconv.errors import UsageError, unknown
from attnconv.tasks.raw import Raw, official

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


def read(name: str, folder: Path, fields: Sequence[str] | None = None) -> Raw:
    """The examples of a prepared set: of each record one feature is the input, one the label.

    Inputs are an image, a tensor of rank 2 or 3 (sequences of vectors may differ in length), audio
    as frames, a text or a sequence of texts, the tokens. Labels are a class label, a sequence of
    them, one for each token or vector, or a second text: then both are cut at whitespace. Which
    two is told by `tfds_features.choose`. Records without the one or the other (a label of -1) are
    left out, and `source` says how many.

    Args:
      name: what errors and results call it.
      folder: of one version, as `find` returns it.
      fields: the names of the features that are the input and the label, if not told otherwise.

    Raises:
      UsageError: if its features are others, several could serve, or it cannot be read.
    """
    # Slow to import, and other tasks do without TFDS.
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info

    from attnconv.tasks import tfds_features, tfds_values

    with _quiet():
        try:
            found = tfds_features.fields(json.loads((folder / "features.json").read_text()))
            info = dataset_info.read_from_json(dataset_info.dataset_info_path(folder))
            x, y = tfds_features.choose(name, found, supervised=_supervised(info), named=fields)
            called = next((field for field in found if field.is_name), None)
            needed = {field.name: field for field in (x, y, called) if field is not None}
            builder = _builder(folder, info, {k: field.connector for k, field in needed.items()})
        except UsageError:
            raise
        except (OSError, ValueError, LookupError, json_format.ParseError) as error:
            raise UsageError(
                f"{name}: expected a whole prepared set in {folder}, got {_one_line(error)}"
            ) from error
        there = list(builder.info.splits)
        splits = {"train": there[0]} if len(there) == 1 else official(there)
        if "train" not in splits:
            raise UsageError(f"{name}: expected a split named train, found {_list(there)}")
        read = {
            split: _records(name, builder, theirs)
            for split, theirs in splits.items()
            if split == "train" or builder.info.splits[theirs].num_examples
        }
        records, without = tfds_values.usable(name, read, x, y)
    names = {}
    if called is not None:
        names = {
            split: [_text(r[called.name]) for r in rs.values()] for split, rs in records.items()
        }
    rest = [field.name for field in found if not field.is_name and field not in (x, y)]
    return Raw(
        name=name,
        source=f"TensorFlow Datasets, {name.partition(':')[0]} {folder.name}"
        + (f", {x.name} to {y.name}" if rest else "")
        + without,
        class_names=tfds_values.class_names(builder.info.features[y.name]),
        splits=tfds_values.examples(name, records, x, y),
        output=tfds_features.OUTPUTS[y.kind],
        names=names,
    )


def _supervised(info: Any) -> list[str]:
    """The features that the authors of a set name as its input and label."""
    keys = info.supervised_keys
    return [item.feature_key for item in keys.tuple.items] or [keys.input, keys.output]


def _builder(folder: Path, info: Any, features: Mapping[str, Any]) -> Any:
    """TFDS's reader of a set, for these features only: the others need not even be readable."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    info.features.CopyFrom(tfds.features.FeaturesDict(features).to_proto())
    return read_only_builder.ReadOnlyBuilder(folder, info_proto=info)


def _records(name: str, builder: Any, split: str) -> list[dict[str, Any]]:
    try:
        source = builder.as_data_source(split)
        return source.__getitems__(range(len(source)))
    except NotImplementedError as error:
        raise UsageError(
            f"{name}: expected files in the format array_record, found "
            f"{builder.info.file_format.value}; prepare it again, see BUILD.md"
        ) from error
    except (RuntimeError, OSError, ValueError, LookupError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{name} ({split}): cannot be read: {why}") from error


def _text(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _versions(folder: Path) -> list[str]:
    """The prepared versions in a folder, oldest first."""
    found = [path.parent.name for path in folder.glob("*/features.json")]
    numbers = [version for version in found if _VERSION.fullmatch(version)]
    return sorted(numbers, key=lambda version: [int(part) for part in version.split(".")])


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
