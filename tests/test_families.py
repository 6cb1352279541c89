"""What families cannot be built for, what they cost, and in which dtype they compute."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend import core
from small_models import ON_A_GRAPH, SIZE, T, size_of, spec_of

from attnconv import models
from attnconv.errors import UsageError
from attnconv.spec import EMBEDDING, Spec

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
      names: those of its variables that are parameters, or parameters rearranged; more are added.
    """
    found = []
    for equation in jaxpr.eqns:
        given = looked_up(equation.invars, names)
        primitive = equation.primitive.name
        if primitive in ("dot_general", "conv_general_dilated"):
            dtypes = {str(v.aval.dtype) for v in equation.invars}
            found += [(name, dtypes) for name in given if name is not None]
        elif primitive in REARRANGED and given[0] is not None:
            names[equation.outvars[0]] = given[0]
        elif primitive == "optimization_barrier":
            names |= named(equation.outvars, given)
        branches = equation.params.get("branches")
        # The last is the default of a platform_dependent: on a CPU sums may be of float32.
        params = {"branches": branches[-1:]} if branches else equation.params
        for inner in core.jaxprs_in_params(params):
            # The index of a cond comes before the arguments of its branches.
            inside = named(inner.invars, given[-len(inner.invars) :])
            found += multiplied(inner, inside)
            names |= named(equation.outvars, looked_up(inner.outvars, inside))
    return found


def looked_up(variables, names):
    return [None if isinstance(v, core.Literal) else names.get(v) for v in variables]


def named(variables, names):
    return {v: name for v, name in zip(variables, names, strict=False) if name is not None}


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
