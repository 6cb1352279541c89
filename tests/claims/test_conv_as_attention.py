"""Convolution as attention: the net's attention against the whole matrix, the experiment small."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv import tasks
from attnconv.analysis.fitted import nearest_convolution
from attnconv.claims import conv_as_attention as claim
from attnconv.claims.claim import HOLDS, Setting
from attnconv.claims.quadratic import HEADS, LAYERS, QuadraticAttention, arrangement

pytestmark = pytest.mark.slow


def test_attention_axis_by_axis_is_attention_between_all_positions():
    layer = QuadraticAttention(5, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    layer.inverse_widths[...] = jnp.linspace(0.3, 1.5, HEADS)
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 5))
    at = np.array(list(np.ndindex(4, 6)))
    apart = at[None] - at[:, None] - np.asarray(layer.centres[...])[:, None, None]
    scores = -np.square(layer.inverse_widths[...])[:, None, None] * np.square(apart).sum(-1)
    nothing = jnp.zeros((2, 24, HEADS, 5))
    value = jnp.broadcast_to(x.reshape(2, 24, 1, 5), nothing.shape)
    heads = F.dot_product_attention(nothing, nothing, value, jnp.asarray(scores)[None])
    expected = jnp.einsum("BTND,NDO->BTO", heads, layer.kernel[...]) + layer.bias[...]
    np.testing.assert_allclose(layer(x), expected.reshape(2, 4, 6, 5), atol=1e-5)


def test_sharp_heads_on_a_grid_are_a_convolution_away_from_the_border():
    layer = QuadraticAttention(3, rngs=nnx.Rngs(0))
    layer.centres[...] = jnp.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], float)
    layer.inverse_widths[...] = jnp.full(HEADS, 10.0)
    x = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    fitted = nearest_convolution(x, layer(x)[:, 1:-1, 1:-1], (3, 3), padding="VALID")
    assert fitted.residue < 1e-10
    np.testing.assert_allclose(fitted.kernel.reshape(HEADS, 3, 3), layer.kernel[...], atol=1e-5)
    found = arrangement(layer)
    assert found.distinct == HEADS
    assert found.gap == pytest.approx(1)
    assert found.peak == pytest.approx(1)
    assert found.distance == pytest.approx((4 + 4 * math.sqrt(2)) / 9)


def test_wide_heads_in_one_place():
    layer = QuadraticAttention(3, rngs=nnx.Rngs(0))
    layer.centres[...] = jnp.tile(jnp.array([[3.2, 4.1]]), (HEADS, 1))
    found = arrangement(layer)
    assert found.distinct == 1
    assert found.gap == 0
    assert found.distance == pytest.approx(math.hypot(3.2, 4.1))
    factors = [1 / sum(math.exp(-((k - r) ** 2 - r**2)) for k in range(-9, 10)) for r in (0.2, 0.1)]
    assert found.peak == pytest.approx(math.prod(factors), rel=1e-5)


def test_two_by_two_pixels_are_one_vector():
    images = np.arange(2 * 4 * 6 * 1.0).reshape(2, 4, 6, 1)
    found = claim.halved(images)
    assert found.shape == (2, 2, 3, 4)
    assert found[1, 1, 2].tolist() == images[1, 2:4, 4:6, 0].ravel().tolist()


def test_the_error_of_the_converter():
    assert claim.error(0, math.inf) < 1e-6
    assert claim.error(0, claim.VANISHING) < 1e-6
    assert claim.error(0, 2.0) > 10 * claim.error(0, 6.0) > 1e-4


@pytest.fixture(scope="module")
def evidence():
    digits = tasks.load("digits")
    small = {"SEEDS": 2, "STEPS": 60, "RATES": (0.01,), "EXAMPLES": 200, "SHARPNESS": (1.0, 4.0)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(claim, name, value)
        patch.setattr(tasks, "load", lambda *_, **__: digits)
        return claim.CLAIM.test(Setting())


def test_every_layer_is_measured_before_and_after(evidence):
    assert len(evidence.rows) == 2 * LAYERS
    for part in evidence.parts:
        assert np.isfinite(part.measured).all()
    assert [part.verdict for part in evidence.parts[:3]] == [HOLDS] * 3


def test_a_larger_window_leaves_less(evidence):
    for line in evidence.figure.series:
        assert 1 > line.y[0] > line.y[1] > line.y[2] > 0


def test_untrained_layers_are_those_that_the_seeds_make(evidence):
    for layer, row in enumerate(evidence.rows[::2]):
        nets = [claim.Net(4, rngs=nnx.Rngs(params=jax.random.key(seed))) for seed in range(2)]
        places = [arrangement(net.blocks[layer].attention) for net in nets]
        assert row[0] == f"layer {layer + 1}, untrained"
        for text, values in zip(row[1:5], zip(*places, strict=True), strict=True):
            assert text.startswith(f"{np.mean(values):.2f} [")
