"""What a claim is, the evidence that an experiment gives, and the rule that makes it a verdict."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import sem, t

from attnconv import stats

HOLDS, FAILS, OPEN = "holds", "does not hold here", "not decided"
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Part:
    """One quantity with its interval, and where the claim says it lies.

    Attributes:
      what: the quantity, with its unit.
      estimate: of it.
      low: the lower end of the interval.
      high: the upper end; all three are equal where nothing is drawn at random.
      above: the claim says that it lies above this; None: it says nothing of the kind.
      below: or below that.
      seeds: that were drawn for it.
    """

    what: str
    estimate: float
    low: float
    high: float
    above: float | None = None
    below: float | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.low < self.high and self.seeds < 2:
            raise ValueError(f"{self.what}: expected the number of seeds of an interval")

    @property
    def verdict(self) -> str:
        """HOLDS where all of the interval lies where the claim says, FAILS where none of it does.

        >>> Part("gap", 3.0, 1.0, 5.0, above=0.0, seeds=5).verdict
        'holds'
        >>> Part("gap", 3.0, -1.0, 7.0, above=0.0, seeds=5).verdict
        'not decided'
        """
        least = -np.inf if self.above is None else self.above
        most = np.inf if self.below is None else self.below
        if not np.isfinite([self.estimate, self.low, self.high]).all():
            return OPEN
        if least < self.low and self.high < most:
            return HOLDS
        return FAILS if self.high <= least or most <= self.low else OPEN

    def widened(self, count: int) -> "Part":
        """With an interval as wide as if it were one of so many that hold together (Bonferroni).

        By the t quantiles of the seeds alone: least favourable where examples are a sample too.
        """
        if self.seeds == 1 or count < 2:
            return self
        tail = (1 - CONFIDENCE) / 2
        wider = float(t.isf(tail / count, self.seeds - 1) / t.isf(tail, self.seeds - 1))
        low, high = (self.estimate + wider * (end - self.estimate) for end in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a figure: y over x, numbers or names, with intervals where they are known."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """What is drawn of a claim; an axis whose label ends in "(log)" is logarithmic."""

    x: str
    y: str
    series: Sequence[Series]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What an experiment found.

    Attributes:
      parts: the claim holds where all of them do.
      header, rows: a table of what was measured, as text.
      figure: what shows it.
      setting: data, models, budget and seeds, in a sentence or two.
    """

    parts: Sequence[Part]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figure: Figure
    setting: str

    @property
    def verdict(self) -> str:
        """HOLDS where all parts do; FAILS where one does that would with all as sure together.

        Of many things that are measured one may lie elsewhere by chance.
        """
        drawn = sum(part.low < part.high for part in self.parts)
        if any(part.widened(drawn).verdict == FAILS for part in self.parts):
            return FAILS
        return HOLDS if {part.verdict for part in self.parts} == {HOLDS} else OPEN


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an experiment is given: the first of its seeds, and the folder of prepared sets."""

    seed: int = 0
    data_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the field, and the smallest experiment that could contradict it.

    Attributes:
      name: short, for the command line.
      statement: what is claimed.
      source: by whom, with the number they report.
      criterion: what must be found for it to hold, written before it is measured.
      test: the experiment.
      needs: sets that must be prepared in `data_dir`.
    """

    name: str
    statement: str
    source: str
    criterion: str
    test: Callable[[Setting], Evidence]
    needs: tuple[str, ...] = ()


def over_seeds(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The mean of independent repetitions, and the ends of its t interval.

    >>> over_seeds([1.0, 2.0, 3.0])
    (2.0, -0.484..., 4.484...)
    """
    numbers = np.asarray(values, float)
    mean = float(numbers.mean())
    half = sem(numbers) * t.isf((1 - CONFIDENCE) / 2, len(numbers) - 1)
    return mean, float(mean - half), float(mean + half)


def accuracy(right: Shaped[np.ndarray, "R E"]) -> tuple[float, float, float]:
    """In percent, with an interval over seeds and test examples, `stats.mean_intervals`.

    >>> accuracy(np.ones((5, 400)))
    (100.0, 99.04..., 100.0)
    """
    if not np.isfinite(right).all():  # of a run that never came to where it is judged
        return (np.nan,) * 3
    return _percent(stats.mean_intervals({"right": right}, confidence=CONFIDENCE)["right"])


def points(more: Float[np.ndarray, "R E"]) -> tuple[float, float, float]:
    """A difference of accuracies in points, paired by seed and test example.

    Its interval is over both, `stats.difference_interval`, with one example more undecided.
    """
    return _percent(stats.difference_interval(more, undecided=1.0, confidence=CONFIDENCE))


def _percent(found: stats.Interval) -> tuple[float, float, float]:
    return 100 * found.estimate, 100 * found.low, 100 * found.high


def over_examples(values: Float[np.ndarray, "R E"]) -> tuple[float, float, float]:
    """The mean over seeds and test examples, of anything; with an interval over both."""
    return dataclasses.astuple(stats.difference_interval(values, confidence=CONFIDENCE))


def interval(estimate: float, low: float, high: float, digits: int = 1) -> str:
    """A number with its interval, as the tables show it.

    >>> interval(98.94, 98.0, 99.5)
    '98.9 [98.0, 99.5]'
    """
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
