"""How far the heads of a vision transformer look, layer by layer."""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnconv import compiled, tasks
from attnconv import functional as F
from attnconv.analysis.distance import attention_distance
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    accuracy,
    over_seeds,
)
from attnconv.claims.training import fit, splits
from attnconv.nn import Conv, EncoderBlock, Linear, PositionEmbedding

SEEDS, STEPS, RATES = 3, 1500, (0.001, 0.003)
EXAMPLES, PROBE = 10_000, 256
PATCH, BLOCKS, HEADS, FEATURES = 4, 4, 4, 32
LOCAL, GLOBAL = 0.5, 0.75  # of the distance where attention is the same everywhere


class ViT(nnx.Module):
    """Patches with learned positions, blocks of self-attention, the mean, a score of ten classes.

    Args:
      grid: of patches.
    """

    def __init__(self, grid: tuple[int, int], *, rngs: nnx.Rngs):
        self.embed = Conv(1, FEATURES, (PATCH, PATCH), PATCH, rngs=rngs)
        self.position = PositionEmbedding(grid[0] * grid[1], FEATURES, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(FEATURES, 2 * FEATURES, heads=HEADS, rngs=rngs) for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.head = Linear(FEATURES, 10, rngs=rngs)

    def vectors(self, x: Float[Array, "B H W 1"]) -> Float[Array, "B T D"]:
        """What the first block is given."""
        return self.position(self.embed(x).reshape(len(x), -1, FEATURES))

    def weights(self, x: Float[Array, "B H W 1"]) -> Float[Array, "L B N T T"]:
        """The attention of each block."""
        x, found = self.vectors(x), []
        for block in self.blocks:
            at = block.attention_norm(x)
            found.append(F.attention_weights(block.attention.query(at), block.attention.key(at)))
            x = block(x)
        return jnp.stack(found)

    def __call__(
        self, x: Float[Array, "B H W 1"], *, rng: Array | None = None
    ) -> Float[Array, "B 10"]:
        del rng
        x = self.vectors(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def test(setting: Setting) -> Evidence:
    mnist = tasks.load("mnist", data_dir=setting.data_dir, seed=setting.seed)
    train, validation, probe = splits(mnist)
    height, wide = (side // PATCH for side in train.inputs.shape[1:3])
    trained = fit(
        functools.partial(ViT, (height, wide)),
        train,
        validation,
        steps=STEPS,
        rates=RATES,
        seeds=range(setting.seed, setting.seed + SEEDS),
        subset=functools.partial(mnist.subset, EXAMPLES),
    )
    count = height * wide
    even = float(attention_distance(jnp.full((1, 1, count, count), 1 / count), (height, wide))[0])
    params = [*trained.untrained, *trained.params]
    found = distances(trained.programs, params, probe.inputs[:PROBE], (height, wide)) / even
    before, after = found[:SEEDS], found[SEEDS:]
    rows = [
        [name, str(layer + 1), *(over_seeds(values).text(2) for values in columns(found, layer))]
        for name, found in (("untrained", before), ("trained", after))
        for layer in range(BLOCKS)
    ]
    layers = list(range(1, BLOCKS + 1))
    series = [
        Series.of(name, layers, (over_seeds(columns(found, i)[column]) for i in range(BLOCKS)))
        for name, found, column in (
            ("trained: farthest head", after, 2),
            ("trained: mean", after, 1),
            ("trained: nearest head", after, 0),
            ("untrained: mean", before, 1),
        )
    ]
    right = accuracy(trained.right(probe)).text()
    return Evidence(
        judged(after),
        ["net", "layer", "nearest head", "mean", "farthest head"],
        rows,
        Figure("layer", "distance / that of even attention", series),
        f"mnist, {EXAMPLES:,} examples, {height} x {wide} patches; {BLOCKS} blocks of {FEATURES} "
        f"features and {HEADS} heads, {STEPS} steps, {SEEDS} seeds, learning rates {RATES}: test "
        f"accuracy {right} %. Distance: the mean over queries and {PROBE} test images, weighted "
        f"by attention; even: that of attention alike everywhere, {even:.2f} patches.",
    )


def distances(
    programs: compiled.Programs,
    params: Sequence[chex.ArrayTree],
    images: Float[np.ndarray, "B H W 1"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "R L N"]:
    """Of each seed, block and head, in patches, those of a block from the nearest head on."""

    @jax.jit
    def of_heads(params: chex.ArrayTree, images: Array) -> Array:
        weights = programs.model(params).weights(images)
        return jax.vmap(lambda w: attention_distance(w, grid))(weights)

    return np.sort([np.asarray(of_heads(p, jnp.asarray(images))) for p in params], axis=-1)


def judged(found: Float[np.ndarray, "R L N"]) -> list[Part]:
    """What the claim says of `distances`, as parts of that of even attention."""
    mean, near, far = found.mean(-1), found[..., 0], found[..., -1]
    last_farther = over_seeds(mean[:, -1] - mean[:, 0])
    return [
        Part(
            "mean distance in the last layer minus that in the first, / even",
            last_farther,
            above=0.0,
        ),
        Part("first layer, nearest head: distance / even", over_seeds(near[:, 0]), below=LOCAL),
        Part("first layer, farthest head: distance / even", over_seeds(far[:, 0]), above=GLOBAL),
        Part("last layer, nearest head: distance / even", over_seeds(near[:, -1]), above=GLOBAL),
    ]


def columns(found: Float[np.ndarray, "R L N"], layer: int) -> Sequence[np.ndarray]:
    """Of the heads of a layer: the nearest, the mean and the farthest, for each seed."""
    heads = found[:, layer]
    return heads[:, 0], heads.mean(-1), heads[:, -1]


CLAIM = Claim(
    "attention_distance",
    "The lower layers of a vision transformer have local and global heads, the higher ones only "
    "global heads.",
    "Raghu et al. 2021, Do Vision Transformers See Like Convolutional Neural Networks?, section 4, "
    "figure 3, for nets trained on 300 million images; with few (figure 4) lower layers do not "
    "learn to look nearby. Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, figure 7.",
    "The mean distance of attention is larger in the last layer than in the first; as parts of the "
    f"distance of even attention, the nearest head of the first layer is below {LOCAL:g} and its "
    f"farthest above {GLOBAL:g}, and all heads of the last layer are above {GLOBAL:g}. After a "
    "first measurement seeds were cut, for time.",
    test,
    ("mnist",),
)
