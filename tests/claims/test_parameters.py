"""Counts and interpolation by hand, and the whole claim at a size of seconds."""

import dataclasses

import numpy as np
import pytest

from attnconv import tasks
from attnconv.claims import Setting, parameters
from attnconv.claims.claim import HOLDS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("side", [8, 16, 128])
def test_parameters_of_a_layer(side):
    pixels = side * side
    assert parameters.parameters("mlp", side) == (3 * pixels + 1) * 8 * pixels
    assert parameters.parameters("local", side) == (9 * 3 + 1) * 8 * pixels
    assert parameters.parameters("cnn", side) == (9 * 3 + 1) * 8


@pytest.fixture
def tiny(monkeypatch):
    chosen = {
        "SEEDS": 2,
        "STEPS": 100,
        "EVERY": 20,
        "EXAMPLES": 100,
        "RATES": (0.01,),
        "LEVELS": (1.5, 1.0),
        "SIDES": (8, 16),
    }
    for name, value in chosen.items():
        monkeypatch.setattr(parameters, name, value)


def test_the_claim(tiny):
    found = parameters.CLAIM.test(Setting())
    assert [row[0].split(",")[0] for row in found.rows] == ["mlp", "local", "cnn"]
    assert all(len(row) == len(found.header) == 8 for row in found.rows)
    assert [part.verdict for part in found.parts[:3]] == [HOLDS] * 3
    assert len(found.parts) == 3 + 2 * 2
    numbers = [part.measured for part in found.parts]
    assert np.isfinite(numbers).all()
    for line in found.figure.series:
        assert list(line.x) == [1.5, 1.0]
        assert (np.array(line.y) > -0.3).all() and (np.array(line.y) < 1.5).all()


def gaps(change):
    """Of the mlp and one seed, with another test split."""
    task = tasks.load("digits")
    task = dataclasses.replace(task, test=change(task))
    found, _ = parameters._gaps("mlp", task, range(1))
    assert found.shape == (2, 2, 1, len(task.test.labels))
    return found.mean(axis=(2, 3))


def test_there_is_no_gap_to_what_was_trained_on(tiny):
    def seen(task):
        chosen = task.subset(100, seed=0)
        return tasks.Split(task.train.inputs[chosen], task.train.labels[chosen])

    np.testing.assert_allclose(gaps(seen), np.zeros((2, 2)), atol=1e-4)


def test_labels_that_were_moved_make_a_gap(tiny):
    moved = gaps(lambda task: tasks.Split(task.test.inputs, (task.test.labels + 1) % 10))
    assert (moved[0] > 0.5).all() and (moved[1] > 0).all()
