"""What a task is, and the one place that splits and standardises the examples of a source."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32, Num

from attnconv.errors import UsageError
from attnconv.spec import END, PAD, Output, Spec
from attnconv.tasks import standardise
from attnconv.tasks.raw import Examples, Raw, large_enough, validate
from attnconv.tasks.vocabulary import Cut, Vocabulary

VALIDATION_PERCENT, TEST_PERCENT = 15, 20
MANY = 5000  # examples, from which on a tenth of them is enough for each
MANY_PERCENT = 10
VALIDATION_MOST = 5000  # where the test split is official: more would only starve training


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples that are used together.

    Attributes:
      inputs: one example in each row, as `spec` tells; numbers are standardised.
      labels: indices in `Task.class_names`, one or a row of them for each example.
    """

    inputs: Num[np.ndarray, "B *shape"]
    labels: Int32[np.ndarray, "B *vectors"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Examples with their labels, cut into splits.

    Attributes:
      name: what the results call it.
      source: where the data come from, in one line.
      spec: what a model must know of it.
      class_names: the name of each label, or of each symbol of an output sequence.
      train: what the weights are fitted to.
      validation: what the learning rate is chosen on.
      test: what is reported; read once.
    """

    name: str
    source: str
    spec: Spec
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def subset(self, size: int | None, seed: int) -> Int[np.ndarray, "n"]:
        """Indices of `size` training examples, as many of each class as there are.

        One seeded order is drawn, in rounds: each round holds one example of every class that has
        any left, the classes shuffled. The subset is the beginning of that order. So the counts
        of the classes differ by at most one until a class is used up, and for one seed a smaller
        subset is part of every larger one.

        Args:
          size: how many examples; None means all of them.
          seed: seeds the order.

        Raises:
          UsageError: if `size` is less than 1 or more than there are.

        >>> from attnconv import tasks
        >>> digits = tasks.load("digits")
        >>> chosen = digits.subset(25, seed=0)
        >>> sorted(np.bincount(digits.train.labels[chosen]).tolist())
        [2, 2, 2, 2, 2, 3, 3, 3, 3, 3]
        """
        labels = _strata(self.spec.output, self.train.labels)
        if size is not None and size < 1:
            raise UsageError(f"train_size={size}: expected at least 1")
        if size is not None and size > labels.size:
            raise UsageError(f"train_size={size}: {self.name} has {labels.size} training examples")
        rng = _generator(seed, 1)
        shuffled = rng.permutation(labels.size)
        rounds = _rank_in_class(labels[shuffled])
        return shuffled[np.lexsort((rng.random(labels.size), rounds))][:size]


def assemble(
    raw: Raw,
    *,
    seed: int,
    cut: Cut = "words",
    one_hot: bool = False,
    hold_out: str | None = None,
) -> Task:
    """The task of these raw examples: validated, split, numbered and standardised.

    Args:
      raw: the examples of a source.
      seed: seeds the splits that are not official.
      cut: how text is cut into tokens, where the source has not done so.
      one_hot: whether tokens are vectors with a single one, or embedded.
      hold_out: the examples whose name contains this are the test split, all others for training.

    Raises:
      UsageError: if the splits do not fit together, or a split or a class has too few examples.

    >>> examples = np.eye(8)[:, np.newaxis], np.arange(8) % 2
    >>> task = assemble(Raw("pairs", "made here", ("a", "b"), {"train": examples}), seed=0)
    >>> [len(split.labels) for split in (task.train, task.validation, task.test)]
    [4, 2, 2]
    """
    if hold_out is not None:
        raw = _held_out(raw, hold_out)
    validate(raw)
    splits = _splits(raw, seed)
    large_enough(raw, splits)
    first = splits["train"][0][0]
    spec = Spec((), len(raw.class_names), raw.output, one_hot=one_hot, graph=raw.graph)
    inputs = {split: inputs for split, (inputs, _) in splits.items()}
    if raw.graph is not None:
        graph = dataclasses.replace(raw.graph, features=standardise.features(raw))
        spec = dataclasses.replace(spec, shape=graph.features.shape, graph=graph)
        inputs = {split: nodes.astype(np.int32) for split, nodes in inputs.items()}
    elif isinstance(first, str | tuple):
        vocabulary = Vocabulary(inputs["train"].tolist(), cut)
        inputs, padded = _rows(
            {split: map(vocabulary.encode, texts) for split, texts in inputs.items()}, PAD
        )
        shape = inputs["train"].shape[1:]
        spec = dataclasses.replace(spec, shape=shape, vocabulary=len(vocabulary), padded=padded)
    else:
        inputs, padded = standardise.splits(raw, inputs)
        spec = dataclasses.replace(spec, shape=inputs["train"].shape[1:], padded=padded)
    if one_hot and spec.vocabulary is None:
        raise UsageError(f"{raw.name}: expected tokens where vectors are one-hot, found numbers")
    labels = {split: labels for split, (_, labels) in splits.items()}
    class_names = raw.class_names
    if raw.output == "label":
        numbered = {split: of.astype(np.int32) for split, of in labels.items()}
    elif raw.output == "labels":
        numbered, _ = _rows(labels, -1)
    else:
        class_names, numbered = _symbols(labels)
        spec = dataclasses.replace(spec, classes=len(class_names), steps=numbered["train"].shape[1])
    done = {split: Split(inputs[split], numbered[split]) for split in splits}
    return Task(raw.name, raw.source, spec, class_names, **done)


def _held_out(raw: Raw, part: str) -> Raw:
    """Those whose name contains the part as the test split, whatever split they were in.

    All others are trained on, also those of an official test split; an official validation split
    stays, for it may keep apart what belongs together, as the parts of a file.
    """
    if not raw.names:
        raise UsageError(f"hold_out={part!r}: the examples of {raw.name} have no names")
    held = {split: np.char.find(np.array(raw.names[split]), part) >= 0 for split in raw.splits}
    count, total = sum(of.sum() for of in held.values()), sum(of.size for of in held.values())
    if count in (0, total):
        raise UsageError(
            f"hold_out={part!r}: expected a part of the names of some examples, it is in "
            f"{count} of {total}; the first is {str(raw.names['train'][0])!r}"
        )

    def joined(splits: Iterable[str], *, test: bool) -> Examples:
        examples = [(raw.splits[split], held[split] == test) for split in splits]
        inputs, labels = (np.concatenate([of[i][at] for of, at in examples]) for i in (0, 1))
        return inputs, labels

    splits = {
        "train": joined([split for split in raw.splits if split != "validation"], test=False),
        "test": joined(raw.splits, test=True),
    }
    if not held.get("validation", np.array(True)).all():
        splits["validation"] = joined(["validation"], test=False)
    return dataclasses.replace(raw, splits=splits, names={})


def _rows(
    splits: Mapping[str, Iterable[Sequence[int] | np.ndarray]], fill: int
) -> tuple[dict[str, Int32[np.ndarray, "B T"]], bool]:
    """Numbers of each example in a row, all as long as the longest; whether any are shorter."""
    lists = {split: list(of) for split, of in splits.items()}
    lengths = {len(one) for of in lists.values() for one in of}
    rows = {}
    for split, of in lists.items():
        rows[split] = np.full((len(of), max(lengths)), fill, np.int32)
        for row, one in zip(rows[split], of, strict=True):
            row[: len(one)] = one
    return rows, len(lengths) > 1


def _symbols(
    splits: Mapping[str, Iterable[tuple[str, ...]]],
) -> tuple[tuple[str, ...], dict[str, Int32[np.ndarray, "B U"]]]:
    """The names of the symbols, those of all splits, and the sequences of their indices."""
    found = {symbol for of in splits.values() for target in of for symbol in target}
    names = ("<end>", *sorted(found))
    index = {name: i for i, name in enumerate(names[1:], END + 1)}
    rows, _ = _rows(
        {
            split: [[*(index[symbol] for symbol in target), END] for target in of]
            for split, of in splits.items()
        },
        -1,
    )
    return names, rows


def _strata(output: Output, labels: np.ndarray) -> Int[np.ndarray, "n"]:
    """What is kept in proportion where examples are drawn: the class, where there is one."""
    return labels if output == "label" else np.zeros(len(labels), np.int64)


def _splits(raw: Raw, seed: int) -> dict[str, Examples]:
    """The official splits, and what is missing cut from the training split."""
    inputs, given = raw.splits["train"]
    labels = _strata(raw.output, given)
    rng = _generator(seed, 0)
    splits = dict(raw.splits)
    train = np.arange(labels.size)
    percents = VALIDATION_PERCENT, TEST_PERCENT
    if labels.size >= MANY and "test" not in splits:
        percents = MANY_PERCENT, MANY_PERCENT
    validation_size, test_size = (-(-labels.size * percent // 100) for percent in percents)
    if "test" in splits:
        validation_size = min(validation_size, VALIDATION_MOST)
    else:
        drawn, train = _draw(train, labels, test_size, rng)
        splits["test"] = inputs[drawn], given[drawn]
    if "validation" not in splits:
        drawn, train = _draw(train, labels, validation_size, rng)
        splits["validation"] = inputs[drawn], given[drawn]
    splits["train"] = inputs[train], given[train]
    return splits


def _draw(
    indices: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`size` of the indices with each class in proportion (largest remainder), and the rest."""
    counts = np.bincount(labels[indices])
    quota = size * counts / indices.size
    take = np.floor(quota).astype(np.int64)
    largest = np.argsort(take - quota, kind="stable")
    take[largest[: size - take.sum()]] += 1
    shuffled = rng.permutation(indices)
    drawn = _rank_in_class(labels[shuffled]) < take[labels[shuffled]]
    return np.sort(shuffled[drawn]), np.sort(shuffled[~drawn])


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many entries before each one carry the same label."""
    counts = np.bincount(labels)
    ranks = np.empty(labels.size, np.int64)
    first = np.cumsum(counts) - counts
    ranks[np.argsort(labels, kind="stable")] = np.arange(labels.size) - np.repeat(first, counts)
    return ranks


def _generator(seed: int, purpose: int) -> np.random.Generator:
    """Draws for one purpose, apart from those of the same seed for another."""
    if seed < 0:
        raise UsageError(f"seed={seed}: expected 0 or more")
    return np.random.default_rng([seed, purpose])
