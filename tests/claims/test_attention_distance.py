"""The distance of attention's experiment, small, on the scans that need no data folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import tasks
from attnconv.claims import attention_distance
from attnconv.claims.claim import Setting

pytestmark = pytest.mark.slow

BLOCKS, SEEDS = 2, 2


@pytest.fixture(scope="module")
def evidence():
    digits = tasks.load("digits")
    small = {"SEEDS": SEEDS, "STEPS": 60, "RATES": (0.01,), "EXAMPLES": 200, "PROBE": 8}
    sizes = {"PATCH": 2, "BLOCKS": BLOCKS, "HEADS": 2, "FEATURES": 8}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**small, **sizes}.items():
            patch.setattr(attention_distance, name, value)
        patch.setattr(tasks, "load", lambda *_, **__: digits)
        return attention_distance.CLAIM.test(Setting())


def test_every_layer_is_measured_before_and_after(evidence):
    assert len(evidence.rows) == 2 * BLOCKS
    for part in evidence.parts:
        assert np.isfinite(part.measured).all()


def test_heads_are_sorted_and_their_mean_lies_between(evidence):
    far, mean, near, _ = (np.array(line.y) for line in evidence.figure.series)
    assert (near <= mean).all() and (mean <= far).all()
    assert (near > 0).all()


def test_heads_that_look_everywhere_alike_have_the_distance_of_even_attention(evidence):
    untrained = np.array(evidence.figure.series[3].y)
    np.testing.assert_allclose(untrained, 1, atol=0.25)


def test_the_weights_are_those_that_the_blocks_use():
    model = attention_distance.ViT((3, 4), rngs=nnx.Rngs(0))
    side = attention_distance.PATCH
    x = jax.random.normal(jax.random.key(0), (2, 3 * side, 4 * side, 1))
    weights = model.weights(x)
    assert weights.shape == (attention_distance.BLOCKS, 2, attention_distance.HEADS, 12, 12)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    vectors = model.vectors(x)
    for block, found in zip(model.blocks, weights, strict=True):
        at = block.attention_norm(vectors)
        heads = jnp.einsum("BNTS,BSNK->BTNK", found, block.attention.value(at))
        np.testing.assert_allclose(block.attention.out(heads), block.attention(at), atol=1e-5)
        vectors = block(vectors)
