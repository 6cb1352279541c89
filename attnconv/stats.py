"""How sure a score is, and which differences between models are more than chance.

A cell (a model at a train size) is a matrix `[R, E]`: R training seeds by E test examples, 1 where
the prediction was right and 0 where it was wrong. Both are samples, from all the trainings and from
all the examples that could have been, so both belong in the error of a mean. With the mean of a seed
`x_r.`, of an example `x_.e` and of everything `x_..`:

    variance of x_..  =  sum_r (x_r. - x_..)^2 / (R (R - 1))  +  sum_e (x_.e - x_..)^2 / (E (E - 1))
                         seeds, R - 1 degrees of freedom         examples, E - 1 degrees of freedom

This is what a bootstrap over seeds and examples (Owen 2007) estimates, without its noise, with R - 1
of the R seeds in a draw (Rao and Wu 1988) and without the product of both resamplings, which would
count what one seed does to one example a third time. It still counts that part twice: the error is
never too small. With one seed the first term is absent: the interval then says nothing of how
another training would have ended.

Five seeds tell little about their own spread, so each term gets its own t quantile (Banerjee 1960):

    half width^2  =  t_{R-1}^2 * (seeds)  +  t_{E-1}^2 * (examples)

which covers at least as often as asked for normal errors, whatever the two true variances are.

Sources:
  Banerjee 1960, Approximate confidence interval for linear functions of means of k populations when
    the population variances are not equal, Sankhya 22, 357-358.
  Chernozhukov, Chetverikov and Kato 2013, Gaussian approximations and multiplier bootstrap for maxima
    of sums of high-dimensional random vectors, Annals of Statistics 41, 2786-2819.
  Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1, 386-411.
  Rao and Wu 1988, Resampling inference with complex survey data, JASA 83, 231-241.
  Romano and Wolf 2005, Exact and approximate stepdown methods for multiple hypothesis testing,
    JASA 100, 94-108 (section 3, the quantile of the largest |t|).
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of the interval around it."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean score of `a` minus that of `b`; established means that the interval excludes zero."""

    a: Hashable
    b: Hashable
    difference: Interval
    established: bool


def mean_intervals(
    scores: Mapping[Key, Shaped[np.ndarray, "R E"]], *, confidence: float = 0.95
) -> dict[Key, Interval]:
    """The mean of each cell with an interval of its own.

    Near 0 and 1 an interval that is symmetric about the mean covers far less often than it says, so
    the half width above enters Wilson's (1927) interval for a proportion, as the effective number of
    examples `x_.. (1 - x_..) / variance` (Korn and Graubard 1998, Survey Methodology 24, 193-201).
    It lies within [0, 1], and where every score is equal to 0 or to 1 it has the width of E examples.

    Args:
      scores: a matrix `[R, E]` for each cell, values in [0, 1]; row r is the same seed and column e
        the same test example in every cell.
      confidence: how often such an interval covers the true mean.

    Raises:
      ValueError: a matrix that is not `[R, E]` with E >= 2, shapes that differ between cells, values
        outside [0, 1], a confidence outside (0, 1).

    >>> scores = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1]])
    >>> mean_intervals({"cnn": scores, "mlp": np.ones_like(scores)})["mlp"]
    Interval(estimate=1.0, low=0.588..., high=1.0)
    """
    checked = _checked(scores, confidence)
    z = stats.norm.isf((1 - confidence) / 2)
    intervals = {}
    for key, score in checked.items():
        mean = score.mean()
        spread = mean * (1 - mean)
        if spread > 0:
            ratio = _half_width(score, z) ** 2 / spread
        else:
            ratio = _t_quantile(z, score.shape[1] - 1) ** 2 / score.shape[1]
        centre = (mean + ratio / 2) / (1 + ratio)
        half = np.sqrt(ratio * spread + ratio**2 / 4) / (1 + ratio)
        low, high = max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
        intervals[key] = Interval(float(mean), float(low), float(high))
    return intervals


