"""Modules beside their Flax twins: one parameter tree, the same values and gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
