"""The experiment on translation with few steps: what is exact is exact at any size."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import compiled, train
from attnconv.claims import Setting, training, translation
from attnconv.claims.claim import HOLDS
from attnconv.spec import Spec
from attnconv.tasks import Split

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "SEEDS": 2,
        "STEPS": 20,
        "RATES": (0.003,),
        "FAMILIES": ("mlp", "attention"),
    }.items():
        monkeypatch.setattr(translation, name, value)


def test_the_scans_lie_on_zeros_with_a_margin(small):
    rng = np.random.default_rng(0)
    split = Split(rng.normal(size=(3, 8, 8, 1)).astype(np.float32), np.arange(3, dtype=np.int32))
    data = translation._on_canvas(split)
    margin = translation.MARGIN
    assert data.inputs.shape == (3, 8 + 2 * margin, 8 + 2 * margin, 1)
    inner = data.inputs[:, margin:-margin, margin:-margin]
    np.testing.assert_allclose(inner, split.inputs - split.inputs.min(), rtol=1e-6)
    assert inner.min() == 0
    assert np.count_nonzero(data.inputs) == np.count_nonzero(inner)
    assert data.labels is split.labels


def test_the_margin_holds_what_a_shift_can_move():
    radius = sum(2**i for i in range(3))  # of three 3x3 layers, however they are strided
    shifts = max(abs(step) for by in translation.SHIFTS for step in by)
    assert radius + shifts <= translation.MARGIN
    assert len(set(translation.SHIFTS)) == 4


def measured(make, x):
    """Of a net as it starts: what the experiment finds, and the same from loops."""
    programs = compiled.Programs(make, train.Recipe())
    params = programs.init(0.01, 1, 0).params
    trained = training.Fit(programs, [0], [params], 0.01)
    (found,) = translation._changes(trained, [params], train.Data(x, np.zeros(len(x))))

    def scores(x):
        return np.float64(programs.scores(params, jnp.asarray(x)))

    changes = []
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        moved = np.zeros_like(x)
        for i, j in np.ndindex(x.shape[1:3]):
            if 0 <= i + dy < x.shape[1] and 0 <= j + dx < x.shape[2]:
                moved[:, i + dy, j + dx] = x[:, i, j]
        plain, other = scores(x), scores(moved)
        for a, b in zip(plain, other, strict=True):
            changes.append(np.linalg.norm(b - a) / np.linalg.norm(a))
    return found, np.mean(changes)


@pytest.mark.parametrize("name", ["mlp", "stride 1", "stride 2"])
def test_the_change_of_the_scores_is_that_of_loops(name):
    x = np.zeros((4, 24, 24, 1), np.float32)
    x[:, 8:-8, 8:-8] = np.random.default_rng(0).random((4, 8, 8, 1))
    if name == "mlp":
        make = training.family("mlp", Spec((24, 24, 1), 10), params=20_000)
    else:
        strides = (1, 1, 1) if name == "stride 1" else (1, 2, 2)
        make = functools.partial(translation.Stack, strides)
    found, expected = measured(make, x)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found < translation.EXACT if name == "stride 1" else found > 1e-3


def test_a_layer_is_equivariant_to_the_shifts_that_its_stride_divides():
    for stride, by in ((1, 1), (1, 2), (2, 2)):
        error, low, high, *_ = translation._layer_error(0, stride, by)
        assert error == low == high < translation.EXACT
    assert translation._layer_error(0, 2, 1).estimate > translation.CLEAR


def test_the_experiment(small):
    evidence = translation.test(Setting(seed=1))
    names = ["cnn, stride 1", "cnn, stride 2", "mlp", "attention"]
    assert [row[0] for row in evidence.rows] == names
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
    assert np.isfinite([p.measured for p in evidence.parts]).all()
    exact, changes, ratios = evidence.parts[:4], evidence.parts[4::2], evidence.parts[5::2]
    assert [part.verdict for part in exact] == [HOLDS] * 4
    assert [part.above for part in changes] == [translation.CLEAR] * 2
    assert [part.below for part in ratios] == [1.0] * 2
    for parts in (changes, ratios):
        assert all(name in part.what for name, part in zip(names[2:], parts, strict=True))
    before_after = {series.name: list(series.y) for series in evidence.figure.series}
    assert list(before_after) == names
    assert max(before_after["cnn, stride 1"]) < translation.EXACT
    assert min(before_after["cnn, stride 2"]) > translation.EXACT
    for name, part in zip(names[2:], ratios, strict=True):
        quotient = before_after["cnn, stride 2"][1] / before_after[name][1]
        assert part.measured.low <= part.measured.estimate <= part.measured.high
        assert part.measured.estimate == pytest.approx(quotient, rel=0.5)


def test_the_nets_have_the_shape_that_is_said():
    model = translation.Stack((1, 2, 2), rngs=nnx.Rngs(0))
    assert [layer.strides for layer in model.layers] == [1, 2, 2]
    assert model(jnp.zeros((2, 24, 24, 1))).shape == (2, 10)
