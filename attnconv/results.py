"""The files of a study in its folder: what was asked, what is finished, what was predicted."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.errors import UsageError

Row = dict[str, Any]
_TRAINED = ("results.jsonl", "metrics.jsonl", "predictions", "checkpoints")
COLUMNS = (
    *("task", "model", "train_size", "seed", "learning_rate", "params", "flops", "steps"),
    *("metric", "validation", "test", "train", "seconds"),
)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that a kill leaves either the old one or the new one."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")


def open_folder(out: Path, config: Mapping[str, Any], *, keep: bool = True) -> None:
    """Makes the folder that of this configuration, or finds that it already is.

    Args:
      out: the folder.
      config: what its results must agree in.
      keep: whether to keep what was trained in it, or to remove that, also of another configuration
        with as many models and seeds.

    Raises:
      UsageError: it holds another configuration's results, or is not a folder.
    """
    path = out / "config.json"
    wanted = json.loads(json.dumps(config))
    if path.exists():
        found = read_object(path)
        if not keep and _alike(found, wanted):
            with making(out):
                _forget(out)
                write_json(path, wanted)
        elif found != wanted:
            keys = sorted(k for k in found | wanted if found.get(k) != wanted.get(k))
            differences = ", ".join(
                f"{k}={json.dumps(found.get(k))} there, {json.dumps(wanted.get(k))} asked"
                for k in keys
            )
            raise UsageError(
                f"out={out} holds another configuration's results: {differences}; name another out"
            )
        return
    for name in _TRAINED:
        if (out / name).exists():
            raise UsageError(f"out={out}: expected a config.json beside its {name}, found none")
    with making(out):
        write_json(path, wanted)


@contextlib.contextmanager
def making(out: Path) -> Iterator[None]:
    """Makes the folder; that it cannot be made, or written inside this, is the user's error."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(
            f"out={out}: expected a folder that can be made and written, got {error.strerror}"
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"out={path.parent}: expected a JSON object in {path.name}: {error}"
        ) from None


def _forget(out: Path) -> None:
    """Removes what was trained in the folder."""
    for path in (out / name for name in _TRAINED):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _alike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether both are configurations of a study, of as many models and seeds."""
    sizes = [(len(of.get("models", ())), of.get("seeds")) for of in (found, wanted)]
    return set(found) == set(wanted) and sizes[0] == sizes[1]


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, up to a last line that was cut off.

    Raises:
      UsageError: a line before the last is not a row.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")  # every whole row ends in a newline
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} line {number}: expected a JSON row, got {error}") from None
        if not isinstance(row, dict) or set(row) != set(COLUMNS):
            raise UsageError(f"{path} line {number}: expected the columns {' '.join(COLUMNS)}")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    lines = [json.dumps({column: row[column] for column in COLUMNS}) + "\n" for row in rows]
    write_whole(path, "".join(lines))


def predictions_path(out: Path, model: str, train_size: int) -> Path:
    return out / "predictions" / f"{model}-{train_size}.npy"


def write_predictions(path: Path, predicted: np.ndarray) -> None:
    """Saves the predicted labels `[seeds, test examples]` of the chosen runs of a cell."""
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.save(content, predicted)
    write_whole(path, content.getvalue())


def read_predictions(path: Path) -> np.ndarray:
    """What `write_predictions` saved.

    Raises:
      UsageError: the file is broken.
    """
    try:
        return np.load(path)
    except (OSError, EOFError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UsageError(
            f"{path}: expected predictions, remove it to train again ({why})"
        ) from None
