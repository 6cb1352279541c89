"""The branches of an encoder and a decoder: what relates the vectors of one sequence, or of two.

A branch of a decoder says the same in two ways: `__call__` of all vectors of a sequence, and `step`
of the next one, with a cache that `start` makes (`attnconv.decoding`). `S` vectors of the source,
`U` symbols of the output.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv import functional as F
from attnconv.models.inputs import dropout, present
from attnconv.nn import Conv, Linear, MultiHeadAttention

WINDOW = 3  # of a convolution
DROPOUT = 0.1  # of what a branch adds


class Memory(NamedTuple):
    """The source, encoded: its vectors, and which of them are there (None: all)."""

    vectors: Float[Array, "B S D"]
    mask: Bool[Array, "B S"] | None


class Attend(nnx.Module):
    """Multi-head attention, for the three below."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.attention = MultiHeadAttention(heads, features, decode=False, rngs=rngs)


class SelfAttention(Attend):
    """Attention between the vectors that are there."""

    def __call__(self, x: Float[Array, "B S D"], mask: Array | None) -> Float[Array, "B S D"]:
        return self.attention(x, mask=_keys(mask))


class CausalAttention(Attend):
    """Attention to the vectors up to the own; the cache is the keys and values so far."""

    def __call__(self, x: Float[Array, "B U D"], memory: Memory) -> Float[Array, "B U D"]:
        return self.attention(x, is_causal=True)

    def start(self, memory: Memory, steps: int) -> Any:
        *_, N, K = self.attention.key.kernel.shape
        empty = jnp.zeros((len(memory.vectors), steps, N, K), memory.vectors.dtype)
        return empty, empty

    def step(self, x: Float[Array, "B 1 D"], cache: Any, position: Array) -> tuple[Array, Any]:
        new = self.attention.key(x), self.attention.value(x)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(old, one, position, axis=1)
            for old, one in zip(cache, new, strict=True)
        )
        known = (jnp.arange(key.shape[1]) <= position)[None, None, None]
        y = F.dot_product_attention(self.attention.query(x), key, value, mask=known)
        return self.attention.out(y), (key, value)


class CrossAttention(Attend):
    """Attention to the encoded source, whose keys and values are computed once."""

    def __call__(self, x: Float[Array, "B U D"], memory: Memory) -> Float[Array, "B U D"]:
        return self.attention(x, memory.vectors, mask=_keys(memory.mask))

    def start(self, memory: Memory, steps: int) -> Any:
        vectors, mask = memory
        return self.attention.key(vectors), self.attention.value(vectors), mask

    def step(self, x: Float[Array, "B 1 D"], cache: Any, position: Array) -> tuple[Array, Any]:
        key, value, mask = cache
        y = F.dot_product_attention(self.attention.query(x), key, value, mask=_keys(mask))
        return self.attention.out(y), cache


class MLP(nnx.Module):
    """A two-layer net on each vector."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.expand = Linear(features, hidden, rngs=rngs)
        self.contract = Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], _: Any) -> Float[Array, "B T D"]:
        return self.contract(F.gelu(self.expand(x)))

    def start(self, memory: Memory, steps: int) -> Any:
        return ()

    def step(self, x: Float[Array, "B 1 D"], cache: Any, position: Array) -> tuple[Array, Any]:
        return self(x, None), cache


class GatedConv(nnx.Module):
    """A window of vectors to `hidden` features, each with a gate: `a sigmoid(b)` (GLU).

    Vectors that are not there are zeros, as beyond the ends.
    """

    padding = "SAME"

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.conv = Conv(features, 2 * hidden, (WINDOW,), padding=self.padding, rngs=rngs)
        self.contract = Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"], mask: Array | None) -> Float[Array, "B S D"]:
        return self.contract(jax.nn.glu(self.conv(present(x, mask))))


class CausalGatedConv(GatedConv):
    """The same over a vector and those before it; the cache is the last of those."""

    padding = "CAUSAL"

    def __call__(self, x: Float[Array, "B U D"], memory: Any) -> Float[Array, "B U D"]:
        return super().__call__(x, None)

    def start(self, memory: Memory, steps: int) -> Any:
        B, _, D = memory.vectors.shape
        return jnp.zeros((B, WINDOW - 1, D), memory.vectors.dtype)

    def step(self, x: Float[Array, "B 1 D"], cache: Any, position: Array) -> tuple[Array, Any]:
        window = jnp.concatenate([cache, x], axis=1)
        y = jnp.tensordot(window, self.conv.kernel[...], 2)
        y = y + self.conv.bias[...]  # type: ignore[index]
        return self.contract(jax.nn.glu(y))[:, None], window[:, 1:]


class Residual(nnx.Module):
    """`x + dropout(branch(norm(x)))`, of a whole sequence or of its next vector."""

    def __init__(self, branch: Any, features: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.branch = branch

    def __call__(self, x: Float[Array, "B T D"], context: Any, rng: Array | None) -> Array:
        return x + dropout(self.branch(self.norm(x), context), DROPOUT, rng)

    def step(self, x: Float[Array, "B 1 D"], cache: Any, position: Array) -> tuple[Array, Any]:
        y, cache = self.branch.step(self.norm(x), cache, position)
        return x + y, cache


def _keys(mask: Array | None) -> Array | None:
    """Which vectors are there, as a mask of attention to them."""
    return None if mask is None else mask[:, None, None]
