"""Families: what they compute, what they cost, and the fit to a budget."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import models
from attnconv.errors import UsageError
from attnconv.models.size import Size
from attnconv.spec import Spec

DIGITS = Spec((8, 8, 1), classes=10)
ROWS = Spec((8, 8), classes=10)
MNIST = Spec((28, 28, 1), classes=10)
CIFAR = Spec((32, 32, 3), classes=10)
IMAGE_FAMILIES = models.fitting(DIGITS)
WIDTHS = dict.fromkeys(IMAGE_FAMILIES, 8) | {"gated": 9}  # a multiple of its heads
FRAMES = Spec((50, 12), classes=3)


def direct_parameters(name: str, spec: Spec, size: Size) -> int:
    """The number of parameters, written out from the layouts on paper."""
    w, h, c = size.width, size.hidden, spec.channels
    classes, window = spec.classes, 3 ** len(spec.grid)
    block = lambda d: 4 * (d * d + d) + 4 * d + (d * h + h) + (h * d + d)  # noqa: E731
    stages = models.size.stage_count(spec.grid)
    if name == "mlp":
        return (spec.values + 1) * w + (w + 1) * h + (h + 1) * classes
    if name == "cnn":
        features = [c, w, *(w * 2**stage for stage in range(1, stages) for _ in range(2))]
        features[-1] = h
        layers = itertools.pairwise(features)
        return sum((window * a + 1) * b for a, b in layers) + (h + 1) * classes
    if name == "local":
        total, grid, features = 0, np.array(spec.grid), w
        for _ in range(stages):
            grid = -(-grid // 2)
            total += grid.prod() * (window * c + 1) * features
            c, features = features, 2 * features
        return total + (grid.prod() * c + 1) * h + (h + 1) * classes
    if name in ("attention", "neighborhood", "gated"):
        patch = [1] if len(spec.grid) == 1 else [max(2, -(-n // 8)) for n in spec.grid]
        vectors = np.prod([-(-n // p) for n, p in zip(spec.grid, patch, strict=True)])
        head = 2 * w + (w + 1) * classes
        # A number for each head and offset; for each head a centre, its sharpness and a gate.
        relative = {"neighborhood": 4 * 9 ** len(spec.grid), "gated": 9 * (len(spec.grid) + 2)}
        blocks = 2 * (block(w) + relative.get(name, 0))
        return (np.prod(patch) * c + 1) * w + vectors * w + blocks + head
    total, features = window * c * w + w, w
    for _ in range(stages - 1):
        total += window * features * 2 * features + 2 * features
        features *= 2
    vectors = np.prod([-(-n // 2 ** (stages - 1)) for n in spec.grid])
    head = 2 * features + (features + 1) * classes
    return total + vectors * features + 2 * block(features) + head


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
@pytest.mark.parametrize("spec", [DIGITS, ROWS, MNIST, FRAMES], ids=str)
def test_parameters_are_those_of_the_layout(name, spec):
    size = Size(width=WIDTHS[name], hidden=24)
    model = models.shapes(name, spec, size)
    assert models.parameters(model) == direct_parameters(name, spec, size)


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
@pytest.mark.parametrize(
    ("spec", "budget"),
    [
        (DIGITS, 10_000),
        pytest.param(DIGITS, 30_000, marks=pytest.mark.slow),
        pytest.param(ROWS, 30_000, marks=pytest.mark.slow),
        (MNIST, 30_000),
        (CIFAR, 300_000),
    ],
    ids=str,
)
def test_budget_in_parameters_is_met_within_two_percent(name, spec, budget):
    size = models.size_for(name, spec, budget=budget)
    assert direct_parameters(name, spec, size) == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
@pytest.mark.parametrize(
    ("spec", "budget"),
    [(DIGITS, 600_000), pytest.param(MNIST, 3_000_000, marks=pytest.mark.slow)],
    ids=str,
)
def test_budget_in_flops_is_met_within_two_percent(name, spec, budget):
    size = models.size_for(name, spec, budget=budget, match="flops")
    assert models.flops(models.shapes(name, spec, size), spec) == pytest.approx(budget, rel=0.02)


def test_flops_are_two_for_each_multiply_add():
    size = Size(width=4, hidden=6)
    count = lambda name: models.flops(models.shapes(name, DIGITS, size), DIGITS)  # noqa: E731
    assert count("mlp") == 2 * (64 * 4 + 4 * 6 + 6 * 10)
    assert count("cnn") == 2 * (64 * 9 * 4 + 16 * 9 * 4 * 8 + 16 * 9 * 8 * 6 + 6 * 10)
    assert count("local") == 2 * (16 * 9 * 4 + 4 * 9 * 4 * 8 + 4 * 8 * 6 + 6 * 10)
    vectors = 16 * (4 * 4 + 2 * (4 * 4 * 4 + 2 * 16 * 4 + 2 * 4 * 6))
    assert count("attention") == 2 * (vectors + 4 * 10)
    assert count("neighborhood") == count("attention")  # one tile holds all 4 x 4 vectors


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
@pytest.mark.parametrize(
    "spec",
    [*(pytest.param(spec, marks=pytest.mark.slow) for spec in (DIGITS, ROWS)), Spec((7, 5, 3), 4)],
    ids=str,
)
def test_every_example_is_scored_on_its_own(name, spec, rng=0):
    model = models.build(name, spec, width=WIDTHS[name], rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(rng), (3, *spec.shape))
    score = jax.jit(lambda m, x: m(x))
    scores = score(model, x)
    assert scores.shape == (3, spec.classes)
    alone = jnp.concatenate([score(model, x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(scores, alone, rtol=2e-4, atol=2e-5)
    assert float(jnp.abs(scores[0] - scores[1]).max()) > 1e-3


def test_attention_sees_a_set_until_positions_are_added():
    """Without its position embedding the model cannot tell an order of the rows from another."""
    model = models.build("attention", ROWS, width=8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8))
    shuffled = x[:, jax.random.permutation(jax.random.key(1), 8)]
    assert float(jnp.abs(model(x) - model(shuffled)).max()) > 1e-2
    model.encoder.position.embedding[...] = jnp.zeros((8, 8))
    np.testing.assert_allclose(model(x), model(shuffled), rtol=1e-4, atol=1e-5)


def test_cnn_ignores_where_a_pattern_is():
    """A shift that keeps the pattern away from the border, by the stride, changes nothing."""
    model = models.build("cnn", Spec((64, 64, 1), 5), width=4, rngs=nnx.Rngs(0))
    image = jnp.zeros((1, 64, 64, 1)).at[:, 30:33, 30:33].set(1.0)
    moved = jnp.roll(image, (4, -4), (1, 2))
    score = jax.jit(lambda m, x: m(x))
    np.testing.assert_allclose(score(model, image), score(model, moved), rtol=1e-4, atol=1e-6)


def test_default_and_width():
    assert models.size_for("mlp", DIGITS) == models.mlp.MLP.default
    assert models.size_for("cnn", DIGITS, width=16) == Size(width=16, hidden=64)
    a = models.build("mlp", DIGITS, width=8, rngs=nnx.Rngs(0))
    b = models.build("mlp", DIGITS, width=8, rngs=nnx.Rngs(1))
    assert float(jnp.abs(a.first.kernel[...] - b.first.kernel[...]).max()) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cn"}, "unknown model 'cn'; did you mean 'cnn'"),
        ({"name": "cnn", "width": 4, "budget": 9}, "width=4, budget=9: expected one of the two"),
        ({"name": "cnn", "width": 0}, "width=0: expected a positive number"),
        ({"name": "cnn", "budget": -1}, "budget=-1: expected a positive number"),
        ({"name": "local", "budget": 50}, r"budget=50: expected a number of parameters of local"),
        ({"name": "attention", "width": 6}, "num_heads=4: expected a divisor of the 6 features"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(arguments, message):
    with pytest.raises(UsageError, match=message):
        models.build(spec=DIGITS, rngs=nnx.Rngs(0), **arguments)


def test_an_unknown_kind_of_output_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match="output: expected label, labels, sequence, got 'tags'"):
        Spec((40,), 3, "tags")  # type: ignore[arg-type]
