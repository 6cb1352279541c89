"""Rows of JSON: every form, splits by file, and what is refused in which line."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from attnconv.errors import UsageError
from attnconv.tasks import jsonl
from attnconv.tasks.raw import validate

REVIEWS = Path(__file__).parents[2] / ".." / "shared" / "data" / "text" / "rt_polarity.jsonl"


def write(path, rows):
    """The file with these rows; text and bytes are lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return path


def refusal(path):
    with pytest.raises(UsageError) as error:
        jsonl.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_texts(tmp_path):
    rows = [
        {"text": "Ein schöner Tag", "label": "good", "id": "r1", "stars": 5},
        {"text": " two\u2028lines ", "label": "bad", "id": "r2"},
        {"text": "fine", "label": "good", "id": "r3", "stars": None},
    ]
    raw = jsonl.read(write(tmp_path / "reviews.jsonl", rows))
    inputs, labels = raw.splits["train"]
    assert (raw.name, raw.output, raw.class_names) == ("reviews", "label", ("bad", "good"))
    assert inputs.tolist() == ["Ein schöner Tag", " two\u2028lines ", "fine"]
    assert inputs.dtype == object and labels.dtype == np.int64 and labels.tolist() == [1, 0, 1]
    assert raw.names == {"train": ["r1", "r2", "r3"]} and set(raw.splits) == {"train"}


def test_integer_labels_are_sorted_as_numbers_and_minus_one_is_a_class(tmp_path):
    rows = [{"text": "x", "label": label} for label in (10, -1, 9, 10)]
    raw = jsonl.read(write(tmp_path / "x.jsonl", rows))
    assert raw.class_names == ("-1", "9", "10")
    assert raw.splits["train"][1].tolist() == [2, 0, 1, 2]


def test_tokens_with_one_label(tmp_path):
    rows = [{"tokens": ["a", "b c"], "label": 0}, {"tokens": ["d"], "label": 1, "name": "second"}]
    raw = jsonl.read(write(tmp_path / "x.jsonl", rows))
    assert raw.output == "label" and raw.names == {}  # only one of the rows has a name
    assert raw.splits["train"][0].tolist() == [("a", "b c"), ("d",)]


def test_tokens_with_a_label_each_and_official_splits(tmp_path):
    rows = [
        {"tokens": ["he", "ran", "home"], "labels": ["P", "V", "N"], "file": "a"},
        {"tokens": ["run"], "labels": ["V"], "file": "b"},
    ]
    write(tmp_path / "tags" / "train.jsonl", rows)
    write(tmp_path / "tags" / "dev.jsonl", [*reversed(rows), "", "  "])
    write(tmp_path / "tags" / "test.jsonl", [*rows, rows[0]])
    raw = jsonl.read(tmp_path / "tags")
    validate(raw)
    assert (raw.name, raw.output, raw.class_names) == ("tags", "labels", ("N", "P", "V"))
    assert {split: len(y) for split, (_, y) in raw.splits.items()} == {
        "train": 2,
        "validation": 2,
        "test": 3,
    }
    assert raw.names["validation"] == ["b", "a"]
    inputs, labels = raw.splits["validation"]
    assert inputs.tolist() == [("run",), ("he", "ran", "home")]
    assert [of.tolist() for of in labels] == [[2], [1, 2, 0]]
    assert labels[1].dtype == np.int64


def test_minus_one_is_no_label_of_a_token(tmp_path):
    rows = [{"tokens": ["a", "b"], "labels": [7, -1]}, {"tokens": ["a", "b"], "labels": [-1, 3]}]
    write(tmp_path / "x" / "train.jsonl", rows)
    write(tmp_path / "x" / "val.jsonl", [rows[0], {"tokens": ["a"], "labels": [-1]}])
    raw = jsonl.read(tmp_path / "x")
    assert raw.class_names == ("3", "7")
    assert [of.tolist() for of in raw.splits["train"][1]] == [[1, -1], [-1, 0]]
    assert [of.tolist() for of in raw.splits["validation"][1]] == [[1, -1], [-1]]


