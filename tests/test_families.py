"""Families on texts, frames and graphs: what a score sees, what cannot be built, what it costs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from flax import nnx
from jax.extend import core

from attnconv import models, train
from attnconv.errors import UsageError
from attnconv.models.inputs import Inputs
from attnconv.models.size import Size
from attnconv.spec import EMBEDDING, Graph, Spec

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


@pytest.mark.parametrize(("name", "kind", "output"), [*LABEL, *LABELS])
def test_an_example_is_scored_by_what_is_in_it(name, kind, output):
    structure, params = made(name, spec_of(kind, output))
    x = inputs(kind)
    expected = np.asarray(scores(structure, params, x))
    assert expected.shape == ((4, 3) if output == "label" else (4, T, 3))
    assert np.isfinite(expected).all()
    # The others of the batch are other ones, and it stands elsewhere among them.
    others = inputs(kind, lengths=np.array([2, T, T, 9]), seed=1)
    found = np.asarray(scores(structure, params, np.stack([x[2], x[1], others[3], others[0]])))
    compared = THERE[[2, 1]] if output == "labels" else np.ones(2, bool)
    np.testing.assert_allclose(
        found[:2][compared], expected[[2, 1]][compared], rtol=1e-5, atol=1e-6
    )
    changed = x.copy()
    changed[1, 10] = 1 + x[1, 10] % 8 if kind == "tokens" else -x[1, 10]
    difference = np.abs(np.asarray(scores(structure, params, changed)) - expected)
    assert (difference.reshape(4, -1).max(1) > 1e-5).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("name", "kind", "output"), [*LABEL, *LABELS])
def test_what_lies_behind_the_end_is_not_read(name, kind, output):
    structure, params = made(name, spec_of(kind, output))
    x = inputs(kind)
    expected = scores(structure, params, x)
    if kind == "frames":
        behind = np.random.default_rng(2).choice([5.0, np.nan, -1e30], ((~THERE).sum(), 3))
        x[..., 1:][~THERE] = behind
    else:
        params = jax.tree.map(np.copy, params)
        params["inputs"]["embedding"].get_value()[0] = 1e6
    np.testing.assert_array_equal(scores(structure, params, x), expected)


@pytest.mark.parametrize(
    ("name", "kind", "output", "pooling"),
    [
        *((*case, "mean") for case in (*LABEL, *LABELS)),
        ("cnn", "frames", "label", "max"),
        ("cnn", "tokens", "label", "attention"),
        ("attention", "tokens", "label", "token"),
        ("hybrid", "frames", "label", "token"),
    ],
)
def test_examples_may_be_cut_to_the_longest_or_the_family_says_no(name, kind, output, pooling):
    spec = spec_of(kind, output, pooling=pooling)
    structure, params = made(name, spec)
    has_weights_for_each_position = output == "label" and name in ("mlp", "local")
    assert nnx.merge(structure, params).any_length == (not has_weights_for_each_position)
    if has_weights_for_each_position:
        return
    expected = np.asarray(scores(structure, params, inputs(kind)))
    found = np.asarray(scores(structure, params, inputs(kind, LONGEST)))
    if output == "labels":
        there = THERE[:, :LONGEST]
        found, expected = found[there], expected[:, :LONGEST][there]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output", "pooling"),
    [
        *((name, "label", "mean") for name in FITTING["label"]),
        ("attention:5", "labels", "mean"),
        *((name, "label", "token") for name in ("attention", "hybrid")),
    ],
)
def test_whole_examples_have_the_scores_of_a_task_without_padding(name, output, pooling):
    padded, whole = (Spec((T, 4), 3, output, padded=p, pooling=pooling) for p in (True, False))
    x = inputs("frames", lengths=np.array([T, T]))
    structure, params = made(name, padded)
    without, _ = made(name, whole)
    found, expected = scores(structure, params, x), scores(without, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [13, 14, 15])
@pytest.mark.parametrize("name", ["cnn", "hybrid"])
def test_a_stride_lies_the_same_way_four_positions_further(name, length):
    structure, params = made(name, spec_of("frames", "label", length + 8))
    lengths = np.array([length, 11, 2, 5])
    whole, cut = (
        scores(structure, params, inputs("frames", width, lengths))
        for width in (length + 8, length)
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


@compiled
def slopes(structure, params, x, labels):
    def loss(params, x):
        found = nnx.merge(structure, params)(x)
        return train.cross_entropy(found, labels).sum()

    return jax.grad(loss, argnums=(0, 1))(params, x)


@pytest.mark.parametrize(("name", "output"), [(c[0], c[2]) for c in (*LABEL, *LABELS)[::2]])
def test_no_gradient_comes_from_behind_the_end(name, output):
    """Nor is any not a number, though a window may hold nothing that is there."""
    structure, params = made(name, spec_of("frames", output))
    labels = np.arange(4) % 3
    if output == "labels":
        labels = np.where(THERE, np.arange(T) % 3, -1)
    of_params, of_x = slopes(structure, params, inputs("frames"), labels)
    of_x = np.asarray(of_x)
    assert (of_x[~THERE] == 0).all()
    # A short example may happen to open few of the ReLUs.
    assert (np.abs(of_x[THERE]).max(-1) > 1e-6).mean() > 0.8
    for path, slope in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.isfinite(slope).all() and np.asarray(slope).any(), jax.tree_util.keystr(path)


@compiled
def influence(structure, params, x):
    """Of each vector on each score, the largest over the examples: `[score, vector]`."""
    of = jax.jacrev(lambda x: nnx.merge(structure, params)(x).sum((0, 2)))(x)
    return jnp.abs(of).max((1, 3))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("mlp", 0),
        ("cnn:1", 0),
        ("cnn:9", 4),
        ("cnn", 8),
        ("neighborhood:9", 4),
        ("neighborhood", 8),
        ("gated", T),
        ("attention:1", 0),
        ("attention:5", 2),
        ("attention:9", 4),
        ("attention", T),
        ("hybrid", T),
    ],
)
def test_a_vector_sees_its_window_and_nothing_else(name, side):
    structure, params = made(name, spec_of("frames", "labels"))
    lengths = np.full(6, T - 3)
    found = np.asarray(influence(structure, params, inputs("frames", lengths=lengths)))
    there = np.arange(T) < T - 3
    between = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    expected = (between <= side) & there
    np.testing.assert_array_equal((found > 1e-7)[there], expected[there])
    assert (found[there][~expected[there]] == 0).all()


@pytest.mark.parametrize(("name", "side"), [("mlp", 0), ("cnn:9", 4), ("attention:5", 2)])
def test_a_token_is_seen_by_those_around_it(name, side):
    structure, params = made(name, spec_of("tokens", "labels"))
    x = inputs("tokens", lengths=np.array([14]))
    each = np.repeat(x, 14, 0)
    each[np.arange(14), np.arange(14)] = 1 + x[0, :14] % 8
    differences = np.abs(np.asarray(scores(structure, params, np.concatenate([x, each]))))
    found = np.abs(differences[1:] - differences[:1]).max(-1)[:, :14] > 1e-6
    between = np.abs(np.subtract.outer(np.arange(14), np.arange(14)))
    np.testing.assert_array_equal(found, between <= side)


def features_of(state, *names):
    """Parameters by name, in float64."""
    for name in names:
        state = state[name]
    return {key: np.asarray(value.get_value(), np.float64) for key, value in state.items()}


def through(x, layer):
    return np.tensordot(x, layer["kernel"], layer["kernel"].ndim - 1) + layer["bias"]


def neighbours(graph):
    return [[i, *np.flatnonzero(row)] for i, row in enumerate(graph.adjacency)]


def test_graph_convolution_is_the_sum_over_neighbours():
    """Kipf and Welling 2017, equation 2, one node at a time."""
    structure, params = made("graph_conv", ON_A_GRAPH)
    around = neighbours(ON_A_GRAPH.graph)
    x = ON_A_GRAPH.graph.features.astype(np.float64)
    for layer in range(3):
        y = through(x, features_of(params, "layers", layer))
        x = np.array(
            [
                np.maximum(sum(y[j] / (len(around[i]) * len(around[j])) ** 0.5 for j in of), 0)
                for i, of in enumerate(around)
            ]
        )
    expected = through(x, features_of(params, "head", "scores"))
    asked = np.array([3, 12, 3, 6, 0, 8])
    np.testing.assert_allclose(scores(structure, params, asked), expected[asked], rtol=1e-5)


def test_graph_attention_is_the_weighted_sum_over_neighbours():
    """Softmax over the neighbours and itself, one head and one node at a time."""
    structure, params = made("graph_attention", ON_A_GRAPH)
    around = neighbours(ON_A_GRAPH.graph)
    x = through(ON_A_GRAPH.graph.features.astype(np.float64), features_of(params, "embed"))
    for layer in range(3):
        query, key, value = (
            np.einsum("vd,dnk->vnk", x, part["kernel"]) + part["bias"]
            for part in (features_of(params, "layers", layer, p) for p in ("query", "key", "value"))
        )
        out = features_of(params, "layers", layer, "out")
        heads = np.zeros_like(value)
        for i, n in itertools.product(range(NODES), range(value.shape[1])):
            weights = np.exp(key[around[i], n] @ query[i, n] / value.shape[-1] ** 0.5)
            heads[i, n] = weights / weights.sum() @ value[around[i], n]
        x = np.einsum("vnk,nkd->vd", heads, out["kernel"]) + out["bias"]
        x = np.where(x > 0, x, np.expm1(x))
    expected = through(x, features_of(params, "head", "scores"))
    asked = np.array([3, 12, 3, 6, 0, 8])
    np.testing.assert_allclose(scores(structure, params, asked), expected[asked], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "hops"), [("mlp", 0), ("graph_conv", 3), ("graph_attention", 3), ("attention", NODES)]
)
def test_a_node_sees_as_far_as_its_layers_go(name, hops, monkeypatch):
    structure, params = made(name, ON_A_GRAPH)

    def of(features):
        monkeypatch.setattr(Inputs, "__call__", lambda self, x, **_: (features[None], None))
        return nnx.merge(structure, params)(jnp.arange(NODES)).sum(-1)

    found = jax.jit(jax.jacrev(of))(ON_A_GRAPH.graph.features)
    far = np.array(
        [[networkx.shortest_path_length(CLUB, i, j) for j in range(NODES)] for i in range(NODES)]
    )
    assert far.max() == 8
    seen = np.abs(np.asarray(found)).max(-1)
    assert (seen[far > hops] == 0).all()
    # A ReLU may pass nothing on from one node to another, but hardly to any.
    assert (seen[far <= hops] > 1e-7).mean() > 0.95


@pytest.mark.parametrize("name", models.fitting(ON_A_GRAPH))
def test_the_order_of_nodes_says_nothing(name):
    order = np.random.default_rng(1).permutation(NODES)
    structure, params = made(name, ON_A_GRAPH)
    shuffled, _ = made(name, on_a_graph(order))
    every = np.arange(NODES)
    expected = np.asarray(scores(structure, params, every))
    found = scores(shuffled, params, every)
    np.testing.assert_allclose(found, expected[order], rtol=1e-5, atol=1e-5)
    assert np.abs(expected[0] - expected[NODES - 1]).max() > 1e-3


SPECS = {
    "image": Spec((8, 8, 1), 3),
    "rows": Spec((16, 4), 3),
    "frames": spec_of("frames", "label"),
    "frames, labels": spec_of("frames", "labels"),
    "text": spec_of("tokens", "label"),
    "text, labels": spec_of("tokens", "labels"),
    "one-hot": Spec((T,), 3, vocabulary=9, one_hot=True),
    "graph": ON_A_GRAPH,
    "text, sequence": Spec((T,), 3, "sequence", vocabulary=9, padded=True, steps=5),
    "frames, sequence": Spec((T, 4), 3, "sequence", steps=5),
}
EDGES = "it needs the edges of a graph"
GRID = "a graph has no grid for a window to slide along"
HALVED = "weights of its own for each position need a grid that is halved, and one label"
WRITES = "it writes no sequence; cnn and attention do"
WINDOW = "a window is chosen for cnn, neighborhood, attention where each vector has a label"


def reason(name, kind):
    """Why a family cannot do a task, as a table of the families has it."""
    if "sequence" in kind:
        return None if name in ("cnn", "attention") else WRITES
    if kind == "graph":
        return GRID if name in ("local", "cnn", "neighborhood", "gated", "hybrid") else None
    if name in ("graph_conv", "graph_attention"):
        return EDGES
    return HALVED if name == "local" and "labels" in kind else None


@pytest.mark.parametrize("kind", SPECS)
def test_what_cannot_do_a_task_is_refused_with_the_reason(kind):
    spec, could = SPECS[kind], []
    for name in models.FAMILIES:
        expected = reason(name, kind)
        assert models.refusal(name, spec) == expected
        if expected is None:
            models.shapes(name, spec, size_of(name))
            could.append(name)
            continue
        for build in (models.size_for, lambda *a: models.shapes(*a, SIZE)):
            with pytest.raises(UsageError) as error:
                build(name, spec)
            assert str(error.value) == f"model {name}: {expected}"
    assert models.fitting(spec) == could and len(could) >= 2


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", ["cnn:9", "attention:9", "hybrid:9", "mlp:9"])
def test_a_window_is_chosen_where_each_vector_has_a_label(kind, name):
    expected = reason(name.partition(":")[0], kind)
    if "labels" not in kind or name in ("hybrid:9", "mlp:9"):
        expected = WINDOW if expected is None else expected
    assert models.refusal(name, SPECS[kind]) == expected
    if expected is not None:
        with pytest.raises(UsageError) as error:
            models.build(name, SPECS[kind], width=8, rngs=nnx.Rngs(0))
        assert str(error.value) == f"model {name}: {expected}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnn:8", "model cnn:8: its 4 layers can see 1 or 9 positions, not 8"),
        ("cnn:11", "model cnn:11: its 4 layers can see 9 or 17 positions, not 11"),
        ("attention:8", "model attention:8: its 2 layers can see 5 or 9 positions, not 8"),
        ("cnn:0", "model cnn:0: its 4 layers can see 1 or 9 positions, not 0"),
        ("cnn:-9", "model cnn:-9: expected a number of positions after the colon, got '-9'"),
        ("cnn:9.0", "model cnn:9.0: expected a number of positions after the colon, got '9.0'"),
        ("cnn:9:9", "model cnn:9:9: expected a number of positions after the colon, got '9:9'"),
        ("cnn:", "model cnn:: expected a number of positions after the colon, got ''"),
        ("cnm:9", "unknown model 'cnm'; did you mean 'cnn'? Known: "),
    ],
)
def test_windows_that_no_layers_can_see(name, message):
    with pytest.raises(UsageError) as error:
        models.shapes(name, SPECS["text, labels"], SIZE)
    assert str(error.value).startswith(message)


def test_a_window_costs_a_convolution_its_weights_and_attention_nothing():
    spec = SPECS["frames, labels"]
    count = {
        name: models.parameters(models.shapes(name, spec, SIZE))
        for name in ("cnn", "cnn:9", "cnn:17", "attention", "attention:9")
    }
    assert count["attention:9"] == count["attention"]
    assert count["cnn:17"] == count["cnn"]
    assert count["cnn"] - count["cnn:9"] == 2 * (4 * 8 + 8 * 8 + 8 * 8 + 8 * 12)


def by_hand(name, spec, size):
    """Parameters and FLOPs of each vector by itself, of a label for each."""
    w, h, c, o = size.width, size.hidden, spec.channels, spec.classes
    length = spec.grid[0]
    if name == "mlp":
        return (c + 1) * w + (w + 1) * h + (h + 1) * o, length * (c * w + w * h + h * o)
    if name == "cnn":  # a window of 17 is four of 5
        weights = 5 * (c * w + 2 * w * w + w * h) + h * o
        return weights + 3 * w + h + o + 6 * w, length * weights
    if name == "graph_conv":
        weights = c * w + w * w + w * h
        return weights + 2 * w + h + (h + 1) * o, length * (weights + h * o + length * (2 * w + h))
    if name == "graph_attention":
        layers = 3 * 3 * w * w + 2 * w * w + w * h
        weights = (c + 1) * w + layers + 3 * 3 * w + 2 * w + h + (h + 1) * o
        return weights, length * (c * w + layers + h * o + length * 3 * 2 * w)
    convolved = 3 * c * w + w if name == "hybrid" else (c + 1) * w
    block = 4 * w * w + 2 * w * h
    position = 0 if spec.graph is not None else length * w
    if name == "neighborhood":  # four heads, windows of 9
        position += 2 * 4 * 17
    if name == "gated":  # nine heads: a centre and its sharpness, a gate
        position += 2 * 9 * 3
    weights = convolved + position + 2 * (block + 9 * w + h) + 2 * w + (w + 1) * o
    # Of neighborhood attention all is one tile; a feature of a head says which keys are there.
    # Gated attention weighs the values twice, and scores positions by two numbers for each head.
    scored = {"neighborhood": 2 * (w + 4), "gated": 3 * w + 2 * 9}.get(name, 2 * w)
    products = convolved - w + 2 * block + w * o + 2 * length * scored
    return weights, length * products


@pytest.mark.parametrize("kind", ["text, labels", "frames, labels", "graph"])
def test_parameters_and_flops_are_those_of_the_layout(kind):
    spec = SPECS[kind]
    for name in models.fitting(spec):
        size = size_of(name)
        model = models.shapes(name, spec, size)
        weights, products = by_hand(name, spec, size)
        assert (name, models.parameters(model)) == (name, weights)
        if name != "attention" or kind != "graph":
            assert (name, models.flops(model, spec)) == (name, 2 * products)


@pytest.mark.parametrize("output", ["label", "labels", "sequence"])
def test_the_table_of_tokens_is_not_counted_but_all_else_is(output):
    few, many, one_hot, longer = (
        Spec((length,), 3, output, vocabulary=words, one_hot=hot, padded=True, steps=5)
        for length, words, hot in (
            (T, 9, False),
            (T, 9000, False),
            (T, 9000, True),
            (T + 8, 9, False),
        )
    )
    for name in models.fitting(few):
        size = size_of(name)
        model = models.shapes(name, few, size)
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert models.parameters(model) == sum(p.size for p in leaves) - 9 * EMBEDDING
        assert models.parameters(models.shapes(name, many, size)) == models.parameters(model)
        assert models.parameters(models.shapes(name, one_hot, size)) > 9000 * 8
    attention = models.shapes("attention", longer, SIZE)
    grown = models.parameters(attention) - models.parameters(models.shapes("attention", few, SIZE))
    assert grown == 8 * SIZE.width  # the embedding of a position counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "budget"),
    [
        ("text, labels", 5_000),
        ("frames", 5_000),
        ("graph", 2_000),
        ("text, sequence", 10_000),
    ],
)
def test_a_budget_is_met_within_two_percent(kind, budget):
    spec = SPECS[kind]
    for name in models.fitting(spec):
        size = models.size_for(name, spec, budget=budget)
        model = models.shapes(name, spec, size)
        assert models.parameters(model) == pytest.approx(budget, rel=0.02), name
        assert models.flops(model, spec) > budget, name


def test_a_budget_of_flops_is_met_within_two_percent():
    spec = SPECS["text, labels"]
    size = models.size_for("cnn:9", spec, budget=200_000, match="flops")
    found = models.flops(models.shapes("cnn:9", spec, size), spec)
    assert found == pytest.approx(200_000, rel=0.02)


REARRANGED = {
    "convert_element_type",
    "reshape",
    "transpose",
    "squeeze",
    "broadcast_in_dim",
    "slice",
}


def multiplied(jaxpr, names):
    """Of each product with a parameter, the parameter's name and the dtypes of both operands.

    Args:
      jaxpr: of a model.
      names: those of its variables that are parameters, or parameters rearranged.
    """
    found, names = [], dict(names)
    for equation in jaxpr.eqns:
        given = [None if isinstance(v, core.Literal) else names.get(v) for v in equation.invars]
        primitive = equation.primitive.name
        if primitive in ("dot_general", "conv_general_dilated"):
            dtypes = {str(v.aval.dtype) for v in equation.invars}
            found += [(name, dtypes) for name in given if name is not None]
        elif primitive in REARRANGED and given[0] is not None:
            names[equation.outvars[0]] = given[0]
        branches = equation.params.get("branches")
        # The last is the default of a platform_dependent: on a CPU sums may be of float32.
        params = {"branches": branches[-1:]} if branches else equation.params
        for inner in core.jaxprs_in_params(params):
            # The index of a cond comes before the arguments of its branches.
            inside = zip(inner.invars, given[-len(inner.invars) :], strict=True)
            found += multiplied(inner, {v: name for v, name in inside if name is not None})
    return found


HALF = {
    **SPECS,
    "one-hot, padded": Spec((T,), 3, vocabulary=9, one_hot=True, padded=True),
    "one-hot, sequence": Spec((T,), 3, "sequence", vocabulary=9, one_hot=True, steps=5),
    "attention pooling": spec_of("frames", "label", pooling="attention"),
    "token pooling": spec_of("frames", "label", pooling="token"),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(n, kind) for kind, spec in HALF.items() for n in models.fitting(spec)]
)
def test_with_weights_in_half_precision_every_product_with_them_is_in_it(name, kind):
    spec = HALF[kind]
    structure, shapes = nnx.split(models.shapes(name, spec, size_of(name)))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), shapes)
    numbers = spec.vocabulary is None and spec.graph is None
    x = jax.ShapeDtypeStruct(
        (2, *(() if spec.graph is not None else spec.shape)), jnp.bfloat16 if numbers else jnp.int32
    )

    def forward(params, x):
        model = nnx.merge(structure, params)
        if spec.output != "sequence":
            return model(x)
        symbols = jnp.zeros((2, spec.steps), jnp.int32)
        cache = model.start(model.encode(x))
        return model(x, symbols), model.step(cache, symbols[:, 0], jnp.int32(0))[0]

    jaxpr = jax.make_jaxpr(forward)(params, x).jaxpr
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = multiplied(jaxpr, dict(zip(jaxpr.invars, paths, strict=False)))
    assert {path for path in paths if "kernel" in path} <= {path for path, _ in found}
    assert [(path, dtypes) for path, dtypes in found if dtypes != {"bfloat16"}] == []
    assert {str(out.aval.dtype) for out in jaxpr.outvars} == {"bfloat16"}
