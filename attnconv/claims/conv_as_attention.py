"""Multi-head attention by relative position: it can be a convolution; does it become one?"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv import tasks
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
    interval,
    over_seeds,
)
from attnconv.claims.quadratic import FEATURES, HEADS, LAYERS, Arrangement, Net, arrangement
from attnconv.claims.training import fit
from attnconv.train import Data

SEEDS, STEPS, RATES = 4, 1000, (0.003, 0.01)
EXAMPLES, PROBE = 10_000, 32
SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0)
VANISHING = 46.0  # the sharpness from which float32 has no weight left for a neighbour
WINDOWS = (1, 3, 5)
EXACT, NEAR, DISTINCT = 1e-5, 3.0, 8.0


def test(setting: Setting) -> Evidence:
    mnist = tasks.load("mnist", data_dir=setting.data_dir, seed=setting.seed)
    train, validation, probe = (
        Data(halved(s.inputs), s.labels) for s in (mnist.train, mnist.validation, mnist.test)
    )
    make = functools.partial(Net, train.inputs.shape[-1])
    seeds = range(setting.seed, setting.seed + SEEDS)
    trained = fit(
        make,
        train,
        validation,
        steps=STEPS,
        rates=RATES,
        seeds=seeds,
        subset=lambda seed: mnist.subset(EXAMPLES, seed=seed),
    )
    start = [trained.programs.init(RATES[0], STEPS, seed).params for seed in seeds]
    graph = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]
    images = jnp.asarray(probe.inputs[:PROBE])
    # [seeds, layers, quantities of an arrangement], [seeds, layers, windows]
    (before, left_before), (after, left_after) = (
        tuple(
            np.array(found)
            for found in zip(*(described(nnx.merge(graph, p), images) for p in params), strict=True)
        )
        for params in (start, trained.params)
    )
    blurred = np.log([[error(seed, sharpness) for seed in seeds] for sharpness in SHARPNESS])
    slopes = np.polyfit(SHARPNESS, blurred, 1)[0]
    vanishing, exact = (max(error(seed, s) for seed in seeds) for s in (VANISHING, math.inf))
    then, now = (
        dict(zip(Arrangement._fields, np.moveaxis(found, -1, 0), strict=True))
        for found in (before, after)
    )
    parts = [
        Part("infinite sharpness: relative error", *(exact,) * 3, below=EXACT),
        Part(f"sharpness {VANISHING:g}: relative error", *(vanishing,) * 3, below=EXACT),
        Part("slope of ln error in sharpness", *over_seeds(slopes), seeds=SEEDS, below=0.0),
        Part(
            f"pixels that {HEADS} heads look at",
            *over_seeds(now["distinct"].mean(axis=1)),
            seeds=SEEDS,
            above=DISTINCT,
        ),
        Part(
            "distance to the nearest other head, after minus before training",
            *over_seeds((now["gap"] - then["gap"]).mean(axis=1)),
            seeds=SEEDS,
            above=0.0,
        ),
        Part(
            "largest weight of a head, after minus before training",
            *over_seeds((now["peak"] - then["peak"]).mean(axis=1)),
            seeds=SEEDS,
            above=0.0,
        ),
        Part(
            "first layer: distance from the query, pixels",
            *over_seeds(now["distance"][:, 0]),
            seeds=SEEDS,
            below=NEAR,
        ),
    ]
    rows, series = [], []
    for layer in range(LAYERS):
        for when, places, left in (
            ("untrained", before, left_before),
            ("trained", after, left_after),
        ):
            residues = [over_seeds(column) for column in left[:, layer].T]
            name = f"layer {layer + 1}, {when}"
            told = [interval(*over_seeds(column), 2) for column in places[:, layer].T]
            rows.append([name, *told, *(interval(*r, 2) for r in residues)])
            y, low, high = zip(*residues, strict=True)
            series.append(Series(name, WINDOWS, y, low, high))
    right = interval(*accuracy(trained.right(probe)))
    return Evidence(
        parts,
        [
            "layer",
            "pixels",
            "nearest other",
            "largest weight",
            "from the query",
            *(f"left by {w} x {w}" for w in WINDOWS),
        ],
        rows,
        Figure("window of the convolution", "part of the output that it leaves", series),
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


def described(net: Net, x: Float[Array, "B H W C"]) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer, the arrangement of its heads and what each window's convolution leaves."""
    places = [arrangement(block.attention) for block in net.blocks]
    left = [
        [nearest_convolution(at, y, (w, w)).residue for w in WINDOWS] for at, y in net.layers(x)
    ]
    return np.array(places), np.array(left)


CLAIM = Claim(
    "conv_as_attention",
    "Multi-head self-attention with relative positions can express any convolution, and it learns "
    "to: its heads look at distinct pixels on a grid around the query.",
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
