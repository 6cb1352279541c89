"""Gradients in half precision that are sums over many: taken in float32 and rounded once."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv import lowering, models, nn
from attnconv.spec import Spec
from attnconv.train import cross_entropy

HALF = [jnp.bfloat16, jnp.float16]
IMAGES, WINDOW = (8, 32, 32, 1), (3, 3, 1, 1)


def conv(bias):
    return F.conv(jnp.zeros(IMAGES, bias.dtype), jnp.zeros(WINDOW, bias.dtype), bias)


def conv_transpose(bias):
    return F.conv_transpose(jnp.zeros(IMAGES, bias.dtype), jnp.zeros(WINDOW, bias.dtype), bias)


def locally_connected(bias):
    x, kernel = jnp.zeros((8192, 3, 1), bias.dtype), jnp.zeros((1, 3, 1, 1), bias.dtype)
    return F.locally_connected(x, kernel, bias[None], padding="VALID")


def learned(table):
    return F.positions.learned(table[:, None], jnp.zeros(8192, int))


def relative_bias(table):
    return F.positions.relative_bias(table[None], 128)


def neighborhood_bias(bias):
    return F.neighborhood_bias((1024,), window=1, bias=bias[None])[0, 0].diagonal()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("operator", "counts"),
    [
        (conv, [8192]),
        (conv_transpose, [8192]),
        (locally_connected, [8192]),
        (learned, [8192, 0]),
        (relative_bias, [8128, 128, 8128]),
        (neighborhood_bias, [1024]),
    ],
)
def test_ones_are_counted(operator, counts, dtype):
    """A sum in bfloat16 itself stays at 256, one in float16 at 2048."""
    gradient = jax.grad(lambda x: operator(x).astype(jnp.float32).sum())
    x = jnp.zeros(len(counts), dtype)
    for found in (gradient(x), jax.jit(gradient)(x)):
        assert found.dtype == dtype
        assert found.tolist() == counts


def test_the_gradient_of_a_bias_is_summed_over_parts_of_the_examples():
    """Each of them adds 1/128: weights of 1/64, half of the values one, half zero."""
    B, T = 8192, 64
    x = jnp.zeros((B, T, 8, 1), jnp.bfloat16)
    value = jnp.broadcast_to(jnp.arange(T)[:, None, None] < T // 2, x.shape).astype(x.dtype)
    bias = jnp.zeros((8, T, T), x.dtype)

    def total(bias):
        return F.dot_product_attention(x, x, value, bias).astype(jnp.float32).sum()

    assert F.explain(F.dot_product_attention, x, x, value, bias)[0].form == "parts"
    found = jax.grad(total)(bias)
    np.testing.assert_array_equal(found[..., : T // 2].astype(jnp.float32), B / 128)
    np.testing.assert_array_equal(found[..., T // 2 :].astype(jnp.float32), -B / 128)


@pytest.mark.parametrize("implementation", ["auto", "chunked"])
@pytest.mark.parametrize("dtype", [*HALF, jnp.float32])
def test_attention_of_much_promotes_nothing_by_itself(monkeypatch, implementation, dtype):
    monkeypatch.setattr(lowering.attention, "AT_ONCE", 2 * 64)
    x, bias = jnp.zeros((8192, 64, 8, 1), dtype), jnp.zeros((1, 8, 64, 64), dtype)

    def total(*arrays):
        y = F.dot_product_attention(*arrays, implementation=implementation)
        return y.astype(jnp.float32).sum()

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(jax.grad(total, range(4)))(x, x, x, bias)


def test_gradients_are_summed_over_blocks_of_queries(monkeypatch):
    T, N, K = 512, 2, 8
    monkeypatch.setattr(lowering.attention, "AT_ONCE", N * T)
    rng = np.random.default_rng(0)
    q, k, v, ct = (jnp.asarray(rng.normal(size=(1, T, N, K)), jnp.bfloat16) for _ in range(4))
    bias = jnp.asarray(rng.normal(size=(1, N, 1, T)), jnp.bfloat16)

    def total(implementation, *arrays):
        y = F.dot_product_attention(*arrays, implementation=implementation)
        return (y.astype(jnp.float32) * ct.astype(jnp.float32)).sum()

    arrays = q, k, v, bias
    found = jax.grad(functools.partial(total, "chunked"), range(4))(*arrays)
    exact = [x.astype(jnp.float32) for x in arrays]
    expected = jax.grad(functools.partial(total, "reference"), range(4))(*exact)
    for name, x, y in zip(("query", "key", "value", "bias"), found, expected, strict=True):
        error = jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max()
        assert error < 0.012, name


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (functools.partial(nn.Conv, 3, 4, (3, 3)), (16, 24, 24, 3)),
        (functools.partial(nn.Linear, 8, 10), (32, 200, 8)),
        pytest.param(
            functools.partial(nn.MultiHeadAttention, 2, 8, decode=False),
            (32, 200, 8),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_layers_have_the_gradients_of_float32(make, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        layer = make(dtype=dtype, rngs=nnx.Rngs(0))
        assert layer(x).dtype == dtype
        structure, params = nnx.split(layer)
        found[dtype] = jax.grad(
            lambda p, s=structure: nnx.merge(s, p)(x).astype(jnp.float32).sum()
        )(params)
    assert_near(found[jnp.bfloat16], found[jnp.float32], 0.01)


DIGITS = Spec((28, 28, 1), 10)
OTHERS = ("local", "neighborhood", "gated", "hybrid")  # of the operators of the rest
TWICE = ("cnn", "attention")  # with the labels of a sequence too


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        *(
            pytest.param(DIGITS, name, marks=pytest.mark.slow if name in OTHERS + TWICE else ())
            for name in models.fitting(DIGITS)
        ),
        *((Spec((64,), 5, "labels", vocabulary=50), name) for name in ("mlp", "cnn", "attention")),
    ],
    ids=lambda x: x if isinstance(x, str) else x.output,
)
def test_families_have_the_gradients_of_float32(spec, name):
    """What is left is rounding: at most 0.11 of the norm here, up to 0.4 if sums were rounded."""
    model = models.make(name, spec, models.Size(36, 32), rngs=nnx.Rngs(0))
    structure, params = nnx.split(model)
    rng = np.random.default_rng(0)
    if spec.vocabulary is None:
        x, labels = rng.normal(size=(32, *spec.shape)), rng.integers(0, spec.classes, 32)
    else:
        x = rng.integers(2, spec.vocabulary, (32, *spec.shape))
        labels = rng.integers(0, spec.classes, x.shape)

    def loss(params, dtype):
        cast = functools.partial(
            jax.tree.map, lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        )
        scores = nnx.merge(structure, cast(params))(cast(jnp.asarray(x)))
        return cross_entropy(scores.astype(jnp.float32), jnp.asarray(labels), smoothing=0.1).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    assert_near(gradient(params, jnp.bfloat16), gradient(params, jnp.float32), 0.15)


def assert_near(found, expected, part):
    """Each array within a part of its norm; a bias of keys has no gradient but by rounding."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        name = jax.tree_util.keystr(path)
        if "'key'" not in name or "'bias'" not in name:
            assert jnp.linalg.norm((x - y).ravel()) < part * jnp.linalg.norm(y.ravel()), name


