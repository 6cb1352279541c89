"""Tasks that are made here: numbers in words, and the tokens of Python's own sources."""

import io
import keyword
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from attnconv.errors import UsageError
from attnconv.tasks.raw import Examples, Raw, objects

# How many integers of each number of digits: all short ones, as a child learns them first.
DIGITS = {1: 10, 2: 90, 3: 900, 4: 3000, 5: 4000, 6: 4000}

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_ONES = tuple(_SMALL.split())
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

CLASSES = ("space", "keyword", "name", "number", "string", "comment", "operator")
PIECE = 256  # characters
PIECES = {"train": 7000, "validation": 1000, "test": 1000}

_SHORTEST = 16  # characters
_FEWEST = 20  # files
# Written in Python, and in every version from 3.11 on: well known, and no mere tables.
_MODULES = """
_collections_abc _markupbase _strptime _weakrefset abc argparse ast base64 bdb bisect calendar cmd
code codecs collections/__init__ compileall configparser contextlib copy csv dataclasses difflib dis
doctest enum filecmp fileinput fnmatch fractions ftplib functools getopt getpass gettext glob
graphlib gzip hashlib heapq hmac html/parser http/client http/cookies imaplib inspect ipaddress
json/decoder json/encoder linecache logging/__init__ mimetypes netrc numbers operator optparse pdb
pickle pkgutil plistlib pprint profile pstats queue random reprlib runpy sched selectors shelve
shlex shutil smtplib socket socketserver statistics string subprocess tabnanny tempfile textwrap
threading timeit tokenize traceback typing urllib/parse uuid warnings weakref
"""


def number_words() -> Raw:
    """12,000 integers below a million: the digits in, the English words out.

    Words are as in the United States, without "and"; a hyphen separates two words. All integers
    below 1,000 are among them, and 3,000, 4,000 and 4,000 of 4, 5 and 6 digits.

    Source: generated.

    >>> digits, words = number_words().splits["train"]
    >>> digits.shape, digits[342], words[342]
    ((12000,), ('3', '4', '2'), ('three', 'hundred', 'forty', 'two'))
    """
    rng = np.random.default_rng(0)
    drawn: list[int] = []
    for digits, n in DIGITS.items():
        first = 10 ** (digits - 1) if digits > 1 else 0
        drawn += sorted((first + rng.choice(10**digits - first, n, replace=False)).tolist())
    source = "generated: integers below a million and their English words"
    splits = {"train": (objects(map(_digits, drawn)), objects(map(words, drawn)))}
    return Raw("number_words", source, (), splits, output="sequence")


def _digits(number: int) -> tuple[str, ...]:
    return tuple(str(number))


def words(number: int) -> tuple[str, ...]:
    """The English words of an integer from 0 to 999,999.

    >>> " ".join(words(342_001))
    'three hundred forty two thousand one'
    """
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return tuple(_below_1000(rest)) or ("zero",)
    return (*_below_1000(thousands), "thousand", *_below_1000(rest))


def _below_1000(number: int) -> list[str]:
    """None for 0."""
    hundreds, rest = divmod(number, 100)
    found = [_ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        found.append(_TENS[rest // 10 - 2])
        rest %= 10
    return [*found, _ONES[rest]] if rest else found


def python_tokens() -> Raw:
    """9,000 pieces of Python's standard library, of 256 characters, each with its kind of token.

    Pieces begin where a line does and do not overlap; the last of a file may be shorter. All that
    are taken of one file are in the same split. Files differ between versions of Python, and so
    do the pieces: `source` names the version.

    Source: the sources of the running Python; its own module tokenize labels them.

    Raises:
      UsageError: if the sources are not there.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [folder / f"{name}.py" for name in _MODULES.split()]
    files = [path for path in paths if path.is_file()]
    if len(files) < _FEWEST:
        raise UsageError(
            f"python_tokens: expected the sources of the standard library in {folder}, found "
            f"{len(files)} of {len(paths)}"
        )
    rng = np.random.default_rng(0)
    shuffled = [files[i] for i in rng.permutation(len(files))]
    held = round(0.15 * len(files))
    parts = {
        "test": shuffled[:held],
        "validation": shuffled[held : 2 * held],
        "train": shuffled[2 * held :],
    }
    splits: dict[str, Examples] = {}
    names = {}
    for split in ("train", "validation", "test"):
        found = [piece for path in sorted(parts[split]) for piece in _pieces(path, folder)]
        chosen = sorted(rng.permutation(len(found))[: PIECES[split]])
        taken = [found[i] for i in chosen]
        splits[split] = objects(text for _, text, _ in taken), objects(of for _, _, of in taken)
        names[split] = [name for name, _, _ in taken]
    source = (
        f"the standard library of Python {platform.python_version()}, labelled by its own module "
        f"tokenize; {len(files)} files, each in one split"
    )
    return Raw("python_tokens", source, CLASSES, splits, output="labels", names=names)


def _pieces(
    path: Path, folder: Path
) -> Iterator[tuple[str, tuple[str, ...], Int64[np.ndarray, "t"]]]:
    """The pieces of a file, with their names and labels."""
    with tokenize.open(path) as file:
        text = file.read()
    labels = character_labels(text)
    lines = _line_starts(text)
    start = 0
    for number, line in enumerate(lines, 1):
        if line >= start and len(text) - line >= _SHORTEST:
            start = line + PIECE
            name = f"{path.relative_to(folder).as_posix()}:{number}"
            yield name, tuple(text[line:start]), labels[line:start]


def character_labels(text: str) -> Int64[np.ndarray, "t"]:
    """The kind of token that each character of Python's source belongs to, an index of `CLASSES`.

    What lies between tokens is space, and so are the ends of lines. A formatted string is a string
    from its prefix to its last quote, whatever is in it, as it was one token before Python 3.12.

    Args:
      text: a whole source file, its lines ended by "\\n".

    Raises:
      SyntaxError: it is not Python.

    >>> [CLASSES[label] for label in character_labels("if x1:  # no")[[0, 2, 3, 4, 5, 8]]]
    ['keyword', 'space', 'name', 'name', 'operator', 'comment']
    """
    labels = np.full(len(text), CLASSES.index("space"), np.int64)
    starts = _line_starts(text)
    opened: list[int] = []  # where the formatted strings around this token begin
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start = starts[token.start[0] - 1] + token.start[1] if token.string else 0
        kind = tokenize.tok_name[token.type]
        if kind.endswith("STRING_START"):
            opened.append(start)
        elif kind.endswith("STRING_END"):
            begun = opened.pop()
            labels[begun : start + len(token.string)] = CLASSES.index("string")
        elif not opened and (name := _class(token, kind)) is not None:
            labels[start : start + len(token.string)] = CLASSES.index(name)
    return labels


def _class(token: tokenize.TokenInfo, kind: str) -> str | None:
    if kind == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "name"
    known = {"NUMBER": "number", "STRING": "string", "COMMENT": "comment", "OP": "operator"}
    return known.get(kind)


def _line_starts(text: str) -> list[int]:
    """Where each line begins."""
    return [0, *(end.end() for end in re.finditer("\n", text))]
