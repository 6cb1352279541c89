"""How sure a score is, and which differences between models are more than chance.

A cell (a model at a train size) is a matrix `[R, E]`: R training seeds by E test examples, 1 where
the prediction was right and 0 where it was wrong. Both are samples, of all the trainings and of all
the examples that could have been, so both belong in the error of a mean. With the mean of a seed
`x_r.`, of an example `x_.e` and of everything `x_..`:

    variance of x_..  =  sum_r (x_r. - x_..)^2 / (R (R - 1))  +  sum_e (x_.e - x_..)^2 / (E (E - 1))
                         seeds, R - 1 degrees of freedom         examples, E - 1 degrees of freedom

A bootstrap over seeds and examples (Owen 2007), with R - 1 of the R seeds in a draw (Rao and Wu
1988), estimates the same, with noise, but counts three times what one seed does to one example; the
sum above counts it twice, and so is on average never too small. With one seed the first term is
absent: the interval then says nothing of how another training would have ended.

Five seeds tell little about their own spread, so each term has its own t quantile (Banerjee 1960):

    half width^2  =  t_{R-1}^2 * (seeds)  +  t_{E-1}^2 * (examples)

This covers at least as often as asked for normal errors, whatever the two true variances are. One t
quantile for the sum, with Satterthwaite's degrees of freedom, is narrower and does not: where it
happens to find the seeds alike it trusts them.

Sources, besides those named below:
  Banerjee 1960, Approximate confidence interval for linear functions of means of k populations when
    the population variances are not equal, Sankhya 22, 357-358.
  Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1, 386-411.
  Rao and Wu 1988, Resampling inference with complex survey data, JASA 83, 231-241.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

Key = TypeVar("Key", bound=Hashable)


_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of the interval around it."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison(Generic[Key]):
    """The mean score of `a` minus that of `b`; established: the interval excludes zero."""

    a: Key
    b: Key
    difference: Interval
    established: bool


def mean_intervals(
    scores: Mapping[Key, Shaped[np.ndarray, "R E"]], *, confidence: float = 0.95
) -> dict[Key, Interval]:
    """The mean of each cell with an interval of its own.

    Near 0 and 1 an interval that is symmetric about the mean covers far less often than it says, so
    the half width above enters Wilson's interval for a proportion (1927, JASA 22, 209-212), as the
    effective number of examples `x_.. (1 - x_..) / variance` (Korn and Graubard 1998, Survey
    Methodology 24, 193-201). It lies within [0, 1], and where all scores are 0 or all are 1 it has
    the width that E examples give.

    Args:
      scores: a matrix `[R, E]` for each cell; row r is the same seed and column e the same test
        example in every cell. The mean of a row lies in [0, 1].
      confidence: how often such an interval covers the true mean.

    Raises:
      ValueError: a matrix that is not `[R, E]` with E >= 2, shapes that differ between cells,
        means outside [0, 1], a confidence outside (0, 1).

    >>> mean_intervals({"cnn": np.ones((5, 360))})["cnn"]
    Interval(estimate=1.0, low=0.989..., high=1.0)
    """
    z = stats.norm.isf((1 - confidence) / 2)
    intervals = {}
    for key, score in _checked(scores, confidence).items():
        seeds, examples = score.shape
        mean = float(np.clip(score.mean(), 0, 1))
        spread = mean * (1 - mean)
        if spread > 0:
            of_seeds, of_examples, _ = _variances(score)
            ratio = _half_width(z, of_seeds, seeds - 1, of_examples, examples - 1) ** 2 / spread
        else:
            ratio = _t_quantile(z, examples - 1) ** 2 / examples
        centre = (mean + ratio / 2) / (1 + ratio)
        half = np.sqrt(ratio * spread + ratio**2 / 4) / (1 + ratio)
        low, high = max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
        intervals[key] = Interval(float(mean), float(low), float(high))
    return intervals


def difference_interval(
    difference: Float[np.ndarray, "R E"], *, undecided: float = 0.0, confidence: float = 0.95
) -> Interval:
    """The mean of what one cell has more than another, seed by seed and example by example.

    In any unit, such as nats, and of one difference alone: `paired_comparisons` has several that
    hold together.

    Args:
      difference: `[R, E]`.
      undecided: a difference that one example more would have, without a direction: 1 for scores of
        0 and 1, as in `paired_comparisons`, so that equal predictions do not look like a certainty.
      confidence: how often such an interval covers the true mean.

    Raises:
      ValueError: a matrix that is not `[R, E]` with E >= 2, a confidence outside (0, 1).

    >>> difference_interval(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    Interval(estimate=0.5, low=-1.95..., high=2.95...)
    """
    (difference,) = _matrices({"difference": difference}, confidence).values()
    seeds, examples = difference.shape
    of_seeds, of_examples, _ = _variances(difference)
    z, mean = stats.norm.isf((1 - confidence) / 2), float(difference.mean())
    of_examples += (undecided / examples) ** 2
    half = _half_width(z, of_seeds, seeds - 1, of_examples, examples - 1)
    return Interval(mean, mean - half, mean + half)


def ratio_scores(
    found: Shaped[np.ndarray, "R E"], of: Shaped[np.ndarray, "E"]
) -> Float[np.ndarray, "R E"]:
    """A score of each example that has several labels, whose mean is `sum found / sum of`.

    It is the score of its seed plus what the example adds to that, `p + (found_e - p of_e) /
    mean(of)`: the spread of that is the spread of a ratio of sums (Cochran 1977, Sampling
    Techniques, section 6.4), and labels of one example do not count as independent.

    >>> ratio_scores(np.array([[1, 3]]), np.array([1, 5]))
    array([[0.77..., 0.55...]])
    """
    seed = found.sum(1, keepdims=True) / of.sum()
    return seed + (found - seed * of) / of.mean()


def paired_comparisons(
    scores: Mapping[Key, Shaped[np.ndarray, "R E"]],
    pairs: Sequence[tuple[Key, Key]],
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> list[Comparison[Key]]:
    """The differences of the pairs, with intervals that hold for all of them together.

    A difference is taken seed by seed and example by example, so what is hard for both models
    cancels. Its error is that above, with two changes. The variance of a few seeds is averaged with
    what all pairs of its group show of it, and has twice the degrees of freedom (a moderated
    variance, as in Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3). And
    1 / E^2 is added, as if one example more were undecided (Agresti and Min 2005, Statistics in
    Medicine 24, 729-740), so that two equal predictions do not look like a certainty.

    The more pairs are asked for, the likelier is one large difference by chance. The critical value
    is therefore the quantile of the largest |t| of all pairs (Romano and Wolf 2005, JASA 100,
    94-108) in draws of a bootstrap with Gaussian weights (Chernozhukov, Chetverikov and Kato 2013,
    Annals of Statistics 41, 2786-2819), taken to the t distribution of each term. Pairs share the
    weights of the examples, so pairs that are alike cost little; the seeds are too few to show how
    pairs depend on each other, so they count as independent, which is the least favourable case
    (Sidak 1967, JASA 62, 626-633).

    Args:
      scores: as for `mean_intervals`.
      pairs: the keys `(a, b)` to compare; the differences are a minus b.
      groups: of each pair, what it has in common with those whose seeds spread as its own may, such
        as the train size; None: all are one group.
      confidence: how often all the intervals together cover the true differences.
      draws: bootstrap draws for the critical value.
      seed: of the draws.

    Returns:
      The comparisons in the order of `pairs`; the intervals are clipped to [-1, 1].

    Raises:
      ValueError: as for `mean_intervals`; a pair with an unknown key or no group; draws < 1.

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
    groups = [None] * len(pairs) if groups is None else groups
    if len(groups) != len(pairs):
        raise ValueError(f"groups must be one for each of {len(pairs)} pairs, got {len(groups)}")
    if not pairs:
        return []
    differences = [checked[a] - checked[b] for a, b in pairs]
    seeds, examples = differences[0].shape
    own, of_examples, flips = np.array([_variances(each) for each in differences]).T
    of_seeds, seed_df = own.copy(), np.full(len(pairs), seeds - 1)
    for group in set(groups):
        mine = np.array([other == group for other in groups])
        of_seeds[mine], seed_df[mine] = _moderated(own[mine], flips[mine], seeds - 1)
    of_examples = of_examples + 1 / examples**2

    covariance = np.atleast_2d(np.cov([each.mean(axis=0) for each in differences])) / examples
    critical = _critical_value(covariance, of_seeds + of_examples, confidence, draws, seed)
    comparisons = []
    for i, (a, b) in enumerate(pairs):
        mean = float(differences[i].mean())
        half = _half_width(critical, of_seeds[i], int(seed_df[i]), of_examples[i], examples - 1)
        interval = Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))
        comparisons.append(Comparison(a, b, interval, not interval.low <= 0 <= interval.high))
    return comparisons


