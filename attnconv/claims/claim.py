"""What a claim is, the evidence that an experiment gives, and the rule that makes it a verdict."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import sem, t

from attnconv import stats

HOLDS, FAILS, OPEN = "holds", "does not hold here", "not decided"
CONFIDENCE = 0.95


class Measured(NamedTuple):
    """A number, and the interval in which repetitions leave it.

    Attributes:
      estimate: the number.
      low: the lower end of the interval.
      high: the upper end; all three are equal where nothing is drawn at random.
      seeds: that were drawn for it.
      share: whether it is one in percent, with Wilson's interval.
    """

    estimate: float
    low: float
    high: float
    seeds: int = 1
    share: bool = False

    def text(self, digits: int = 1) -> str:
        """As the tables show it.

        >>> Measured(98.94, 98.0, 99.5).text()
        '98.9 [98.0, 99.5]'
        """
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclasses.dataclass(frozen=True)
class Part:
    """One quantity, and where the claim says it lies.

    Attributes:
      what: the quantity, with its unit.
      measured: it, with its interval.
      above: the claim says that it lies above this; None: it says nothing of the kind.
      below: or below that.
    """

    what: str
    measured: Measured
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.measured.low < self.measured.high and self.measured.seeds < 2:
            raise ValueError(f"{self.what}: expected the number of seeds of an interval")

    @property
    def verdict(self) -> str:
        """HOLDS where all of the interval lies where the claim says, FAILS where none of it does.

        >>> Part("gap", Measured(3.0, 1.0, 5.0, seeds=5), above=0.0).verdict
        'holds'
        >>> Part("gap", Measured(3.0, -1.0, 7.0, seeds=5), above=0.0).verdict
        'not decided'
        """
        least = -np.inf if self.above is None else self.above
        most = np.inf if self.below is None else self.below
        estimate, low, high, *_ = self.measured
        if not np.isfinite([estimate, low, high]).all():
            return OPEN
        if least < low and high < most:
            return HOLDS
        return FAILS if high <= least or most <= low else OPEN

    def widened(self, count: int) -> "Part":
        """With the interval that it needs as one of so many that hold together (Bonferroni).

        Wider by the ratio of the t quantiles over seeds, which is largest where seeds are few:
        enough where examples are a sample too. For a share, that is the ratio of the errors that
        enter Wilson's interval.
        """
        estimate, low, high, seeds, share = self.measured
        if seeds == 1 or count < 2:
            return self
        tail = (1 - CONFIDENCE) / 2
        wider = float(t.isf(tail / count, seeds - 1) / t.isf(tail, seeds - 1))
        if share:
            low, high = _wilson(estimate, high if estimate < 50 else low, wider)
        else:
            low, high = (estimate + wider * (end - estimate) for end in (low, high))
        return dataclasses.replace(self, measured=self.measured._replace(low=low, high=high))


def _wilson(estimate: float, end: float, wider: float) -> tuple[float, float]:
    """The ends, in percent, where the error is so many times the one that gave this end.

    They are the p with `(p - mean)^2 = error^2 p (1 - p)`.
    """
    mean, p = estimate / 100, end / 100
    square = (wider * (p - mean)) ** 2 / (p * (1 - p)) if p != mean else 0.0
    middle = (mean + square / 2) / (1 + square)
    half = np.sqrt(square * mean * (1 - mean) + square**2 / 4) / (1 + square)
    return 100 * float(min(mean, middle - half)), 100 * float(max(mean, middle + half))


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a figure: y over x, numbers or names, with intervals where they are known."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @classmethod
    def of(cls, name: str, x: Sequence[Any], measured: Iterable[Measured]) -> "Series":
        """One with intervals."""
        y, low, high, *_ = zip(*measured, strict=True)
        return cls(name, x, y, low, high)


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
    def widened(self) -> list[Part]:
        """The parts, with intervals that hold together."""
        drawn = sum(part.measured.low < part.measured.high for part in self.parts)
        return [part.widened(drawn) for part in self.parts]

    @property
    def verdicts(self) -> list[str]:
        """Of each part: HOLDS by its own interval, FAILS by the widened one.

        Of many things that are measured one may lie elsewhere by chance.
        """
        pairs = zip(self.parts, self.widened, strict=True)
        return [
            FAILS if wide.verdict == FAILS else HOLDS if part.verdict == HOLDS else OPEN
            for part, wide in pairs
        ]

    @property
    def verdict(self) -> str:
        """FAILS where one part does, HOLDS where all do."""
        found = set(self.verdicts)
        return FAILS if FAILS in found else HOLDS if found == {HOLDS} else OPEN


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


def exactly(value: float) -> Measured:
    """What nothing is drawn at random for, or the worst of what is drawn."""
    return Measured(value, value, value)


def over_seeds(values: Sequence[float] | np.ndarray) -> Measured:
    """The mean of independent repetitions, with its t interval.

    >>> over_seeds([1.0, 2.0, 3.0])
    Measured(estimate=2.0, low=-0.484..., high=4.484..., seeds=3, share=False)
    """
    numbers = np.asarray(values, float)
    mean = float(numbers.mean())
    half = sem(numbers) * t.isf((1 - CONFIDENCE) / 2, len(numbers) - 1)
    return Measured(mean, float(mean - half), float(mean + half), len(numbers))


def accuracy(right: Shaped[np.ndarray, "R E"]) -> Measured:
    """In percent, with an interval over seeds and test examples, `stats.mean_intervals`.

    >>> accuracy(np.ones((5, 400)))
    Measured(estimate=100.0, low=99.04..., high=100.0, seeds=5, share=True)
    """
    if not np.isfinite(right).all():  # of a run that never came to where it is judged
        return Measured(np.nan, np.nan, np.nan, len(right))
    found = stats.mean_intervals({"right": right}, confidence=CONFIDENCE)["right"]
    return _measured(found, len(right), unit=100.0)._replace(share=True)


def points(more: Float[np.ndarray, "R E"]) -> Measured:
    """A difference of accuracies in points, paired by seed and test example.

    Its interval is over both, `stats.difference_interval`, with one example more undecided.
    """
    found = stats.difference_interval(more, undecided=1.0, confidence=CONFIDENCE)
    return _measured(found, len(more), unit=100.0)


def over_examples(values: Float[np.ndarray, "R E"]) -> Measured:
    """The mean over seeds and test examples, of anything; with an interval over both."""
    return _measured(stats.difference_interval(values, confidence=CONFIDENCE), len(values))


def _measured(found: stats.Interval, seeds: int, unit: float = 1.0) -> Measured:
    return Measured(unit * found.estimate, unit * found.low, unit * found.high, seeds)
