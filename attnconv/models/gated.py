"""Gated positional attention: it starts as a convolution and may leave it."""

from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.attention import BLOCKS, patch_size
from attnconv.models.inputs import Head, Inputs
from attnconv.models.size import Size
from attnconv.nn import Conv, EncoderBlock, GatedAttention
from attnconv.spec import Spec

WINDOWS = {1: (9,), 2: (3, 3)}  # by the number of axes; a head for each offset
HEADS = 9


class Gated(nnx.Module):
    """The layout of `Attention`, each head between a place relative to the vector and content.

    Args:
      start: as for `nn.GatedAttention`.
    """

    default = Size(width=63, hidden=128)
    any_length = True
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, start: str = "convolution", rngs: nnx.Rngs):
        patch = patch_size(spec.grid)
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Conv(spec.channels, size.width, patch, patch, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(
                size.width,
                size.hidden,
                attention=GatedAttention(
                    WINDOWS[len(spec.grid)], size.width, start=start, rngs=rngs
                ),
                rngs=rngs,
            )
            for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)
        self.head = Head(spec, size.width, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, mask = self.inputs(x, rng=rng)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x), mask, nodes, rng)
