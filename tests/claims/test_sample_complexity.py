"""The nets against their formula and each other, and the whole claim at a size of seconds."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import models
from attnconv.claims import Setting, sample_complexity
from attnconv.claims.sample_complexity import KINDS, Net, examples_needed
from attnconv.spec import Spec
from attnconv.tasks import dsd, embedded

pytestmark = pytest.mark.slow

SPEC = Spec((3, 4), classes=2)


def net(kind, kernel=None, threshold=0.3, spec=SPEC):
    model = Net(kind, spec, rngs=nnx.Rngs(0))
    if kernel is not None:
        model.kernel[...] = jnp.asarray(kernel, jnp.float32)
    model.threshold[...] = jnp.float32(threshold)
    return model


def inputs(count=5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 3, 4)), jnp.float32)


def test_scores_are_those_of_the_formula():
    x = inputs()
    kernel = np.random.default_rng(1).normal(size=(3, 4))
    expected = []
    for example in np.asarray(x, np.float64):
        score = 0.0
        for patch, w in zip(example, kernel, strict=True):
            z = float(patch @ w)
            score += max(z - 0.3, 0) - max(-z - 0.3, 0)
        expected.append([0.0, score])
    np.testing.assert_allclose(net("locally connected", kernel)(x), expected, rtol=1e-5, atol=1e-5)


def test_each_net_contains_the_next():
    x, rng = inputs(), np.random.default_rng(2)
    w, each = rng.normal(size=4), rng.normal(size=(3, 4))
    convolution = net("convolution", w)(x)
    np.testing.assert_allclose(net("locally connected", np.tile(w, (3, 1)))(x), convolution, 1e-5)
    blocks = np.zeros((3, 3, 4))
    blocks[np.arange(3), np.arange(3)] = each
    local = net("locally connected", each)(x)
    np.testing.assert_allclose(
        net("fully connected", blocks.reshape(3, 12))(x), local, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("fully connected", 3 * 12 + 1),
        ("locally connected", 3 * 4 + 1),
        ("convolution", 4 + 1),
        ("attention", 4 * (16 + 4) + 4 + 1),
    ],
)
def test_parameters(kind, count):
    assert models.parameters(net(kind)) == count


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_the_order_of_the_patches(kind):
    x = inputs(32)
    model = net(kind, threshold=0.05)
    change = jnp.abs(model(x[:, ::-1]) - model(x)).max() / jnp.abs(model(x)).max()
    assert (change > 0.1) == kind.endswith("connected")


def test_examples_needed():
    sizes = (4, 16, 64)
    assert examples_needed(sizes, (50.0, 70.0, 90.0), 80.0) == pytest.approx(32)
    assert examples_needed(sizes, (50.0, 90.0, 60.0), 90.0) == pytest.approx(16)
    assert examples_needed(sizes, (50.0, 60.0, 70.0), 80.0) == np.inf
    assert examples_needed(sizes, (85.0, 70.0, 95.0), 80.0) == 4


def test_seeds_share_no_training_examples():
    parts = sample_complexity._disjoint(100, range(3, 7))
    assert list(parts) == [3, 4, 5, 6] and {len(part) for part in parts.values()} == {25}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(100))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(embedded.SOURCES, "dsd", dsd.dsd)
    monkeypatch.setattr(dsd, "_EXAMPLES", {"train": 2000, "validation": 200, "test": 500})
    chosen = {"SEEDS": 2, "STEPS": 150, "SIZES": (4, 500), "RATES": (0.03,), "LEVEL": 70.0}
    for name, value in chosen.items():
        monkeypatch.setattr(sample_complexity, name, value)


def test_the_claim(tiny):
    found = sample_complexity.CLAIM.test(Setting())
    assert [row[0] for row in found.rows] == list(KINDS)
    assert all(len(row) == len(found.header) == 5 for row in found.rows)
    assert [row[1] for row in found.rows] == ["4,097", "257", "17", "1,105"]
    assert len(found.parts) == 2 and all(part.above == 0.0 for part in found.parts)
    assert np.isfinite([part.measured for part in found.parts]).all()
    errors = {line.name: line for line in found.figure.series}
    assert list(errors) == list(KINDS)
    for line in errors.values():
        assert list(line.x) == [4, 500]
        for low, y, high in zip(line.low, line.y, line.high, strict=True):
            assert low <= y <= high and 0 <= y <= 100
    # A net of 17 parameters learns the task from 500 examples, unless labels and inputs are parted.
    assert errors["convolution"].y[1] < 10 < errors["convolution"].y[0]
    assert errors["convolution"].y[1] < errors["fully connected"].y[1]
