"""The dynamic signal distribution, against what its formula says of moments and of each example."""

import numpy as np
import pytest

from attnconv.tasks import dsd
from attnconv.tasks.raw import validate
from attnconv.tasks.task import assemble


@pytest.fixture(scope="module")
def raw():
    return dsd.dsd()


def signal_of(x, labels):
    """The mean of y sum_i x_i is the signal."""
    return ((2 * labels - 1)[:, None] * x.sum(1, dtype=np.float64)).mean(0)


def test_without_noise_there_is_the_signal_with_its_sign_and_nothing_else(monkeypatch):
    monkeypatch.setattr(dsd, "NOISE", 0.0)
    signal = np.arange(1.0, 17.0)
    x, labels = dsd.examples(500, signal, np.random.default_rng(0))
    assert set(labels) == {0, 1}
    places = set()
    for patches, label in zip(x, labels, strict=True):
        (place,) = np.flatnonzero(np.abs(patches).sum(1))
        places.add(int(place))
        np.testing.assert_array_equal(patches[place], signal if label == 1 else -signal)
    assert places == set(range(16))


def test_moments(raw):
    validate(raw)
    assert {split: x.shape for split, (x, _) in raw.splits.items()} == {
        "train": (20_480, 16, 16),
        "validation": (2_000, 16, 16),
        "test": (4_000, 16, 16),
    }
    x, labels = raw.splits["train"]
    signal = signal_of(x, labels)
    assert abs(np.linalg.norm(signal) - 1) < 0.05
    assert abs(labels.mean() - 0.5) < 0.02
    along = x @ (signal / np.linalg.norm(signal))
    places = np.abs(along).argmax(1)
    shares = np.bincount(places, minlength=16) / len(places)
    assert np.abs(shares - 1 / 16).max() < 0.01
    rest = x.astype(np.float64)
    rest[np.arange(len(x)), places] -= (2 * labels - 1)[:, None] * signal
    assert abs(rest.std() - dsd.NOISE) < 0.005
    assert np.abs(rest.mean((0, 1))).max() < 0.005


def test_the_splits_have_one_signal_and_its_sign_is_the_label(raw):
    signal = signal_of(*raw.splits["train"])
    for x, labels in raw.splits.values():
        along = x @ signal
        largest = np.take_along_axis(along, np.abs(along).argmax(1)[:, None], 1)[:, 0]
        assert ((largest > 0) == labels).mean() > 0.97
    others = signal_of(*raw.splits["test"])
    assert signal @ others / np.linalg.norm(signal) / np.linalg.norm(others) > 0.98


def test_the_same_each_time_and_on_one_scale(raw):
    again = dsd.dsd()
    for split, (x, labels) in raw.splits.items():
        np.testing.assert_array_equal(again.splits[split][0], x)
        np.testing.assert_array_equal(again.splits[split][1], labels)
    task = assemble(raw, seed=0)
    assert task.spec.shape == (16, 16) and task.spec.classes == 2
    ratio = task.test.inputs.std((0, 1)) / raw.splits["test"][0].std((0, 1))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
