"""Tasks: labelled examples by name, cut into train, validation and test and standardised."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from attnconv.errors import UsageError
from attnconv.tasks import embedded, files, tfds, vocabulary
from attnconv.tasks.raw import Raw, as_sequences
from attnconv.tasks.task import Split, Task, assemble

__all__ = ["Split", "Task", "load", "names", "prepared"]


def names() -> tuple[str, ...]:
    """The tasks that need neither a network nor a folder.

    >>> names()
    ('digits', 'digits_rows', 'python_tokens', 'dtmf', 'dsd', 'karate', 'number_words')
    """
    return tuple(embedded.SOURCES)


def prepared(data_dir: str | os.PathLike[str] | None) -> list[str]:
    """The sets that TensorFlow Datasets has prepared in a folder.

    Raises:
      UsageError: there is no such folder.
    """
    return [] if data_dir is None else tfds.prepared(_folder(data_dir))


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    seed: int = 0,
    tokens: vocabulary.Cut | None = None,
    vectors: str | None = None,
    fields: Sequence[str] | None = None,
    hold_out: str | None = None,
) -> Task:
    """The task of that name: the same splits and the same numbers for the same seed.

    A name is looked for in this order: the embedded tasks, the sets in `data_dir` that TensorFlow
    Datasets has prepared (`mnist`, `mnist:3.0.1`, `name/config`), then a path to the user's own
    files: a folder of images or of `.wav`, a `.npz`, a `.jsonl` or a folder of them. A path that
    begins with `./` is always a path.

    Official splits are used as they are. A missing validation split is 15 % of the training split
    (at most 5,000 examples where the test split is official), a missing test split is 20 % of it,
    or each is 10 % where the test split is missing and there are 5,000 examples or more; both are
    drawn by `seed`, each class in proportion. Every channel is standardised by its mean and
    deviation over the whole training split, whatever `train_size`; of a graph, over all nodes.

    Args:
      name: an embedded task, a prepared set or a path.
      data_dir: the folder in which TensorFlow Datasets has prepared its sets.
      train_size: how many training examples to keep, as many of each class; None keeps all.
      seed: seeds the splits and the choice of `train_size` examples.
      tokens: how text is cut: "words" (default), "characters" or "bpe", byte pairs.
      vectors: what the vectors are: "one_hot" of tokens, which are embedded otherwise; "rows",
        "pixels" or "patches" of 4 x 4 pixels of images, which are grids otherwise.
      fields: the features that are the input and the label; of a prepared set only.
      hold_out: the examples whose name (that of their file, say) contains this are the test split;
        all others are for training, also those of an official test split.

    Raises:
      UsageError: if there is no such task, its data cannot be used, or it is too small.

    >>> task = load("digits", train_size=100)
    >>> task.spec.describe()
    'image 8 x 8 x 1: one of 10'
    >>> [len(split.labels) for split in (task.train, task.validation, task.test)]
    [100, 270, 360]
    """
    raw = _read(name, data_dir, fields)
    if vectors is not None and vectors != "one_hot":
        raw = as_sequences(raw, vectors)
    if tokens is not None and not isinstance(raw.splits["train"][0][0], str):
        raise UsageError(f"tokens={tokens}: expected whole text to cut, {name} has none")
    task = assemble(
        raw, seed=seed, cut=tokens or "words", one_hot=vectors == "one_hot", hold_out=hold_out
    )
    if train_size is None:
        return task
    chosen = task.subset(train_size, seed=seed)
    train = Split(task.train.inputs[chosen], task.train.labels[chosen])
    return dataclasses.replace(task, train=train)


def _read(name: str, data_dir: str | os.PathLike[str] | None, fields: Sequence[str] | None) -> Raw:
    root = None if data_dir is None else _folder(data_dir)
    is_embedded = name in embedded.SOURCES
    prepared = None if root is None or is_embedded else tfds.find(name, root)
    if prepared is not None:
        return tfds.read(name, prepared, fields)
    path = os.path.expanduser(name)
    if is_embedded or os.path.exists(path):
        if fields is not None:
            raise UsageError(f"fields={','.join(fields)}: expected a TFDS set, {name} is none")
        return embedded.SOURCES[name]() if is_embedded else files.read(Path(path))
    if name.startswith((".", "~", os.sep)) or name.endswith(".npz"):
        raise UsageError(f"task {name!r}: there is no such file or folder{_near(Path(path))}")
    raise tfds.missing(name, root, names())


def _folder(data_dir: str | os.PathLike[str]) -> Path:
    root = Path(os.path.expanduser(data_dir))
    if not root.is_dir():
        raise UsageError(f"data_dir={str(root)!r}: there is no such folder{_near(root)}")
    return root


def _near(path: Path) -> str:
    """The near matches of a path that is not there, among what lies beside where it would be."""
    beside = [entry.name for entry in path.parent.glob("*")]
    near = difflib.get_close_matches(path.name, beside, cutoff=0.5)
    return (
        f"; did you mean {' or '.join(repr(str(path.parent / n)) for n in near)}?" if near else ""
    )
