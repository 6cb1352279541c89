"""Batches of examples of different lengths: which go together, and how much of them is padding."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from attnconv.spec import PAD

POOL = 50  # batches whose examples are sorted by length before they are cut into batches
PARTS = (4, 2, 1)  # a batch is cut to a fourth of the longest example, to half of it, or not


def order(
    examples: Int[np.ndarray, "n"],
    *,
    steps: int,
    batch: int,
    seed: int,
    lengths: Num[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "{steps} {batch}"]:
    """Indices of the examples of each step: seeded permutations of them one after the other.

    With lengths, examples that are nearly as long share a batch: of every `POOL` batches the
    examples are sorted, and the batches shuffled.

    Args:
      examples: indices to draw from.
      steps: how many batches.
      batch: examples in each.
      seed: of the permutations.
      lengths: of each of `examples`.

    >>> order(np.arange(4), steps=2, batch=2, seed=0).tolist()
    [[2, 1], [0, 3]]
    """
    rng = np.random.default_rng([seed, 2])  # apart from the draws of splits and subsets
    passes = [rng.permutation(len(examples)) for _ in range(-(-steps * batch // len(examples)))]
    drawn = np.concatenate(passes)[: steps * batch]
    if lengths is not None:
        pools = np.split(drawn, range(POOL * batch, len(drawn), POOL * batch))
        drawn = np.concatenate([_by_length(pool, lengths, batch, rng) for pool in pools])
    return examples[drawn].reshape(steps, batch).astype(np.int32)


def _by_length(
    pool: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator
) -> np.ndarray:
    batches = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch)
    return rng.permutation(batches).ravel()


def lengths(inputs: np.ndarray, labels: np.ndarray) -> Float[np.ndarray, "n"]:
    """How long each example is, as a part of the longest that there can be, from 0 to 1.

    An output counts too where it is a row of labels.
    """
    parts = [_extents(_there(inputs)) / inputs.shape[1]]
    if labels.ndim == 2:
        parts.append(_extents(labels >= 0) / labels.shape[1])
    return np.max(parts, axis=0)


def cut_to_longest(
    inputs: Array, labels: Array, use: Callable[[Array, Array], chex.ArrayTree]
) -> Any:
    """`use(inputs, labels)` of the batch without the end of its rows, where all are short.

    The program holds `use` once for each of `PARTS`.
    """
    each = [_widths(inputs.shape[1])]
    longest = [_extents(_there(inputs)).max()]
    if labels.ndim == 2:
        each.append(_widths(labels.shape[1]))
        longest.append(_extents(labels >= 0).max())
    fits = jnp.stack(
        [
            jnp.stack([n <= w[i] for n, w in zip(longest, each, strict=True)]).all()
            for i in range(len(PARTS))
        ]
    )

    def of_part(i: int) -> Callable[[], Any]:
        short = labels if labels.ndim == 1 else labels[:, : each[-1][i]]
        return lambda: use(inputs[:, : each[0][i]], short)

    return lax.switch(fits.argmax(), [of_part(i) for i in range(len(PARTS))])


def _there(inputs: Any) -> Any:
    """Which vectors of the examples are there, `[B, T]`."""
    return inputs != PAD if inputs.ndim == 2 else inputs[..., 0] == inputs[..., 0]  # but NaN


def _extents(there: Any) -> Any:
    """How many positions of each row there are up to the last that is there."""
    return (there * np.arange(1, there.shape[1] + 1)).max(1)


def _widths(most: int) -> Sequence[int]:
    """Lengths to cut to, which leave the same as `most` when divided by 4.

    A window of stride 2 lies on an even length otherwise than on an odd one.
    """
    return [min(most, -(-(most // part - most) // 4) * 4 + most) for part in PARTS]