def _checked(
    scores: Mapping[Key, np.ndarray], confidence: float
) -> dict[Key, Float[np.ndarray, "R E"]]:
    arrays = _matrices(scores, confidence)
    shapes = {score.shape for score in arrays.values()}
    if len(shapes) > 1:
        raise ValueError(f"scores must have one shape [R, E] in every cell, got {sorted(shapes)}")
    for key, score in arrays.items():
        means = score.mean(axis=1)
        if not np.all((means >= -_ROUNDING) & (means <= 1 + _ROUNDING)):
            raise ValueError(f"scores[{key!r}] must have means in [0, 1], got {means}")
    return arrays


def _matrices(
    scores: Mapping[Key, np.ndarray], confidence: float
) -> dict[Key, Float[np.ndarray, "R E"]]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    arrays = {key: np.asarray(score, np.float64) for key, score in scores.items()}
    for key, score in arrays.items():
        if score.ndim != 2 or score.shape[0] < 1 or score.shape[1] < 2:
            raise ValueError(f"scores[{key!r}] must be [R, E] with E >= 2, got {score.shape}")
    return arrays


def _variances(score: Float[np.ndarray, "R E"]) -> tuple[float, float, float]:
    """The variances of the mean: of the seeds, of the examples, and of what flips in single cells.

    The third is part of both others. A single seed leaves the first and the third at zero.
    """
    seeds, examples = score.shape
    by_seed, by_example = score.mean(axis=1), score.mean(axis=0)
    of_examples = float(by_example.var(ddof=1) / examples)
    if seeds == 1:
        return 0.0, of_examples, 0.0
    flips = score - by_seed[:, None] - by_example + score.mean()
    freedom = (seeds - 1) * (examples - 1)
    of_flips = float(np.square(flips).sum() / freedom / (seeds * examples))
    return float(by_seed.var(ddof=1) / seeds), of_examples, of_flips


