"""The compiled functions of a model: how it starts, trains and is judged."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from attnconv.batching import cut_to_longest
from attnconv.train import Data, Gradient, Recipe, TrainState, cross_entropy, train_step

EVALUATION_BATCH = 256


class Score(NamedTuple):
    """How well a model does on some data."""

    accuracy: float
    loss: float


class Programs:
    """The compiled functions of one model and recipe, used by every run of them.

    A model that writes sequences has a method `predict(x)`, and is called with the labels too. One
    that takes examples of any length has a true `any_length`.

    Args:
      make: makes a model, given `rngs`.
      recipe: how it is trained.
      padded: whether examples have different lengths; on a CPU batches are cut to the longest.
      gradient: as for `train_step`.
      augment: `(rng, inputs) -> inputs`, changes what is trained on at random.

    Attributes:
      writes: whether the model writes sequences.
      init: `(learning_rate, steps, seed) -> TrainState`.
      advance: `(state, data, order, count) -> (state, mean loss)`: the first `count` batches of
        the indices `order [most, batch]` in one loop on the device. The state's buffers are given
        away.
      init_all, advance_all: the same for several runs as one program, data and count shared.
      scores: `(params, inputs) -> scores [B, *vectors, classes]` of a model that writes none.
      judge: `(params, batch) -> (predicted labels, losses of each label)`.
      model: `(params) -> model`, not compiled.
    """

    def __init__(
        self,
        make: Callable[..., nnx.Module],
        recipe: Recipe,
        *,
        padded: bool = False,
        gradient: Gradient | None = None,
        augment: Callable[[Array, Array], Array] | None = None,
    ):
        shapes: Any = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        model = functools.partial(nnx.merge, nnx.graphdef(shapes))
        self.recipe = recipe
        self.writes = hasattr(shapes, "predict")
        # Under `vmap` over runs all lengths would be computed, and on an accelerator they are.
        cut = padded and getattr(shapes, "any_length", False) and jax.default_backend() == "cpu"

        def cast(tree: Any) -> Any:
            """Numbers that a model computes with; tokens, nodes and labels stay as they are."""
            return jax.tree.map(
                lambda x: x.astype(recipe.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
                tree,
            )

        def scored(params: chex.ArrayTree, inputs: Array, *taught: Array, **options: Any) -> Array:
            scores = model(cast(params))(cast(inputs), *taught, **options)
            return scores.astype(jnp.float32)

        def losses(params: chex.ArrayTree, batch: Data, smoothing: float) -> tuple[Array, Array]:
            rng = None if batch.rng is None else batch.rng[0]
            taught = (batch.labels,) if self.writes else ()
            scores = scored(params, batch.inputs, *taught, rng=rng)
            return scores, cross_entropy(scores, batch.labels, smoothing=smoothing)

        def loss(params: chex.ArrayTree, batch: Data) -> Array:
            return losses(params, batch, recipe.label_smoothing)[1].sum()

        def init(learning_rate: Array, steps: Array, seed: Array) -> TrainState:
            params = nnx.split(make(rngs=nnx.Rngs(params=jax.random.key(seed))))[1]
            return TrainState(
                params=params,
                opt_state=recipe.optimizer().init(params),
                step=jnp.int32(0),
                steps=jnp.int32(steps),
                learning_rate=jnp.float32(learning_rate),
                seed=jnp.int32(seed),
            )

        def advance(
            state: TrainState, data: Data, order: Array, count: Array
        ) -> tuple[TrainState, Array]:
            def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
                state, total = carry
                key = jax.random.fold_in(jax.random.key(state.seed), state.step)
                keys = jax.random.split(key, order.shape[-1] + 1)

                def update(inputs: Array, labels: Array) -> tuple[TrainState, Array]:
                    if augment is not None:
                        inputs = augment(keys[-1], inputs)
                    batch = Data(inputs, labels, keys[:-1])
                    return train_step(state, batch, loss=loss, recipe=recipe, gradient=gradient)

                batch = data.inputs[order[i]], data.labels[order[i]]
                state, value = cut_to_longest(*batch, update) if cut else update(*batch)
                return state, total + value

            state, total = jax.lax.fori_loop(0, count, step, (state, jnp.zeros(())))
            return state, total / jnp.maximum(count, 1)

        def judge(params: chex.ArrayTree, batch: Data) -> tuple[Array, Array]:
            scores, of_labels = losses(params, batch, 0.0)
            if self.writes:
                predicted = model(cast(params)).predict(cast(batch.inputs))
            else:
                predicted = scores.argmax(-1)
            return predicted.astype(jnp.int32), of_labels

        self.init = jax.jit(init)
        self.advance = jax.jit(advance, donate_argnums=0)
        self.init_all = jax.jit(jax.vmap(init))
        self.advance_all = jax.jit(jax.vmap(advance, in_axes=(0, None, 0, None)), donate_argnums=0)
        self.scores = jax.jit(scored)
        self.judge = jax.jit(judge)
        self.model = model


def judged(programs: Programs, params: chex.ArrayTree, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted for any number of examples, and the loss of each label.

    Predictions have the shape of the labels.
    """
    found: list[Any] = []
    count = len(data.labels)
    for start in range(0, count, EVALUATION_BATCH):
        at = np.arange(start, start + EVALUATION_BATCH) % count  # the last batch is filled up
        batch = jax.device_put(Data(data.inputs[at], data.labels[at]))
        found.append(programs.judge(params, batch))
        jax.block_until_ready(found[-2:-1])  # so that the device has two batches at most
    predicted, losses = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return predicted, losses


def right(
    predicted: Int[np.ndarray, "..."],
    labels: Int[np.ndarray, "B *vectors"],
    *,
    writes: bool,
) -> tuple[Int[np.ndarray, "*seeds"], Int[np.ndarray, "B"]]:
    """How many of the labels of each example are predicted, and how many there are.

    Predictions have the shape of the labels, or of several seeds `[seeds, B, *vectors]`.

    A sequence is one label: it is predicted whole, its length included, or it is not.

    >>> right(np.array([[1, 2, 3]]), np.array([[1, 0, -1]]), writes=False)
    (array([1]), array([2]))
    """
    if writes:
        return (predicted == labels).all(-1).astype(int), np.ones(len(labels), int)
    if labels.ndim == 1:
        return (predicted == labels).astype(int), np.ones(len(labels), int)
    return ((predicted == labels) & (labels >= 0)).sum(-1), (labels >= 0).sum(-1)


def evaluate(programs: Programs, params: chex.ArrayTree, data: Data) -> Score:
    """The part of the labels that is predicted, and their mean loss in nats without smoothing."""
    labels = np.asarray(data.labels)
    predicted, losses = judged(programs, params, data)
    found, of = right(predicted, labels, writes=programs.writes)
    return Score(float(found.sum() / of.sum()), float(losses.sum() / (labels >= 0).sum()))
