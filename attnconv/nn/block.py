"""A block of a transformer."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv import functional as F
from attnconv.functional.dense import apart
from attnconv.nn.attention import MultiHeadAttention
from attnconv.nn.dense import Linear


class EncoderBlock(nnx.Module):
    """Attention between vectors, then a two-layer net on each; each adds to its input.

    Pre-norm: `x + attend(norm(x))`, then `x + mlp(norm(x))` (Xiong et al. 2020).

    Args:
      features: of each vector.
      hidden: between the two layers.
      heads: of self-attention between all vectors.
      attention: in its place, a module called with the vectors and `mask=`.

    The mask of a call is that of the attention: `[B | 1, 1, T | 1, T]` between all vectors, the
    keys that each query sees; `[B, *grid]` for `NeighborhoodAttention` and `GatedAttention`, the
    vectors that are there.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        heads: int = 1,
        attention: nnx.Module | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        if attention is None:
            attention = MultiHeadAttention(heads, features, decode=False, rngs=rngs)
        self.attention: Any = attention
        self.mlp_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = Linear(features, hidden, rngs=rngs)
        self.contract = Linear(hidden, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B *grid D"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "B *grid D"]:
        x = x + apart(self.attention(self.attention_norm(x), mask=mask))
        return x + apart(self.contract(F.gelu(self.expand(self.mlp_norm(x)))))
