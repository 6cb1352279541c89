"""Receptive fields: what an output may depend on, and how much it does depend on each of it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnconv.errors import UsageError
from attnconv.functional.windows import each


def theoretical(
    windows: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    dilations: int | Sequence[int] = 1,
) -> int:
    """`1 + sum_l (k_l - 1) d_l prod_(m < l) s_m`: input positions, along one axis, of one output.

    Args:
      windows: k, the extent of each layer's window, first layer first.
      strides: s, one for all layers or one for each.
      dilations: d, likewise.

    Raises:
      UsageError: a number below 1, or not one for each layer.

    Source: Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning.

    >>> theoretical([3, 3, 3]), theoretical([3, 3], strides=2, dilations=[1, 2])
    (7, 11)
    """
    layers = zip(
        _each("windows", windows, len(windows)),
        _each("strides", strides, len(windows)),
        _each("dilations", dilations, len(windows)),
        strict=True,
    )
    size, apart = 1, 1
    for window, stride, dilation in layers:
        size += (window - 1) * dilation * apart
        apart *= stride
    return size


def effective(
    function: Callable[[Array], Array],
    x: Float[Array, "B *grid C"],
    at: Sequence[int],
) -> Float[Array, "*grid"]:
    """`sum_(b, o, c) (d y_(b, at, o) / d x_(b, i, c))^2` at each input position i; its sum is 1.

    NaN where the output depends on nothing.

    Args:
      function: `[B, *grid, C] -> [B, *out, O]`, each example apart from the others.
      x: where the gradient is taken; any one where the function is linear.
      at: the position in the output, empty where it has none, such as the scores of classes.

    Returns:
      In at least float32.

    Raises:
      UsageError: `at` is no position of the output, or x has no gradient.

    Source: Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional
    Neural Networks, section 2, where the gradient is not squared.

    >>> effective(lambda x: x + 2 * jnp.roll(x, 1, axis=1), jnp.zeros((1, 4, 1)), (2,)).tolist()
    [0.0, 0.800000011920929, 0.20000000298023224, 0.0]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UsageError(f"x: expected floating numbers, which have a gradient, got {x.dtype}")
    out = jax.eval_shape(function, x).shape[1:-1]
    if len(at) != len(out) or not all(0 <= p < size for p, size in zip(at, out, strict=True)):
        raise UsageError(
            f"at: expected a position on the grid {list(out)} of the output, got {list(at)}"
        )
    y, pull = jax.vjp(lambda x: function(x)[(slice(None), *at)], x)

    def energy(channel: Array) -> Array:
        (gradient,) = pull(jnp.zeros_like(y).at[:, channel].set(1))
        return jnp.square(gradient.astype(jnp.promote_types(gradient.dtype, "float32"))).sum(
            axis=(0, -1)
        )

    field = jax.vmap(energy)(jnp.arange(y.shape[-1])).sum(axis=0)
    return field / field.sum()


def width(field: Float[Array, "*grid"]) -> Float[Array, "axes"]:
    """The standard deviation of a field whose sum is 1, along each axis, in positions.

    >>> width(jnp.array([0.5, 0.0, 0.5])).tolist()
    [1.0]
    """
    return jnp.stack([_moments(part)[1] for part in _marginals(field)])


def gaussian_fit(field: Float[Array, "*grid"]) -> Float[Array, "axes"]:
    """The part of the variation of each marginal that the Gaussian of its mean and width explains.

    `R^2 = 1 - sum_i (m_i - g_i)^2 / sum_i (m_i - mean m)^2` for the marginal m of a field whose sum
    is 1, and g the Gaussian at the positions of the grid, its sum 1. NaN where a marginal is at one
    position alone, and -inf or NaN where it is the same at all: there is no Gaussian then.

    >>> gaussian_fit(jnp.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16).round(1).tolist()
    [1.0]
    """
    return jnp.stack([_explained(part) for part in _marginals(field)])


def _explained(marginal: Array) -> Array:
    mean, deviation = _moments(marginal)
    at = jnp.arange(len(marginal))
    gaussian = jax.nn.softmax(-0.5 * jnp.square((at - mean) / deviation))
    left = jnp.square(marginal - gaussian).sum()
    return 1 - left / jnp.square(marginal - marginal.mean()).sum()


def _moments(marginal: Array) -> tuple[Array, Array]:
    at = jnp.arange(len(marginal))
    mean = (marginal * at).sum()
    return mean, jnp.sqrt((marginal * jnp.square(at - mean)).sum())


def _marginals(field: Array) -> list[Array]:
    axes = range(field.ndim)
    return [field.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]


def _each(name: str, value: int | Sequence[int], layers: int) -> tuple[int, ...]:
    values = each(name, value, layers)
    if len(values) != layers or any(v < 1 for v in values):
        raise UsageError(
            f"{name}: expected a positive int, or one for each of the {layers} layers, "
            f"got {value!r}"
        )
    return values
