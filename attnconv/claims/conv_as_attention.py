"""Multi-head attention by relative position: it can be a convolution; does it become one?"""

import functools
import math
from collections.abc import Sequence

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from attnconv import compiled, tasks
from attnconv import functional as F
from attnconv.analysis.converters import attention_from_conv
from attnconv.analysis.fitted import nearest_convolution
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    accuracy,
    exactly,
    over_seeds,
)
from attnconv.claims.quadratic import FEATURES, HEADS, LAYERS, Arrangement, Net, arrangement
from attnconv.claims.training import fit, splits
from attnconv.train import Data

SEEDS, STEPS, RATES = 4, 1000, (0.003, 0.01)
EXAMPLES, PROBE = 10_000, 32
SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0)
VANISHING = 46.0  # the sharpness from which float32 has no weight left for a neighbour
WINDOWS = (1, 3, 5)
EXACT, NEAR, DISTINCT = 1e-5, 3.0, 8.0


def test(setting: Setting) -> Evidence:
    mnist = tasks.load("mnist", data_dir=setting.data_dir, seed=setting.seed)
    train, validation, probe = (Data(halved(data.inputs), data.labels) for data in splits(mnist))
    trained = fit(
        functools.partial(Net, train.inputs.shape[-1]),
        train,
        validation,
        steps=STEPS,
        rates=RATES,
        seeds=range(setting.seed, setting.seed + SEEDS),
        subset=functools.partial(mnist.subset, EXAMPLES),
    )
    (before, left_before), (after, left_after) = (
        described(trained.programs, params, probe.inputs[:PROBE])
        for params in (trained.untrained, trained.params)
    )
    rows, series = [], []
    for layer in range(LAYERS):
        for when, places, left in (
            ("untrained", before, left_before),
            ("trained", after, left_after),
        ):
            name = f"layer {layer + 1}, {when}"
            residues = [over_seeds(column) for column in left[:, layer].T]
            shown = [over_seeds(column) for column in places[:, layer].T] + residues
            rows.append([name, *(measured.text(2) for measured in shown)])
            series.append(Series.of(name, WINDOWS, residues))
    right = accuracy(trained.right(probe)).text()
    return Evidence(
        [*expressed(trained.seeds), *learned(before, after)],
        [
            "layer",
            "pixels",
            "nearest other",
            "largest weight",
            "from the query",
            *(f"left by {w} x {w}" for w in WINDOWS),
        ],
        rows,
        Figure(
            "window of the convolution",
            "part of a layer's output that no such convolution explains",
            series,
        ),
        "Errors: 3 x 3 kernels with strides and dilations 1 and 2 on 9 x 8 images, all normal. "
        f"Learned: mnist, {EXAMPLES:,} examples, {' x '.join(map(str, train.inputs.shape[1:3]))} "
        f"vectors of 2 x 2 pixels, called pixels here; {LAYERS} layers of {FEATURES} features, "
        f"{HEADS} heads each that start with centres of variance 2 and sharpness 1; {STEPS} steps, "
        f"{SEEDS} seeds, learning rates {RATES}: test accuracy {right} %. Left: the part of the "
        "variance of a layer's outputs that the nearest convolution does not explain.",
    )


def halved(images: Float[np.ndarray, "B H W C"]) -> Float[np.ndarray, "B h w D"]:
    """2 x 2 pixels as one vector."""
    B, H, W, C = images.shape
    blocks = images.reshape(B, H // 2, 2, W // 2, 2, C).swapaxes(2, 3)
    return np.ascontiguousarray(blocks.reshape(B, H // 2, W // 2, 4 * C))


def error(seed: int, sharpness: float) -> float:
    """Of the attention that `attention_from_conv` makes, `|y - conv| / |conv|`; the worst."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for options in ({}, {"stride": 2}, {"dilation": 2}, {"padding": "VALID"}):
        x = jnp.asarray(rng.normal(size=(4, 9, 8, 3)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
        bias = jnp.asarray(rng.normal(size=4), jnp.float32)
        y = F.conv(x, kernel, bias, **options)
        made = attention_from_conv(kernel, bias, (9, 8), sharpness=sharpness, **options)(x)
        worst = max(worst, float(jnp.linalg.norm((made - y).ravel()) / jnp.linalg.norm(y.ravel())))
    return worst


def described(
    programs: compiled.Programs,
    params: Sequence[chex.ArrayTree],
    images: Float[np.ndarray, "B H W C"],
) -> tuple[Float[np.ndarray, "R L Q"], Float[np.ndarray, "R L windows"]]:
    """Of each seed and layer the arrangement of its heads, and what each window leaves."""
    places, left = [], []
    for net in map(programs.model, params):
        places.append([arrangement(block.attention) for block in net.blocks])
        left.append(
            [
                [nearest_convolution(x, y, (w, w)).residue for w in WINDOWS]
                for x, y in net.layers(jnp.asarray(images))
            ]
        )
    return np.array(places), np.array(left)


def expressed(seeds: Sequence[int]) -> list[Part]:
    """What the claim says of attention that is made from a convolution."""
    blurred = np.log([[error(seed, sharpness) for seed in seeds] for sharpness in SHARPNESS])
    slopes = np.polyfit(SHARPNESS, blurred, 1)[0]
    vanishing, exact = (max(error(seed, s) for seed in seeds) for s in (VANISHING, math.inf))
    return [
        Part("infinite sharpness: relative error", exactly(exact), below=EXACT),
        Part(f"sharpness {VANISHING:g}: relative error", exactly(vanishing), below=EXACT),
        Part("slope of ln error in sharpness", over_seeds(slopes), below=0.0),
    ]


def learned(before: Float[np.ndarray, "R L Q"], after: Float[np.ndarray, "R L Q"]) -> list[Part]:
    """What the claim says of arrangements before and after training."""
    then, now = (
        dict(zip(Arrangement._fields, np.moveaxis(found, -1, 0), strict=True))
        for found in (before, after)
    )
    apart = over_seeds((now["gap"] - then["gap"]).mean(axis=1))
    sharper = over_seeds((now["peak"] - then["peak"]).mean(axis=1))
    distinct, near = over_seeds(now["distinct"].mean(axis=1)), over_seeds(now["distance"][:, 0])
    return [
        Part(f"pixels that {HEADS} heads look at", distinct, above=DISTINCT),
        Part("distance to the nearest other head, after minus before training", apart, above=0.0),
        Part("largest weight of a head, after minus before training", sharper, above=0.0),
        Part("first layer: distance from the query, pixels", near, below=NEAR),
    ]


CLAIM = Claim(
    "conv_as_attention",
    "Multi-head self-attention with relative positions can express any convolution, and it learns "
    "to: its heads look at distinct pixels around the query.",
    "Cordonnier, Loukas and Jaggi 2020, On the Relationship between Self-Attention and "
    "Convolutional Layers, theorem 1, lemma 2 and section 4.",
    f"Made from a convolution, attention differs by less than {EXACT:g} of the output's norm, "
    f"borders included, with infinite sharpness and with {VANISHING:g}, and the error falls as "
    f"the sharpness grows. Trained, {HEADS} heads with free centres and widths look at more than "
    f"{DISTINCT:g} pixels, farther from each other and more sharply than before, and in the first "
    f"layer less than {NEAR:g} pixels from the query. After a first measurement seeds and steps "
    "were cut, for time.",
    test,
    ("mnist",),
)
