"""Self-attention: a set of vectors, each of which looks at all others by content."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from attnconv import functional as F
from attnconv.models.inputs import Head, Inputs, per_layer, pooled, vectors
from attnconv.models.size import Size
from attnconv.nn import Conv, EncoderBlock, PositionEmbedding
from attnconv.spec import Spec

HEADS = 4
BLOCKS = 2
VECTORS_PER_AXIS = 8


class Encoder(nnx.Module):
    """Blocks of self-attention between the vectors that are there, and the scores.

    Args:
      spec: of the task.
      count: number of vectors.
      features: of each.
      hidden: features between, in the two-layer nets.
      window: positions that a vector sees altogether; None for all.
    """

    def __init__(
        self,
        spec: Spec,
        count: int,
        features: int,
        hidden: int,
        *,
        window: int | None = None,
        rngs: nnx.Rngs,
    ):
        token = pooled(spec) and spec.pooling == "token"
        self.token = nnx.Param(jnp.zeros((1, 1, features))) if token else None
        count += int(token)
        self.side = None if window is None else per_layer("attention", window, BLOCKS) // 2
        # The nodes of a graph are in no order.
        self.position = (
            PositionEmbedding(count, features, rngs=rngs) if spec.graph is None else None
        )
        self.blocks = nnx.List(
            EncoderBlock(features, hidden, heads=HEADS, rngs=rngs) for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = Head(spec, features, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "E T D"],
        mask: Bool[Array, "E T"] | None,
        nodes: Num[Array, "B *shape"],
        rng: Array | None,
    ) -> Float[Array, "B *vectors classes"]:
        if self.token is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1])), x], 1)
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        if self.position is not None:
            x = self.position(x)
        pairs = None
        if self.side is not None:
            pairs = F.masks.window(x.shape[1], x.shape[1], self.side, self.side)
        if mask is not None:
            there = mask[:, None, None, :]
            pairs = there if pairs is None else there & pairs
        for block in self.blocks:
            x = block(x, pairs)
        return self.head(self.norm(x), mask, nodes, rng)


class Attention(nnx.Module):
    """An image as a set of patches, or a sequence as it is; position embedding; encoder blocks.

    The layout of a vision transformer (Dosovitskiy et al. 2021) with the mean over vectors in
    place of a class token. An image makes at most 8 x 8 vectors.
    """

    default = Size(width=64, hidden=128)
    any_length = True
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, window: int | None = None, rngs: nnx.Rngs):
        patch = patch_size(spec.grid)
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Conv(spec.channels, size.width, patch, patch, rngs=rngs)
        count = vectors(spec, patch)
        self.encoder = Encoder(spec, count, size.width, size.hidden, window=window, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, mask = self.inputs(x, dtype=self.embed.kernel.dtype, rng=rng)
        x = self.embed(x)
        return self.encoder(x.reshape(len(x), -1, x.shape[-1]), mask, nodes, rng)


def patch_size(grid: Sequence[int]) -> tuple[int, ...]:
    """Of the non-overlapping patches of an image; a sequence has its vectors already.

    >>> patch_size((28, 28)), patch_size((40,))
    ((4, 4), (1,))
    """
    if len(grid) == 1:
        return (1,)
    return tuple(max(2, -(-side // VECTORS_PER_AXIS)) for side in grid)
