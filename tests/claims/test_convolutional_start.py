"""A start as a convolution: what differs between the arms, the gains, a tiny run."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from attnconv import models
from attnconv.claims import convolutional_start as claim
from attnconv.claims.claim import Setting
from attnconv.spec import Spec

pytestmark = pytest.mark.slow


def test_the_arms_are_of_one_size_and_the_gated_ones_differ_in_their_start_only():
    made = claim.makers(Spec((28, 28, 1), 10))
    built = {name: make(rngs=nnx.Rngs(0)) for name, make in made.items()}
    for model in built.values():
        assert models.parameters(model) == pytest.approx(claim.PARAMS, rel=0.02)
    layers = [built[name].blocks[0].attention for name in (claim.CONVOLUTION, claim.RANDOM)]
    shapes = [jax.tree.map(lambda x: x.shape, nnx.state(layer)) for layer in layers]
    assert shapes[0] == shapes[1]
    looked_at = [np.asarray(layer.scores((5, 5)).argmax(-1)) for layer in layers]
    # From the middle of 5 x 5 each head looks at one neighbour, in the order of the window.
    middle = [[7 - 1 + j + 5 * i for i in range(3) for j in range(3)], looked_at[0][:, 12].tolist()]
    assert middle[0] == middle[1]
    assert looked_at[1][:, 12].tolist() != middle[0]
    np.testing.assert_allclose(jax.nn.sigmoid(layers[0].gate[...]), 0.731, atol=1e-3)
    np.testing.assert_allclose(jax.nn.sigmoid(layers[1].gate[...]), 0.5)


def test_the_gains_follow_from_the_accuracies(monkeypatch):
    """Over attention 10, then 4 points; over a random start 7, then 2."""

    def fit(make, train, validation, *, steps, rates, seeds, subset):
        n = len(subset(seeds[0]))
        start = make.keywords.get("start")
        gain = {30: {None: 0, "random": 3, "convolution": 10}, 90: {None: 0, "random": 2}}
        gain[90]["convolution"] = 4
        assert steps == max(claim.LEAST, round(claim.STEPS * n**0.5))
        right = 0.5 + 0.01 * gain[n][start] + 0.01 * np.array(seeds)[:, None]
        assert rates == (claim.RATES if n == 30 else claim.RATES[:1])
        right = np.broadcast_to(right, (len(seeds), 9))
        return types.SimpleNamespace(rate=rates[0], right=lambda probe: right)

    monkeypatch.setattr(claim, "SIZES", {"digits": (30, 90)})
    monkeypatch.setattr(claim, "fit", fit)
    evidence = claim.test(Setting(seed=2))
    estimates = [part.measured.estimate for part in evidence.parts]
    np.testing.assert_allclose(estimates, [10, 6, 7, 5], atol=1e-6)
    assert all(part.above == 0.0 for part in evidence.parts)
    assert [row[:2] for row in evidence.rows] == [["digits", "30"], ["digits", "90"]]
    assert [float(cell.split()[0]) for cell in evidence.rows[0][2:]] == [64, 57, 54]


def test_a_tiny_run_learns_and_is_whole(monkeypatch):
    monkeypatch.setattr(claim, "SIZES", {"digits": (30, 300)})
    monkeypatch.setattr(claim, "SEEDS", 2)
    monkeypatch.setattr(claim, "STEPS", 10)
    monkeypatch.setattr(claim, "LEAST", 50)
    monkeypatch.setattr(claim, "RATES", (0.003,))
    evidence = claim.test(Setting())
    ends = [part.measured for part in evidence.parts]
    assert len(ends) == 4
    assert np.isfinite(ends).all()
    most = [float(cell.split()[0]) for cell in evidence.rows[-1][2:]]
    assert min(most) > 40  # ten classes
    gains = {s.name: s.y[-1] for s in evidence.figure.series}
    convolution, random, attention = most
    assert gains["digits, over attention"] == pytest.approx(convolution - attention, abs=0.11)
    assert gains["digits, over gated, random"] == pytest.approx(convolution - random, abs=0.11)
