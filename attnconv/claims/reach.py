"""A convolution ends at its window; does self-attention reach what lies at any distance?"""

from collections.abc import Mapping

import chex
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from attnconv import compiled, models, stats
from attnconv.claims import training
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Measured,
    Part,
    Series,
    Setting,
    accuracy,
    exactly,
)
from attnconv.spec import Spec
from attnconv.train import Data

SEEDS, STEPS, PARAMS = 3, 1500, 20_000
RATES = (0.003, 0.01)
LENGTH, CLASSES = 64, 8
EXAMPLES = {"train": 4096, "validation": 512, "test": 2048}
WINDOWS = {"cnn:17": 17, "cnn:33": 33, "neighborhood:17": 17, "attention": None}
DISTANCES = (2, 6, 14, 40)  # two within both windows, one within the larger, one beyond both
SOLVED, MARGIN, EXACT = 95.0, 5.0, 1e-5  # percent, points, relative
PROBES = 256  # examples whose far side is exchanged


def test(setting: Setting) -> Evidence:
    data = {
        name: find_task(count, seed=[setting.seed, i])
        for i, (name, count) in enumerate(EXAMPLES.items())
    }
    spec = Spec((LENGTH, CLASSES + 1), CLASSES, "labels")
    seeds = range(setting.seed, setting.seed + SEEDS)
    parts, rows, series = [], [], []
    for name, window in WINDOWS.items():
        make = training.family(name, spec, params=PARAMS)
        trained = training.fit(
            make, data["train"], data["validation"], steps=STEPS, rates=RATES, seeds=seeds
        )
        right = {d: accuracy(scores) for d, scores in by_distance(trained, data["test"]).items()}
        radius = LENGTH if window is None else window // 2
        parts += [expected(name, d, right[d], radius) for d in DISTANCES]
        change = "-"
        if window is not None:
            most = max(change_from_beyond(trained, p, data["test"], radius) for p in trained.params)
            change = f"{most:.2g}"
            what = f"{name}: change of its scores by what lies beyond its window"
            parts.append(Part(what, exactly(most), below=EXACT))
        count = models.parameters(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0))))
        rows.append([name, f"{count:,}", *(right[d].text() for d in DISTANCES), change])
        series.append(Series.of(name, DISTANCES, right.values()))
    return Evidence(
        parts,
        ["model", "parameters", *(f"accuracy at {d}, %" for d in DISTANCES), "change from beyond"],
        rows,
        Figure("distance of what is asked for (log)", "accuracy, %", series),
        f"Generated sequences of {LENGTH} vectors, each one of {CLASSES} symbols and one of them "
        "marked: what is the marked symbol? Asked are the vectors at these distances from it. "
        f"{EXAMPLES['train']:,} to train on, {EXAMPLES['test']:,} to test; {STEPS} steps, {SEEDS} "
        f"seeds, learning rates {RATES}, about {PARAMS:,} parameters. cnn:17 sees 17 positions, 8 "
        f"on each side. Change: |f(x') - f(x)| / |f(x)| of the trained scores f in the middle, x' "
        f"with other symbols and marks beyond the window; the largest of {PROBES} examples.",
    )


def find_task(count: int, seed: list[int]) -> Data:
    """Sequences of one-hot symbols and a mark on one of them, the label of vectors at DISTANCES.

    The symbols are independent, so that who does not see the marked one can only guess.
    """
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, CLASSES, (count, LENGTH))
    marked = np.arange(LENGTH) == rng.integers(0, LENGTH, (count, 1))
    inputs = np.concatenate([np.eye(CLASSES)[symbols], marked[..., None]], axis=-1)
    asked = np.isin(distances(inputs), DISTANCES)
    labels = np.where(asked, symbols[marked][:, None], -1)
    return Data(inputs.astype(np.float32), labels.astype(np.int32))


def distances(inputs: Float[np.ndarray, "B T C"]) -> Int[np.ndarray, "B T"]:
    """How far each vector is from the marked one."""
    return np.abs(np.arange(inputs.shape[1]) - inputs[..., -1].argmax(axis=1)[:, None])


def by_distance(trained: training.Fit, test: Data) -> Mapping[int, Float[np.ndarray, "R E"]]:
    """Scores of the vectors at each distance from the marked one, for each seed and example."""
    predicted = [compiled.judged(trained.programs, p, test)[0] for p in trained.params]
    found = {}
    for d in DISTANCES:
        labels = np.where(distances(test.inputs) == d, test.labels, -1)
        right, of = compiled.right(np.stack(predicted), labels, writes=False)
        found[d] = stats.ratio_scores(right, of)
    return found


def expected(name: str, distance: int, right: Measured, radius: int) -> Part:
    """What the claim says of a distance: solved within the radius, chance beyond it."""
    what = f"{name}: accuracy at distance {distance}, %"
    if distance <= radius:
        return Part(what, right, above=SOLVED)
    return Part(what, right, below=100 / CLASSES + MARGIN)


def change_from_beyond(
    trained: training.Fit, params: chex.ArrayTree, test: Data, radius: int
) -> float:
    """The largest change of the scores in the middle when all beyond the radius is exchanged."""
    x = test.inputs[:PROBES]
    middle = LENGTH // 2
    far = np.abs(np.arange(LENGTH) - middle) > radius
    exchanged = np.where(far[:, None], np.roll(x, 1, axis=0), x)
    before, after = (
        np.asarray(trained.programs.scores(params, jnp.asarray(inputs)))[:, middle]
        for inputs in (x, exchanged)
    )
    change = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    return float(change.max())


CLAIM = Claim(
    "reach",
    "What lies beyond its window a convolutional net cannot use; self-attention reaches any "
    "distance.",
    "Vaswani et al. 2017, Attention Is All You Need, table 1: the path between two positions is "
    "O(1) long through self-attention, O(n / k) through convolutions.",
    f"At equal parameters, accuracy above {SOLVED:g} % at each distance that lies within the "
    f"window, which for attention is every one of {', '.join(map(str, DISTANCES))}; at those "
    f"beyond the window, for cnn and neighborhood attention, less than {MARGIN:g} points above the "
    f"chance of {100 / CLASSES:g} %, and scores that what lies there changes by less than "
    f"{EXACT:g}. Mended after a first measurement, in which every vector was asked: then most "
    "labels are noise to a window, and no cnn learned what it saw.",
    test,
)
