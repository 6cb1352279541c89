"""The layout of `Attention` for a kind of attention that looks along a grid."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float, Num

from attnconv.models.attention import BLOCKS, patch_size
from attnconv.models.inputs import Head, Inputs, vectors
from attnconv.models.size import Size
from attnconv.nn import Conv, EncoderBlock, PositionEmbedding
from attnconv.spec import Spec


class GridEncoder(nnx.Module):
    """Vectors, a position embedding, encoder blocks, scores: it differs in what attends only.

    Args:
      spec: of the task.
      size: its width and hidden features.
      attention: makes what attends in a block, a module called with `[B, *grid, D]` and `mask=`.
    """

    any_length = True

    def __init__(
        self, spec: Spec, size: Size, attention: Callable[[], nnx.Module], *, rngs: nnx.Rngs
    ):
        patch = patch_size(spec.grid)
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Conv(spec.channels, size.width, patch, patch, rngs=rngs)
        self.position = PositionEmbedding(vectors(spec, patch), size.width, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(size.width, size.hidden, attention=attention(), rngs=rngs)
            for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(size.width, rngs=rngs)
        self.head = Head(spec, size.width, rngs=rngs)

    def __call__(
        self, x: Num[Array, "B *shape"], *, rng: Array | None = None
    ) -> Float[Array, "B *vectors classes"]:
        nodes = x
        x, mask = self.inputs(x, dtype=self.embed.kernel.dtype, rng=rng)
        x = self.embed(x)
        x = self.position(x.reshape(len(x), -1, x.shape[-1])).reshape(x.shape)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x), mask, nodes, rng)
