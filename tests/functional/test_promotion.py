"""Every operator under the settings of JAX that promote neither dtypes nor ranks."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from attnconv import functional as F

HALF = jnp.bfloat16


def of(*shape, dtype=HALF):
    return (
        jnp.linspace(-1, 1, num=jnp.zeros(shape).size, dtype=jnp.float32)
        .astype(dtype)
        .reshape(shape)
    )


ATTENTION = of(2, 5, 2, 4), of(2, 7, 2, 4), of(2, 7, 2, 4)
CASES = {
    "conv": (F.conv, (of(2, 5, 5, 4), of(3, 3, 4, 6), of(6)), {}),
    "depthwise": (F.conv, (of(2, 5, 5, 4), of(3, 3, 1, 4)), {"groups": 4}),
    "grouped": (F.conv, (of(2, 5, 5, 4), of(3, 3, 2, 4)), {"groups": 2, "stride": 2}),
    "conv_transpose": (F.conv_transpose, (of(2, 5, 4), of(3, 4, 6), of(6)), {"stride": 2}),
    "locally_connected": (F.locally_connected, (of(2, 4, 3), of(4, 3, 3, 2), of(4, 2)), {}),
    "avg_pool": (F.avg_pool, (of(2, 5, 5, 3), (2, 2)), {"padding": "SAME"}),
    "max_pool": (F.max_pool, (of(2, 5, 5, 3), (2, 2)), {}),
    "layer_norm": (F.layer_norm, (of(2, 5, 3), of(3), of(3)), {}),
    "group_norm": (F.group_norm, (of(2, 5, 4), of(4), of(4)), {"groups": 2}),
    "attention": (F.dot_product_attention, ATTENTION, {"is_causal": True}),
    "masked": (F.dot_product_attention, (*ATTENTION, of(1, 1, 5, 7)), {"mask": of(7) > 0}),
    "few": (F.dot_product_attention, (of(1, 1, 2, 4), *[of(1, 40, 2, 4)] * 2), {}),
    "long": (F.dot_product_attention, [of(1, 600, 1, 2)] * 3, {"local_window_size": 9}),
    "parts": (F.dot_product_attention, [of(32, 130, 4, 2)] * 3, {}),
    "neighborhood": (
        lambda *moving: F.neighborhood_attention(*moving[:3], window=3, dilation=2, bias=moving[3]),
        (*[of(2, 7, 6, 2, 4)] * 3, of(2, 3, 3)),
        {},
    ),
    "gated": (
        F.gated_positional_attention,
        (*[of(2, 5, 2, 4)] * 3, of(2, 5, 5), of(2)),
        {},
    ),
    "rotary": (F.positions.rotary, (of(2, 5, 2, 4),), {}),
    "learned": (F.positions.learned, (of(9, 4), 5), {}),
    "relative_bias": (F.positions.relative_bias, (of(2, 5, 3), (4, 2)), {}),
    "additive_attention": (
        F.additive_attention,
        (*ATTENTION, of(2, 4, 3), of(2, 4, 3), of(2, 3)),
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    function, args, options = CASES[name]
    moving = [i for i, x in enumerate(args) if isinstance(x, jax.Array)]

    def call(*arrays):
        given = dict(zip(moving, arrays, strict=True))
        return function(*(given.get(i, x) for i, x in enumerate(args)), **options)

    def all_of(*arrays):
        y, vjp = jax.vjp(call, *arrays)
        return y, vjp(y)

    arrays = [args[i] for i in moving]
    expected = jax.jit(all_of)(*arrays)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        actual = jax.jit(all_of)(*arrays)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == HALF
        assert jnp.allclose(*(x.astype(jnp.float32) for x in (a, b)), rtol=2e-2, atol=2e-2)


def test_masks():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        mask = F.masks.causal(4) & F.masks.window(4, 4, 1, 1)
        assert (mask == F.masks.window(4, 4, 1, 0)).all()
        assert F.masks.padding(jnp.array([1, 2]), 3).sum() == 3
        assert F.masks.grid_window((2, 2), 0).sum() == 4


def test_half_precision_gradients_are_as_close_as_those_of_jax():
    rng = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, 128, 4, 32)] * 3 + [(2, 4, 128, 128)]
    arrays = [jax.random.normal(r, s).astype(HALF) for r, s in zip(rng, shapes, strict=False)]
    ct = jax.random.normal(rng[4], shapes[0]).astype(HALF)

    def gradients(attend, dtype=HALF):
        of = jax.jit(lambda ct, *arrays: jax.vjp(attend, *arrays)[1](ct))
        return of(*(x.astype(dtype) for x in (ct, *arrays)))

    exact = gradients(jax.nn.dot_product_attention, jnp.float32)

    def error(found):
        return [jnp.abs(a.astype(jnp.float32) - b).max() for a, b in zip(found, exact, strict=True)]

    stock = error(gradients(jax.nn.dot_product_attention))
    for ours, theirs in zip(error(gradients(F.dot_product_attention)), stock, strict=True):
        assert ours <= 1.5 * theirs


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.conv(x, jnp.ones((1, 1, 1), x.dtype)),
        lambda x: F.conv_transpose(x, jnp.ones((1, 1, 1), x.dtype)),
        lambda x: F.locally_connected(x, jnp.ones((8, 1, 1, 1), x.dtype)),
        lambda x: F.avg_pool(x, (2,)),
        lambda x: F.max_pool(x, (2,)),
        F.layer_norm,
        F.rms_norm,
        lambda x: F.positions.rotary(x.reshape(1, 1, 2, 4)),
    ],
)
@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_numbers_that_would_be_cut_off_are_refused(monkeypatch, call, dtype):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"^x: expected a floating dtype, came {dtype}"):
        call(jnp.ones((8, 1), dtype))
