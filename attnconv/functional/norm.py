"""Normalisation: `y = scale (x - mean) / sqrt(variance + epsilon) + bias`.

Statistics are taken in float32 (float64 for such input), the variance around the mean in a second
pass, so that a large common offset costs no digits. The output has the dtype of x.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnconv.lowering.promotion import check_floating, ranked, wide

# Numbers from which on the derivative is a rule of our own, which has less than half in memory. 2
# cores, ms for layer norm and its gradients, of JAX and of the rule: 128x49x64 1.0 1.1, 16x256x256
# 2.0 2.4, 8x256x768 1.3 1.5; 32x256x256 12.4 4.9, 32x197x384 14.8 11.8, 4x1024x512 10.9 3.7.
LARGE = 1 << 21


def layer_norm(
    x: Float[Array, "*axes C"],
    scale: Float[Array, "_"] | None = None,
    bias: Float[Array, "_"] | None = None,
    *,
    epsilon: float = 1e-6,
) -> Float[Array, "*axes C"]:
    """Normalises each vector over its last axis.

    Args:
      x: `[..., C]`.
      scale, bias: `[C]`; left out, 1 and 0.
      epsilon: added to the variance.

    Raises:
      ValueError: a scale or bias of another shape.

    Source: Ba, Kiros and Hinton 2016, Layer Normalization, section 3.

    >>> layer_norm(jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
    """
    return _affine(_standardised(_wide(x), (-1,), epsilon), scale, bias).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*axes C"],
    scale: Float[Array, "_"] | None = None,
    *,
    epsilon: float = 1e-6,
) -> Float[Array, "*axes C"]:
    """`y = scale x / sqrt(mean(x^2) + epsilon)`, over the last axis: no mean is taken off.

    Args:
      x: `[..., C]`.
      scale: `[C]`; left out, 1.
      epsilon: added to the mean square.

    Raises:
      ValueError: a scale of another shape.

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, section 4.

    >>> rms_norm(jnp.array([3.0, 3.0])).round(3).tolist()
    [1.0, 1.0]
    """
    wide = _wide(x)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return _affine(wide * lax.rsqrt(mean_square + epsilon), scale, None).astype(x.dtype)


def group_norm(
    x: Float[Array, "B *spatial C"],
    scale: Float[Array, "_"] | None = None,
    bias: Float[Array, "_"] | None = None,
    *,
    groups: int,
    epsilon: float = 1e-6,
) -> Float[Array, "B *spatial C"]:
    """Normalises each image over all its positions and the channels of a group.

    `groups=1` is layer normalisation of whole images, `groups=C` instance normalisation.

    Args:
      x: `[B, *spatial, C]`.
      scale, bias: `[C]`; left out, 1 and 0.
      groups: the channels fall into as many parts, neighbours together.
      epsilon: added to the variance.

    Raises:
      ValueError: groups that do not divide the channels, a scale or bias of another shape.

    Source: Wu and He 2018, Group Normalization, section 3.

    >>> group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), groups=2).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups: expected a divisor of the {channels} channels of x, came {groups}"
        )
    grouped = _wide(x).reshape(*x.shape[:-1], groups, channels // groups)
    y = _standardised(grouped, (*range(1, x.ndim - 1), x.ndim), epsilon).reshape(x.shape)
    return _affine(y, scale, bias).astype(x.dtype)


def _wide(x: Array) -> Array:
    check_floating(x)
    return x.astype(wide(x.dtype))


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    if x.size < LARGE:
        return _and_rate(x, axes, epsilon)[0]
    return _with_rule(x, axes, epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _with_rule(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    return _and_rate(x, axes, epsilon)[0]


@_with_rule.defjvp
def _with_rule_jvp(
    axes: tuple[int, ...], epsilon: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """`r (dx - mean(dx) - y mean(y dx))`."""
    y, rate = _and_rate(*primals, axes, epsilon)
    (dx,) = tangents
    along = jnp.mean(y * dx, axes, keepdims=True)
    return y, rate * (dx - jnp.mean(dx, axes, keepdims=True) - y * along)


def _and_rate(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    """Standardised, and the number that deviations from the mean were multiplied with."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    rate = lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)
    return centred * rate, rate


def _affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    for name, weight in {"scale": scale, "bias": bias}.items():
        if weight is not None and weight.shape != x.shape[-1:]:
            raise ValueError(f"{name}: expected shape {x.shape[-1:]}, came {weight.shape}")
    x = x if scale is None else x * ranked(scale.astype(x.dtype), x.ndim)
    return x if bias is None else x + ranked(bias.astype(x.dtype), x.ndim)