def _moderated(
    own: Float[np.ndarray, "pairs"], flips: Float[np.ndarray, "pairs"], freedom: int
) -> tuple[Float[np.ndarray, "pairs"], int]:
    """The seeds' variances, each averaged with what the group shows, and their degrees of freedom.

    Scores near 1 vary less than scores near 1/2, so pairs are put together by how many times larger
    than the flips of single predictions the spread of whole trainings is.
    """
    if len(own) == 1 or not flips.any():
        return own, freedom
    return (own + flips * own.sum() / flips.sum()) / 2, 2 * freedom


def _t_quantile(z: float, freedom: int) -> float:
    """The t quantile with the same tail as the normal quantile z."""
    return float(stats.t.isf(stats.norm.sf(z), freedom))


def _half_width(
    z: float, of_seeds: float, seed_freedom: int, of_examples: float, example_freedom: int
) -> float:
    """Half the width of the interval whose tails are those of the normal quantile z."""
    square = _t_quantile(z, example_freedom) ** 2 * of_examples
    if of_seeds > 0:
        square += _t_quantile(z, seed_freedom) ** 2 * of_seeds
    return float(np.sqrt(square))


def _critical_value(
    covariance: Float[np.ndarray, "pairs pairs"],
    variances: Float[np.ndarray, "pairs"],
    confidence: float,
    draws: int,
    seed: int,
) -> float:
    """The quantile of the largest |t| of all pairs, on the scale of the normal distribution.

    Given the data a sum with Gaussian weights is Gaussian, so the draws come straight from the
    covariance that the examples give the pairs, and no weight for each example is ever stored.
    """
    scale = np.sqrt(variances)
    correlation = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)  # the variances hold the seeds too, independent by pair
    rng = np.random.default_rng(seed)
    t = rng.multivariate_normal(np.zeros(len(scale)), correlation, size=draws, method="cholesky")
    return float(np.quantile(np.abs(t).max(axis=1), confidence))
