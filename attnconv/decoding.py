"""Sequences from a model that scores one symbol at a time, given those before it.

The model is a function `step(cache, symbols, position) -> (scores, cache)`: symbols `[B]` at
`position - 1`, scores `[B, classes]` of those at `position`. The cache, a tree of arrays whose
first axis is B, is what it remembers of the symbols before. All functions are pure and compile
under `jit` and `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attnconv.errors import UsageError

Step = Callable[[Any, Array, Array], tuple[Array, Any]]


def greedy(
    start_cache: Any, step: Step, *, batch: int, steps: int, first: int, end: int
) -> Int[Array, "{batch} {steps}"]:
    """The best symbol at each position: `y_u = argmax_c score_u(c | y_1 .. y_{u-1})`.

    It goes on until all sequences have ended. One that has not after `steps` has no `end`.

    Args:
      start_cache: before the first symbol; a tree of arrays `[B, ...]`.
      step: `(cache, symbols [B], position []) -> (scores [B, classes], cache)`.
      batch: B.
      steps: the most symbols of a sequence, with `end`.
      first: given to `step` as the symbol before the first.
      end: the symbol that ends a sequence.

    Returns:
      `[B, steps]`, -1 after `end`.

    Raises:
      UsageError: `steps` is below 1.

    Source: Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks, section 2.

    >>> next = jnp.log(jnp.array([[1, 0, 0], [0.4, 0.3, 0.3], [0.9, 0, 0.1], [0.1, 0.5, 0.4]]))
    >>> step = lambda cache, symbols, position: (next[symbols], cache)
    >>> greedy((), step, batch=1, steps=3, first=3, end=0)
    Array([[ 1,  0, -1]], dtype=int32)
    """
    _check(steps=steps)

    def unfinished(carry: tuple[Any, ...]) -> Bool[Array, ""]:
        position, _, _, ended, _ = carry
        return (position < steps) & ~ended.all()

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        position, cache, last, ended, symbols = carry
        scores, cache = step(cache, last, position)
        best = scores.argmax(axis=-1).astype(jnp.int32)
        symbols = symbols.at[:, position].set(jnp.where(ended, -1, best))
        return position + 1, cache, best, ended | (best == end), symbols

    start = (
        jnp.int32(0),
        start_cache,
        jnp.full(batch, first, jnp.int32),
        jnp.zeros(batch, bool),
        jnp.full((batch, steps), -1, jnp.int32),
    )
    return jax.lax.while_loop(unfinished, advance, start)[-1]


class _Beams(NamedTuple):
    position: Array
    cache: Any
    last: Array  # [B, beams], and the same below
    ended: Array
    total: Array  # log-probability
    length: Array
    symbols: Array  # [B, beams, steps]

    def value(self, length_penalty: float) -> Array:
        return self.total / self.length**length_penalty


def beam(
    start_cache: Any,
    step: Step,
    *,
    batch: int,
    steps: int,
    first: int,
    end: int,
    beams: int,
    length_penalty: float = 0.0,
) -> tuple[Int[Array, "{batch} {beams} {steps}"], Float[Array, "{batch} {beams}"]]:
    """The best sequences found when at each position the `beams` best beginnings are kept.

    Best is by `sum_u log p(y_u | y_1 .. y_{u-1}) / length^length_penalty`, where p is the softmax
    of the scores and the length counts `end`. A sequence that has ended stays as long as it is
    among the best. With as many beams as there are sequences the search is exhaustive; with one it
    is greedy.

    Args:
      start_cache: as for `greedy`, with first axis B; each beam gets a copy.
      step: as for `greedy`, called with B * beams in place of B, beams of an example side by side.
      batch: B.
      steps: the most symbols of a sequence, with `end`.
      first: given to `step` as the symbol before the first.
      end: the symbol that ends a sequence.
      beams: how many beginnings are kept of each example.
      length_penalty: 0 compares probabilities, which favours the short; 1 means over symbols.

    Returns:
      Sequences `[B, beams, steps]`, best first, -1 after `end`, and the value that they are
      compared by, `[B, beams]`. Where fewer sequences are possible than there are beams the others
      are -1 throughout, with the value -inf.

    Raises:
      UsageError: `steps` or `beams` is below 1.

    Source: Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks, section 3.2;
    Wu et al. 2016, Google's Neural Machine Translation System, section 7, for the penalty, there
    `((5 + length) / 6)^a`.

    >>> next = jnp.log(jnp.array([[1, 0, 0], [0.4, 0.3, 0.3], [0.9, 0, 0.1], [0.1, 0.5, 0.4]]))
    >>> step = lambda cache, symbols, position: (next[symbols], cache)
    >>> symbols, value = beam((), step, batch=1, steps=3, first=3, end=0, beams=2)
    >>> symbols
    Array([[[ 2,  0, -1],
            [ 1,  0, -1]]], dtype=int32)
    >>> [f"{p:.2f}" for p in jnp.exp(value[0])]
    ['0.36', '0.20']
    """
    _check(steps=steps, beams=beams)

    def unfinished(state: _Beams) -> Bool[Array, ""]:
        return (state.position < steps) & ~(state.ended | (state.total == -jnp.inf)).all()

    def advance(state: _Beams) -> _Beams:
        scores, cache = step(state.cache, state.last.reshape(-1), state.position)
        wide = jnp.promote_types(scores.dtype, jnp.float32)
        logs = jax.nn.log_softmax(scores.astype(wide))
        classes = logs.shape[-1]
        logs = logs.reshape(batch, beams, classes)
        # What has ended goes on in one way, with `end`, else it would be found several times.
        stay = jnp.where(jnp.arange(classes) == end, 0.0, -jnp.inf)
        total = state.total[..., None] + jnp.where(state.ended[..., None], stay, logs)
        length = state.length + ~state.ended
        value = total / length[..., None] ** length_penalty
        _, best = jax.lax.top_k(value.reshape(batch, beams * classes), beams)
        parent, symbol = best // classes, best % classes

        def inherit(x: Array) -> Array:
            return jax.vmap(lambda x, parent: x[parent])(x, parent)

        rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        ended = inherit(state.ended)
        symbols = inherit(state.symbols).at[..., state.position]
        return _Beams(
            position=state.position + 1,
            cache=jax.tree.map(lambda x: x[rows], cache),
            last=symbol,
            ended=symbol == end,
            total=jnp.take_along_axis(total.reshape(batch, beams * classes), best, axis=1),
            length=inherit(length),
            symbols=symbols.set(jnp.where(ended, -1, symbol)),
        )

    shape = (batch, beams)
    start = _Beams(
        position=jnp.int32(0),
        cache=jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), start_cache),
        last=jnp.full(shape, first, jnp.int32),
        ended=jnp.zeros(shape, bool),
        # All beams are alike at first: one of them counts.
        total=jnp.full(shape, -jnp.inf).at[:, 0].set(0.0),
        length=jnp.zeros(shape, jnp.int32),
        symbols=jnp.full((*shape, steps), -1, jnp.int32),
    )
    found = jax.lax.while_loop(unfinished, advance, start)
    possible = found.total > -jnp.inf
    return jnp.where(possible[..., None], found.symbols, -1), found.value(length_penalty)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name}={count}: expected a positive number")
