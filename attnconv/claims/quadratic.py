"""A net whose attention looks by relative position only, and where its heads look."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv.nn import EncoderBlock, Linear

LAYERS, HEADS, FEATURES = 2, 9, 16


class QuadraticAttention(nnx.Module):
    """`y_i = b + sum_n sum_j w_nij x_j W_n` with `w_nij = softmax_j(-s_n^2 |j - i - c_n|^2)`.

    Heads look by position only. Of scores that are a sum over the two axes, the softmax is a
    product, with a factor for each axis.

    Parameters: centres c `[N, 2]`, inverse widths s `[N]`, kernel W `[N, D, O]` and bias b `[O]`.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.centres = nnx.Param(math.sqrt(2) * jax.random.normal(rngs.params(), (HEADS, 2)))
        self.inverse_widths = nnx.Param(jnp.ones(HEADS))
        init = nnx.initializers.lecun_normal(in_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (HEADS, features, features)))
        self.bias = nnx.Param(jnp.zeros(features))

    def weights(self, axis: int, size: int) -> Float[Array, "N T T"]:
        """The factor of the attention that belongs to an axis of that size."""
        at = jnp.arange(size)
        apart = at[None] - at[:, None] - self.centres[...][:, axis, None, None]
        return jax.nn.softmax(-jnp.square(self.inverse_widths[...][:, None, None] * apart), axis=-1)

    def __call__(
        self, x: Float[Array, "B H W D"], mask: Bool[Array, "B H W"] | None = None
    ) -> Float[Array, "B H W O"]:
        del mask
        B, H, W, D = x.shape
        rows, columns = (self.weights(axis, size) for axis, size in enumerate((H, W)))
        # Products of whole matrices: two thirds of the time that one einsum for each axis takes.
        value = x.reshape(-1, D) @ self.kernel[...].swapaxes(0, 1).reshape(D, -1)
        value = value.reshape(B, H, W, HEADS, -1).transpose(3, 1, 0, 2, 4).reshape(HEADS, H, -1)
        seen = (rows @ value).reshape(HEADS, H, B, W, -1).transpose(0, 3, 1, 2, 4)
        y = columns.swapaxes(0, 1).reshape(W, -1) @ seen.reshape(HEADS * W, -1)
        return y.reshape(W, H, B, -1).transpose(2, 1, 0, 3) + self.bias[...]


class Net(nnx.Module):
    """Each pixel a vector; blocks of attention by position; the mean; a score of ten classes."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.embed = Linear(channels, FEATURES, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(
                FEATURES,
                2 * FEATURES,
                attention=QuadraticAttention(FEATURES, rngs=rngs),
                rngs=rngs,
            )
            for _ in range(LAYERS)
        )
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.head = Linear(FEATURES, 10, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], *, rng: Array | None = None
    ) -> Float[Array, "B 10"]:
        del rng
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((1, 2)))

    def layers(self, x: Float[Array, "B H W C"]) -> list[tuple[Array, Array]]:
        """What each attention is given and what it makes of it."""
        x, found = self.embed(x), []
        for block in self.blocks:
            at = block.attention_norm(x)
            found.append((at, block.attention(at)))
            x = block(x)
        return found


class Arrangement(NamedTuple):
    """Where the heads of a layer look.

    Attributes:
      distinct: on how many different pixels their centres lie.
      gap: from a centre to the nearest of the others, the mean over heads.
      peak: of a head's weights the largest, far from the border, the mean over heads.
      distance: from the query to a centre, the mean over heads.
    """

    distinct: float
    gap: float
    peak: float
    distance: float


def arrangement(attention: QuadraticAttention) -> Arrangement:
    """Where the heads of a trained layer look, or of one that is not trained."""
    centres = np.asarray(attention.centres[...], np.float64)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    to_pixel = np.square(np.asarray(attention.inverse_widths[...], np.float64))[:, None, None]
    offsets = np.arange(-32, 33) - (centres - centres.round())[..., None]
    weights = np.exp(-to_pixel * np.square(offsets))
    peak = (weights.max(-1) / weights.sum(-1)).prod(-1)
    return Arrangement(
        len(np.unique(centres.round(), axis=0)),
        float(np.where(np.eye(len(centres), dtype=bool), np.inf, apart).min(-1).mean()),
        float(peak.mean()),
        float(np.linalg.norm(centres, axis=-1).mean()),
    )
