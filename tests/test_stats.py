"""Intervals and comparisons against closed forms, scipy, statistical theory and simulation."""

import itertools

import numpy as np
import pytest
import scipy.stats

from attnconv.stats import Interval, mean_intervals, paired_comparisons


def width(interval):
    return interval.high - interval.low


def two_way(
    rng, *, seeds, examples, rate=0.85, of_seeds=0.0, of_models=0.6, of_flips=0.5, models=2
):
    """Right or wrong for models of one true accuracy: latent examples, seeds and flips add up."""
    latent = (
        1.5 * rng.normal(size=(1, 1, examples))
        + of_models * rng.normal(size=(models, 1, examples))
        + of_seeds * rng.normal(size=(models, seeds, 1))
        + of_flips * rng.normal(size=(models, seeds, examples))
    )
    scale = np.sqrt(1.5**2 + of_models**2 + of_seeds**2 + of_flips**2)
    return (latent < scipy.stats.norm.ppf(rate) * scale).astype(float)


def variances(score):
    """The two terms of the variance of a mean, in plain loops."""
    seeds, examples = score.shape
    mean = score.mean()
    of_seeds = sum((row.mean() - mean) ** 2 for row in score) / (seeds * (seeds - 1))
    of_examples = sum((column.mean() - mean) ** 2 for column in score.T)
    return of_seeds, of_examples / (examples * (examples - 1))


def test_mean_interval_solves_wilsons_equation():
    """Both ends lie where (mean - p)^2 is k p (1 - p), k from the closed-form variances."""
    score = two_way(np.random.default_rng(0), seeds=5, examples=200, of_seeds=0.2)[0]
    interval = mean_intervals({"a": score})["a"]
    of_seeds, of_examples = variances(score)
    square = scipy.stats.t.ppf(0.975, 4) ** 2 * of_seeds
    square += scipy.stats.t.ppf(0.975, 199) ** 2 * of_examples
    mean = score.mean()
    assert interval.estimate == pytest.approx(mean, abs=1e-12)
    for end in (interval.low, interval.high):
        k = square / (mean * (1 - mean))
        assert (mean - end) ** 2 == pytest.approx(k * end * (1 - end), rel=1e-9)


