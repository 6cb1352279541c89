"""Layers on each vector alone."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from attnconv import functional as F

he_normal = nnx.initializers.he_normal()


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with `functional.dot_general`.

    >>> Linear(3, 8, rngs=nnx.Rngs(0))(jax.numpy.ones((4, 5, 3))).shape
    (4, 5, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("dot_general", F.dot_general)
        super().__init__(*args, **kwargs)


class PositionEmbedding(nnx.Module):
    """A learned vector for each position, added to the input: `a_i <- a_i + e_i`.

    >>> PositionEmbedding(5, 8, rngs=nnx.Rngs(0))(jax.numpy.zeros((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        # As large as what it is added to: on digits, 97.8 % on validation against 97.1 % at 0.02.
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (length, features)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + F.positions.learned(self.embedding[...], x.shape[1]).astype(x.dtype)[None]
