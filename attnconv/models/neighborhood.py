"""Neighborhood attention: the window of a convolution, what it sees weighed by content."""

from flax import nnx

from attnconv.models.attention import BLOCKS, HEADS
from attnconv.models.grid import GridEncoder
from attnconv.models.inputs import per_layer
from attnconv.models.size import Size
from attnconv.nn import NeighborhoodAttention
from attnconv.spec import Spec

EXTENT = 5  # of a layer's window along each axis, where an example has one label
WINDOW = 17  # positions that a vector sees through all layers, where each has a label


class Neighborhood(GridEncoder):
    """The layout of `Attention`, with windows for all vectors and a bias for each offset.

    Beyond the border there is nothing.
    """

    default = Size(width=64, hidden=128)
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, window: int | None = None, rngs: nnx.Rngs):
        extent = EXTENT
        if spec.output == "labels":
            extent = per_layer("neighborhood", WINDOW if window is None else window, BLOCKS)

        def attention() -> nnx.Module:
            extents = (extent,) * len(spec.grid)
            return NeighborhoodAttention(HEADS, size.width, extents, border="zero", rngs=rngs)

        super().__init__(spec, size, attention, rngs=rngs)
