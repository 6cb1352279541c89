"""Self-attention: a set of vectors, each of which looks at all others by content."""

from flax import nnx
from jaxtyping import Array, Float

from attnconv.models.size import Size
from attnconv.nn import Conv, EncoderBlock, PositionEmbedding
from attnconv.spec import Spec

HEADS = 4
BLOCKS = 2
VECTORS_PER_AXIS = 8


class Attention(nnx.Module):
    """An image as a set of patches, or a sequence as it is; position embedding; encoder blocks.

    The layout of a vision transformer (Dosovitskiy et al. 2021) with the mean over vectors in
    place of a class token. An image makes at most 8 x 8 vectors.
    """

    default = Size(width=64, hidden=128)
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        grid = spec.grid
        # A sequence has its vectors already; an image is cut into non-overlapping patches.
        patch = (
            (1,) if len(grid) == 1 else tuple(max(2, -(-side // VECTORS_PER_AXIS)) for side in grid)
        )
        vectors = 1
        for side, step in zip(grid, patch, strict=True):
            vectors *= -(-side // step)
        self.embed = Conv(spec.channels, size.width, patch, patch, rngs=rngs)
        self.position = PositionEmbedding(vectors, size.width, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(size.width, size.hidden, heads=HEADS, rngs=rngs) for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)
        self.head = nnx.Linear(size.width, spec.classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B classes"]:
        x = self.embed(x)
        x = self.position(x.reshape(x.shape[0], -1, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
