"""Four stages of convolution or attention: where should the one end and the other begin?"""

import functools
import itertools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv import functional as F
from attnconv import models, tasks, train
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    interval,
    over_seeds,
)
from attnconv.claims.training import Fit, fit
from attnconv.nn import Conv, EncoderBlock, Linear
from attnconv.train import Data

SEEDS, STEPS, RATES = 5, 700, (0.001, 0.003)
PARAMS, FEATURES, HEAD = 22_000, (8, 16, 24, 32), 8
# Seen once each, so that none is learned by heart.
ABUNDANT, ABUNDANT_SEEDS, BATCH = 12_800, 3, train.Recipe().batch
# The most examples that are judged: more hardly narrow an interval over seeds.
VALIDATION, TEST = 1000, 5000
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
        y = jax.nn.gelu(self.expand(self.norm(x)))
        return x + self.contract(jax.nn.gelu(self.depthwise(y)))


class Stages(nnx.Module):
    """A stem that halves the image, four blocks with halvings between, the mean, scores.

    Args:
      layout: the kind of each block, C or T.
      spec: of the task.
      hidden: features between, in a block T of the first stage.
    """

    any_length = False

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
    probe, other = (Data(t.test.inputs[:TEST], t.test.labels[:TEST]) for t in (few, many))
    steps = ABUNDANT // BATCH
    gap, score, rows = {}, {}, []
    for layout in LAYOUTS:
        trained = trained_on(few, layout, None, STEPS, SEEDS, setting.seed)
        seen = np.array([s.loss for s in trained.train])
        lost = mean_losses(trained, probe)
        gap[layout] = lost - seen
        right = 100 * trained.right(probe).mean(axis=1)
        plenty = trained_on(many, layout, ABUNDANT, steps, ABUNDANT_SEEDS, setting.seed)
        score[layout] = 100 * plenty.right(other).mean(axis=1)
        of_each = [over_seeds(x) for x in (seen, lost, gap[layout])]
        rows.append(
            [
                layout,
                *(interval(*x, digits=2) for x in of_each),
                interval(*over_seeds(right)),
                interval(*over_seeds(score[layout]), digits=2),
            ]
        )
    parts = [
        part("gap, nats", (worse, better), over_seeds(gap[worse] - gap[better]), says, NATS)
        for better, says, worse in GENERALISES
    ]
    parts += [
        part(
            "accuracy, points", (best, next_), over_seeds(score[best] - score[next_]), says, POINTS
        )
        for best, says, next_ in CAPACITY
    ]
    y, low, high = zip(*(over_seeds(gap[layout]) for layout in LAYOUTS), strict=True)
    return Evidence(
        parts,
        [
            "layout",
            *(f"{few.name}: {what}" for what in ("train loss", "test loss", "gap", "accuracy, %")),
            f"{many.name}: accuracy, %",
        ],
        rows,
        Figure(
            "layout",
            "test loss - train loss, nats",
            [Series(few.name, list(LAYOUTS), y, low, high)],
        ),
        f"Stages of {FEATURES} features at a half to a sixteenth of the image, a block in each: C "
        "an inverted bottleneck with a 3 x 3 depthwise convolution, T attention with relative "
        "positions and a two-layer net, whose width makes the parameters equal (about "
        f"{PARAMS:,}). {few.name}: {len(few.train.labels):,} examples, {STEPS} steps, {SEEDS} "
        f"seeds. {many.name}: {ABUNDANT:,} examples, each seen once, {ABUNDANT_SEEDS} seeds. "
        f"Learning rates {RATES}, chosen on validation. TTTT stands for the source's ViT, whose "
        "vectors are patches of one size. Differences are paired by seed.",
    )


def trained_on(
    task: tasks.Task, layout: str, size: int | None, steps: int, seeds: int, seed: int
) -> Fit:
    """A layout, trained from several seeds, each with examples of its own where not with all."""
    return fit(
        sized(layout, task.spec),
        Data(task.train.inputs, task.train.labels),
        Data(task.validation.inputs[:VALIDATION], task.validation.labels[:VALIDATION]),
        steps=steps,
        rates=RATES,
        seeds=range(seed, seed + seeds),
        subset=lambda seed: task.subset(size, seed=seed),
    )


def mean_losses(trained: Fit, probe: Data) -> np.ndarray:
    """The mean loss of each seed, in nats."""
    return np.array([train.judged(trained.programs, p, probe)[1].mean() for p in trained.params])


def part(
    what: str,
    names: tuple[str, str],
    found: tuple[float, float, float],
    says: str,
    equal: float,
) -> Part:
    """A difference that the source says is about zero, not below it, above it, or far above it."""
    above = {"~": -equal, ">=": -equal, ">": 0.0, ">>": equal}[says]
    return Part(f"{' - '.join(names)}: {what}", *found, above, equal if says == "~" else None)


CLAIM = Claim(
    "layouts",
    "Of four stages with convolution (C) first and attention (T) last, CCCC and CCCT generalise "
    "best, then CCTT, then CTTT, and attention alone far worse; CCTT and CTTT have most capacity, "
    "then attention alone, then CCCT, then CCCC.",
    "Dai et al. 2021, CoAtNet, section 2.2.2 and figure 1.",
    "Generalisation is the gap, test loss minus train loss, after the same steps on few examples; "
    "capacity the test accuracy where each example is seen once. In the order of the source each "
    "layout has an advantage over the next: above zero where it says >, above "
    f"{NATS:g} nats where it says >>, above -{NATS:g} where it says >=, and within {NATS:g} nats "
    f"or {POINTS:g} points where it says about equal.",
    test,
    needs=("cifar10_3k", "mnist"),
)