def test_minus_one_is_no_label_where_labels_are_strings_too(tmp_path):
    rows = [{"tokens": ["a", "b"], "labels": [-1, "-1"]}, {"tokens": ["a"], "labels": ["X"]}]
    raw = jsonl.read(write(tmp_path / "x.jsonl", rows))
    assert raw.class_names == ("-1", "X")
    assert [of.tolist() for of in raw.splits["train"][1]] == [[-1, 0], [1]]
    rows = [{"tokens": ["a"], "labels": [-1]}, {"tokens": ["a", "b"], "labels": ["X", 2]}]
    file = write(tmp_path / "x.jsonl", rows)
    assert refusal(file) == (
        f"{file} line 2: expected a string as label, as in {file} line 2, got 2"
    )


def test_sequences(tmp_path):
    rows = [
        {"source": " jump  twice\t", "target": "JUMP JUMP"},
        {"source": ["stand still"], "target": []},
        {"source": "stop", "target": ""},
    ]
    raw = jsonl.read(write(tmp_path / "x.jsonl", rows))
    validate(raw)
    assert (raw.output, raw.class_names) == ("sequence", ())
    assert raw.splits["train"][0].tolist() == [("jump", "twice"), ("stand still",), ("stop",)]
    assert raw.splits["train"][1].tolist() == [("JUMP", "JUMP"), (), ()]


def test_other_ends_of_lines_and_a_byte_order_mark(tmp_path):
    rows = [b'\xef\xbb\xbf{"text": "a", "label": 0}\r', '{"text": "b", "label": 1}\r', "\r"]
    raw = jsonl.read(write(tmp_path / "x.jsonl", rows))
    assert raw.splits["train"][0].tolist() == ["a", "b"]


@pytest.mark.skipif(not REVIEWS.is_file(), reason="the review sentences are not beside the project")
def test_review_sentences():
    raw = jsonl.read(REVIEWS)
    lines = REVIEWS.read_text().splitlines()
    assert len(lines) == 10662 and raw.class_names == ("negative", "positive")
    inputs, labels = raw.splits["train"]
    assert collections.Counter(labels.tolist()) == {0: 5331, 1: 5331}
    for line, text, label in zip(lines, inputs, labels, strict=True):
        assert json.dumps(text, ensure_ascii=False) in line
        assert f'"{raw.class_names[label]}"' in line


