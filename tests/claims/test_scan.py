"""The experiment on SCAN with sequences of its own, and the sets themselves where they are."""

from pathlib import Path

import numpy as np
import pytest

from attnconv import tasks
from attnconv.claims import Setting, missing, scan
from attnconv.claims.claim import FAILS, HOLDS
from attnconv.tasks.raw import Raw
from attnconv.tasks.task import assemble

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "tfds"
SYMBOLS = "abcdef"


def echo(name, *, wrong=False, train=1200, test=80):
    """Sequences to be written as they are; with `wrong`, the test split wants them reversed."""
    rng = np.random.default_rng(0)

    def examples(count, reverse):
        lines = ["".join(rng.choice(list(SYMBOLS), rng.integers(1, 4))) for _ in range(count)]
        inputs, targets = np.empty(count, object), np.empty(count, object)
        for i, line in enumerate(lines):
            inputs[i] = tuple(line)
            targets[i] = tuple((line + "f")[::-1] if reverse else line)
        return inputs, targets

    splits = {"train": examples(train, False), "test": examples(test, wrong)}
    return assemble(Raw(name, "made here", (), splits, output="sequence"), seed=0)


@pytest.fixture
def small(monkeypatch):
    sizes = {"SEEDS": 2, "STEPS": 500, "PARAMS": 12_000, "RATE": 0.01}
    for name, value in sizes.items():
        monkeypatch.setattr(scan, name, value)


def test_exact_match_counts_whole_sequences_of_validation_and_test(small):
    alike, other = scan.exact_match(echo("echo"), range(2))
    assert (alike.shape, other.shape) == ((2, 180), (2, 80))
    assert min(*alike.mean(axis=1), *other.mean(axis=1)) > 0.8
    alike, other = scan.exact_match(echo("echo", wrong=True), range(2))
    assert alike.mean(axis=1).min() > 0.8
    assert not other.any(), "no sequence is right that should have one symbol more"


def test_the_experiment(small, monkeypatch):
    made = {name: echo(name, wrong=name != scan.SIMPLE) for name in scan.PUBLISHED}
    asked = []

    def load(name, *, data_dir, seed):
        asked.append((name, data_dir, seed))
        return made[name]

    monkeypatch.setattr(scan.tasks, "load", load)
    monkeypatch.setattr(scan, "SOLVED", 50.0)
    evidence = scan.test(Setting(seed=3))
    assert asked == [(name, None, 3) for name in scan.PUBLISHED]
    assert [row[0] for row in evidence.rows] == list(scan.PUBLISHED)
    assert all(len(row) == len(evidence.header) for row in evidence.rows)
    assert [row[2] for row in evidence.rows] == ["80"] * 3
    assert [row[3:5] for row in evidence.rows] == [["3", "3"], ["3", "4"], ["3", "4"]]
    assert [row[-1] for row in evidence.rows] == ["99.8", "20.8", "1.2"]
    assert len(evidence.parts) == 5
    assert all(0 <= part.measured.estimate <= 100 for part in evidence.parts)
    for part in evidence.parts:
        bounds = (part.above, part.below)
        failing = "like those" not in part.what and scan.SIMPLE not in part.what
        assert bounds == ((None, 50.0) if failing else (50.0, None)), part
    assert evidence.verdict == HOLDS
    here, there = evidence.figure.series
    assert list(here.x) == list(there.x) == list(scan.PUBLISHED)
    assert list(there.y) == [99.8, 20.8, 1.2]

    # Had the nets done what follows, the claim would not hold.
    made.update({name: echo(name) for name in scan.PUBLISHED})
    verdicts = [part.verdict for part in scan.test(Setting(seed=3)).parts if part.below]
    assert verdicts == [FAILS, FAILS]


def test_it_needs_the_sets_that_it_reads():
    assert scan.CLAIM.needs == tuple(scan.PUBLISHED)
    assert missing(scan.CLAIM, Setting()) == list(scan.PUBLISHED)


@pytest.mark.skipif(not DATA.is_dir(), reason="the prepared sets are not beside the project")
def test_the_splits_are_what_they_are_said_to_be():
    assert missing(scan.CLAIM, Setting(data_dir=DATA)) == []
    lengths = {}
    for name in scan.PUBLISHED:
        task = tasks.load(name, data_dir=DATA)
        for split in ("train", "validation", "test"):
            lengths[name, split] = (getattr(task, split).labels >= 0).sum(axis=1) - 1
    assert lengths["scan/length", "train"].max() <= 22
    assert lengths["scan/length", "validation"].max() <= 22
    assert lengths["scan/length", "test"].min() >= 24
    assert lengths["scan/simple", "train"].max() == lengths["scan/simple", "test"].max() == 48
    assert lengths["scan/addprim_jump", "train"].max() == 48
