"""A linear function with its own transpose, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.lowering.linear import linear

X, Y = jnp.array([0.3, -0.5, 1.2]), jnp.array([1.0, 2.0, -0.7])


@jax.custom_jvp
def ours(a, b):
    return jnp.sin(a) * b


@ours.defjvp
def _jvp(primals, tangents):
    def slope(fixed, along):
        (a, b), (da, db) = fixed, along
        return jnp.cos(a) * b * da + jnp.sin(a) * db

    def transpose(fixed, ct):
        a, b = fixed
        return jnp.cos(a) * b * ct, jnp.sin(a) * ct

    return ours(*primals), linear(slope, transpose, primals, tangents)


def plain(a, b):
    return jnp.sin(a) * b


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: jax.grad(lambda a, b: f(a, b).sum(), (0, 1))(X, Y),
        lambda f: jax.jvp(f, (X, Y), (Y, X)),
        lambda f: jax.hessian(lambda a: f(a, a).sum())(X),
        lambda f: jax.jacrev(jax.jacrev(lambda a: f(a, a)))(X),
        lambda f: jax.jacfwd(jax.jacfwd(lambda a: f(a, a)))(X),
        lambda f: jax.jacrev(jax.jacfwd(lambda a: f(a, a)))(X),
        lambda f: jax.jacrev(jax.jacrev(jax.jacrev(lambda a: f(a, a))))(X),
        lambda f: jax.vmap(jax.grad(f, (0, 1)), (0, None))(X, jnp.float32(2.0)),
        lambda f: jax.grad(lambda a: jax.vmap(f, (0, None))(a, a[0]).sum())(X),
        lambda f: jax.jit(jax.grad(jax.checkpoint(lambda a: f(a, a).sum())))(X),
        lambda f: jax.grad(lambda a: jax.lax.fori_loop(0, 3, lambda _, c: f(c, Y), a).sum())(X),
    ],
)
def test_agrees_with_plain_differentiation(transformed):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        transformed(ours),
        transformed(plain),
    )


def test_reverse_mode_takes_the_transpose_and_forward_mode_the_function():
    def f(x):
        return linear(lambda _, x: 2.0 * x, lambda _, ct: 7.0 * ct, (), x)

    assert jax.grad(f)(1.0) == 7.0
    assert jax.jvp(f, (1.0,), (1.0,))[1] == 2.0
    back = jax.linear_transpose(f, 1.0)
    assert jax.linear_transpose(lambda ct: back(ct)[0], 1.0)(1.0)[0] == 2.0


def test_under_shard_map():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        jax.grad(lambda a, b: ours(a, b).sum(), (0, 1)),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=(P("data"), P("data")),
    )
    expected = jax.grad(lambda a, b: plain(a, b).sum(), (0, 1))(X, Y)
    for actual in (sharded(X, Y), jax.jit(sharded)(X, Y)):
        jax.tree.map(np.testing.assert_allclose, actual, expected)
