"""How many examples do fully connected, locally connected and convolutional nets need?"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from attnconv import tasks
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Measured,
    Part,
    Series,
    Setting,
    accuracy,
    over_seeds,
)
from attnconv.claims.training import fit, splits
from attnconv.nn import MultiHeadAttention
from attnconv.spec import Spec

SEEDS, STEPS, RATES = 5, 1000, (0.001, 0.003, 0.01, 0.03, 0.1)
SIZES = tuple(2**i for i in range(2, 13))
LEVEL = 90.0  # accuracy, %
START = 0.1  # of the weights, in proportion to the usual one
KINDS = ("fully connected", "locally connected", "convolution", "attention")


class Net(nnx.Module):
    """`f(x) = sum_i g(w_i . x_i)` over as many units as there are patches; the scores are 0 and f.

    `g(z) = max(z - b, 0) - max(-z - b, 0)` passes over what is small. The unit i of the fully
    connected net sees all of x; that of the others the patch i, and of a convolution all units have
    one w. So each net contains the next. With "attention", a convolution of what one layer of
    self-attention without positions makes of the patches.

    Source: Lahoti et al. 2024, Role of Locality and Weight Sharing in Image-Based Tasks, section 4:
    all but attention.
    """

    def __init__(self, kind: str, spec: Spec, *, rngs: nnx.Rngs):
        (patches,), features = spec.grid, spec.channels
        units = {
            "fully connected": (patches, patches * features),
            "locally connected": (patches, features),
        }
        self.whole = kind == "fully connected"
        attends = kind == "attention"
        self.attention = (
            MultiHeadAttention(1, features, decode=False, rngs=rngs) if attends else None
        )
        shape = units.get(kind, (features,))
        scale = START / shape[-1] ** 0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.threshold = nnx.Param(jnp.zeros(()))

    def __call__(
        self, x: Float[Array, "B T D"], *, rng: Array | None = None
    ) -> Float[Array, "B 2"]:
        del rng
        if self.attention is not None:
            x = self.attention(x)
        if self.whole:
            z = x.reshape(len(x), -1) @ self.kernel[...].T
        else:
            z = (x * self.kernel[...]).sum(-1)
        threshold = self.threshold[...]
        score = (jax.nn.relu(z - threshold) - jax.nn.relu(-z - threshold)).sum(-1)
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)


def test(setting: Setting) -> Evidence:
    task = tasks.load("dsd", seed=setting.seed)
    data, validation, held_out = splits(task)
    seeds = range(setting.seed, setting.seed + SEEDS)
    own = _disjoint(len(data.labels), seeds)
    needed: dict[str, list[float]] = {}
    rows, series = [], []
    for kind in KINDS:
        make = functools.partial(Net, kind, task.spec)
        curve = []
        for size in SIZES:
            subset = {seed: own[seed][:size] for seed in seeds}
            trained = fit(
                make,
                data,
                validation,
                steps=STEPS,
                rates=RATES,
                seeds=seeds,
                subset=subset.__getitem__,
            )
            curve.append(trained.right(held_out))
        by_seed = np.transpose([100 * right.mean(axis=1) for right in curve]).tolist()
        needed[kind] = [examples_needed(SIZES, one, LEVEL) for one in by_seed]
        found = [accuracy(right) for right in curve]
        count = sum(leaf.size for leaf in jax.tree.leaves(trained.params[0]))
        rows.append([kind, f"{count:,}", _text(needed[kind]), *(one.text() for one in found)])
        errors = [Measured(100 - m, 100 - high, 100 - low, n) for m, low, high, n, _ in found]
        series.append(Series.of(kind, SIZES, errors))
    parts = []
    for more, fewer in itertools.pairwise(KINDS[:3]):
        # A seed that never gets there needs more than the largest size: the ratio is at least this.
        least, known = np.minimum(needed[more], SIZES[-1]), np.isfinite(needed[fewer])
        ratios = np.log2(np.divide(least, needed[fewer], where=known, out=np.full(SEEDS, np.nan)))
        never = int(np.isinf(needed[more]).sum())
        censored = f", at least ({never} of {SEEDS} seeds never get there)" if never else ""
        parts.append(
            Part(
                f"log2 of the examples needed, {more} / {fewer}{censored}",
                over_seeds(ratios.tolist()),
                above=0.0,
            )
        )
    patches, features = task.spec.shape
    return Evidence(
        parts,
        [
            "net",
            "parameters",
            f"examples for {LEVEL:g} %",
            *(f"accuracy, %, of {n}" for n in SIZES),
        ],
        rows,
        Figure("training examples (log)", "test error, %", series),
        f"dsd: {patches} patches of {features} features; nets of one hidden layer of {patches} "
        f"units, attention a convolution after one layer of self-attention; {STEPS} steps, "
        f"learning rates {RATES} chosen on validation for each net and size; {SEEDS} seeds, each "
        f"with training examples of its own; {len(held_out.labels):,} to test. Examples needed: "
        f"where a seed first reaches {LEVEL:g} %, on the line over the log of the size; in a ratio "
        f"one that never does counts with {SIZES[-1]:,}.",
    )


def _text(needed: Sequence[float]) -> str:
    """The geometric mean over seeds, where all of them get there."""
    short = np.isinf(needed).sum()
    if short:
        return f"over {SIZES[-1]:,} in {short} of {len(needed)} seeds"
    mean, low, high, seeds, _ = over_seeds(np.log(needed))
    return Measured(math.exp(mean), math.exp(low), math.exp(high), seeds).text(0)


def examples_needed(sizes: Sequence[int], accuracies: Sequence[float], level: float) -> float:
    """The size at which the accuracy first reaches a level, on the line over the log of the size.

    The first size where it begins above, infinity where it never gets there.

    >>> round(examples_needed([10, 1000], [80.0, 100.0], 90.0))
    100
    """
    if accuracies[0] >= level:
        return float(sizes[0])
    curve = zip(np.log(sizes), accuracies, strict=True)
    for (size, before), (larger, after) in itertools.pairwise(curve):
        if before < level <= after:
            return float(np.exp(size + (larger - size) * (level - before) / (after - before)))
    return float("inf")


def _disjoint(count: int, seeds: range) -> dict[int, Int[np.ndarray, "n"]]:
    """Indices of training examples for each seed, none of them another's."""
    order = np.random.default_rng(seeds.start).permutation(count)
    return dict(zip(seeds, np.array_split(order, len(seeds)), strict=True))


CLAIM = Claim(
    "sample_complexity",
    "Fully connected nets need more samples than locally connected ones, and those more than "
    "convolutional ones, where a signal is in one of many patches.",
    "Lahoti et al. 2024, Role of Locality and Weight Sharing in Image-Based Tasks: A Sample "
    "Complexity Separation between CNNs, LCNs, and FCNs: with k patches of d features and noise of "
    "deviation s, the order of at least s^2 k^2 d examples (fully connected), between s^2 k d and "
    "s^2 k (k + d) (locally connected), at most s^2 (k + d) (convolution), but for logarithms.",
    f"The number of examples for a test accuracy of {LEVEL:g} %, seed by seed: its ratio of fully "
    "to locally connected above 1, and that of locally connected to convolution. "
    "Mended after a first measurement: the noise of dsd, the most examples, and what a seed counts "
    "that never gets there.",
    test,
)
