"""Splits, subsets and standardisation, on the embedded digits and on made-up label counts."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from attnconv import tasks
from attnconv.errors import UsageError
from attnconv.tasks.raw import Raw
from attnconv.tasks.task import assemble

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits():
    return tasks.load("digits")


def marked(labels, **official):
    """A task whose every example is its own number, so that splits can be traced."""
    arrays = {"train": labels, **official}
    start, splits = 0, {}
    for split, of in arrays.items():
        numbers = np.arange(start, start + len(of), dtype=np.float64)
        splits[split] = np.stack([numbers] * 2, axis=-1)[:, np.newaxis], np.asarray(of)
        start += len(of)
    classes = max(map(max, arrays.values())) + 1
    return Raw("marked", "made here", tuple(map(str, range(classes))), splits)


def numbers(task, split):
    """The numbers of the examples in a split of a `marked` task."""
    sizes = np.cumsum([0, *(len(getattr(task, name).labels) for name in SPLITS)])
    every = np.concatenate([getattr(task, name).inputs[:, 0, 0] for name in SPLITS])
    ranks = np.argsort(np.argsort(every))  # standardising keeps the order of the numbers
    at = SPLITS.index(split)
    return ranks[sizes[at] : sizes[at + 1]]


def test_digits_are_scikit_learns(digits):
    assert digits.name == "digits" and "\n" not in digits.source
    assert (digits.spec.shape, digits.spec.classes) == ((8, 8, 1), 10)
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.validation, digits.test):
        assert split.inputs.dtype == np.float32 and split.labels.dtype == np.int32
        assert split.inputs.flags.c_contiguous and split.labels.flags.c_contiguous


def test_the_splits_of_digits_are_disjoint_and_complete(digits):
    scans = load_digits()
    theirs = {
        image.tobytes(): label for image, label in zip(scans.images, scans.target, strict=True)
    }
    assert len(theirs) == 1797  # all scans differ, so the pixels say which one it is
    assert [len(getattr(digits, split).labels) for split in SPLITS] == [1167, 270, 360]
    inputs = np.concatenate([getattr(digits, split).inputs for split in SPLITS])
    labels = np.concatenate([getattr(digits, split).labels for split in SPLITS])
    black, white = float(inputs.min()), float(inputs.max())
    pixels = (inputs[..., 0].astype(np.float64) - black) / (white - black) * 16
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-5)
    ours = {image.tobytes(): label for image, label in zip(np.rint(pixels), labels, strict=True)}
    assert ours == theirs


def test_each_class_is_in_proportion(digits):
    counts = np.bincount(load_digits().target)
    for split, share in (("test", 360 / 1797), ("validation", 270 / 1797)):
        found = np.bincount(getattr(digits, split).labels)
        assert np.abs(found - counts * share).max() < 1


def test_splits_are_fixed_by_the_seed(digits):
    again, other = tasks.load("digits", seed=0), tasks.load("digits", seed=1)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(again, split).inputs, getattr(digits, split).inputs)
        np.testing.assert_array_equal(getattr(again, split).labels, getattr(digits, split).labels)
    assert (other.test.labels != digits.test.labels).mean() > 0.5


def test_standardised_by_the_whole_training_split(digits):
    few = tasks.load("digits", train_size=30)
    np.testing.assert_array_equal(few.test.inputs, digits.test.inputs)
    wide = digits.train.inputs.astype(np.float64)
    np.testing.assert_allclose([wide.mean(), wide.std()], [0, 1], atol=1e-7)
    assert abs(few.train.inputs.astype(np.float64).mean()) > 1e-4


def test_digits_rows_are_digits_reshaped(digits):
    rows = tasks.load("digits_rows")
    assert (rows.spec.shape, rows.spec.classes) == ((8, 8), 10)
    for split in SPLITS:
        ours, theirs = getattr(rows, split), getattr(digits, split)
        np.testing.assert_array_equal(ours.inputs, theirs.inputs[..., 0])
        np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int16])
def test_standardisation_is_per_channel(dtype):
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 30.0, 5.0])
    x = (rng.random([1500, 4, 5, 3]) * spread * 2 + [3.0, 100.0, 40.0]).astype(dtype)
    x[..., 2] = 7  # constant
    x_test = (rng.random([20, 4, 5, 3]) * spread).astype(dtype)
    labels = np.arange(1500) % 3
    splits = {"train": (x, labels), "validation": (x, labels), "test": (x_test, labels[:20])}
    task = assemble(Raw("three", "made here", ("a", "b", "c"), splits), seed=0)
    wide = x.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    mean, deviation = wide.mean((0, 1, 2)), wide.std((0, 1, 2))
    deviation[2] = 1.0
    np.testing.assert_allclose(task.train.inputs, (wide - mean) / deviation, rtol=1e-5, atol=1e-6)
    assert (task.train.inputs[..., 2] == 0).all()
    wide_test = x_test.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    expected = (wide_test - mean) / deviation
    np.testing.assert_allclose(task.test.inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_constant_that_is_no_binary_fraction_becomes_zero():
    x = np.full([3000, 2, 1], 0.1)
    task = assemble(
        Raw("flat", "made here", ("a", "b"), {"train": (x, np.arange(3000) % 2)}), seed=0
    )
    assert (task.train.inputs == 0).all() and (task.test.inputs == 0).all()


def test_values_too_large_are_refused():
    x = np.linspace(-1e200, 1e200, 80).reshape(40, 2, 1)
    with pytest.raises(UsageError, match=r"^big: the values are too large to standardise$"):
        assemble(Raw("big", "here", ("a", "b"), {"train": (x, np.arange(40) % 2)}), seed=0)


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(3, 60), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_one_split_is_cut_65_15_20(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    task = assemble(marked(labels), seed=seed)
    n = labels.size
    found = {split: numbers(task, split) for split in SPLITS}
    assert len(found["test"]) == int(np.ceil(n * 20 / 100))
    assert len(found["validation"]) == int(np.ceil(n * 15 / 100))
    assert sorted(np.concatenate(list(found.values()))) == list(range(n))
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(task, split).labels, labels[found[split]])
    per_class = np.bincount(task.train.labels, minlength=len(counts))
    assert per_class.min() >= 1
    quota = len(found["test"]) * np.array(counts) / n
    assert np.abs(np.bincount(task.test.labels, minlength=len(counts)) - quota).max() < 1


def test_official_splits_are_used_as_they_are():
    labels, test, validation = np.arange(40) % 4, np.arange(9) % 3, np.arange(6) % 2
    task = assemble(marked(labels, validation=validation, test=test), seed=0)
    assert numbers(task, "train").tolist() == list(range(40))
    assert numbers(task, "validation").tolist() == list(range(40, 46))
    assert numbers(task, "test").tolist() == list(range(46, 55))
    np.testing.assert_array_equal(task.test.labels, test)


@pytest.mark.parametrize(
    ("train", "official", "sizes"),
    [
        (2000, "test", [1700, 300, 10]),
        (60000, "test", [55000, 5000, 10]),  # at most 5,000 where the test split is official
        (4000, None, [2600, 600, 800]),
        (40000, None, [32000, 4000, 4000]),  # a tenth of many is enough
        (2000, "validation", [1600, 10, 400]),
    ],
)
def test_what_is_missing_is_cut_from_train(train, official, sizes):
    rest = {} if official is None else {official: np.arange(10) % 2}
    task = assemble(marked(np.arange(train) % 10, **rest), seed=0)
    assert [len(getattr(task, split).labels) for split in SPLITS] == sizes


@pytest.mark.parametrize("size", [1, 7, 25, 500, 1166, 1167])
def test_subsets_are_balanced_and_nested(digits, size):
    chosen, all_of_them = digits.subset(size, seed=3), digits.subset(None, seed=3)
    np.testing.assert_array_equal(chosen, all_of_them[:size])
    assert len(set(chosen.tolist())) == size
    assert sorted(all_of_them.tolist()) == list(range(1167))
    counts = np.bincount(digits.train.labels[chosen], minlength=10)
    available = np.bincount(digits.train.labels)
    assert (counts == available)[counts < counts.max() - 1].all()
    assert (digits.subset(500, seed=4)[:100] != digits.subset(500, seed=3)[:100]).any()


def test_small_subsets_are_not_always_of_the_same_classes(digits):
    first = collections.Counter(
        int(digits.train.labels[digits.subset(1, seed=seed)[0]]) for seed in range(300)
    )
    assert len(first) == 10 and max(first.values()) < 60  # 30 each is expected


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(4, 40), min_size=2, max_size=5), data=st.data())
def test_a_class_that_is_used_up_is_made_up_for_evenly(counts, data):
    labels = np.repeat(np.arange(len(counts)), counts)
    rest = {"validation": labels, "test": labels}
    task = assemble(marked(labels, **rest), seed=0)
    size = data.draw(st.integers(1, labels.size))
    found = np.bincount(labels[task.subset(size, seed=1)], minlength=len(counts))
    # Water filling: the highest level that `size` fills, and the rest one each.
    level = max(high for high in range(size + 1) if np.minimum(counts, high).sum() <= size)
    at_least = np.minimum(counts, level)
    assert found.sum() == size
    assert ((found - at_least >= 0) & (found - at_least <= 1)).all()


def test_train_size_keeps_the_subset(digits):
    few = tasks.load("digits", train_size=100)
    chosen = digits.subset(100, seed=0)
    np.testing.assert_array_equal(few.train.inputs, digits.train.inputs[chosen])
    np.testing.assert_array_equal(few.train.labels, digits.train.labels[chosen])
    assert np.bincount(few.train.labels).tolist() == [10] * 10
    np.testing.assert_array_equal(few.validation.labels, digits.validation.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 5000}, "train_size=5000: digits has 1167 training examples"),
        ({"train_size": 0}, "train_size=0: expected at least 1"),
        ({"seed": -1}, "seed=-1: expected 0 or more"),
        ({"fields": ("x", "y")}, "fields=x,y: expected a TFDS set, digits is none"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UsageError) as error:
        tasks.load("digits", **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": [0] * 9 + [1, 1]},
            "marked: expected at least 3 training examples of each class, to cut splits from, "
            "got 2 of '1'",
        ),
        (
            {"train": [0] * 9 + [1], "test": [0, 1]},
            "marked: expected at least 2 training examples of each class, to cut splits from, "
            "got 1 of '1'",
        ),
        ({"train": [0] * 9}, "marked: expected at least 2 classes, found 1"),
        (
            {"train": [0, 1] * 9, "test": [0, 2]},
            "marked: class '2' is in the test split and not in the training split",
        ),
        (
            {"train": [0, 1] * 9, "test": [0, -1]},
            "marked: expected labels from 0 to 1, got -1 for example 1 of the test split",
        ),
    ],
)
def test_splits_that_do_not_fit_together(splits, message):
    labels = splits.pop("train")
    with pytest.raises(UsageError) as error:
        assemble(marked(labels, **splits), seed=0)
    assert str(error.value) == message


def test_splits_must_have_one_shape_and_dtype():
    x, labels = np.zeros([12, 4, 2]), np.arange(12) % 2
    for other, named in (
        (np.zeros([12, 5, 2]), r"\(5, 2\) and float64 in test"),
        (np.zeros([12, 4, 2], np.uint8), r"\(4, 2\) and uint8 in test"),
    ):
        raw = Raw("uneven", "here", ("a", "b"), {"train": (x, labels), "test": (other, labels)})
        with pytest.raises(UsageError, match=rf"^uneven: expected .*\(4, 2\).*float64.*{named}$"):
            assemble(raw, seed=0)
    for size in (0, 1):
        test = (x[:size], labels[:size])
        small = Raw("hollow", "here", ("a", "b"), {"train": (x, labels), "test": test})
        message = rf"^hollow: expected at least 2 examples in the test split, got {size}$"
        with pytest.raises(UsageError, match=message):
            assemble(small, seed=0)
