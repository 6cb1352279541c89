"""Does self-attention need more data than convolution, and what makes up for it?"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnconv import models, tasks, train
from attnconv.claims.augment import random_flip, random_shift
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    accuracy,
    points,
)
from attnconv.claims.training import TEST, VALIDATION, family, fit, splits

SEEDS, PARAMS, RATES = 5, 15_000, (0.003, 0.01)
STEPS, LEAST = 15, 300  # for each root of the number of examples, and in all
# From more examples than this on: fewer seeds, at the learning rate that fewer examples chose.
MANY, FEW_SEEDS = 10_000, 3
# Of sharpness-aware minimisation: between the 0.05 of Foret et al. 2021 and the 0.2 that Chen et
# al. 2022 take for vision transformers.
RADIUS = 0.1

CNN, ATTENTION, SMALL = "cnn", "attention", "cnn of attention's FLOPs"
PLAIN, FLOPS, AUGMENTED, SHARPNESS = "plain", "equal FLOPs", "augmented", "sharpness-aware"


def shifted(rng: Array, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Moved by up to 2 pixels."""
    return random_shift(rng, x, most=2)


def shifted_and_flipped(rng: Array, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Moved by up to 4 pixels, half of them mirrored."""
    shift, flip = jax.random.split(rng)
    return random_flip(flip, random_shift(shift, x, most=4))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained on a set.

    Attributes:
      augment: how its images may change.
      sizes: the numbers of training examples of each way to train, None for all; the first is the
        smallest.
    """

    augment: Callable[[Array, Array], Array]
    sizes: Mapping[str, Sequence[int | None]]


PLANS = {
    "mnist": Plan(
        shifted,
        {
            PLAIN: (100, 1000, None),
            FLOPS: (100, 1000),
            AUGMENTED: (100,),
            SHARPNESS: (100,),
        },
    ),
    "cifar10_3k": Plan(
        shifted_and_flipped,
        {PLAIN: (100, 500, None), FLOPS: (100, None), AUGMENTED: (100,), SHARPNESS: (100,)},
    ),
}

# By the number of examples: the learning rate, and whether a seed is right on a test example.
Found = dict[int, tuple[float, np.ndarray]]


def test(setting: Setting) -> Evidence:
    parts, rows, series = [], [], []
    for name, plan in PLANS.items():
        task = tasks.load(name, data_dir=setting.data_dir, seed=setting.seed)
        made = makers(task.spec)
        gaps: dict[str, dict[int, np.ndarray]] = {}
        attention: Found = {}
        for way, sizes in plan.sizes.items():
            change = changes(plan)[way]
            arm = SMALL if way == FLOPS else CNN
            cnn = fits(task, made[arm], sizes, setting.seed, change)
            if way != FLOPS:
                attention = fits(task, made[ATTENTION], sizes, setting.seed, change)
            if way == PLAIN:
                plain = attention
            other = plain if way == FLOPS else attention
            gaps[way] = {n: right - other[n][1] for n, (_, right) in cnn.items()}
            rows += [row(name, way, n, cnn[n], other[n], gaps[way][n]) for n in cnn]
            shown = [points(gap) for gap in gaps[way].values()]
            series.append(Series.of(f"{name}, {way}", list(cnn), shown))
        parts += judged(name, gaps)
    return Evidence(
        parts,
        [
            "data",
            "trained",
            "examples",
            "cnn, %",
            "attention, %",
            "gap",
            "learning rates, cnn and attention",
        ],
        rows,
        Figure("training examples (log)", "cnn - attention, points of accuracy", series),
        f"About {PARAMS:,} parameters; equal FLOPs: a cnn with the FLOPs of that attention. "
        f"{SEEDS} seeds of weights, subset and batches, {STEPS} steps for each root of the number "
        f"of examples and at least {LEAST}, learning rates {RATES} chosen on validation for each "
        f"row and model; with more than {MANY:,} examples {FEW_SEEDS} seeds and the rate that the "
        "next fewer chose. "
        "Augmented: mnist moved by up to 2 pixels, cifar10_3k by up to 4 and mirrored. "
        f"Sharpness-aware: radius {RADIUS:g}, two gradients a step. Intervals over seeds and "
        "test examples, differences paired by both.",
    )


def makers(spec: models.Spec) -> dict[str, Callable[..., nnx.Module]]:
    """The arms: equal parameters, and a cnn of as many FLOPs as attention."""
    attention = models.size_for("attention", spec, budget=PARAMS)
    cost = models.flops(models.shapes("attention", spec, attention), spec)
    small = models.size_for("cnn", spec, budget=cost, match="flops")
    return {
        CNN: family("cnn", spec, params=PARAMS),
        ATTENTION: functools.partial(models.make, "attention", spec, attention),
        SMALL: functools.partial(models.make, "cnn", spec, small),
    }


def changes(plan: Plan) -> dict[str, dict[str, Any]]:
    """What is different about each way to train."""
    return {
        PLAIN: {},
        FLOPS: {},
        AUGMENTED: {"augment": plan.augment},
        SHARPNESS: {"gradient": train.sharpness_aware(RADIUS)},
    }


def fits(
    task: tasks.Task,
    make: Callable[..., nnx.Module],
    sizes: Sequence[int | None],
    seed: int,
    change: Mapping[str, Any],
) -> Found:
    """One arm with each number of examples, fewest first."""
    data, validation, probe = splits(task, validation=VALIDATION, test=TEST)
    found: Found = {}
    rates: Sequence[float] = RATES
    for size in sizes:
        n = len(data.labels) if size is None else size
        trained = fit(
            make,
            data,
            validation,
            steps=max(LEAST, round(STEPS * n**0.5)),
            rates=rates if n > MANY else RATES,
            seeds=range(seed, seed + (FEW_SEEDS if n > MANY else SEEDS)),
            subset=functools.partial(task.subset, size),
            **change,
        )
        rates = (trained.rate,)
        found[n] = trained.rate, trained.right(probe)
    return found


def row(
    name: str,
    way: str,
    n: int,
    cnn: tuple[float, np.ndarray],
    attention: tuple[float, np.ndarray],
    gap: np.ndarray,
) -> list[str]:
    """Of the table."""
    found = accuracy(cnn[1]), accuracy(attention[1]), points(gap)
    numbers = [one.text(2) for one in found]
    return [name, way, f"{n:,}", *numbers, f"{cnn[0]:g}, {attention[0]:g}"]


def judged(name: str, gaps: Mapping[str, Mapping[int, np.ndarray]]) -> list[Part]:
    """What the claim says of the gaps on one set, paired by seed and example."""
    parts = []
    for way in (PLAIN, FLOPS):
        (few, at_few), *_, (many, at_many) = gaps[way].items()
        what = f"{name}, {way}: gap with {few}"
        parts.append(Part(f"{what}, points", points(at_few), above=0.0))
        less = at_few[: len(at_many)] - at_many
        parts.append(Part(f"{what} minus with {many}, points", points(less), above=0.0))
    few, at_few = next(iter(gaps[PLAIN].items()))
    for way in (AUGMENTED, SHARPNESS):
        what = f"{name}: gap with {few} minus the same {way}, points"
        less = at_few - gaps[way][few]
        parts.append(Part(what, points(less), above=0.0))
    return parts


CLAIM = Claim(
    "data",
    "Self-attention needs more data than convolution: the fewer the examples, the farther it lags "
    "behind; augmentation and sharpness-aware minimisation make up for part of it.",
    "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, section 4.3 and figures 3 and 4; "
    "Chen, Hsieh and Gong 2022, When Vision Transformers Outperform ResNets without Pre-training "
    "or Strong Data Augmentations.",
    "On both sets of images the gap, accuracy of the cnn minus that of attention, is above zero "
    "with the fewest examples and larger than with the most (mnist at equal FLOPs: 1,000, for "
    "time), at equal parameters and at equal FLOPs; and with the fewest examples it is smaller "
    "where both are augmented, and where both are trained sharpness-aware. Mended after a first "
    f"measurement: no fewer than {LEAST} steps, and equal FLOPs on cifar10_3k too.",
    test,
    needs=tuple(PLANS),
)
