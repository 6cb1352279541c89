"""Neighborhood attention: the window of a convolution, what it sees weighed by content."""

from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.attention import BLOCKS, HEADS, patch_size
from attnconv.models.inputs import Head, Inputs, per_layer
from attnconv.models.size import Size
from attnconv.nn import Conv, EncoderBlock, NeighborhoodAttention
from attnconv.spec import Spec

EXTENT = 5  # of a layer's window along each axis, where an example has one label
WINDOW = 17  # positions that a vector sees through all layers, where each has a label


class Neighborhood(nnx.Module):
    """The layout of `Attention`, with windows for all vectors and offsets for positions.

    Nothing tells a vector where it is, but its distance from the others and the border, beyond
    which there is nothing.
    """

    default = Size(width=64, hidden=128)
    any_length = True
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, window: int | None = None, rngs: nnx.Rngs):
        patch = patch_size(spec.grid)
        extent = EXTENT
        if spec.output == "labels":
            extent = per_layer("neighborhood", WINDOW if window is None else window, BLOCKS)
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Conv(spec.channels, size.width, patch, patch, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(
                size.width,
                size.hidden,
                attention=NeighborhoodAttention(
                    HEADS, size.width, (extent,) * len(spec.grid), border="zero", rngs=rngs
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
