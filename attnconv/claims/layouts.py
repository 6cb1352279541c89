"""Four stages of convolution or attention: where should the one end and the other begin?"""

import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv import batching, compiled, devices, models, runs, tasks, train
from attnconv import functional as F
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Measured,
    Part,
    Series,
    Setting,
    accuracy,
    over_examples,
    points,
)
from attnconv.claims.training import TEST, VALIDATION, at_loss, first, fit, follow, splits
from attnconv.nn import Conv, EncoderBlock, Linear

SEEDS, STEPS, RATES = 4, 1000, (0.003, 0.01)
LEVEL, EVERY = 1.0, 50  # of the training loss, nats, looked for every few steps
PARAMS, FEATURES, HEAD = 22_000, (8, 16, 24, 32), 8
RECIPE = train.Recipe()
# Seen once each, so that none is learned by heart.
ABUNDANT, ABUNDANT_SEEDS = 12_800, 3
LAYOUTS = ("CCCC", "CCCT", "CCTT", "CTTT", "TTTT")
# What the source says of one layout and the next.
GENERALISES = (
    ("CCCC", "~", "CCCT"),
    ("CCCT", ">=", "CCTT"),
    ("CCTT", ">", "CTTT"),
    ("CTTT", ">>", "TTTT"),
)
CAPACITY = (
    ("CCTT", "~", "CTTT"),
    ("CTTT", ">", "TTTT"),
    ("TTTT", ">", "CCCT"),
    ("CCCT", ">", "CCCC"),
)
NATS, POINTS = 0.1, 0.5  # less than this is about equal, and more is much more


