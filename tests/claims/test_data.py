"""The gap between two families: its numbers from known accuracies, its arms, a tiny run."""

import types

import jax
import numpy as np
import pytest

from attnconv import models, tasks
from attnconv.claims import augment, data
from attnconv.claims.claim import Setting
from attnconv.spec import Spec

pytestmark = pytest.mark.slow

SPEC = Spec((28, 28, 1), 10)
TINY = {
    "digits": data.Plan(
        data.shifted,
        {
            data.PLAIN: (30, 100, None),
            data.FLOPS: (30, 100),
            data.AUGMENTED: (30,),
            data.SHARPNESS: (30,),
        },
    )
}


def test_a_shift_moves_each_image_by_its_own_offset_and_repeats_the_border():
    x = jax.random.normal(jax.random.key(1), (40, 5, 6, 2))
    y = np.asarray(augment.random_shift(jax.random.key(0), x, most=1))
    offsets = []
    for before, after in zip(np.asarray(x), y, strict=True):
        rows, columns = np.arange(5), np.arange(6)
        fits = [
            (d, e)
            for d in (-1, 0, 1)
            for e in (-1, 0, 1)
            if np.array_equal(before[np.clip(rows + d, 0, 4)][:, np.clip(columns + e, 0, 5)], after)
        ]
        assert len(fits) == 1
        offsets += fits
    assert len(set(offsets)) == 9


def test_a_flip_mirrors_about_half_of_the_images():
    x = jax.random.normal(jax.random.key(1), (200, 3, 4, 2))
    y = np.asarray(augment.random_flip(jax.random.key(0), x))
    same = (y == x).all((1, 2, 3))
    mirrored = (y == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 70 < same.sum() < 130


def test_the_arms_have_equal_parameters_or_equal_flops():
    made = data.makers(SPEC)
    shapes = {name: models.shapes(*make.args) for name, make in made.items()}
    for name in (data.CNN, data.ATTENTION):
        assert models.parameters(shapes[name]) == pytest.approx(data.PARAMS, rel=0.02)
    cost = {name: models.flops(model, SPEC) for name, model in shapes.items()}
    assert cost[data.SMALL] == pytest.approx(cost[data.ATTENTION], rel=0.02)
    assert made[data.CNN].args[2] != made[data.SMALL].args[2]


def test_parts_and_rows_follow_from_the_accuracies(monkeypatch):
    """A gap of 20, 10 and 4 points; 12 at equal FLOPs; 15 augmented, 17 sharpness-aware."""
    calls = []
    made = data.makers(tasks.load("digits").spec)

    def fit(make, train, validation, *, steps, rates, seeds, subset, gradient=None, augment=None):
        chosen = [subset(seed) for seed in seeds]
        n = len(chosen[0])
        calls.append((make.args[0], n, rates, [c.tolist() for c in chosen]))
        accuracy = {30: 0.6, 100: 0.7, len(train.labels): 0.8}[n]
        if make.args[0] == "cnn":
            small = make.args[2] == made[data.SMALL].args[2]
            gap = {30: 0.2, 100: 0.1, len(train.labels): 0.04}[n]
            gap = 0.12 if small else 0.15 if augment else 0.17 if gradient else gap
            accuracy += gap
        right = np.full((len(seeds), 50), accuracy) + 0.01 * np.array(seeds)[:, None]
        assert steps == max(data.LEAST, round(data.STEPS * n**0.5))
        return types.SimpleNamespace(rate=rates[-1], right=lambda probe: right)

    monkeypatch.setattr(data, "PLANS", TINY)
    monkeypatch.setattr(data, "makers", lambda spec: made)
    monkeypatch.setattr(data, "fit", fit)
    monkeypatch.setattr(data, "MANY", 500)
    evidence = data.test(Setting(seed=3))
    expected = [20, 16, 12, 0, 5, 3]
    np.testing.assert_allclose(
        [part.measured.estimate for part in evidence.parts], expected, atol=1e-6
    )
    assert all(part.above == 0.0 and part.below is None for part in evidence.parts)
    assert [row[:3] for row in evidence.rows] == [
        ["digits", "plain", "30"],
        ["digits", "plain", "100"],
        ["digits", "plain", f"{len(tasks.load('digits', seed=3).train.labels):,}"],
        ["digits", "equal FLOPs", "30"],
        ["digits", "equal FLOPs", "100"],
        ["digits", "augmented", "30"],
        ["digits", "sharpness-aware", "30"],
    ]
    most = [call for call in calls if call[1] > 500]
    assert [(rates, len(chosen)) for _, _, rates, chosen in most] == [(data.RATES[-1:], 3)] * 2
    by_size = {n: [c for _, size, _, c in calls if size == n] for n in (30, 100)}
    for chosen in by_size.values():
        assert all(c == chosen[0] for c in chosen)
    assert all(
        set(few) < set(many) for few, many in zip(by_size[30][0], by_size[100][0], strict=True)
    )


def test_a_tiny_run_learns_and_is_whole(monkeypatch):
    monkeypatch.setattr(
        data,
        "PLANS",
        {
            "digits": data.Plan(
                data.shifted,
                {
                    data.PLAIN: (30, 300),
                    data.FLOPS: (30, 300),
                    data.AUGMENTED: (30,),
                    data.SHARPNESS: (30,),
                },
            )
        },
    )
    monkeypatch.setattr(data, "SEEDS", 2)
    monkeypatch.setattr(data, "STEPS", 10)
    monkeypatch.setattr(data, "LEAST", 50)
    monkeypatch.setattr(data, "RATES", (0.01,))
    monkeypatch.setattr(data, "PARAMS", 10_000)
    evidence = data.test(Setting())
    ends = [part.measured for part in evidence.parts]
    assert len(ends) == 6
    assert np.isfinite(ends).all()
    numbers = [[float(cell.split()[0]) for cell in row[3:6]] for row in evidence.rows]
    for cnn, attention, gap in numbers:
        assert gap == pytest.approx(cnn - attention, abs=0.02)
    cnn, attention, _ = numbers[1]
    assert min(cnn, attention) > 40  # ten classes
    assert {len(s.x) for s in evidence.figure.series} == {1, 2}