def paired_comparisons(
    scores: Mapping[Key, Shaped[np.ndarray, "R E"]],
    pairs: Sequence[tuple[Key, Key]],
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """The differences of the pairs, with intervals that hold for all of them together.

    A difference is taken seed by seed and example by example, so what is hard for both models
    cancels. The more pairs are asked for, the likelier is one large difference by chance: the
    critical value is the quantile of the largest |t| of all pairs (Romano and Wolf 2005), over
    draws of a bootstrap with Gaussian weights (Chernozhukov, Chetverikov and Kato 2013). All pairs
    share the weights of the examples, so pairs that are alike cost little. Of the seeds, few as they
    are, each pair draws its own: independence is the least favourable case (Sidak 1967, JASA 62,
    626-633), and the correlations that a handful of seeds show would be too good to be true. The
    critical value then passes through the t distributions of both terms, and 1 / E^2 is added to the
    variance, as if one example more were undecided (Agresti and Min 2005, Statistics in Medicine 24,
    729-740), so that two equal predictions do not look like a certainty.

    Args:
      scores: as for `mean_intervals`.
      pairs: the keys `(a, b)` to compare; the differences are a minus b.
      confidence: how often all the intervals together cover the true differences.
      draws: bootstrap draws for the critical value.
      seed: of the draws.

    Returns:
      The comparisons in the order of `pairs`; the intervals are clipped to [-1, 1].

    Raises:
      ValueError: as for `mean_intervals`; a pair with an unknown key; draws < 1.

    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.random((5, 300)) < 0.9, rng.random((5, 300)) < 0.6
    >>> paired_comparisons({"a": a, "b": b}, [("a", "b")])[0].established
    True
    """
    checked = _checked(scores, confidence)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    for key in (key for pair in pairs for key in pair):
        if key not in checked:
            raise ValueError(f"pairs must name cells of scores {list(checked)}, got {key!r}")
    if not pairs:
        return []
    differences = [checked[a] - checked[b] for a, b in pairs]
    undecided = 1 / differences[0].shape[1] ** 2
    critical = _critical_value(differences, undecided, confidence, draws, seed)
    comparisons = []
    for (a, b), difference in zip(pairs, differences, strict=True):
        mean = float(difference.mean())
        half = _half_width(difference, critical, undecided=undecided)
        interval = Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))
        comparisons.append(Comparison(a, b, interval, not interval.low <= 0 <= interval.high))
    return comparisons


def _checked(
    scores: Mapping[Key, np.ndarray], confidence: float
) -> dict[Key, Float[np.ndarray, "R E"]]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    arrays = {key: np.asarray(score, np.float64) for key, score in scores.items()}
    shapes = {score.shape for score in arrays.values()}
    if len(shapes) > 1:
        raise ValueError(f"scores must have one shape [R, E] in every cell, got {sorted(shapes)}")
    for key, score in arrays.items():
        if score.ndim != 2 or score.shape[0] < 1 or score.shape[1] < 2:
            raise ValueError(f"scores[{key!r}] must be [R, E] with E >= 2, got {score.shape}")
        if not np.all((score >= 0) & (score <= 1)):
            raise ValueError(f"scores[{key!r}] must lie in [0, 1], got values outside or NaN")
    return arrays


def _variances(score: Float[np.ndarray, "R E"]) -> tuple[float, float]:
    """The two terms of the variance of the mean: of the seeds (0 for a single one), of the examples."""
    seeds, examples = score.shape
    of_seeds = score.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(of_seeds), float(score.mean(axis=0).var(ddof=1) / examples)


def _t_quantile(z: float, df: int) -> float:
    """The t quantile with the same tail as the normal quantile z; infinite without any freedom."""
    return float(stats.t.isf(stats.norm.sf(z), df)) if df > 0 else np.inf


def _half_width(score: Float[np.ndarray, "R E"], z: float, *, undecided: float = 0.0) -> float:
    """Half the width of the interval whose tails are those of the normal quantile z."""
    seeds, examples = score.shape
    of_seeds, of_examples = _variances(score)
    square = _t_quantile(z, examples - 1) ** 2 * (of_examples + undecided)
    if seeds > 1:
        square += _t_quantile(z, seeds - 1) ** 2 * of_seeds
    return float(np.sqrt(square))


def _critical_value(
    differences: Sequence[Float[np.ndarray, "R E"]],
    undecided: float,
    confidence: float,
    draws: int,
    seed: int,
) -> float:
    """The quantile of the largest |t| of all pairs, on the scale of the normal distribution.

    Given the data a sum with Gaussian weights is Gaussian, so the draws come straight from the
    covariance of the sums, `[pairs, pairs]`, and no weight for each example is ever stored.
    """
    by_example = np.stack([difference.mean(axis=0) for difference in differences])
    examples = by_example.shape[1]
    covariance = np.atleast_2d(np.cov(by_example)) / examples
    own = undecided + np.array([_variances(difference)[0] for difference in differences])
    covariance[np.diag_indices(len(differences))] += own
    scale = np.sqrt(np.diag(covariance))
    rng = np.random.default_rng(seed)
    t = rng.multivariate_normal(
        np.zeros(len(scale)), covariance / np.outer(scale, scale), size=draws, method="cholesky"
    )
    return float(np.quantile(np.abs(t).max(axis=1), confidence))
