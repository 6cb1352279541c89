"""What makes a verdict of numbers: the rules, and intervals against a hand computation."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from attnconv.claims.claim import (
    FAILS,
    HOLDS,
    OPEN,
    Evidence,
    Figure,
    Measured,
    Part,
    accuracy,
    exactly,
    over_examples,
    over_seeds,
    points,
)


def verdict(low, high, **bounds):
    return Part("a quantity", Measured((low + high) / 2, low, high, seeds=3), **bounds).verdict


@pytest.mark.parametrize(
    ("low", "high", "bounds", "expected"),
    [
        (2.0, 3.0, {"above": 1.0}, HOLDS),
        (0.5, 3.0, {"above": 1.0}, OPEN),
        (0.0, 0.5, {"above": 1.0}, FAILS),
        (0.0, 0.5, {"below": 1.0}, HOLDS),
        (0.0, 3.0, {"below": 1.0}, OPEN),
        (2.0, 3.0, {"below": 1.0}, FAILS),
        (2.0, 3.0, {"above": 1.0, "below": 4.0}, HOLDS),
        (2.0, 5.0, {"above": 1.0, "below": 4.0}, OPEN),
        (0.0, 5.0, {"above": 1.0, "below": 4.0}, OPEN),
        (5.0, 6.0, {"above": 1.0, "below": 4.0}, FAILS),
        (0.0, 0.5, {"above": 1.0, "below": 4.0}, FAILS),
        # What lies on the bound lies neither above nor below it.
        (1.0, 3.0, {"above": 1.0}, OPEN),
        (0.0, 1.0, {"above": 1.0}, FAILS),
        (0.0, 1.0, {"below": 1.0}, OPEN),
        (1.0, 3.0, {"below": 1.0}, FAILS),
        (1.0, 1.0, {"above": 1.0}, FAILS),
        # A bound of zero is one.
        (-1.0, 1.0, {"above": 0.0}, OPEN),
        (-2.0, -1.0, {"above": 0.0}, FAILS),
        (1.0, 2.0, {"below": 0.0}, FAILS),
        # One number without an interval.
        (1e-9, 1e-9, {"below": 1e-5}, HOLDS),
        (1e-3, 1e-3, {"below": 1e-5}, FAILS),
    ],
)
def test_an_interval_decides_where_all_of_it_lies_on_one_side(low, high, bounds, expected):
    assert verdict(low, high, **bounds) == expected


@pytest.mark.parametrize("ends", [(math.nan, 2.0, 3.0), (2.5, math.nan, 3.0), (2.5, 2.0, math.inf)])
def test_what_is_no_number_decides_nothing(ends):
    assert Part("a quantity", Measured(*ends, seeds=3), above=1.0).verdict == OPEN
    assert Part("a quantity", Measured(*ends, seeds=3), below=1.0).verdict == OPEN


PARTS = {
    HOLDS: Part("above", Measured(2.0, 1.5, 2.5, seeds=5), above=1.0),
    OPEN: Part("around", Measured(1.0, 0.5, 1.5, seeds=5), above=1.0),
    FAILS: Part("below", Measured(0.5, 0.3, 0.7, seeds=5), above=1.0),
}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([HOLDS], HOLDS),
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, OPEN], OPEN),
        ([HOLDS, FAILS], FAILS),
        ([OPEN, FAILS, HOLDS], FAILS),
        ([OPEN], OPEN),
        ([], OPEN),
    ],
)
def test_a_claim_holds_where_all_of_its_parts_do(parts, expected):
    evidence = Evidence([PARTS[p] for p in parts], [], [], Figure("", "", []), "")
    assert evidence.verdict == expected


def test_one_of_many_that_lies_elsewhere_must_be_surer():
    """With 5 seeds and two quantities the quantile is 3.495 for 2.776, from a printed table."""

    def claim(high, *others, seeds=5):
        part = Part("below", Measured(0.0, -high, high, seeds), above=1.0)
        return Evidence([part, *others], [], [], Figure("", "", []), "").verdict

    assert claim(0.99) == FAILS, "alone"
    assert claim(0.99, PARTS[HOLDS]) == OPEN
    edge = 2.776 / 3.495
    assert claim(0.999 * edge, PARTS[HOLDS]) == FAILS
    assert claim(1.001 * edge, PARTS[HOLDS]) == OPEN
    assert claim(0.99, Part("sure", exactly(2.0), above=1.0)) == FAILS, "nothing was drawn for it"
    assert claim(0.999 * 4.303 / 6.205, PARTS[HOLDS], seeds=3) == FAILS
    assert claim(1.001 * 4.303 / 6.205, PARTS[HOLDS], seeds=3) == OPEN
    # Of twenty quantities on the bound one seems to lie below it in less than 1 of 20 claims.
    rng, failed = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = rng.normal(1.0, 0.3, (20, 5))
        parts = [Part("x", over_seeds(x), above=1.0) for x in drawn]
        failed += Evidence(parts, [], [], Figure("", "", []), "").verdict == FAILS
    assert failed / 400 < 0.05


def test_a_part_fails_only_where_its_claim_does():
    evidence = Evidence([PARTS[HOLDS], PARTS[FAILS]], [], [], Figure("", "", []), "")
    assert evidence.verdicts == [HOLDS, FAILS] and evidence.verdict == FAILS
    edge = Part("below", Measured(0.0, -0.99, 0.99, seeds=5), above=1.0)
    assert edge.verdict == FAILS
    evidence = dataclasses.replace(evidence, parts=[PARTS[HOLDS], edge])
    assert evidence.verdicts == [HOLDS, OPEN] and evidence.verdict == OPEN
    high = evidence.widened[1].measured.high
    assert high == pytest.approx(0.99 * 3.495 / 2.776, rel=1e-3) and high > 1


@pytest.mark.parametrize("mean", [0.0, 0.004, 0.3, 0.7, 0.99, 1.0])
def test_a_share_that_is_widened_is_one(mean):
    """As wide as Wilson's interval with the t quantile of so many parts, and within 0 and 100."""
    right = (np.arange(1000) < round(1000 * mean))[None].repeat(3, axis=0)
    part = Part("right", accuracy(right), below=200.0)
    evidence = Evidence([part] * 4, [], [], Figure("", "", []), "")
    _, low, high, *_ = evidence.widened[0].measured
    tail = stats.t.isf(0.025 / 4, 2) / stats.t.isf(0.025, 2)
    # Seeds are alike, so that the error is that of the examples; in a single seed it is z.
    z = stats.norm.isf(0.025) * tail
    found = stats.binomtest(round(1000 * mean), 1000)
    wilson = found.proportion_ci(1 - 2 * stats.norm.sf(z), method="wilson")
    assert (low, high) == pytest.approx((100 * wilson.low, 100 * wilson.high), rel=0.005, abs=1e-9)
    assert 0 <= low <= 100 * mean <= high <= 100 and part.measured.high <= high


