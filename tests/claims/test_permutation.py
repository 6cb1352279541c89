"""The experiment on permutation with small nets: what holds of them whatever they have learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv.claims import Setting, permutation
from attnconv.claims.claim import HOLDS

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "SEEDS": 2,
        "STEPS": 40,
        "RATES": (0.003,),
        "TOKENS": 6,
        "LENGTH": 6,
        "FEATURES": 16,
        "HEADS": 2,
        "EXAMPLES": {"train": 512, "validation": 64, "test": 256},
    }.items():
        monkeypatch.setattr(permutation, name, value)


def test_the_label_says_whether_token_0_comes_before_token_1():
    data = permutation.order_task(500, seed=[0, 1])
    for sequence, label in zip(data.inputs.tolist(), data.labels.tolist(), strict=True):
        assert len(sequence) == permutation.LENGTH
        assert sequence.count(0) == sequence.count(1) == 1
        assert max(sequence) < permutation.TOKENS
        assert label == (sequence.index(0) < sequence.index(1))
    assert data.labels.mean() == pytest.approx(0.5, abs=0.07)
    again, other = (permutation.order_task(500, seed=[0, i]) for i in (1, 2))
    assert (again.inputs == data.inputs).all() and (other.inputs != data.inputs).any()


def test_two_tokens_stand_at_every_pair_of_places():
    data = permutation.order_task(8000, seed=[0, 0])
    pairs = set(zip((data.inputs == 0).argmax(1), (data.inputs == 1).argmax(1), strict=True))
    assert len(pairs) == permutation.LENGTH * (permutation.LENGTH - 1)


@pytest.mark.parametrize("kind", permutation.KINDS)
def test_only_without_positions_an_order_does_not_matter(small, kind):
    model = permutation.Encoder(kind, rngs=nnx.Rngs(0))
    if kind == "relative":  # its table starts as zeros, which tell nothing
        model.table[...] = jax.random.normal(jax.random.key(1), model.table.shape)
    x = jnp.asarray(permutation.order_task(16, seed=[0, 0]).inputs)
    error = permutation._error(model, np.asarray(x))
    assert error < permutation.EXACT if kind == "none" else error > permutation.CLEAR
    scores, moved = model(x), model(x[:, ::-1])
    assert np.allclose(scores, moved, atol=1e-5) == (kind == "none")


def test_the_experiment(small):
    evidence = permutation.test(Setting(seed=2))
    kinds = list(permutation.KINDS)
    assert [row[0] for row in evidence.rows] == kinds
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
    assert len(evidence.parts) == 2 * len(kinds)
    assert np.isfinite([p.measured for p in evidence.parts]).all()
    exact, chance, *others = evidence.parts
    assert exact.verdict == HOLDS and (exact.above, exact.below) == (None, permutation.EXACT)
    assert 40 < chance.measured.estimate < 60 and (chance.above, chance.below) == (None, 55.0)
    for kind, error, accuracy in zip(kinds[1:], others[::2], others[1::2], strict=True):
        assert kind in error.what and kind in accuracy.what
        assert (error.above, accuracy.above) == (permutation.CLEAR, 95.0)
        assert error.measured.estimate > 10 * exact.measured.estimate
    (series,) = evidence.figure.series
    assert list(series.x) == kinds
    assert all(a <= b <= c for a, b, c in zip(series.low, series.y, series.high, strict=True))


def test_with_positions_the_question_can_be_learned(small, monkeypatch):
    monkeypatch.setattr(permutation, "KINDS", ("none", "learned"))
    monkeypatch.setattr(permutation, "STEPS", 600)
    monkeypatch.setattr(permutation, "EXAMPLES", {"train": 2048, "validation": 64, "test": 512})
    without, learned = permutation.test(Setting()).figure.series[0].y
    assert learned > 90 and without < 58
