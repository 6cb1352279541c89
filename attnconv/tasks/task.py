"""What a task is, and the one place that splits and standardises the examples of a source."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int, Int32

from attnconv.errors import UsageError
from attnconv.spec import Spec
from attnconv.tasks.raw import Examples, Raw, validate

VALIDATION_PERCENT = 15
VALIDATION_MOST = 5000  # where the test split is official: more would only starve training
TEST_PERCENT = 20

_BLOCK = 1024  # examples that are in float64 at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples that are used together.

    Attributes:
      inputs: one example in each row, standardised.
      labels: the index of each example's class in `Task.class_names`.
    """

    inputs: Float32[np.ndarray, "B *shape"]
    labels: Int32[np.ndarray, "B"]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Examples with one label each, cut into disjoint splits.

    Attributes:
      name: what the results call it.
      source: where the data come from, in one line.
      spec: what a model must know of it.
      class_names: the name of each label.
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

    def subset(self, size: int | None, *, seed: int) -> Int[np.ndarray, "n"]:
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
        labels = self.train.labels
        if size is not None and size < 1:
            raise UsageError(f"train_size={size}: expected at least 1")
        if size is not None and size > labels.size:
            raise UsageError(f"train_size={size}: {self.name} has {labels.size} training examples")
        rng = _generator(seed, 1)
        shuffled = rng.permutation(labels.size)
        rounds = _rank_in_class(labels[shuffled])
        return shuffled[np.lexsort((rng.random(labels.size), rounds))][:size]


def assemble(raw: Raw, *, seed: int) -> Task:
    """The task of these raw examples: validated, split and standardised.

    Args:
      raw: the examples of a source.
      seed: seeds the splits that are not official.

    Raises:
      UsageError: if the splits do not fit together or a class has too few examples.

    >>> examples = np.eye(8)[:, np.newaxis], np.arange(8) % 2
    >>> task = assemble(Raw("pairs", "made here", ("a", "b"), {"train": examples}), seed=0)
    >>> [len(split.labels) for split in (task.train, task.validation, task.test)]
    [4, 2, 2]
    """
    validate(raw)
    splits = _splits(raw, seed)
    train_inputs, _ = splits["train"]
    shape = train_inputs.shape[1:]
    channels = 1 if raw.one_scale else shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in _standardised
        mean, deviation = _moments(train_inputs, channels)
        done = {
            split: Split(_standardised(raw.name, inputs, mean, deviation), labels.astype(np.int32))
            for split, (inputs, labels) in splits.items()
        }
    spec = Spec(shape=shape, classes=len(raw.class_names))
    return Task(raw.name, raw.source, spec, raw.class_names, **done)


def _splits(raw: Raw, seed: int) -> dict[str, Examples]:
    """The official splits, and what is missing cut from the training split."""
    inputs, labels = raw.splits["train"]
    rng = _generator(seed, 0)
    splits = dict(raw.splits)
    train = np.arange(labels.size)
    test_size = -(-labels.size * TEST_PERCENT // 100)
    validation_size = -(-labels.size * VALIDATION_PERCENT // 100)
    if "test" in splits:
        validation_size = min(validation_size, VALIDATION_MOST)
    else:
        drawn, train = _draw(train, labels, test_size, rng)
        splits["test"] = inputs[drawn], labels[drawn]
    if "validation" not in splits:
        drawn, train = _draw(train, labels, validation_size, rng)
        splits["validation"] = inputs[drawn], labels[drawn]
    splits["train"] = inputs[train], labels[train]
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


def _blocks(inputs: np.ndarray, channels: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Consecutive examples as float64 vectors `[n, channels]`, bytes scaled to 0..1."""
    scale = 1 / 255 if inputs.dtype == np.uint8 else 1.0
    for start in range(0, len(inputs), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, inputs[block].reshape(-1, channels).astype(np.float64) * scale


def _moments(inputs: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel; a constant one is given deviation 1."""
    n = inputs.size // channels
    # Measured from the first vector, so that the mean of a constant channel is that constant.
    origin = next(_blocks(inputs, channels))[1][0]
    mean = origin + sum(np.einsum("nc->c", x - origin) for _, x in _blocks(inputs, channels)) / n
    squares = (np.square(x - mean) for _, x in _blocks(inputs, channels))
    deviation = np.sqrt(sum(np.einsum("nc->c", square) for square in squares) / n)
    return mean, np.where(deviation == 0, 1.0, deviation)


def _standardised(
    name: str, inputs: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> Float32[np.ndarray, "B *shape"]:
    out = np.empty(inputs.shape, np.float32)
    for block, x in _blocks(inputs, mean.size):
        out[block] = ((x - mean) / deviation).reshape(out[block].shape)
    if not (np.isfinite(deviation).all() and np.isfinite(out).all()):
        raise UsageError(f"{name}: the values are too large to standardise")
    return out
