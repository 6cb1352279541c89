"""Products of weights with the last axes of an array, GELU, arrays kept apart: against JAX."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from attnconv import functional as F
from attnconv.functional.dense import apart


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_signature_is_that_of_lax():
    ours, stock = map(inspect.signature, (F.dot_general, lax.dot_general))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in stock.parameters.values()
    ]


@pytest.mark.parametrize(
    "flat, shapes, numbers",
    [
        (True, ((2, 3, 4), (4, 5)), (((2,), (0,)), ((), ()))),
        (True, ((2, 3, 4, 6), (4, 6, 5)), (((2, 3), (0, 1)), ((), ()))),
        (True, ((2, 3, 4), (4, 5, 2)), (((2,), (0,)), ((), ()))),
        (True, ((2, 0, 4), (4, 5)), (((2,), (0,)), ((), ()))),
        (False, ((3, 4), (4, 5)), (((1,), (0,)), ((), ()))),
        (False, ((2, 3, 4), (5, 4)), (((2,), (1,)), ((), ()))),
        (False, ((2, 3, 4), (3, 5)), (((1,), (0,)), ((), ()))),
        (False, ((2, 3, 4), (2, 4, 5)), (((2,), (1,)), ((0,), (0,)))),
        (False, ((2, 3), (4, 5)), (((), ()), ((), ()))),
    ],
)
def test_values_and_gradients(flat, shapes, numbers):
    lhs, rhs = (normal(i, shape) for i, shape in enumerate(shapes))

    def both(product):
        y, vjp = jax.vjp(lambda a, b: product(a, b, numbers), lhs, rhs)
        return y, *vjp(jnp.cos(y))

    for a, b in zip(both(F.dot_general), both(lax.dot_general), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jaxpr = str(jax.make_jaxpr(lambda a, b: F.dot_general(a, b, numbers))(lhs, rhs))
    assert ("reshape" in jaxpr) is flat


def test_options_and_errors_are_those_of_lax():
    x, kernel = normal(0, (2, 3, 4), jnp.bfloat16), normal(1, (4, 5), jnp.bfloat16)
    numbers = (((2,), (0,)), ((), ()))
    y = F.dot_general(x, kernel, numbers, preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32
    with pytest.raises(TypeError, match="contracting dimensions"):
        F.dot_general(x, kernel[:3], numbers)


def test_gelu_is_that_of_jax_and_keeps_its_input_alone():
    x = 3 * normal(0, (4, 50))
    for of in (lambda f: f, jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
        found, expected = (jax.vmap(jax.vmap(of(f)))(x) for f in (F.gelu, jax.nn.gelu))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    (kept,) = jax.tree.leaves(jax.vjp(F.gelu, x)[1])
    np.testing.assert_array_equal(kept, x)


@pytest.mark.parametrize("of", [lambda f: f, jax.grad, lambda f: jax.jacfwd(jax.grad(f))])
def test_what_is_kept_apart_has_its_values_and_gradients(of):
    x, w = normal(0, (3, 4)), normal(1, (4,))

    def f(x):
        return jnp.sin(x @ w)

    def g(x):
        y, v = apart((x, w))
        return apart(jnp.sin(y @ v))

    np.testing.assert_allclose(jax.vmap(of(g))(x), jax.vmap(of(f))(x), rtol=1e-6)