A = {"text": "a", "label": "x"}
T = {"tokens": ["a", "b"], "labels": ["x", "y"]}
S = {"source": "a", "target": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [A, '{"text": "b", "label": '],
            ' line 2: expected a JSON object, got {"text": "b", "label":',
        ),
        ([A, "", A], " line 2: expected a JSON object, found a blank line"),
        ([A, '["b", "y"]'], ' line 2: expected a JSON object, got ["b", "y"]'),
        ([A, b'{"text": "\xff"}'], " line 2: expected UTF-8, found the byte 0xff at 10"),
        ([A, "9" * 5000], " line 2: expected a JSON object, cannot be read (Exceeds the limit"),
        ([A, "[" * 99999], " line 2: expected a JSON object, "),
        (["", ""], ": expected a JSON object in each line, found an empty file"),
        ([A], ": expected at least 2 rows, found 1"),
        ([A, {"text": "b"}], " line 2: expected the field 'label', found 'text'"),
        (
            [A, {"text": "b", "lable": "y"}],
            " line 2: expected the field 'label', found 'text', 'lable'; is 'lable' meant to be "
            "'label'?",
        ),
        (
            [{"sentence": "b", "label": 1}, A],
            ' line 1: expected {"text", "label"} or {"tokens", "label"} or {"tokens", "labels"} or '
            "{\"source\", \"target\"}, found 'sentence', 'label'",
        ),
        (
            [{"token": ["b"], "labels": [1]}, T],
            " line 1: expected the field 'tokens', found 'token', 'labels'; is 'token' meant to be "
            "'tokens'?",
        ),
        (["{}", A], "found no field"),
        (
            [{"txt": "b", "class": 1}, A],
            "found 'txt', 'class'; is 'txt' meant to be 'text'?",
        ),
        (
            [{**A, "tokens": ["a"]}, A],
            ' line 1: expected one form, found {"text", "label"} or {"tokens", "label"}; leave out '
            "a field",
        ),
        ([A, S], " line 2: expected the field 'text', found 'source', 'target'"),
        ([A, {**A, "text": 3}], " line 2: expected a string as 'text', got 3"),
        (
            [A, {**A, "text": "a \ud83d b"}],
            " line 2: expected whole characters, got half a pair, '\\ud83d'",
        ),
        ([A, {**A, "text": " \t"}], " line 2: expected some text, got ' \\t'"),
        ([A, {**A, "label": 1}], " line 2: expected a string as label, as in {file} line 1, got 1"),
        ([A, {**A, "label": None}], " line 2: expected strings or integers as labels, got null"),
        ([{**A, "label": True}, A], " line 1: expected strings or integers as labels, got true"),
        ([A, {**A, "label": 1.0}], " line 2: expected strings or integers as labels, got 1.0"),
        (
            [T, {**T, "tokens": "a b"}],
            " line 2: expected a list of strings as 'tokens', got \"a b\"",
        ),
        (
            [T, {**T, "tokens": ["a", 1]}],
            " line 2: expected a list of strings as 'tokens', got 1 at 1",
        ),
        ([T, {"tokens": [], "labels": []}], " line 2: expected some tokens, got []"),
        ([T, {**T, "labels": "xy"}], " line 2: expected a list as 'labels', got \"xy\""),
        (
            [T, {**T, "labels": ["x"]}],
            " line 2: expected a label for each of 2 tokens, got 1 labels",
        ),
        (
            [T, {**T, "labels": ["x", 1]}],
            " line 2: expected a string as label, as in {file} line 1, got 1",
        ),
        (
            [S, {**S, "source": 1}],
            " line 2: expected a string or a list of strings as 'source', got 1",
        ),
        ([S, {**S, "source": " "}], ' line 2: expected some source, got " "'),
        (
            [S, {**S, "target": ["a", None]}],
            " line 2: expected a string or a list of strings as 'target', got null at 1",
        ),
    ],
)
def test_what_is_refused(tmp_path, rows, message):
    file = write(tmp_path / "x.jsonl", rows)
    said = refusal(file)
    assert said.startswith(str(file)) and message.replace("{file}", str(file)) in said


def test_the_files_of_a_folder_fit_together(tmp_path):
    folder = tmp_path / "set"
    write(folder / "train.jsonl", [A, {**A, "label": "y"}])
    test = write(folder / "test.jsonl", [A, {**A, "label": "z"}])
    assert refusal(folder) == f'{test} line 2: the label "z" is in no row of training'
    write(test, [A, S])
    assert refusal(folder).startswith(f"{test} line 2: expected the field 'text'")
    write(test, [A, {**A, "label": 0}])
    assert refusal(folder) == (
        f"{test} line 2: expected a string as label, as in {folder / 'train.jsonl'} line 1, got 0"
    )
    write(test, [A])
    assert refusal(folder) == f"{test}: expected at least 2 rows, found 1"
    write(test, [A, A])
    extra = write(folder / "tset.jsonl", [A, A])
    assert "unknown file 'tset.jsonl'; did you mean 'test.jsonl'" in refusal(folder)
    extra.rename(folder / "train.txt")
    assert set(jsonl.read(folder).splits) == {"train", "test"}
    write(folder / "val.jsonl", [A, A])
    write(folder / "dev.jsonl", [A, A])
    assert refusal(folder) == (
        f"{folder}: expected one name for the validation split, found val.jsonl and dev.jsonl"
    )
    (folder / "train.jsonl").unlink()
    assert (
        refusal(folder) == f"{folder}: expected train.jsonl, found dev.jsonl, test.jsonl, val.jsonl"
    )


def test_labels_of_tokens_that_training_does_not_have(tmp_path):
    write(tmp_path / "train.jsonl", [T, T])
    file = write(tmp_path / "valid.jsonl", [T, {**T, "labels": ["y", "w"]}])
    assert refusal(tmp_path) == f'{file} line 2: the label "w" is in no row of training'


def test_a_file_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "x.jsonl").endswith("cannot be read (No such file or directory)")
