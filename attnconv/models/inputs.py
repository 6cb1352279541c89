"""Where every family begins and ends: what an example is made of as vectors, vectors as scores."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from attnconv.errors import UsageError
from attnconv.functional.dense import wide
from attnconv.nn import Linear
from attnconv.spec import PAD, Spec

POOLINGS = ("mean", "max", "attention", "token")


class Inputs(nnx.Module):
    """The vectors of the examples, and which of them are there.

    Tokens are embedded, or made vectors with a single one. The nodes of a graph are its features,
    the same for all examples. Other inputs are vectors already.

    Vectors with a single one and features of nodes are made in `dtype`, as no array tells theirs.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.rate = dropout_rate(spec)
        if spec.vocabulary is not None and not spec.one_hot:
            table = jax.random.normal(rngs.params(), (spec.vocabulary, spec.channels))
            self.embedding = nnx.Param(EMBEDDING_SCALE * table)

    def __call__(
        self, x: Array, *, dtype: DTypeLike = jnp.float32, rng: Array | None = None
    ) -> tuple[Float[Array, "B *grid C"], Bool[Array, "B T"] | None]:
        spec, mask = self.spec, None
        if spec.graph is not None:
            return jnp.asarray(spec.graph.features, dtype)[None], None
        if spec.vocabulary is not None:
            mask = x != PAD
            if spec.one_hot:
                x = jax.nn.one_hot(x, spec.vocabulary, dtype=dtype)
            else:
                x = embedded(self.embedding[...], x)
            x = dropout(x, self.rate, rng)
        elif spec.padded:
            mask = ~jnp.isnan(x[..., 0])
        return present(x, mask), mask


class Head(nnx.Module):
    """Scores from vectors: of each vector, or of the one vector that pooling makes of them.

    "mean" and "max" are taken over the vectors that are there; "attention" is their mean with the
    weights softmax(x w), w learned; "token" is the first vector, which the family has put there.
    """

    def __init__(self, spec: Spec, features: int, *, rngs: nnx.Rngs):
        self.spec = spec
        self.rate = dropout_rate(spec)
        if pooled(spec) and spec.pooling == "attention":
            self.pool = Linear(features, 1, use_bias=False, rngs=rngs)
        self.scores = Linear(features, spec.classes, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "E *grid D"],
        mask: Bool[Array, "E *grid"] | None,
        nodes: Num[Array, "B *shape"],
        rng: Array | None = None,
    ) -> Float[Array, "B *vectors classes"]:
        rng = None if rng is None else jax.random.fold_in(rng, 1)
        if self.spec.graph is not None:
            return self.scores(dropout(x[0], self.rate, rng))[nodes]
        if pooled(self.spec):
            x = self._pooled(x.reshape(len(x), -1, x.shape[-1]), mask)
        return self.scores(dropout(x, self.rate, rng))

    def _pooled(self, x: Array, mask: Array | None) -> Array:
        there = jnp.ones(x.shape[:2], bool) if mask is None else mask
        there = there[..., None]
        match self.spec.pooling:
            case "mean" if mask is None:
                return x.mean(1)
            case "mean":
                return jnp.where(there, x, 0).sum(1) / jnp.maximum(there.sum(1), 1)
            case "max":
                # Not `.max(1)`: its gradient looks for what equals the maximum, and misses it where
                # the compiler computes x again with other rounding.
                largest = jnp.where(there, x, -jnp.inf).argmax(1, keepdims=True)
                return jnp.take_along_axis(x, largest, axis=1)[:, 0]
            case "attention":
                scores = jnp.where(there, self.pool(x), -jnp.inf)
                return (jax.nn.softmax(scores, axis=1) * x).sum(1)
            case _:
                return x[:, 0]


# Kept small, so that words that training hardly sees add little noise.
EMBEDDING_SCALE = 0.1


def pooled(spec: Spec) -> bool:
    """Whether one vector is made of all."""
    return spec.output == "label" and spec.graph is None


def dropout_rate(spec: Spec) -> float:
    """Of the embeddings and of what the scores are made from: text is soon learned by heart."""
    if spec.vocabulary is None:
        return 0.0
    return 0.5 if spec.output == "label" else 0.1 if spec.output == "sequence" else 0.3


def embedded(table: Float[Array, "V D"], x: Int[Array, "..."]) -> Float[Array, "... D"]:
    """The row of each token; in half precision the gradient of a row is summed in float32."""
    return table.astype(wide(table.dtype))[x].astype(table.dtype)


def dropout(x: Float[Array, "..."], rate: float, rng: Array | None) -> Float[Array, "..."]:
    """`x` with each number zero with the probability `rate`, the others scaled to keep the mean.

    Without a key, or at rate zero, it is x. Source: Srivastava et al. 2014, Dropout.

    >>> dropout(jnp.ones(3), 0.5, None).tolist()
    [1.0, 1.0, 1.0]
    """
    if rng is None or rate == 0:
        return x
    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def present(x: Float[Array, "B *grid C"], mask: Bool[Array, "B *grid"] | None) -> Array:
    """The vectors that are there, zeros elsewhere: what a window sees over padding."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def per_layer(family: str, window: int, layers: int) -> int:
    """The extent of a layer's window, so that after all layers a vector sees `window` positions.

    >>> per_layer("cnn", 17, 4)
    5
    """
    each, rest = divmod(window - 1, layers)
    if window < 1 or rest or each % 2:
        least = 1 + 2 * layers * max(0, (window - 1) // (2 * layers))
        raise UsageError(
            f"model {family}:{window}: its {layers} layers can see {least} or "
            f"{least + 2 * layers} positions, not {window}"
        )
    return each + 1


def vectors(spec: Spec, patch: tuple[int, ...]) -> int:
    """How many vectors a grid makes in steps of `patch`."""
    return math.prod(-(-side // step) for side, step in zip(spec.grid, patch, strict=True))
