"""The experiment on reach with small nets: what each can see is exact at any size."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import compiled, train
from attnconv.claims import Setting, reach, training
from attnconv.claims.claim import FAILS, HOLDS, Measured
from attnconv.spec import Spec

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "SEEDS": 2,
        "STEPS": 300,
        "PARAMS": 4000,
        "RATES": (0.01,),
        "LENGTH": 24,
        "CLASSES": 4,
        "EXAMPLES": {"train": 1024, "validation": 64, "test": 512},
        "WINDOWS": {"cnn:9": 9, "neighborhood:9": 9, "attention": None},
        "DISTANCES": (1, 3, 8),
        "PROBES": 32,
    }.items():
        monkeypatch.setattr(reach, name, value)


def test_vectors_at_the_distances_are_asked_for_the_marked_symbol(small):
    data = reach.find_task(50, seed=[0, 1])
    assert data.inputs.shape == (50, 24, 5) and data.labels.shape == (50, 24)
    apart = reach.distances(data.inputs)
    for example, labels, far in zip(data.inputs, data.labels, apart, strict=True):
        (place,) = np.flatnonzero(example[:, -1])
        (symbol,) = np.flatnonzero(example[place, :-1])
        assert (example.sum(axis=1) == 1 + (np.arange(24) == place)).all()
        assert labels.tolist() == [symbol if abs(t - place) in (1, 3, 8) else -1 for t in range(24)]
        assert far.tolist() == [abs(t - place) for t in range(24)]
    again, other = reach.find_task(50, seed=[0, 1]), reach.find_task(50, seed=[0, 2])
    assert (again.inputs == data.inputs).all() and (other.inputs != data.inputs).any()


def test_symbols_and_places_are_drawn_evenly():
    data = reach.find_task(4000, seed=[0, 0])
    symbols = np.bincount(data.labels.max(axis=1), minlength=reach.CLASSES) / 4000
    np.testing.assert_allclose(symbols, 1 / reach.CLASSES, atol=0.025)
    places = data.inputs[..., -1].argmax(axis=1)
    assert places.min() == 0 and places.max() == reach.LENGTH - 1
    assert abs(places.mean() - (reach.LENGTH - 1) / 2) < 2.5


def test_what_is_expected_follows_from_the_window():
    accuracy = Measured(50.0, 40.0, 60.0, seeds=3)
    within, beyond = (reach.expected("cnn", d, accuracy, radius=8) for d in (8, 9))
    assert (within.above, within.below) == (95.0, None)
    assert (beyond.above, beyond.below) == (None, 17.5)
    assert within.verdict == beyond.verdict == FAILS
    assert reach.expected("cnn", 9, Measured(12.6, 12.0, 13.2, seeds=3), radius=8).verdict == HOLDS
    for name, window in reach.WINDOWS.items():
        assert window is None or name.endswith(f":{window}")


class Oracle(nnx.Module):
    """Says the marked symbol where it is at most `radius` away, and symbol 0 elsewhere."""

    any_length = False

    def __init__(self, radius, *, rngs):
        self.radius = radius
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x, *, rng=None):
        at = jnp.arange(x.shape[1])
        near = (jnp.abs(at[:, None] - at) <= self.radius).astype(x.dtype)
        marked = jnp.einsum("TS,BSC->BTC", near, x[..., :-1] * x[..., -1:])
        guess = 0.1 * jnp.eye(x.shape[2] - 1)[0]
        return self.scale[...] * (marked + guess)


def test_a_net_of_a_known_radius_is_measured_as_such(small):
    test = reach.find_task(400, seed=[0, 2])
    programs = compiled.Programs(lambda rngs: Oracle(4, rngs=rngs), train.Recipe())
    params = nnx.split(Oracle(4, rngs=nnx.Rngs(0)))[1]
    trained = training.Fit(programs, [0], [params], 0.01)
    found = {d: scores.mean() for d, scores in reach.by_distance(trained, test).items()}
    assert found[1] == found[3] == 1.0
    assert found[8] == pytest.approx(0.25, abs=0.08)
    changes = [reach.change_from_beyond(trained, params, test, radius) for radius in (1, 4, 9)]
    assert changes[0] > 0.5
    assert changes[2] == 0


@pytest.mark.parametrize("name, radius", [("cnn:9", 4), ("neighborhood:9", 4)])
def test_what_lies_beyond_a_window_changes_nothing_and_what_lies_in_it_does(small, name, radius):
    make = training.family(name, Spec((24, 5), 4, "labels"), params=4000)
    programs = compiled.Programs(make, train.Recipe())
    params = programs.init(0.01, 1, 0).params
    trained = training.Fit(programs, [0], [params], 0.01)
    test = reach.find_task(64, seed=[0, 2])
    assert reach.change_from_beyond(trained, params, test, radius) < reach.EXACT
    assert reach.change_from_beyond(trained, params, test, radius - 1) > 1e-3


def test_the_experiment(small):
    evidence = reach.test(Setting(seed=1))
    names = list(reach.WINDOWS)
    assert [row[0] for row in evidence.rows] == names
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
    for row in evidence.rows:
        assert int(row[1].replace(",", "")) == pytest.approx(4000, rel=0.02)
    parts = {part.what: part for part in evidence.parts}
    assert len(parts) == 3 * 3 + 2
    for name, d in itertools.product(names, (1, 3, 8)):
        part = parts[f"{name}: accuracy at distance {d}, %"]
        assert 0 <= part.measured.estimate <= 100 and np.isfinite(part.measured).all()
        sees = name == "attention" or d <= 4
        assert (part.above is not None) == sees
        assert part.measured.estimate > 80 if sees else abs(part.measured.estimate - 25) < 12, part
    for name in names[:2]:
        part = parts[f"{name}: change of its scores by what lies beyond its window"]
        assert part.verdict == HOLDS
    assert [series.name for series in evidence.figure.series] == names
    for series in evidence.figure.series:
        assert list(series.x) == [1, 3, 8]
        assert all(a <= b <= c for a, b, c in zip(series.low, series.y, series.high, strict=True))