LAYERS = {
    "Linear": ((4, 6), (2, 5, 4)),
    "Conv": ((4, 6, (3,)), (2, 5, 4)),
    "MultiHeadAttention": ((2, 4), (2, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("preferred", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("use_bias", [True, False])
def test_layers_have_the_dtypes_and_values_of_flax(name, preferred, dtype, use_bias):
    arguments, shape = LAYERS[name]
    options = {"dtype": dtype, "use_bias": use_bias, "bias_init": nnx.initializers.normal(1)}
    if name == "MultiHeadAttention":
        options["decode"] = False
    else:
        options["preferred_element_type"] = preferred
    for given in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), given)
        ours, theirs = (
            getattr(module, name)(*arguments, **options, rngs=nnx.Rngs(0)) for module in (nn, nnx)
        )
        try:
            expected = theirs(x)
        except TypeError:  # what is preferred may not be narrower
            continue
        found, least = ours(x), 4 * float(jnp.finfo(expected.dtype).eps)
        assert found.dtype == expected.dtype
        numbers = (np.asarray(y, np.float32) for y in (found, expected))
        np.testing.assert_allclose(*numbers, rtol=least, atol=least)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "count"), [(jnp.bfloat16, 257), (jnp.float16, 70000)])
def test_the_bias_of_a_layer_has_a_gradient_in_its_own_dtype(name, dtype, count):
    """Of float32, as the parameter is, though 257 and 70000 are no numbers of the layer's dtype."""
    options = {"decode": False} if name == "MultiHeadAttention" else {}
    layer = getattr(nn, name)(*LAYERS[name][0], dtype=dtype, rngs=nnx.Rngs(0), **options)
    structure, params = nnx.split(layer)
    x = jnp.ones((count, 1, 4))
    gradient = jax.grad(lambda p: nnx.merge(structure, p)(x).astype(jnp.float32).sum())(params)
    last = gradient["out"] if name == "MultiHeadAttention" else gradient
    np.testing.assert_array_equal(last["bias"][...], np.float32(count))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", HALF)
def test_layers_promote_nothing_by_themselves(name, dtype):
    arguments, shape = LAYERS[name]
    options = {"decode": False} if name == "MultiHeadAttention" else {}
    layer = getattr(nn, name)(*arguments, dtype=dtype, rngs=nnx.Rngs(0), **options)
    embedding = nn.PositionEmbedding(5, 4, rngs=nnx.Rngs(0))
    with jax.numpy_dtype_promotion("strict"):
        assert layer(embedding(jnp.ones(shape, dtype))).dtype == dtype


def test_a_projection_is_copied_with_its_layer():
    layer = nn.MultiHeadAttention(2, 4, dtype=jnp.bfloat16, decode=False, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 3, 4))
    copies = nnx.clone(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for twin in (*copies, nnx.merge(*nnx.split(layer))):
        assert type(twin.query) is type(layer.query)
        np.testing.assert_array_equal(
            np.asarray(twin(x), np.float32), np.asarray(layer(x), np.float32)
        )


def test_a_cache_in_half_precision():
    layer = nn.MultiHeadAttention(2, 4, dtype=jnp.bfloat16, decode=True, rngs=nnx.Rngs(0))
    layer.init_cache((1, 3, 4), dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 3, 4))
    steps = jnp.concatenate([layer(x[:, i : i + 1]) for i in range(3)], axis=1)
    whole = layer(x, decode=False, is_causal=True)
    assert steps.dtype == whole.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(steps, np.float32), np.asarray(whole, np.float32), atol=0.02
    )
