"""Modules beside their Flax twins, one parameter tree, or beside what they are a part of."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv import nn
from attnconv.errors import UsageError


def assert_twins(ours, theirs, *inputs, **call):
    """The parameters of one fit the other, and then values and gradients agree."""
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.state(ours), nnx.state(theirs))
    nnx.update(ours, nnx.state(theirs))

    def loss(model, *inputs):
        return (model(*inputs, **call) ** 2).mean()

    expected, expected_gradients = jax.value_and_grad(loss, range(len(inputs) + 1))(theirs, *inputs)
    value, gradients = jax.value_and_grad(loss, range(len(inputs) + 1))(ours, *inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    leaves = zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True)
    for gradient, other in leaves:
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((3, 3), {}),
        ((3, 5), {"strides": 2, "padding": "VALID"}),
        ((4,), {"padding": "CAUSAL"}),
        ((3, 3), {"padding": "CIRCULAR", "feature_group_count": 2}),
        ((2, 3), {"kernel_dilation": (2, 1), "use_bias": False}),
    ],
)
def test_conv_is_the_twin_of_flax(window, options):
    ours, theirs = (cls(4, 6, window, rngs=nnx.Rngs(0), **options) for cls in (nn.Conv, nnx.Conv))
    x = jax.random.normal(jax.random.key(1), (2, *(9, 8)[: len(window)], 4))
    assert_twins(ours, theirs, x)


def test_xla_sees_three_arrays_where_one_is_projected_three_times():
    layer = nn.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    program = str(jax.make_jaxpr(layer)(jnp.ones((2, 5, 8))))
    assert program.count("optimization_barrier") == 3


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2}, {"qkv_features": 16}])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_twin_of_flax(options, masked):
    ours, theirs = (
        cls(4, 8, decode=False, rngs=nnx.Rngs(0), **options)
        for cls in (nn.MultiHeadAttention, nnx.MultiHeadAttention)
    )
    x, y = (jax.random.normal(jax.random.key(i), (2, 5, 8)) for i in (1, 2))
    mask = jnp.tril(jnp.ones((2, 1, 5, 5), bool)) if masked else None
    assert_twins(ours, theirs, x, y, mask=mask)


def test_attention_takes_several_batch_axes():
    layer = nn.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 8))
    mask = jax.random.bernoulli(jax.random.key(2), 0.7, (2, 3, 1, 5, 5)).at[..., 0].set(True)
    expected = jnp.stack([layer(x[i], mask=mask[i]) for i in range(2)])
    np.testing.assert_allclose(layer(x, mask=mask), expected, rtol=1e-5, atol=1e-6)


def test_numbers_as_mask_and_decoding_with_a_cache_are_those_of_flax():
    ours, theirs = (
        cls(2, 8, decode=True, rngs=nnx.Rngs(0))
        for cls in (nn.MultiHeadAttention, nnx.MultiHeadAttention)
    )
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    mask = nnx.make_causal_mask(jnp.ones((2, 5)))
    assert mask.dtype == jnp.float32
    whole = ours(x, mask=mask, decode=False)
    np.testing.assert_allclose(whole, theirs(x, mask=mask, decode=False), rtol=1e-5, atol=1e-6)
    ours.init_cache((2, 5, 8))
    steps = jnp.concatenate([ours(x[:, t : t + 1]) for t in range(5)], axis=1)
    np.testing.assert_allclose(steps, whole, rtol=1e-5, atol=1e-6)


def test_an_image_smaller_than_the_kernel_is_refused():
    layer = nn.Conv(1, 1, (5, 3), padding="VALID", rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match=r"image smaller than the kernel: .* \(5, 3\).*\(4, 4\)"):
        layer(jnp.ones((1, 4, 4, 1)))


def test_dropout_and_sown_weights_are_those_of_flax():
    options = {"dropout_rate": 0.5, "deterministic": False, "decode": False}
    ours, theirs = (
        cls(2, 8, rngs=nnx.Rngs(0), **options)
        for cls in (nn.MultiHeadAttention, nnx.MultiHeadAttention)
    )
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    watched = nnx.capture(ours, nnx.Intermediate)
    _, sown = watched(x, sow_weights=True, deterministic=True)
    (weights,) = sown["attention_weights"].get_value()
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 2, 5)), rtol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_masked_rows_are_zeros_with_dropout_too(is_causal):
    """Flax averages the values there."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 8))
    mask = jnp.ones((2, 1, 5, 5)).at[1, :, 2].set(0).at[0, :, :, 0].set(0)
    rng = {"dropout_rng": jax.random.key(1), "dropout_rate": 1e-9}
    found = nn.attention_fn(q, k, v, mask=mask, is_causal=is_causal, **rng)
    expected = nn.attention_fn(q, k, v, mask=mask, is_causal=is_causal)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[1, 2].any() and bool(found[0, 0].any()) != is_causal


