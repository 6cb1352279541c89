"""Arrays sharded by their types, on a mesh with explicit axes: as without, and sharded alike.

One device is enough, since the types say the same of one as of many.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from attnconv import functional as F
from attnconv import nn

MESH = jax.make_mesh((1, 1), ("x", "y"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def attend(query, key, value, bias=None, **options):
    return F.dot_product_attention(query, key, value, bias, **options)


IMAGES, GRID = normal(4, 10, 10, 4), (normal(2, 9, 9, 2, 4),) * 3
LONG, FEW = (normal(2, 400, 2, 4),) * 3, (normal(2, 1, 2, 4), *(normal(2, 8, 2, 4),) * 2)
HEADS = P("x", None, "y", None)
CASES = {
    "convolution": (F.conv, (IMAGES, normal(3, 3, 4, 6)), (P("x"), P(None, None, None, "y"))),
    "an axis of both": (F.conv, (IMAGES, normal(3, 3, 4, 6)), (P("x"), P(None, None, None, "x"))),
    "channels": (
        F.conv,
        (IMAGES, normal(3, 3, 4, 6)),
        (P("x", None, None, "y"), P(None, None, "y")),
    ),
    "depthwise": (
        functools.partial(F.conv, groups=4),
        (IMAGES, normal(3, 3, 1, 4)),
        (P("x"), P()),
    ),
    "transposed": (
        functools.partial(F.conv_transpose, stride=2),
        (IMAGES, normal(3, 3, 4, 6)),
        (P("x"), P()),
    ),
    "attention": (attend, LONG, (HEADS,) * 3),
    "a bias": (attend, (*LONG, normal(1, 2, 400, 400)), (*(HEADS,) * 3, P(None, "y"))),
    "rows": (functools.partial(attend, implementation="chunked"), LONG, (HEADS,) * 3),
    "few queries": (attend, FEW, (HEADS,) * 3),
    "neighborhood": (
        functools.partial(F.neighborhood_attention, window=3),
        GRID,
        (P("x", None, None, "y"),) * 3,
    ),
}
SPECS = {
    "convolution": P("x", None, None, "y"),
    **dict.fromkeys(("attention", "a bias", "rows", "few queries"), HEADS),
    "neighborhood": P("x", None, None, "y", None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("in_context", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_values_gradients_and_shardings(name, in_context):
    function, arrays, specs = CASES[name]

    def found(*arrays):
        y, back = jax.vjp(function, *arrays)
        return y, back(jnp.cos(y))

    sharded = [
        jax.device_put(x, jax.NamedSharding(MESH, spec))
        for x, spec in zip(arrays, specs, strict=True)
    ]
    if in_context:
        with jax.set_mesh(MESH):
            actual = jax.jit(found)(*sharded)
    else:
        actual = jax.jit(found)(*sharded)
    y, gradient = actual
    assert jax.typeof(y).sharding.spec == SPECS.get(name, P("x", None, None, None))
    for x, of_x in zip(sharded, gradient, strict=True):
        assert jax.typeof(of_x).sharding == jax.typeof(x).sharding
    for a, wanted in zip(*map(jax.tree.leaves, (actual, jax.jit(found)(*arrays))), strict=True):
        np.testing.assert_allclose(a, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["explicit", "shard_map"])
def test_a_block_of_layers(way):
    structure, params = nnx.split(nn.EncoderBlock(8, 16, heads=2, rngs=nnx.Rngs(0)))
    x = normal(4, 5, 8)

    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, x):
        return (nnx.merge(structure, params)(x) ** 2).sum()

    expected = jax.jit(gradient)(params, x)
    with jax.set_mesh(MESH):
        found = gradient
        if way == "shard_map":
            specs = P(), P("x")
            found = jax.shard_map(gradient, in_specs=specs, out_specs=specs)
        actual = jax.jit(found)(params, jax.device_put(x, P("x")))
    for a, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, wanted, rtol=1e-4, atol=1e-4)
