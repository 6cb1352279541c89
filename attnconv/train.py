"""Training: a state, one pure step, and compiled loops over steps, runs and examples."""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from attnconv.errors import UsageError

CHUNK = 100  # steps between two looks of the host at the loss
EVALUATION_BATCH = 256
HOST_BYTES = 8 << 30  # taken for the device's memory where the device does not tell

Forward = Callable[[Any, Array], Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every model is trained; what differs between runs is the learning rate and the seed.

    AdamW (Loshchilov and Hutter 2019) with decay on matrices only; the learning rate warms up
    linearly over `warmup` of the steps and falls along a cosine to zero; gradients are clipped to
    the norm `clip`.
    """

    steps: int
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0


class Data(NamedTuple):
    """Examples and their labels, of the same length."""

    inputs: Any
    labels: Any


@chex.dataclass(frozen=True)
class TrainState:
    """All that a step changes, and the learning rate, so that runs with several can be batched."""

    params: Any
    opt_state: Any
    learning_rate: Array


class Run(NamedTuple):
    """One training run: its peak learning rate, its seed, and which example is in which batch."""

    learning_rate: float
    seed: int
    order: np.ndarray  # [steps, batch], indices into the training data


class Trained(NamedTuple):
    """What a run leaves: parameters, the mean loss of each chunk of steps, and the time it took."""

    params: Any
    losses: list[float]
    seconds: float


def default_steps(examples: int) -> int:
    """Steps where none are asked for: 30 times the root of the number of training examples.

    >>> default_steps(100), default_steps(51_000)
    (300, 6775)
    """
    return round(30 * examples**0.5)


def batch_order(examples: np.ndarray, recipe: Recipe, *, seed: int) -> np.ndarray:
    """Indices `[steps, batch]`: seeded permutations of the examples one after the other."""
    rng = np.random.default_rng(seed)
    count = recipe.steps * recipe.batch
    passes = [rng.permutation(examples) for _ in range(-(-count // len(examples)))]
    return np.concatenate(passes)[:count].reshape(recipe.steps, recipe.batch).astype(np.int32)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW after clipping, for a peak learning rate of one: the step scales its update."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, warmup_steps=int(recipe.warmup * recipe.steps), decay_steps=recipe.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.adamw(
            schedule,
            weight_decay=recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def cross_entropy(
    scores: Float[Array, "B classes"], labels: Int[Array, "B"]
) -> Float[Array, ""]:
    """Mean over the batch of `-log softmax(scores)[label]`, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def train_step(
    state: TrainState, batch: Data, *, forward: Forward, tx: optax.GradientTransformation
) -> tuple[TrainState, Array]:
    """One update: the state after it, and the loss before it."""

    def loss_of(params: Any) -> Array:
        return cross_entropy(forward(params, batch.inputs), batch.labels)

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    update, opt_state = tx.update(gradient, state.opt_state, state.params)
    update = jax.tree.map(lambda u: state.learning_rate * u, update)
    params = optax.apply_updates(state.params, update)
    return state.replace(params=params, opt_state=opt_state), loss


class Programs:
    """The compiled functions of one model and recipe, used by every run of them.

    Attributes:
      init: `(learning_rate, seed) -> TrainState`.
      advance: `(state, data, order, start, stop) -> (state, mean loss)`, the steps from start to
        stop in one loop on the device; the state's buffers are given away.
      predict: `(params, inputs) -> scores`, in batches.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], recipe: Recipe):
        graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        tx = optimizer(recipe)
        self.recipe = recipe

        def forward(params: Any, x: Array) -> Array:
            return nnx.merge(graph, params)(x)

        def init(learning_rate: Array, seed: Array) -> TrainState:
            params = nnx.split(make(nnx.Rngs(params=jax.random.key(seed))))[1]
            return TrainState(
                params=params, opt_state=tx.init(params), learning_rate=learning_rate
            )

        def advance(
            state: TrainState, data: Data, order: Array, start: Array, stop: Array
        ) -> tuple[TrainState, Array]:
            def step(i: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
                state, total = carry
                batch = Data(data.inputs[order[i]], data.labels[order[i]])
                state, loss = train_step(state, batch, forward=forward, tx=tx)
                return state, total + loss

            state, total = jax.lax.fori_loop(start, stop, step, (state, jnp.zeros(())))
            return state, total / jnp.maximum(stop - start, 1)

        def predict(params: Any, inputs: Array) -> Array:
            batches = len(inputs) // EVALUATION_BATCH
            full, rest = jnp.split(inputs, [batches * EVALUATION_BATCH])
            full = full.reshape(batches, EVALUATION_BATCH, *inputs.shape[1:])
            scores = jax.lax.map(lambda x: forward(params, x), full)
            return jnp.concatenate(
                [scores.reshape(len(full) * EVALUATION_BATCH, -1), forward(params, rest)]
            )

        self.init = jax.jit(init)
        self.advance = jax.jit(advance, donate_argnums=0)
        self.predict = jax.jit(predict)
        # All runs at once, for devices on which one small run leaves most of the hardware idle.
        self.init_all = jax.jit(jax.vmap(init))
        self.advance_all = jax.jit(
            jax.vmap(advance, in_axes=(0, None, 0, None, None)), donate_argnums=0
        )


def place(data: Data) -> Data:
    """The data on the device when they fit into a quarter of its memory, else as they are."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if data.inputs.nbytes > stats.get("bytes_limit", HOST_BYTES) // 4:
        return data
    return Data(jnp.asarray(data.inputs), jnp.asarray(data.labels))


def chunk_of(data: Data, order: Any, start: int, stop: int) -> tuple[Data, Any, int, int]:
    """What `advance` needs for the steps from start to stop: of data on the host only their rows."""
    if isinstance(data.inputs, jax.Array):
        return data, order, start, stop
    rows = np.asarray(order)[..., start:stop, :]
    part = Data(data.inputs[rows.ravel()], data.labels[rows.ravel()])
    return part, np.arange(rows.size, dtype=np.int32).reshape(rows.shape), 0, stop - start


def train_one(
    programs: Programs, data: Data, run: Run, *, on_steps: Callable[[int], None] = lambda n: None
) -> Trained:
    """One run from its initial state to its last step.

    Raises:
      UsageError: the loss is no longer finite.
    """
    state = programs.init(jnp.float32(run.learning_rate), run.seed)
    began = time.perf_counter()
    losses = []
    order = jnp.asarray(run.order)
    for start in range(0, programs.recipe.steps, CHUNK):
        stop = min(start + CHUNK, programs.recipe.steps)
        state, loss = programs.advance(state, *chunk_of(data, order, start, stop))
        losses.append(float(loss))
        check_loss(losses[-1], run, stop)
        on_steps(stop - start)
    return Trained(state.params, losses, time.perf_counter() - began)


def train_together(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained]:
    """All runs as one batched program; each is charged its share of the time."""
    rates = jnp.array([run.learning_rate for run in runs], jnp.float32)
    state = programs.init_all(rates, jnp.array([run.seed for run in runs]))
    order = jnp.asarray(np.stack([run.order for run in runs]))
    began = time.perf_counter()
    losses = []
    for start in range(0, programs.recipe.steps, CHUNK):
        stop = min(start + CHUNK, programs.recipe.steps)
        state, loss = programs.advance_all(state, *chunk_of(data, order, start, stop))
        losses.append(np.asarray(loss))
        for value, run in zip(losses[-1], runs, strict=True):
            check_loss(float(value), run, stop)
        on_steps((stop - start) * len(runs))
    seconds = (time.perf_counter() - began) / len(runs)
    return [
        Trained(jax.tree.map(lambda p: p[i], state.params), [float(x[i]) for x in losses], seconds)  # noqa: B023
        for i in range(len(runs))
    ]


def train_all(
    programs: Programs,
    data: Data,
    runs: Sequence[Run],
    *,
    on_steps: Callable[[int], None] = lambda n: None,
) -> list[Trained]:
    """Every run, the way that is fastest on this platform.

    On an accelerator all runs are one program. On a CPU batching 15 runs of a small cnn took
    30 s, one after the other 26 s, and one on each of two cores 17 to 20 s: there each core takes
    the next run.
    """
    data = place(data)
    if jax.default_backend() != "cpu":
        return train_together(programs, data, runs, on_steps=on_steps)
    # Compile before the threads start, or each would.
    state = programs.init(jnp.float32(0), 0)
    first = min(CHUNK, programs.recipe.steps)
    *chunk, start, _ = chunk_of(data, jnp.asarray(runs[0].order), 0, first)
    programs.advance(state, *chunk, start, start)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda run: train_one(programs, data, run, on_steps=on_steps), runs))


def check_loss(loss: float, run: Run, step: int) -> None:
    """Refuses a loss that is not finite."""
    if not np.isfinite(loss):
        raise UsageError(
            f"learning_rate={run.learning_rate:g}: expected a finite loss, got {loss} "
            f"before step {step} (seed {run.seed})"
        )