def test_one_seed_is_wilsons_interval_of_scipy():
    rng = np.random.default_rng(1)
    score = (rng.random((1, 5000)) < 0.9).astype(float)
    interval = mean_intervals({"a": score}, confidence=0.9)["a"]
    right = int(score.sum())
    wilson = scipy.stats.binomtest(right, 5000).proportion_ci(0.9, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((wilson.low, wilson.high), abs=2e-5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_perfect_scores_are_not_certain(score):
    """As wide as Wilson's interval for 360 of 360, and clipped to the possible."""
    interval = mean_intervals({"a": np.full((5, 360), score)})["a"]
    wilson = scipy.stats.binomtest(360, 360).proportion_ci(method="wilson")
    assert interval.estimate == score
    assert width(interval) == pytest.approx(1 - wilson.low, rel=0.01)
    assert 0 <= interval.low <= interval.high <= 1


def test_one_seed_difference_agrees_with_scipy_bootstrap():
    rng = np.random.default_rng(2)
    scores = two_way(rng, seeds=1, examples=400)
    (comparison,) = paired_comparisons({"a": scores[0], "b": scores[1]}, [("a", "b")])
    difference = scores[0][0] - scores[1][0]
    bootstrap = scipy.stats.bootstrap(
        (difference,), np.mean, method="basic", n_resamples=20_000, rng=rng
    ).confidence_interval
    assert comparison.difference.estimate == pytest.approx(difference.mean())
    found = comparison.difference.low, comparison.difference.high
    assert found == pytest.approx((bootstrap.low, bootstrap.high), abs=0.003)


def test_one_pair_against_the_closed_form():
    """With one pair the critical value is the normal quantile, and each term has its t quantile."""
    a, b = two_way(np.random.default_rng(3), seeds=5, examples=300, of_seeds=0.2)
    (comparison,) = paired_comparisons({"a": a, "b": b}, [("a", "b")], draws=400_000)
    of_seeds, of_examples = variances(a - b)
    square = scipy.stats.t.ppf(0.975, 4) ** 2 * of_seeds
    square += scipy.stats.t.ppf(0.975, 299) ** 2 * (of_examples + 1 / 300**2)
    assert width(comparison.difference) / 2 == pytest.approx(np.sqrt(square), rel=0.01)


def test_independent_pairs_against_sidak():
    """One seed, pairs that share nothing: the critical value is that of independent tests."""
    rng = np.random.default_rng(4)
    scores = {i: (rng.random((1, 2000)) < 0.7).astype(float) for i in range(8)}
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    found = paired_comparisons(scores, pairs, draws=100_000)
    z = scipy.stats.norm.isf((1 - 0.95 ** (1 / 4)) / 2)
    for comparison, (a, b) in zip(found, pairs, strict=True):
        difference = scores[a][0] - scores[b][0]
        error = np.sqrt(difference.var(ddof=1) / 2000 + 1 / 2000**2)
        t = scipy.stats.t.isf(scipy.stats.norm.sf(z), 1999)
        assert width(comparison.difference) / 2 == pytest.approx(t * error, rel=0.02)


def test_pairs_that_are_alike_cost_nothing():
    """The same pair ten times is one question, so its interval stays as it is."""
    a, b = two_way(np.random.default_rng(5), seeds=1, examples=5000)
    scores = {"a": a, "b": b}
    (once,) = paired_comparisons(scores, [("a", "b")])
    many = paired_comparisons(scores, [("a", "b")] * 10)
    assert width(many[0].difference) == pytest.approx(width(once.difference), rel=0.05)
    unlike = {i: (np.random.default_rng(i).random((1, 5000)) < 0.8) for i in range(20)}
    apart = paired_comparisons(unlike | scores, [("a", "b"), *itertools.pairwise(range(20))])
    assert width(apart[0].difference) > 1.3 * width(once.difference)


def test_a_stable_pair_borrows_the_spread_of_the_others():
    """The moderated variance: half its own, half the flips times what all pairs show."""
    rng = np.random.default_rng(6)
    steady = two_way(rng, seeds=5, examples=300, of_seeds=0.0, models=2)
    shaky = two_way(rng, seeds=5, examples=300, of_seeds=1.0, models=2)
    scores = dict(enumerate([*steady, *shaky]))
    found = paired_comparisons(scores, [(0, 1), (2, 3)], draws=200_000)

    def flips(score):
        mean, terms = score.mean(), []
        for row, column in itertools.product(range(5), range(300)):
            fit = score[row].mean() + score[:, column].mean() - mean
            terms.append((score[row, column] - fit) ** 2)
        return sum(terms) / (4 * 299) / (5 * 300)

    differences = [scores[0] - scores[1], scores[2] - scores[3]]
    own = [variances(difference)[0] for difference in differences]
    of_flips = [flips(difference) for difference in differences]
    moderated = [(s + f * sum(own) / sum(of_flips)) / 2 for s, f in zip(own, of_flips, strict=True)]
    z = scipy.stats.norm.isf((1 - 0.95**0.5) / 2)  # the two pairs share no model
    for comparison, difference, of_seeds in zip(found, differences, moderated, strict=True):
        square = scipy.stats.t.isf(scipy.stats.norm.sf(z), 8) ** 2 * of_seeds
        of_examples = variances(difference)[1] + 1 / 300**2
        square += scipy.stats.t.isf(scipy.stats.norm.sf(z), 299) ** 2 * of_examples
        assert width(comparison.difference) / 2 == pytest.approx(np.sqrt(square), rel=0.02)


@pytest.mark.parametrize(("rate", "of_seeds"), [(0.85, 0.0), (0.85, 0.2), (0.985, 0.1)])
def test_means_are_covered(rate, of_seeds):
    """95 % intervals of five seeds and 200 examples cover between 92 and 99.5 % of the time."""
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(600):
        scores = two_way(rng, seeds=5, examples=200, rate=rate, of_seeds=of_seeds, models=1)
        interval = mean_intervals({"a": scores[0]})["a"]
        covered.append(interval.low <= rate <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.995


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3, 1.0])
def test_chance_establishes_nothing(seeds, of_seeds):
    """Four equal models, six pairs: a family-wise error of 5 %, and three standard errors of it."""
    rng = np.random.default_rng(8)
    pairs = list(itertools.combinations(range(4), 2))
    wrong = 0
    for _ in range(250):
        scores = two_way(rng, seeds=seeds, examples=200, of_seeds=of_seeds, models=4)
        found = paired_comparisons(dict(enumerate(scores)), pairs, draws=500)
        wrong += any(comparison.established for comparison in found)
    assert wrong / 250 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


def test_a_shaky_model_among_steady_ones_establishes_nothing():
    """Its pairs borrow from steadier ones, which pay for it: the family-wise error stays."""
    rng = np.random.default_rng(16)
    pairs = list(itertools.combinations(range(5), 2))
    wrong = 0
    for _ in range(200):
        steady = two_way(rng, seeds=5, examples=200, of_seeds=0.2, models=4)
        (shaky,) = two_way(rng, seeds=5, examples=200, of_seeds=1.5, models=1)
        found = paired_comparisons(dict(enumerate([*steady, shaky])), pairs, draws=500)
        wrong += any(comparison.established for comparison in found)
    assert wrong / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_known_difference_is_found_in_its_direction():
    rng = np.random.default_rng(9)
    better = two_way(rng, seeds=5, examples=400, rate=0.9)[0]
    worse = better * (rng.random(better.shape) < 0.95)
    (forward, back) = paired_comparisons(
        {"better": better, "worse": worse}, [("better", "worse"), ("worse", "better")]
    )
    assert forward.established
    assert forward.difference.low > 0
    assert 0.03 < forward.difference.estimate < 0.06
    assert (forward.a, forward.b) == ("better", "worse")
    assert back.difference.estimate == pytest.approx(-forward.difference.estimate)
    assert back.difference.low == pytest.approx(-forward.difference.high)
    assert back.established


def test_pairing_narrows_the_interval():
    """What is hard for both models cancels, unless the examples of one are shuffled."""
    rng = np.random.default_rng(10)
    a, b = two_way(rng, seeds=5, examples=400, of_models=0.2, of_flips=0.2)
    shuffled = b[:, rng.permutation(400)]
    scores = {"a": a, "b": b, "shuffled": shuffled}
    (paired,) = paired_comparisons(scores, [("a", "b")])
    (unpaired,) = paired_comparisons(scores, [("a", "shuffled")])
    assert unpaired.difference.estimate == pytest.approx(paired.difference.estimate)
    assert width(paired.difference) < 0.6 * width(unpaired.difference)


@pytest.mark.parametrize("seeds", [1, 5])
def test_equal_predictions_are_not_established(seeds):
    score = np.random.default_rng(11).random((seeds, 100)) < 0.9
    (comparison,) = paired_comparisons({"a": score, "b": score}, [("a", "b")])
    assert comparison.difference.estimate == 0
    assert not comparison.established
    assert comparison.difference.low == pytest.approx(-0.0198, abs=0.001), "1.98 of 100 examples"


def test_right_against_wrong_is_established_and_clipped():
    scores = {"a": np.ones((3, 50)), "b": np.zeros((3, 50))}
    (comparison,) = paired_comparisons(scores, [("a", "b")])
    assert comparison.established
    assert comparison.difference.high == 1.0
    assert 0.9 < comparison.difference.low < 1


def test_a_spread_of_seeds_without_flips():
    """Seeds that are right everywhere or nowhere: no residual to put pairs together by."""
    a = np.zeros((4, 20))
    a[0] = 1
    scores = {"a": a, "b": np.zeros((4, 20)), "c": np.ones((4, 20))}
    found = paired_comparisons(scores, [("a", "b"), ("c", "b")])
    assert not found[0].established, "one lucky seed in four"
    assert found[1].established


def test_more_seeds_and_more_examples_narrow_the_interval():
    rng = np.random.default_rng(12)
    score = two_way(rng, seeds=20, examples=2000, of_seeds=0.2)[0]

    def narrow(seeds, examples):
        return width(mean_intervals({"a": score[:seeds, :examples]})["a"])

    assert narrow(20, 2000) < narrow(5, 2000) < narrow(5, 200)


def test_the_same_seed_gives_the_same_intervals():
    scores = dict(enumerate(two_way(np.random.default_rng(13), seeds=3, examples=100, models=3)))
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert paired_comparisons(scores, pairs) == paired_comparisons(scores, pairs)
    assert paired_comparisons(scores, pairs, seed=1) != paired_comparisons(scores, pairs)


def test_booleans_and_partial_scores_are_scores():
    score = np.random.default_rng(14).random((3, 50)) < 0.5
    assert mean_intervals({"a": score}) == mean_intervals({"a": score.astype(np.float32)})
    half = mean_intervals({"a": np.full((3, 50), 0.5)})["a"]
    assert half == Interval(0.5, 0.5, 0.5)


def test_no_pairs_no_comparisons():
    assert paired_comparisons({"a": np.ones((1, 2))}, []) == []


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"a": np.ones((2, 3)), "b": np.ones((2, 4))}, {}, r"one shape \[R, E\] in every cell"),
        ({"a": np.ones((2, 1))}, {}, r"scores\['a'\] must be \[R, E\] with E >= 2, got \(2, 1\)"),
        ({"a": np.full((2, 3), 1.5)}, {}, r"scores\['a'\] must have means in"),
        ({"a": np.full((2, 3), np.nan)}, {}, r"scores\['a'\] must have means in"),
        (
            {"a": np.ones((2, 3))},
            {"confidence": 1.0},
            "confidence must lie between 0 and 1, got 1.0",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        mean_intervals(scores, **options)
    with pytest.raises(ValueError, match=message):
        paired_comparisons(scores, [], **options)


def test_a_group_of_pairs_knows_nothing_of_another():
    """As wide as that of its own group alone, where the critical value is the same."""
    rng = np.random.default_rng(15)
    steady = two_way(rng, seeds=5, examples=300, of_seeds=0.0, models=3)
    shaky = two_way(rng, seeds=5, examples=300, of_seeds=1.5, models=3)
    scores = dict(enumerate([*steady, *shaky]))
    pairs = [(0, 1), (0, 2), (3, 4), (3, 5)]
    apart = paired_comparisons(scores, pairs, groups=["all", "all", 100, 100])
    together = paired_comparisons(scores, pairs)
    for i in (0, 1):
        assert width(apart[i].difference) < 0.8 * width(together[i].difference)
    for i in (2, 3):
        assert width(apart[i].difference) > 1.05 * width(together[i].difference)
    alone = paired_comparisons(scores, [(0, 1), (3, 4)], groups=[0, 1], draws=200_000)
    z = scipy.stats.norm.isf((1 - 0.95**0.5) / 2)
    for comparison, (a, b) in zip(alone, [(0, 1), (3, 4)], strict=True):
        of_seeds, of_examples = variances(scores[a] - scores[b])
        square = scipy.stats.t.isf(scipy.stats.norm.sf(z), 4) ** 2 * of_seeds
        square += scipy.stats.t.isf(scipy.stats.norm.sf(z), 299) ** 2 * (of_examples + 1 / 300**2)
        assert width(comparison.difference) / 2 == pytest.approx(np.sqrt(square), rel=0.02)


def test_pairs_and_draws_are_checked():
    scores = {"a": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"pairs must name cells of scores \['a'\], got 'b'"):
        paired_comparisons(scores, [("a", "b")])
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        paired_comparisons(scores, [("a", "a")], draws=0)
    with pytest.raises(ValueError, match="groups must be one for each of 1 pairs, got 2"):
        paired_comparisons(scores, [("a", "a")], groups=[1, 2])
