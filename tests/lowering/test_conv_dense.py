"""The forms of dense convolution against XLA's own, over geometries; the rules at their numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.lowering import conv_cpu, conv_dense
from attnconv.lowering.views import Geometry, Problem, padded, stock


@st.composite
def problems(draw):
    rank = draw(st.integers(1, 2))

    def each(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    padding = tuple(zip(each(-1, 3), each(-1, 3), strict=True))
    geometry = Geometry(each(1, 4), padding, each(1, 2), (1,) * rank)
    return Problem(geometry, 1, each(7, 9), each(1, 3))


def arrays(problem, images=6, channels=3, features=2):
    rng = np.random.default_rng(0)
    shapes = (
        (images, *problem.spatial, channels),
        (*problem.window, channels, features),
        (images, *problem.size, features),
    )
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def expect(problem, x, kernel):
    """XLA's convolution of an image padded first; it is wrong where padding cuts and fills."""
    geometry = problem.geometry._replace(padding=((0, 0),) * len(problem.size))
    return stock(problem._replace(geometry=geometry), padded(x, problem.geometry), kernel)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([2, 3, 6]))
def test_images_side_by_side(problem, side):
    x, kernel, _ = arrays(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_dense, "side_by_side", lambda *_: side)
        name, _ = conv_dense.form(problem, 6, 3, 2)
        assert name == "product" if math.prod(problem.window) == 1 else name == "wide"
        actual = conv_dense.dense(problem, x, kernel)
    close(actual, expect(problem, x, kernel))


@settings(max_examples=20, deadline=None)
@given(problems(), st.sampled_from([2, 3, 6]))
def test_kernel_gradient_in_parts(problem, parts):
    x, kernel, y = arrays(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_dense, "FEW", 0)
        patch.setattr(conv_dense, "image_parts", lambda _, images, __: parts if images == 6 else 1)
        actual = conv_dense.dense_kernel_gradient(problem, x, y)
    (expected,) = jax.linear_transpose(lambda kernel: expect(problem, x, kernel), kernel)(y)
    close(actual, expected)


def test_kernel_gradient_of_groups_in_parts_of_the_images():
    problem = same(32, 32)._replace(groups=4)
    x, kernel, y = arrays(problem, images=32, channels=64, features=64)
    kernel = kernel[..., :16, :]
    assert conv_dense.image_parts(problem, 32, 16) > 1
    actual = conv_cpu.kernel_gradient(problem, x, y)
    (expected,) = jax.linear_transpose(lambda kernel: expect(problem, x, kernel), kernel)(y)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def same(*spatial, window=3):
    rank = len(spatial)
    geometry = Geometry((1,) * rank, ((window // 2,) * 2,) * rank, (1,) * rank, (1,) * rank)
    return Problem(geometry, 1, spatial, (window,) * rank)


@pytest.mark.parametrize(
    "problem, images, channels, features, side",
    [
        (same(32, 32), 32, 64, 64, 32),
        (same(14, 14), 128, 32, 64, 64),
        (same(32, 32), 32, 16, 16, 1),  # too few products to pay for the copies
        (same(16, 16), 32, 128, 128, 1),  # all cores as it is
        (same(8, 8), 64, 64, 64, 1),  # too much between the images
        (same(32, 32), 31, 64, 64, 31),
        (same(32, 32), 2, 64, 64, 1),
        (same(64, 64), 0, 64, 64, 1),
    ],
)
def test_how_many_images_are_side_by_side(monkeypatch, problem, images, channels, features, side):
    monkeypatch.setattr(conv_dense, "ONE_CORE", True)
    assert conv_dense.side_by_side(problem, images, channels, features) == side
    monkeypatch.setattr(conv_dense, "ONE_CORE", False)
    assert conv_dense.side_by_side(problem, images, channels, features) == 1


@pytest.mark.parametrize(
    "problem, images, features, parts",
    [
        (same(32, 32), 32, 64, 16),
        (same(16, 16), 32, 128, 8),
        (same(32, 32), 32, 16, 4),
        (same(8, 8), 32, 256, 2),
        (same(1024, window=9), 32, 64, 1),
        (same(32, 32), 31, 64, 1),
        (same(32, 32), 0, 64, 1),
    ],
)
def test_how_many_parts_a_kernel_gradient_has(problem, images, features, parts):
    assert conv_dense.image_parts(problem, images, features) == parts
