"""Numbers in words, read back by other code; Python's tokens, against tokenize and the parser."""

import ast
import collections
import inspect
import itertools
import keyword
import sysconfig
import textwrap
import token as tokens
import tokenize
from pathlib import Path

import numpy as np
import pytest

from attnconv.errors import UsageError
from attnconv.tasks import generated
from attnconv.tasks.raw import validate


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (10, "ten"),
        (19, "nineteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (312, "three hundred twelve"),
        (1000, "one thousand"),
        (20_020, "twenty thousand twenty"),
        (342_001, "three hundred forty two thousand one"),
        (900_000, "nine hundred thousand"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_that_anybody_can_say(number, words):
    assert generated.words(number) == tuple(words.split())


UNITS = {
    "zero": 0,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "thirteen": 13,
    "fourteen": 14,
    "fifteen": 15,
    "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}


def heard(words):
    """The integer that is said, one word after the other."""
    total = current = 0
    for word in words:
        if word == "thousand":
            total, current = 1000 * current, 0
        elif word == "hundred":
            current *= 100
        else:
            current += UNITS[word]
    return total + current


def test_number_words():
    raw = generated.number_words()
    validate(raw)
    assert raw.output == "sequence" and raw.class_names == () and set(raw.splits) == {"train"}
    digits, words = raw.splits["train"]
    numbers = [int("".join(one)) for one in digits]
    assert all("".join(one) == str(number) for one, number in zip(digits, numbers, strict=True))
    assert len(set(numbers)) == 12_000 and set(range(1000)) < set(numbers)
    lengths = collections.Counter(map(len, digits))
    assert lengths == {1: 10, 2: 90, 3: 900, 4: 3000, 5: 4000, 6: 4000}
    assert min(n for n in numbers if n >= 100_000) < 101_000 and max(numbers) > 999_000
    assert [heard(one) for one in words] == numbers
    assert len(set(words)) == 12_000 and max(map(len, words)) == 9
    again = generated.number_words().splits["train"]
    assert again[0].tolist() == digits.tolist() and again[1].tolist() == words.tolist()


LETTERS = {
    " ": "space",
    "k": "keyword",
    "n": "name",
    "0": "number",
    "s": "string",
    "c": "comment",
    "o": "operator",
}


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ("x = 0x1F+1.5e-3", "n o 0000o000000"),
        ("if not match: # é", "kk kkk nnnnno ccc"),
        ("def f(a, *, b):\n\treturn a", "kkk nono oo noo  kkkkkk n"),
        ('y = rb"a\\"b" "c"', "n o ssssssss sss"),
        ('"""a\nb # c\n"""\n', "ssssssssssssss "),
        ("a = b \\\n  @ c", "n o n     o n"),
        ('f"{a!r:>{w}} {{x}} {b[0]}"+c', "s" * 26 + "on"),
        ("f'''é {1}\n{f\"{2}\"}''' # s", "s" * 21 + " ccc"),
        ("await x;async", "kkkkk nokkkkk"),
        ('"""a\x0cb\u2028c\x1d"""\n\x0cif x: pass\n', "ssssssssssss  kk no kkkk "),
    ],
)
def test_labels_by_hand(source, labels):
    found = [generated.CLASSES[label] for label in generated.character_labels(source)]
    assert found == [LETTERS[letter] for letter in labels]


def by_position(text):
    """The label of each character, looked up by its line and column."""
    where = {}
    lines = text.split("\n")
    depth = 0
    for found in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__):
        name = tokens.tok_name[found.type]
        depth += name.endswith("STRING_START")
        kind = {"OP": "operator", "COMMENT": "comment", "NUMBER": "number"}.get(name, "space")
        if name == "NAME":
            kind = "keyword" if found.string in keyword.kwlist else "name"
        if depth or name == "STRING":
            kind = "string"
        depth -= name.endswith("STRING_END")
        row, column = found.start
        while (row, column) < found.end and found.string:
            where[row, column] = kind
            column += 1
            if column > len(lines[row - 1]):
                row, column = row + 1, 0
    rows = [
        [where.get((row, column), "space") for column in range(len(line) + 1)]
        for row, line in enumerate(lines, 1)
    ]
    return [generated.CLASSES.index(kind) for row in rows for kind in row][:-1]


def test_labels_are_those_of_tokenize_and_fit_what_the_parser_finds():
    source = inspect.getsource(textwrap)
    labels = generated.character_labels(source)
    assert labels.tolist() == by_position(source)
    lines = source.split("\n")
    checked = collections.Counter()
    for node in ast.walk(ast.parse(source)):
        kind = "name" if isinstance(node, ast.Name) else None
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)):
            kind = "string" if isinstance(node.value, str) else "number"
            kind = "keyword" if isinstance(node.value, bool) else kind
        if kind is not None:
            start = sum(len(line) + 1 for line in lines[: node.lineno - 1]) + node.col_offset
            assert generated.CLASSES[labels[start]] == kind
            checked[kind] += 1
    assert min(checked[kind] for kind in ("name", "string", "number", "keyword")) >= 5


@pytest.fixture(scope="module")
def python_tokens():
    return generated.python_tokens()


def test_python_tokens(python_tokens):
    raw = python_tokens
    validate(raw)
    assert raw.output == "labels" and raw.class_names == generated.CLASSES
    sizes = {split: len(x) for split, (x, _) in raw.splits.items()}
    assert sizes == {"train": 7000, "validation": 1000, "test": 1000}
    files = {split: {name.rpartition(":")[0] for name in of} for split, of in raw.names.items()}
    assert not files["train"] & files["test"] and not files["validation"] & files["test"]
    assert not files["train"] & files["validation"]
    assert len(files["train"]) > 40 and min(len(of) for of in files.values()) >= 10
    for inputs, labels in raw.splits.values():
        lengths = [len(of) for of in inputs]
        assert lengths == [len(of) for of in labels]
        assert min(lengths) >= 16 and max(lengths) == 256
        assert np.mean(np.array(lengths) == 256) > 0.9
        every = np.concatenate(labels)
        assert set(np.unique(every)) == set(range(len(generated.CLASSES)))


def test_pieces_are_where_their_names_say(python_tokens):
    folder = Path(sysconfig.get_path("stdlib"))
    inputs, labels = python_tokens.splits["test"]
    read = {}
    taken = collections.defaultdict(list)
    for name, piece, of in zip(python_tokens.names["test"], inputs, labels, strict=True):
        file, _, line = name.rpartition(":")
        if file not in read:
            with tokenize.open(folder / file) as opened:
                text = opened.read()
            read[file] = text, by_position(text)
        text, whole = read[file]
        start = sum(len(row) + 1 for row in text.split("\n")[: int(line) - 1])
        taken[file].append((start, start + len(piece)))
        assert "".join(piece) == text[start : start + 256]
        assert of.tolist() == whole[start : start + 256]
    for spans in taken.values():
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_python_tokens_are_the_same_each_time(python_tokens):
    again = generated.python_tokens()
    assert again.names == python_tokens.names
    for split, (inputs, _) in again.splits.items():
        assert inputs.tolist() == python_tokens.splits[split][0].tolist()


def test_a_python_without_its_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UsageError) as error:
        generated.python_tokens()
    assert str(error.value) == (
        f"python_tokens: expected the sources of the standard library in {tmp_path}, found 0 of 89"
    )
