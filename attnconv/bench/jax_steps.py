"""Training steps of two small models: ours beside plain Flax NNX and optax."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv import nn, train
from attnconv.bench.case import Case
from attnconv.bench.forms import CHECKED_STEPS, Arrays, Program

RECIPE = train.Recipe()
RATE, STEPS = 1e-3, 1000  # the peak learning rate, and the length of its schedule
FEATURES, HIDDEN, HEADS, BLOCKS, PATCH = 64, 256, 4, 4, 4

Step = Callable[[Any, train.Data], tuple[Any, Array]]


class Block(nnx.Module):
    """`attnconv.nn.EncoderBlock` of Flax's own modules."""

    def __init__(self, features: int, hidden: int, *, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, features, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = nnx.Linear(features, hidden, rngs=rngs)
        self.contract = nnx.Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.contract(jax.nn.gelu(self.expand(self.mlp_norm(x))))


class Kit(NamedTuple):
    """What the models are made of."""

    conv: Callable[..., Any]
    block: Callable[..., Any]
    halve: Callable[[Array], Array]


STOCK = Kit(nnx.Conv, Block, lambda x: nnx.avg_pool(x, (2, 2), strides=(2, 2)))
OURS = Kit(nn.Conv, nn.EncoderBlock, lambda x: F.avg_pool(x, (2, 2)))


class CNN(nnx.Module):
    """The network of Flax's MNIST example, without its dropout."""

    def __init__(self, kit: Kit, *, rngs: nnx.Rngs):
        self.first = kit.conv(1, 32, (3, 3), rngs=rngs)
        self.second = kit.conv(32, 64, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 64, 256, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)
        self.halve = kit.halve

    def __call__(self, x: Float[Array, "B H W 1"]) -> Float[Array, "B 10"]:
        x = self.halve(jax.nn.relu(self.first(x)))
        x = self.halve(jax.nn.relu(self.second(x)))
        return self.head(jax.nn.relu(self.dense(x.reshape(len(x), -1))))


class ViT(nnx.Module):
    """A vision transformer: 49 vectors of 64 features, 4 pre-norm blocks, the mean over vectors."""

    def __init__(self, kit: Kit, *, rngs: nnx.Rngs):
        self.embed = kit.conv(1, FEATURES, (PATCH, PATCH), PATCH, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (49, FEATURES)))
        self.blocks = nnx.List(
            kit.block(FEATURES, HIDDEN, heads=HEADS, rngs=rngs) for _ in range(BLOCKS)
        )
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, 10, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W 1"]) -> Float[Array, "B 10"]:
        x = self.embed(x).reshape(len(x), -1, FEATURES) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


MODELS: dict[str, Callable[..., nnx.Module]] = {"cnn": CNN, "vit": ViT}


def model(case: Case, kit: Kit) -> nnx.Module:
    """The case's model with shapes for parameters."""
    return nnx.eval_shape(lambda: MODELS[case.operator](kit, rngs=nnx.Rngs(0)))


def initial(case: Case, seed: int = 0) -> Any:
    """The parameters that every peer starts from; drawn by NumPy, which has nothing to compile."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Array:
        if "scale" in jax.tree_util.keystr(path):
            return jnp.ones(leaf.shape)
        if "bias" in jax.tree_util.keystr(path):
            return jnp.zeros(leaf.shape)
        fan_in = math.prod(leaf.shape[:-1])
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * fan_in**-0.5)

    return jax.tree_util.tree_map_with_path(draw, nnx.split(model(case, STOCK))[1])


def batch(case: Case) -> train.Data:
    return train.Data(*(jnp.asarray(array) for array in case.inputs().values()))


def learning_rate(step: Any) -> Any:
    return RATE * RECIPE.schedule(step, jnp.int32(STEPS))


def program(case: Case, peer: str) -> Program:
    """The step of a peer, or of `alone`: ours for one seed after the other."""
    make, step = _stock(case) if peer == "flax" else _ours(case)
    states = [make(initial(case, seed)) for seed in range(case.seeds)]
    if case.seeds > 1 and peer != "alone":
        step = jax.vmap(step, in_axes=(0, None))
        states = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]
    jitted, data = jax.jit(step, donate_argnums=0), batch(case)

    def advance(states: list[Any], function: Step = jitted) -> list[Array]:
        losses = []
        for i, state in enumerate(states):
            states[i], loss = function(state, data)
            losses.append(loss)
        return jax.block_until_ready(losses)

    def fresh() -> list[Any]:
        return jax.tree.map(jnp.copy, states)  # a step gives its buffers away

    def read() -> Arrays:
        again = fresh()
        losses = [np.asarray(advance(again)).ravel() for _ in range(CHECKED_STEPS)]
        return {"losses": np.stack(losses)}

    going = fresh()

    def compiled() -> Callable[[], Any]:
        ready = jitted.lower(states[0], data).compile()
        return lambda: advance(going, ready)

    return Program(run=lambda: advance(going), read=read, compiled=compiled)


def _loss(case: Case, kit: Kit) -> Callable[[Any, train.Data], Array]:
    graph, _ = nnx.split(model(case, kit))

    def loss(params: Any, batch: train.Data) -> Array:
        scores = nnx.merge(graph, params)(batch.inputs)
        return train.cross_entropy(scores, batch.labels, smoothing=RECIPE.label_smoothing).sum()

    return loss


def _ours(case: Case) -> tuple[Callable[[Any], Any], Step]:
    """Our state of some parameters, and the step as `attnconv.train` takes it."""
    loss = _loss(case, OURS)

    def make(params: Any) -> train.TrainState:
        opt_state = RECIPE.optimizer().init(params)
        return train.TrainState(
            params, opt_state, jnp.int32(0), jnp.int32(STEPS), jnp.float32(RATE)
        )

    return make, lambda state, batch: train.train_step(state, batch, loss=loss, recipe=RECIPE)


def _stock(case: Case) -> tuple[Callable[[Any], Any], Step]:
    """The same in plain optax."""
    loss = _loss(case, STOCK)
    optimizer = optax.chain(
        optax.clip_by_global_norm(RECIPE.clip),
        optax.adamw(learning_rate, weight_decay=RECIPE.weight_decay, mask=train.kernels),
    )

    def mean(params: Any, batch: train.Data) -> Array:
        return loss(params, batch) / len(batch.labels)

    def step(state: tuple[Any, Any], batch: train.Data) -> tuple[tuple[Any, Any], Array]:
        params, opt_state = state
        value, gradient = jax.value_and_grad(mean)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return lambda params: (params, optimizer.init(params)), step
