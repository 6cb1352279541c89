"""Gated positional attention: it starts as a convolution and may leave it."""

from flax import nnx

from attnconv.models.grid import GridEncoder
from attnconv.models.size import Size
from attnconv.nn import GatedAttention
from attnconv.spec import Spec

WINDOWS = {1: (9,), 2: (3, 3)}  # by the number of axes; a head for each offset
HEADS = 9


class Gated(GridEncoder):
    """The layout of `Attention`, each head between a place relative to the vector and content.

    Args:
      start: as for `nn.GatedAttention`.
    """

    default = Size(width=63, hidden=128)
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, start: str = "convolution", rngs: nnx.Rngs):
        def attention() -> nnx.Module:
            return GatedAttention(WINDOWS[len(spec.grid)], size.width, start=start, rngs=rngs)

        super().__init__(spec, size, attention, rngs=rngs)
