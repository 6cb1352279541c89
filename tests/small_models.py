"""Small models of every family on texts, frames and graphs, without a zero."""

import functools

import jax
import networkx
import numpy as np
from flax import nnx

from attnconv import models
from attnconv.models.size import Size
from attnconv.spec import Graph, Spec

compiled = functools.partial(jax.jit, static_argnums=0)
SIZE = Size(width=8, hidden=12)
NINE_HEADS = Size(width=9, hidden=12)
T, LONGEST = 24, 16  # the room of an example, and the longest of `LENGTHS`
LENGTHS = np.array([16, 11, 3, 1])
THERE = np.arange(T) < LENGTHS[:, None]
CLUB = networkx.convert_node_labels_to_integers(networkx.barbell_graph(4, 5))
NODES = CLUB.number_of_nodes()


def spec_of(kind, output, length=T, pooling="mean"):
    if kind == "tokens":
        return Spec((length,), 3, output, vocabulary=9, padded=True, pooling=pooling)
    return Spec((length, 4), 3, output, padded=True, pooling=pooling)


def on_a_graph(nodes=range(NODES), features=3):
    """Two cliques of four that a path of five nodes joins, in this order of the nodes."""
    x = np.random.default_rng(0).normal(size=(NODES, features)).astype(np.float32)
    adjacency = networkx.to_numpy_array(CLUB) > 0
    graph = Graph(x[list(nodes)], adjacency[np.ix_(list(nodes), list(nodes))])
    return Spec((NODES, features), 4, graph=graph)


KINDS = ("tokens", "frames")
FITTING = {output: models.fitting(spec_of("tokens", output)) for output in ("label", "labels")}
WINDOWED = ("cnn:9", "attention:5")
LABEL = [(name, kind, "label") for name in FITTING["label"] for kind in KINDS]
LABELS = [(name, kind, "labels") for name in (*FITTING["labels"], *WINDOWED) for kind in KINDS]
ON_A_GRAPH = on_a_graph()


def size_of(name):
    return NINE_HEADS if name == "gated" else SIZE


@functools.cache
def made(name, spec):
    """The structure of a model and parameters none of which is zero: no bias goes unnoticed."""
    structure, shapes = nnx.split(models.shapes(name, spec, size_of(name)))
    rng = np.random.default_rng(0)

    def draw(shape):
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 25
        return rng.normal(0.1, fan_in**-0.5, shape.shape).astype(np.float32)

    return structure, jax.tree.map(draw, shapes)


@compiled
def scores(structure, params, x):
    return nnx.merge(structure, params)(x)


def inputs(kind, length=T, lengths=LENGTHS, seed=0):
    """Examples of these lengths, the same ones whatever the room after them."""
    there = np.arange(length) < lengths[:, None]
    rng = np.random.default_rng(seed)
    if kind == "tokens":
        x = rng.integers(1, 9, (len(lengths), T)).astype(np.int32)[:, :length]
        return np.where(there, x, 0)
    x = rng.normal(size=(len(lengths), T, 4)).astype(np.float32)[:, :length]
    return np.where(there[..., None], x, np.float32(np.nan))