def test_positions_are_those_of_sequences(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    layer = nn.PositionEmbedding(4, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x: expected vectors \[B, T, D\], got .* \(1, 4, 4, 8\)"):
        layer(jnp.ones((1, 4, 4, 8)))


def test_heads_that_do_not_divide_the_features_are_refused():
    with pytest.raises(UsageError, match="num_heads=3: expected a divisor of the 8 features"):
        nn.MultiHeadAttention(3, 8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("window", [(3,), (3, 2)])
def test_locally_connected_starts_at_unit_scale_and_equals_conv_with_one_kernel(window):
    grid = (12, 10)[: len(window)]
    local = nn.LocallyConnected(grid, 3, 5, window, 2, rngs=nnx.Rngs(0))
    fan_in = 3 * np.prod(window)
    assert float(local.kernel[...].std()) == pytest.approx(np.sqrt(2 / fan_in), rel=0.1)
    conv = nn.Conv(3, 5, window, 2, rngs=nnx.Rngs(1))
    local.kernel[...] = jnp.broadcast_to(conv.kernel[...], local.kernel.shape)
    x = jax.random.normal(jax.random.key(2), (2, *grid, 3))
    np.testing.assert_allclose(local(x), conv(x), rtol=1e-5, atol=1e-5)


def test_encoder_block_without_weights_passes_its_input_on():
    block = nn.EncoderBlock(8, 16, heads=2, rngs=nnx.Rngs(0))
    block.attention.out.kernel[...] = jnp.zeros((2, 4, 8))
    block.contract.kernel[...] = jnp.zeros((16, 8))
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    np.testing.assert_array_equal(block(x), x)


# --- neighborhood attention ---


def dense_form(layer, x, **options):
    """The same layer as attention between all positions, with -inf for those beyond the window."""
    _, *grid, D = x.shape
    N, B = layer.num_heads, len(x)
    heads = [
        (x.reshape(B, -1, D) @ getattr(layer, name).kernel[...]).reshape(B, -1, N, D // N)
        + getattr(layer, name).bias[...].reshape(N, D // N)
        for name in ("query", "key", "value")
    ]
    pairs = F.neighborhood_bias(tuple(grid), bias=layer.bias[...], **options)
    y = F.dot_product_attention(*heads, pairs).reshape(x.shape)
    return y @ layer.out.kernel[...] + layer.out.bias[...]


def stirred(module):
    """Every parameter moved from where it starts, so that none of them is without effect."""
    params = nnx.state(module, nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    nnx.update(module, jax.tree.unflatten(tree, moved))
    return module


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        pytest.param((7,), {"window": (3,)}, marks=pytest.mark.slow),
        pytest.param((7,), {"window": (4,), "border": "zero"}, marks=pytest.mark.slow),
        pytest.param(
            (6, 5),
            {"window": (3, 2), "border": "zero", "dilation": (1, 2)},
            marks=pytest.mark.slow,
        ),
        ((6, 5), {"window": (3, 5), "is_causal": (True, False)}),
        pytest.param((3, 2, 3), {"window": (2, 2, 3)}, marks=pytest.mark.slow),
    ],
)
def test_neighborhood_attention_is_dense_attention_with_its_window(grid, options):
    layer = stirred(nn.NeighborhoodAttention(2, 6, rngs=nnx.Rngs(0), **options))
    assert layer.bias.shape == (2, *(2 * extent - 1 for extent in options["window"]))
    x = jax.random.normal(jax.random.key(1), (2, *grid, 6))

    def of(form):
        def loss(layer, x):
            return jnp.sin(form(layer, x)).sum()

        return jax.tree.leaves((form(layer, x), nnx.grad(loss, argnums=(0, 1))(layer, x)))

    dense = functools.partial(dense_form, **options)
    found = of(lambda layer, x: layer(x))
    assert all((g != 0).any() for g in found), "every parameter counts"
    for actual, expected in zip(found, of(dense), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def test_neighborhood_attention_with_a_window_of_all_is_multi_head_attention():
    near = nn.NeighborhoodAttention(2, 6, (5,), rngs=nnx.Rngs(0))
    everywhere = nn.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(1))
    for name in ("query", "key", "value", "out"):
        for key in ("kernel", "bias"):
            param = getattr(getattr(everywhere, name), key)
            param[...] = getattr(getattr(near, name), key)[...].reshape(param.shape)
    x = jax.random.normal(jax.random.key(1), (3, 5, 6))
    np.testing.assert_allclose(near(x), everywhere(x), rtol=1e-5, atol=1e-6)


def test_neighborhood_attention_sees_no_vector_that_is_not_there():
    layer = stirred(nn.NeighborhoodAttention(2, 6, (3,), border="zero", rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (2, 7, 6))
    mask = jnp.arange(7) < jnp.array([[7], [4]])
    found = layer(x, mask)
    np.testing.assert_allclose(found[0], layer(x)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1, :4], layer(x[:, :4])[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[1, :4], layer(x)[1, :4])


@pytest.mark.parametrize("make", [nn.NeighborhoodAttention, nn.GatedAttention])
def test_heads_of_windows_that_do_not_divide_the_features_are_refused(make):
    arguments = (3, 8, (3,)) if make is nn.NeighborhoodAttention else ((3,), 8)
    with pytest.raises(UsageError, match="num_heads=3: expected a divisor of the 8 features"):
        make(*arguments, rngs=nnx.Rngs(0))


# --- gated attention ---


def test_gated_attention_scores_a_key_by_its_distance_from_the_offset_of_the_head():
    window, grid = (3, 2), (4, 3)
    layer = nn.GatedAttention(window, 12, rngs=nnx.Rngs(0))
    scores = np.asarray(layer.scores(grid))
    places = list(np.ndindex(*grid))
    for n, place in enumerate(np.ndindex(*window)):
        offset = np.array(place) - np.array([1, 0])  # the middle: (k - 1) // 2
        for t, at in enumerate(places):
            for s, key in enumerate(places):
                apart = np.array(key) - np.array(at)
                expected = (offset**2).sum() - ((apart - offset) ** 2).sum()
                assert scores[n, t, s] == expected


def test_gated_attention_that_is_sharp_and_closed_is_a_convolution():
    """Away from the border, beyond which attention finds no zeros but the nearest keys."""
    window, features = (3, 2), 12
    layer = nn.GatedAttention(window, features, rngs=nnx.Rngs(0))
    assert layer.gate[...].tolist() == [1.0] * 6
    layer.gate[...] = jnp.full(6, jnp.inf)
    layer.position[...] = 100 * layer.position[...]
    x = jax.random.normal(jax.random.key(1), (2, 6, 5, features))
    own = np.arange(features) // 2 == np.arange(6)[:, None]  # the channels of each head
    kernel = jnp.asarray(own[..., None] * np.asarray(layer.out.kernel[...])).reshape(3, 2, 12, 12)
    expected = F.conv(x, kernel, layer.out.bias[...], padding=((1, 1), (0, 1)))
    actual = layer(x)
    np.testing.assert_allclose(actual[:, 1:-1, :-1], expected[:, 1:-1, :-1], rtol=1e-5, atol=1e-5)
    assert not np.allclose(actual[:, 0], expected[:, 0], atol=1e-2)


@pytest.mark.parametrize("start", ["convolution", "random"])
def test_gated_attention_without_positions_is_multi_head_attention(start):
    gated = nn.GatedAttention((3,), 6, start=start, rngs=nnx.Rngs(0))
    everywhere = nn.MultiHeadAttention(3, 6, decode=False, rngs=nnx.Rngs(1))
    gated.gate[...] = jnp.full(3, -jnp.inf)
    for name in ("query", "key", "value", "out"):
        for key in ("kernel", "bias"):
            param = getattr(getattr(everywhere, name), key)
            param[...] = getattr(getattr(gated, name), key)[...].reshape(param.shape)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6))
    mask = jnp.arange(5) < jnp.array([[5], [3]])
    np.testing.assert_allclose(gated(x), everywhere(x), rtol=1e-5, atol=1e-6)
    expected = everywhere(x, mask=mask[:, None, None])
    np.testing.assert_allclose(gated(x, mask), expected, rtol=1e-5, atol=1e-6)


def test_gated_attention_takes_no_notice_of_keys_that_are_not_there():
    layer = stirred(nn.GatedAttention((3, 3), 9, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (2, 4, 3, 9))
    mask = jnp.arange(12).reshape(1, 4, 3) < jnp.array([12, 7])[:, None, None]
    other = jnp.where(mask[..., None], x, 7.0)
    there = np.asarray(mask)
    np.testing.assert_allclose(layer(other, mask)[there], layer(x, mask)[there], rtol=1e-5)
    assert not np.allclose(layer(other)[1, 0], layer(x)[1, 0])


def test_gated_attention_starts_small_or_as_a_convolution_and_as_nothing_else():
    layer = nn.GatedAttention((3, 3), 18, start="random", rngs=nnx.Rngs(0))
    assert layer.gate[...].tolist() == [0.0] * 9
    assert 0.01 < float(layer.position[...].std()) < 0.03
    assert not np.allclose(layer.value.kernel[...], jnp.eye(18))
    with pytest.raises(UsageError, match="unknown start 'convolutional'; did you mean 'convol"):
        nn.GatedAttention((3, 3), 18, start="convolutional", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_neighbors_that_are_not_there_are_seen_by_none(dtype):
    layer = nn.NeighborhoodAttention(1, 4, (3,), rngs=nnx.Rngs(0))
    for part in (layer.query, layer.key, layer.value, layer.out):
        part.kernel[...] = jnp.eye(4)
    x = jnp.repeat(jnp.array([[[100.0], [100.0], [400.0]]], dtype), 4, axis=-1)
    y = layer(x, jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(y[0, :2], np.full((2, 4), 100))


def test_a_window_of_vectors_that_are_not_there_is_a_zero():
    layer = stirred(nn.NeighborhoodAttention(2, 6, (3,), rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (1, 9, 6))
    mask = jnp.arange(9)[None] < 5
    y, transpose = jax.vjp(lambda x: layer(x, mask), x)
    np.testing.assert_array_equal(y, layer(x.at[:, 5:].set(7.0), mask).at[:, 5].set(y[:, 5]))
    np.testing.assert_array_equal(y[0, 6:], jnp.broadcast_to(layer.out(jnp.zeros(6)), (3, 6)))
    (dx,) = transpose(jnp.ones_like(y))
    assert (dx[0, 6:] == 0).all() and (dx[0, :5] != 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: nn.NeighborhoodAttention(4, 32, 7, rngs=rngs),
        lambda rngs: nn.LocallyConnected((8, 8), 1, 4, 3, rngs=rngs),
        lambda rngs: nn.LocallyConnected(8, 1, 4, (3,), rngs=rngs),
        lambda rngs: nn.GatedAttention(3, 18, rngs=rngs),
    ],
)
def test_one_number_where_the_axes_are_not_known_is_refused(make, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(UsageError, match="expected one number for each axis, as in"):
        make(nnx.Rngs(0))


def test_attention_fn_computes_in_its_dtype_and_knows_its_keywords():
    q = jnp.ones((2, 4, 2, 8))
    assert nn.attention_fn(q, q, q, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert nn.attention_fn(q.astype(jnp.bfloat16), q, q).dtype == jnp.float32
    with pytest.raises(TypeError, match="is_casual"):
        nn.attention_fn(q, q, q, is_casual=True)
