"""The user's own texts: rows of JSON, one example a line."""

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnconv.errors import UsageError
from attnconv.spec import Output
from attnconv.tasks.raw import Raw, objects, only_official

# The fields of a row, input and output, and what kind of output that is.
FORMS: dict[tuple[str, str], Output] = {
    ("text", "label"): "label",
    ("tokens", "label"): "label",
    ("tokens", "labels"): "labels",
    ("source", "target"): "sequence",
}
NAMES = ("id", "name", "file")
NONE = -1  # the label of a token that has none

_SUFFIX = ".jsonl"


class _Row(NamedTuple):
    at: str  # file and line, for errors
    fields: Mapping[str, Any]


def read(path: Path) -> Raw:
    """The examples of a `.jsonl` file, or of a folder of them.

    A folder holds `train.jsonl`, and for official splits `test.jsonl`, `validation.jsonl` (or
    `valid`, `val`, `dev`) or both. Every line is a JSON object; all have one of these forms, and
    other fields are ignored:

    - `{"text": str, "label": str | int}`, or `{"tokens": [str], "label": str | int}`;
    - `{"tokens": [str], "labels": [str | int]}`, a label for each token, the integer -1 for none;
    - `{"source": str, "target": str}`, cut at whitespace, or lists of strings; a target may be
      empty.

    Classes are the labels in sorted order. A string field `id`, `name` or `file` that every row
    has names the examples.

    Raises:
      UsageError: naming the file and the line, what was expected there and what came.
    """
    path = Path(os.path.abspath(path))  # so that "." has a name too
    rows = {split: _rows(file) for split, file in _files(path).items()}
    form = _form(rows["train"][0])
    inputs = {split: objects(_input(row, form) for row in of) for split, of in rows.items()}
    if FORMS[form] == "sequence":
        labels = {split: objects(map(_target, of)) for split, of in rows.items()}
        classes: tuple[str, ...] = ()
    else:
        labels, classes = _labelled(rows, form)
    return Raw(
        name=path.stem if path.is_file() else path.name,
        source=f"rows in {path}",
        class_names=classes,
        splits={split: (inputs[split], labels[split]) for split in rows},
        output=FORMS[form],
        names=_names(rows),
    )


