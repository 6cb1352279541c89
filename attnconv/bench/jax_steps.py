"""Training steps of three models: ours beside plain Flax NNX and optax."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv import nn, train
from attnconv.bench import jax_peers
from attnconv.bench.case import Case
from attnconv.bench.forms import CHECKED_STEPS, Arrays, Program

RECIPE = train.Recipe()
RATE, STEPS = 1e-3, 1000  # the peak learning rate, and the length of its schedule

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
    linear: Callable[..., Any]
    block: Callable[..., Any]
    halve: Callable[[Array], Array]
    gelu: Callable[[Array], Array]


STOCK = Kit(
    nnx.Conv, nnx.Linear, Block, lambda x: nnx.avg_pool(x, (2, 2), strides=(2, 2)), jax.nn.gelu
)
OURS = Kit(nn.Conv, nn.Linear, nn.EncoderBlock, lambda x: F.avg_pool(x, (2, 2)), F.gelu)


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
    """A vision transformer: vectors of patches, pre-norm blocks, the mean over vectors."""

    def __init__(
        self,
        kit: Kit,
        *,
        image: int = 28,
        channels: int = 1,
        patch: int = 4,
        classes: int = 10,
        features: int = 64,
        hidden: int = 256,
        heads: int = 4,
        depth: int = 4,
        rngs: nnx.Rngs,
    ):
        length = (image // patch) ** 2
        self.embed = kit.conv(channels, features, (patch, patch), patch, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, features)))
        self.blocks = nnx.List(
            kit.block(features, hidden, heads=heads, rngs=rngs) for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.head = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B classes"]:
        x = self.embed(x)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Residual(nnx.Module):
    """A block of ConvNeXt: a depthwise 7x7, a norm, two layers with GELU between, a scale."""

    def __init__(self, kit: Kit, features: int, *, rngs: nnx.Rngs):
        self.depthwise = kit.conv(
            features, features, (7, 7), feature_group_count=features, rngs=rngs
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = kit.linear(features, 4 * features, rngs=rngs)
        self.contract = kit.linear(4 * features, features, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(features))
        self.gelu = kit.gelu

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        y = self.gelu(self.expand(self.norm(self.depthwise(x))))
        return x + self.scale[...] * self.contract(y)


class ConvNeXt(nnx.Module):
    """Stages of residual blocks, each at half the size of the one before.

    Source: Liu et al. 2022, A ConvNet for the 2020s, section 2.
    """

    def __init__(
        self,
        kit: Kit,
        *,
        depths: Sequence[int],
        widths: Sequence[int],
        classes: int,
        rngs: nnx.Rngs,
    ):
        self.stem = kit.conv(3, widths[0], (4, 4), 4, rngs=rngs)
        self.stem_norm = nnx.LayerNorm(widths[0], rngs=rngs)
        self.stages = nnx.List(
            nnx.List(Residual(kit, width, rngs=rngs) for _ in range(depth))
            for depth, width in zip(depths, widths, strict=True)
        )
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for width in widths)
        self.halves = nnx.List(
            kit.conv(width, wider, (2, 2), 2, rngs=rngs)
            for width, wider in itertools.pairwise(widths)
        )
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B classes"]:
        x = self.stem_norm(self.stem(x))
        for i, stage in enumerate(self.stages):
            if i:
                x = self.halves[i - 1](self.norms[i - 1](x))
            for block in stage:
                x = block(x)
        return self.head(self.norms[-1](x.mean((1, 2))))


MODELS: dict[str, Callable[..., nnx.Module]] = {"cnn": CNN, "vit": ViT, "convnext": ConvNeXt}


def model(case: Case, kit: Kit) -> nnx.Module:
    """The case's model with shapes for parameters."""
    make = MODELS[case.operator]
    return nnx.eval_shape(lambda: make(kit, rngs=nnx.Rngs(0), **case.options))


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
    jitted, data = jax.jit(jax_peers.precise(case, step), donate_argnums=0), batch(case)
    call = jitted if case.platform == "cpu" else jitted.lower(states[0], data).compile()

    def begin(states: list[Any], function: Step = call) -> list[Array]:
        losses = []
        for i, state in enumerate(states):
            states[i], loss = function(state, data)
            losses.append(loss)
        return losses

    def advance(states: list[Any], function: Step = call) -> list[Array]:
        return jax.block_until_ready(begin(states, function))

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

    found = Program(run=lambda: advance(going), read=read, compiled=compiled)
    if case.platform == "cpu":
        return found

    def queued(calls: int) -> None:
        losses = None
        for _ in range(calls):
            losses = begin(going)
        jax.block_until_ready(losses)

    return dataclasses.replace(found, queued=queued, memory=lambda: jax_peers.memory(call))


def _loss(case: Case, kit: Kit) -> Callable[[Any, train.Data], Array]:
    graph, _ = nnx.split(model(case, kit))

    def loss(params: Any, batch: train.Data) -> Array:
        params = jax.tree.map(lambda x: x.astype(case.dtype), params)
        scores = nnx.merge(graph, params)(batch.inputs).astype(jnp.float32)
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