class RelativeAttention(nnx.Module):
    """Multi-head attention on a grid with a learned bias for each head and offset.

    Source: Dai et al. 2021, CoAtNet, section 2.1, equation 3 (pre-normalisation).
    """

    def __init__(self, side: int, features: int, *, rngs: nnx.Rngs):
        heads = features // HEAD
        self.side = side
        self.qkv = Linear(features, 3 * features, rngs=rngs)
        self.out = Linear(features, features, rngs=rngs)
        self.table = nnx.Param(jax.numpy.zeros((heads, 2 * side - 1, 2 * side - 1)))

    def __call__(
        self, x: Float[Array, "B H W D"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "B H W D"]:
        heads = self.qkv(x).reshape(len(x), -1, 3, len(self.table[...]), HEAD)
        query, key, value = (heads[:, :, i] for i in range(3))
        bias = F.positions.relative_bias(self.table[...], (self.side, self.side))
        return self.out(F.dot_product_attention(query, key, value, bias, mask).reshape(x.shape))


class ConvBlock(nnx.Module):
    """An inverted bottleneck: `x + contract(gelu(depthwise(gelu(expand(norm(x))))))`.

    Source: Sandler et al. 2018, MobileNetV2, as in CoAtNet.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = Linear(features, hidden, rngs=rngs)
        self.depthwise = Conv(hidden, hidden, (3, 3), feature_group_count=hidden, rngs=rngs)
        self.contract = Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        y = F.gelu(self.expand(self.norm(x)))
        return x + self.contract(F.gelu(self.depthwise(y)))


class Stages(nnx.Module):
    """A stem that halves the image, four blocks with halvings between, the mean, scores.

    Args:
      layout: the kind of each block, C or T.
      spec: of the task.
      hidden: features between, in a block T of the first stage.
    """

    def __init__(self, layout: str, spec: models.Spec, hidden: int, *, rngs: nnx.Rngs):
        side = -(-spec.grid[0] // 2)
        self.stem = Conv(spec.channels, FEATURES[0], (3, 3), 2, rngs=rngs)
        blocks: list[nnx.Module] = []
        for kind, features in zip(layout, FEATURES, strict=True):
            # Two more for each feature: what the projections of attention would have.
            between = hidden * features // FEATURES[0]
            if kind == "C":
                blocks.append(ConvBlock(features, between + 2 * features, rngs=rngs))
            else:
                attention = RelativeAttention(side, features, rngs=rngs)
                blocks.append(EncoderBlock(features, between, attention=attention, rngs=rngs))
            side = -(-side // 2)
        self.blocks = nnx.List(blocks)
        self.joins = nnx.List(
            Conv(*pair, (2, 2), 2, rngs=rngs) for pair in itertools.pairwise(FEATURES)
        )
        self.norm = nnx.LayerNorm(FEATURES[-1], rngs=rngs)
        self.head = Linear(FEATURES[-1], spec.classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], *, rng: Array | None = None
    ) -> Float[Array, "B classes"]:
        del rng
        x = self.blocks[0](self.stem(x))
        for join, block in zip(self.joins, self.blocks[1:], strict=True):
            x = block(join(x))
        return self.head(self.norm(x).mean((1, 2)))


def sized(layout: str, spec: models.Spec) -> functools.partial:
    """Makes nets of a layout whose width of the two-layer nets makes `PARAMS` parameters."""

    def cost(hidden: int) -> int:
        return models.parameters(
            nnx.eval_shape(lambda: Stages(layout, spec, hidden, rngs=nnx.Rngs(0)))
        )

    one, two = cost(1), cost(2)
    return functools.partial(Stages, layout, spec, round(1 + (PARAMS - one) / (two - one)))


def test(setting: Setting) -> Evidence:
    few, many = (
        tasks.load(name, data_dir=setting.data_dir, seed=setting.seed) for name in CLAIM.needs
    )
    gap, score, rows = {}, {}, []
    for layout in LAYOUTS:
        rate, at_level = generalisation(few, layout, setting.seed)
        gap[layout], right = at_level
        score[layout] = capacity(many, layout, setting.seed)
        rows.append(
            [
                layout,
                f"{rate:g}",
                over_examples(gap[layout]).text(2),
                accuracy(right).text(),
                accuracy(score[layout]).text(2),
            ]
        )
    parts = []
    for better, says, worse in GENERALISES:
        more = over_examples(gap[worse] - gap[better])
        parts.append(part(f"{worse} - {better}: gap, nats", more, says, NATS))
    for best, says, next_ in CAPACITY:
        more = points(score[best] - score[next_])
        parts.append(part(f"{best} - {next_}: accuracy, points", more, says, POINTS))
    gaps = [over_examples(gap[layout]) for layout in LAYOUTS]
    return Evidence(
        parts,
        [
            "layout",
            *(f"{few.name}: {what}" for what in ("learning rate", "gap", "accuracy, %")),
            f"{many.name}: accuracy, %",
        ],
        rows,
        Figure(
            "layout",
            f"test loss - train loss of {LEVEL:g}, nats",
            [Series.of(few.name, list(LAYOUTS), gaps)],
        ),
        f"Stages of {FEATURES} features at a half to a sixteenth of the image, a block in each: C "
        "an inverted bottleneck with a 3 x 3 depthwise convolution, T attention with relative "
        "positions and a two-layer net, whose width makes the parameters equal (about "
        f"{PARAMS:,}). {few.name}: {len(few.train.labels):,} examples, at most {STEPS} steps, "
        f"{SEEDS} seeds, scores every {EVERY} steps, the training loss of {VALIDATION:,} examples. "
        f"{many.name}: {ABUNDANT:,} examples, each seen "
        f"once, {ABUNDANT_SEEDS} seeds. Learning rates {RATES}, chosen on validation. TTTT stands "
        "for the source's ViT, whose vectors are patches of one size. Intervals over seeds and "
        "test examples, differences paired by both.",
    )


class AtLevel(NamedTuple):
    """What a run scores where its training loss falls to LEVEL; NaN where it never does.

    Attributes:
      validation: the accuracy.
      gap: the loss of each test example less the training loss, `[E]`.
      right: whether it is right on each, `[E]`.
    """

    validation: float
    gap: np.ndarray
    right: np.ndarray


def generalisation(
    task: tasks.Task, layout: str, seed: int
) -> tuple[float, Float[np.ndarray, "2 R E"]]:
    """The best rate, with its gap of loss and accuracy on test examples at LEVEL.

    The best has the highest mean validation accuracy there.
    """
    data, validation, probe = splits(task, validation=VALIDATION, test=TEST)
    placed = runs.place(data)
    programs = compiled.Programs(sized(layout, task.spec), RECIPE)
    looks = first(data, VALIDATION), validation, probe

    def run(rate: float, seed: int, steps: int = STEPS) -> runs.Run:
        everything = np.arange(len(data.labels))
        order = batching.order(everything, steps=steps, batch=RECIPE.batch, seed=seed)
        return runs.Run(rate, seed, order)

    def one(run: runs.Run) -> AtLevel:
        try:
            paths = follow(programs, placed, run, looks, every=EVERY, least=LEVEL)
        except runs.Diverged:
            never = np.full(len(probe.labels), np.nan)
            return AtLevel(np.nan, never, never)
        seen, validated, tested = paths
        losses = seen[..., 0].mean(axis=1)
        (accuracy,) = at_loss(losses, validated[..., 1].mean(axis=1, keepdims=True), LEVEL)
        gap = at_loss(losses, tested[..., 0] - losses[:, None], LEVEL)
        return AtLevel(float(accuracy), gap, at_loss(losses, tested[..., 1], LEVEL))

    follow(programs, placed, run(RATES[0], seed, steps=1), [first(data, 1)], every=1)
    seeds = range(seed, seed + SEEDS)
    found = devices.on_each_core(one, [run(rate, s) for rate in RATES for s in seeds])
    by_rate = [found[i * SEEDS : (i + 1) * SEEDS] for i in range(len(RATES))]
    means = [np.mean([at.validation for at in of_rate]) for of_rate in by_rate]
    best = int(np.argmax(np.nan_to_num(means, nan=-np.inf)))
    return RATES[best], np.array([[at.gap, at.right] for at in by_rate[best]]).swapaxes(0, 1)


def capacity(task: tasks.Task, layout: str, seed: int) -> Float[np.ndarray, "R E"]:
    """Whether seeds are right on test examples, where each training example is seen once."""
    data, validation, probe = splits(task, validation=VALIDATION, test=TEST)
    trained = fit(
        sized(layout, task.spec),
        data,
        validation,
        steps=ABUNDANT // RECIPE.batch,
        rates=RATES,
        seeds=range(seed, seed + ABUNDANT_SEEDS),
        subset=functools.partial(task.subset, ABUNDANT),
    )
    return trained.right(probe)


def part(what: str, found: Measured, says: str, equal: float) -> Part:
    """A difference that the source says is about zero, not below it, above it, or far above it."""
    above = {"~": -equal, ">=": -equal, ">": 0.0, ">>": equal}[says]
    below = equal if says == "~" else None
    return Part(what, found, above, below)


CLAIM = Claim(
    "layouts",
    "Of four stages with convolution (C) first and attention (T) last, CCCC and CCCT generalise "
    "best, then CCTT, then CTTT, and attention alone far worse; CCTT and CTTT have most capacity, "
    "then attention alone, then CCCT, then CCCC.",
    "Dai et al. 2021, CoAtNet, section 2.2.2 and figure 1.",
    "Generalisation is the gap, test loss minus train loss, where the latter first falls to "
    f"{LEVEL:g} nat on few examples, as the source compares nets at equal training loss; "
    "capacity the test accuracy where each example is seen once. In the order of the source each "
    "layout has an advantage over the next: above zero where it says >, above "
    f"{NATS:g} nats where it says >>, above -{NATS:g} where it says >=, and within {NATS:g} nats "
    f"or {POINTS:g} points where it says about equal. Mended after a first measurement, of the gap "
    "after equal steps: that told how far each was trained.",
    test,
    needs=("cifar10_3k", "mnist"),
)