def _labelled(
    rows: Mapping[str, Sequence[_Row]], form: tuple[str, str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The labels of each split as numbers, and the classes that they number."""
    none = {NONE} if FORMS[form] == "labels" else set()
    first = _first(rows["train"], form, none)
    labels = {split: [_labels(row, form, first, none) for row in of] for split, of in rows.items()}
    index = _numbered(rows, labels, none) | dict.fromkeys(none, NONE)
    numbers = {
        split: [np.array([index[label] for label in of], np.int64) for of in of_split]
        for split, of_split in labels.items()
    }
    classes = tuple(str(label) for label in index if label not in none)
    if FORMS[form] == "label":
        return {split: np.concatenate(of) for split, of in numbers.items()}, classes
    return {split: objects(of) for split, of in numbers.items()}, classes


def _files(path: Path) -> dict[str, Path]:
    """The file of each split."""
    if not path.is_dir():
        return {"train": path}
    found = {file.stem: file for file in sorted(path.glob(f"*{_SUFFIX}"))}
    if "train" not in found:
        names = ", ".join(file.name for file in found.values()) or "no .jsonl file"
        raise UsageError(f"{path}: expected train.jsonl, found {names}")
    splits = only_official(found, path=path, what="file", suffix=_SUFFIX)
    return {split: found[name] for split, name in splits.items()}


def _rows(file: Path) -> list[_Row]:
    try:
        lines = file.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    if lines == [b""]:
        raise UsageError(f"{file}: expected a JSON object in each line, found an empty file")
    rows = [_row(f"{file} line {number}", line) for number, line in enumerate(lines, 1)]
    if len(rows) < 2:
        raise UsageError(f"{file}: expected at least 2 rows, found {len(rows)}")
    return rows


def _row(at: str, line: bytes) -> _Row:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{at}: expected UTF-8, found the byte {line[error.start]:#04x} at {error.start}"
        ) from error
    if not text:
        raise UsageError(f"{at}: expected a JSON object, found a blank line")
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{at}: expected a JSON object, got {_short(text)} ({error.msg} at {error.pos})"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise UsageError(f"{at}: expected a JSON object, cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{at}: expected a JSON object, got {_shown(fields)}")
    try:
        if "\\u" in text:
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UsageError(f"{at}: expected whole characters, got half a pair, {half}") from None
    return _Row(at, fields)


def _form(row: _Row) -> tuple[str, str]:
    """The form of the first row, which is that of all."""
    forms = [form for form in FORMS if all(name in row.fields for name in form)]
    if len(forms) == 1:
        return forms[0]
    if forms:
        raise UsageError(f"{row.at}: expected one form, found {_listed(forms)}; leave out a field")
    half = [form for form in FORMS if any(name in row.fields for name in form)]
    if len(half) == 1:
        raise _missing(row, half[0])
    known = dict.fromkeys(name for form in FORMS for name in form)
    near_of = {name: difflib.get_close_matches(name, known, n=1) for name in row.fields}
    hints = [_meant(name, near[0]) for name, near in near_of.items() if near and name not in known]
    raise UsageError(f"{row.at}: expected {_listed(FORMS)}, {_found(row)}{''.join(hints[:1])}")


def _missing(row: _Row, form: tuple[str, str]) -> UsageError:
    name = next(name for name in form if name not in row.fields)
    others = [field for field in row.fields if field not in form]
    hints = [_meant(near, name) for near in difflib.get_close_matches(name, others, n=1)]
    return UsageError(f"{row.at}: expected the field {name!r}, {_found(row)}{''.join(hints)}")


def _meant(name: str, known: str) -> str:
    return f"; is {name!r} meant to be {known!r}?"


def _input(row: _Row, form: tuple[str, str]) -> str | tuple[str, ...]:
    name = form[0]
    for needed in form:
        if needed not in row.fields:
            raise _missing(row, form)
    value = row.fields[name]
    if name == "text":
        if not isinstance(value, str):
            raise UsageError(f"{row.at}: expected a string as 'text', got {_shown(value)}")
        if not value.strip():
            raise UsageError(f"{row.at}: expected some text, got {value!r}")
        return value
    pieces = _pieces(row, name, whole=name == "source")
    if not pieces:
        raise UsageError(f"{row.at}: expected some {name}, got {_shown(value)}")
    return pieces


def _target(row: _Row) -> tuple[str, ...]:
    return _pieces(row, "target", whole=True)


def _pieces(row: _Row, name: str, *, whole: bool) -> tuple[str, ...]:
    """A list of strings, or a string cut at whitespace where it may be whole."""
    value = row.fields[name]
    if whole and isinstance(value, str):
        return tuple(value.split())
    expected = "a string or a list of strings" if whole else "a list of strings"
    if not isinstance(value, list):
        raise UsageError(f"{row.at}: expected {expected} as {name!r}, got {_shown(value)}")
    for index, piece in enumerate(value):
        if not isinstance(piece, str):
            raise UsageError(
                f"{row.at}: expected {expected} as {name!r}, got {_shown(piece)} at {index}"
            )
    return tuple(value)


def _labels(
    row: _Row, form: tuple[str, str], first: tuple[_Row, type], none: set[Any]
) -> list[str | int]:
    """The labels of a row, one or one for each token, of the type of the first one."""
    value = row.fields[form[1]]
    if form[1] == "label":
        values = [value]
    elif not isinstance(value, list):
        raise UsageError(f"{row.at}: expected a list as 'labels', got {_shown(value)}")
    elif len(value) != len(row.fields["tokens"]):
        raise UsageError(
            f"{row.at}: expected a label for each of {len(row.fields['tokens'])} tokens, "
            f"got {len(value)} labels"
        )
    else:
        values = value
    where, kind = first
    for label in values:
        if type(label) not in (str, int):  # true and false are no integers here
            raise UsageError(
                f"{row.at}: expected strings or integers as labels, got {_shown(label)}"
            )
        if type(label) is not kind and label not in none:
            called = "a string" if kind is str else "an integer"
            raise UsageError(
                f"{row.at}: expected {called} as label, as in {where.at}, got {_shown(label)}"
            )
    return values


def _first(rows: Sequence[_Row], form: tuple[str, str], none: set[Any]) -> tuple[_Row, type]:
    """The row of the first label, and of which type that is, as all must be."""
    for row in rows:
        value = row.fields.get(form[1])
        for label in value if isinstance(value, list) else [value]:
            if type(label) in (str, int) and label not in none:
                return row, type(label)
    return rows[0], int


def _numbered(
    rows: Mapping[str, Sequence[_Row]],
    labels: Mapping[str, Sequence[Sequence[Any]]],
    none: set[Any],
) -> dict[Any, int]:
    """The index of each label of training; those of the other splits must be among them."""
    values = {label for of in labels["train"] for label in of} - none
    for split, of_split in labels.items():
        for row, of in zip(rows[split], of_split, strict=True):
            for label in of:
                if label not in values and label not in none:
                    raise UsageError(
                        f"{row.at}: the label {_shown(label)} is in no row of training"
                    )
    return {label: i for i, label in enumerate(sorted(values))}


def _names(rows: Mapping[str, Sequence[_Row]]) -> dict[str, list[str]]:
    """The names of the examples, if every row has one."""
    every = [row.fields for of in rows.values() for row in of]
    for field in NAMES:
        if all(isinstance(fields.get(field), str) for fields in every):
            return {split: [row.fields[field] for row in of] for split, of in rows.items()}
    return {}


def _listed(forms: Iterable[tuple[str, str]]) -> str:
    return " or ".join(f'{{"{x}", "{y}"}}' for x, y in forms)


def _found(row: _Row) -> str:
    return f"found {', '.join(map(repr, row.fields)) or 'no field'}"


def _shown(value: object) -> str:
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
