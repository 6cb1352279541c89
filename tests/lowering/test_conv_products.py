"""Convolutions of many small kernels as products of what their windows see, against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.lowering import conv
from attnconv.lowering.views import Geometry, Problem

# Window, stride, padding, dilation and input dilation.
CASES = {
    "of MNIST": ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
    "steps": ((3, 2), (2, 3), ((1, 0), (0, 2)), (1, 1), (1, 1)),
    "gaps": ((2, 3), (1, 2), ((2, 1), (3, 3)), (2, 3), (1, 2)),
    "cut": ((3, 3), (2, 1), ((-1, 2), (1, -2)), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "features"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, inputs, features, dtype):
    window, *geometry = CASES[name]
    problem = Problem(Geometry(*geometry), 1, (7, 8), window)
    rng = np.random.default_rng(0)
    shapes = {
        "x": (2, 7, 8, inputs),
        "kernel": (*window, inputs, features),
        "y": (2, *problem.size, features),
    }
    arrays = {key: jnp.asarray(rng.normal(size=shape), dtype) for key, shape in shapes.items()}
    for array, shape in shapes.items():
        others = [x for key, x in arrays.items() if key != array]
        found = jax.jit(conv._PRODUCTS[array], static_argnums=0)(problem, *others)
        expected = conv._STOCK[array](problem, *(x.astype("float32") for x in others))
        assert found.dtype == dtype and found.shape == expected.shape == shape
        error = np.linalg.norm(np.float64(found) - np.float64(expected))
        limit = 1e-6 if dtype == "float32" else float(jnp.finfo(dtype).eps)
        assert error < limit * np.linalg.norm(expected)


def test_the_products_of_a_layer_take_what_its_windows_see_as_it_lies():
    """The gradient of the kernel is a product with the rows that the values are a product with."""
    problem = Problem(Geometry((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)), 1, (7, 8), (3, 3))
    x, y = jnp.zeros((4, 2, 7, 8, 3)), jnp.zeros((4, 2, 7, 8, 5))

    def gradient(x, y):
        return conv._PRODUCTS["kernel"](problem, x, y)

    (product,) = (
        equation
        for equation in jax.make_jaxpr(jax.vmap(gradient))(x, y).eqns
        if equation.primitive.name == "dot_general"
    )
    assert {v.aval.shape for v in product.invars} == {(4, 2 * 7 * 8, 27), (4, 2 * 7 * 8, 5)}