def test_an_interval_says_how_many_seeds_it_is_of():
    with pytest.raises(ValueError, match=r"^x: expected the number of seeds"):
        Part("x", Measured(1.0, 0.5, 1.5))


def test_intervals_over_seeds_and_examples_hold_the_truth():
    """The mean over all seeds and all examples that could have been, of which few are drawn."""
    rng = np.random.default_rng(0)
    held = {"nats": 0, "points": 0, "accuracy": 0, "seeds alone": 0}
    for _ in range(400):
        hard = rng.normal(0, 1, 100)
        values = 0.3 + 0.05 * rng.normal(size=(5, 1)) + hard + rng.normal(size=(5, 100))
        _, low, high, *_ = over_examples(values)
        held["nats"] += low < 0.3 < high
        _, low, high, *_ = points(values)
        held["points"] += low < 30 < high
        _, low, high, *_ = over_seeds(values.mean(1))
        held["seeds alone"] += low < 0.3 < high
        right = rng.random(100) < 0.8
        _, low, high, *_ = accuracy(np.tile(right, (5, 1)))
        held["accuracy"] += low < 80 < high
    assert min(held[name] for name in ("nats", "points", "accuracy")) > 0.92 * 400
    assert held["seeds alone"] < 0.8 * 400


def test_equal_predictions_are_no_certainty():
    gain = points(np.zeros((5, 400)))
    assert gain.low < 0 < gain.high and gain.seeds == 5
    assert Part("gain, points", gain, above=0.0).verdict == OPEN
    assert gain.high == pytest.approx(100 * 1.966 / 400, rel=1e-3)  # t of 399 degrees of freedom


def test_an_accuracy_stays_within_its_bounds():
    mean, low, high, *_ = accuracy(np.ones((3, 50)))
    assert (mean, high) == (100, 100) and 90 < low < 99
    for of in (accuracy, over_examples):
        found = of(np.full((3, 50), math.nan))
        assert all(map(math.isnan, found[:3])) and found.seeds == 3


# Quantiles of Student's t at 97.5 %, from a printed table, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("freedom", QUANTILES)
def test_the_interval_over_seeds_is_that_of_student(freedom):
    values = np.random.default_rng(freedom).normal(90, 3, freedom + 1)
    mean, low, high, *_ = over_seeds(values.tolist())
    by_hand = sum(values) / len(values)
    deviation = math.sqrt(sum((v - by_hand) ** 2 for v in values) / freedom)
    half = QUANTILES[freedom] * deviation / math.sqrt(len(values))
    assert mean == pytest.approx(by_hand)
    assert high - mean == pytest.approx(half, rel=2e-4)
    assert mean - low == pytest.approx(half, rel=2e-4)


def test_seeds_that_agree_leave_no_doubt():
    assert over_seeds([100.0, 100.0, 100.0]) == Measured(100.0, 100.0, 100.0, seeds=3)


def test_nineteen_of_twenty_intervals_hold_the_mean():
    draws = np.random.default_rng(0).normal(7, 2, (1000, 3))
    held = sum(low < 7 < high for _, low, high, *_ in map(over_seeds, draws.tolist()))
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_an_interval_as_text():
    assert Measured(98.94, 98.0, 99.5).text() == "98.9 [98.0, 99.5]"
    assert Measured(0.123, -0.1, 0.2).text(2) == "0.12 [-0.10, 0.20]"
