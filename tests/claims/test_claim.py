"""What makes a verdict of numbers: the rules, and intervals against a hand computation."""

import math

import numpy as np
import pytest

from attnconv.claims.claim import (
    FAILS,
    HOLDS,
    OPEN,
    Evidence,
    Figure,
    Part,
    interval,
    over_seeds,
)


def verdict(low, high, **bounds):
    return Part("a quantity", (low + high) / 2, low, high, **bounds).verdict


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
    assert Part("a quantity", *ends, above=1.0).verdict == OPEN
    assert Part("a quantity", *ends, below=1.0).verdict == OPEN


PARTS = {
    HOLDS: Part("above", 2.0, 1.5, 2.5, above=1.0),
    OPEN: Part("around", 1.0, 0.5, 1.5, above=1.0),
    FAILS: Part("below", 0.5, 0.2, 0.8, above=1.0),
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


# Quantiles of Student's t at 97.5 %, from a printed table, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("freedom", QUANTILES)
def test_the_interval_over_seeds_is_that_of_student(freedom):
    values = np.random.default_rng(freedom).normal(90, 3, freedom + 1)
    mean, low, high = over_seeds(values.tolist())
    by_hand = sum(values) / len(values)
    deviation = math.sqrt(sum((v - by_hand) ** 2 for v in values) / freedom)
    half = QUANTILES[freedom] * deviation / math.sqrt(len(values))
    assert mean == pytest.approx(by_hand)
    assert high - mean == pytest.approx(half, rel=2e-4)
    assert mean - low == pytest.approx(half, rel=2e-4)


def test_seeds_that_agree_leave_no_doubt():
    assert over_seeds([100.0, 100.0, 100.0]) == (100.0, 100.0, 100.0)


def test_nineteen_of_twenty_intervals_hold_the_mean():
    draws = np.random.default_rng(0).normal(7, 2, (1000, 3))
    held = sum(low < 7 < high for _, low, high in map(over_seeds, draws.tolist()))
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_an_interval_as_text():
    assert interval(98.94, 98.0, 99.5) == "98.9 [98.0, 99.5]"
    assert interval(0.123, -0.1, 0.2, digits=2) == "0.12 [-0.10, 0.20]"
