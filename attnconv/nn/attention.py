"""Multi-head attention: of all vectors, of neighbors, and of position as well as content."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from attnconv import functional as F
from attnconv.errors import UsageError, unknown
from attnconv.functional.dense import apart
from attnconv.nn.dense import Linear, check_axes, with_bias, without_bias


def attention_fn(
    query: Float[Array, "*B T N K"],
    key: Float[Array, "*B S N2 K"],
    value: Float[Array, "*B S N2 K"],
    bias: Float[Array, "..."] | None = None,
    mask: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    is_causal: bool = False,
    precision: Any = None,
    module: nnx.Module | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*B T N K"]:
    """`functional.dot_product_attention` as the `attention_fn=` of `nnx.MultiHeadAttention`.

    Dropout inside the softmax, sown weights and a precision need the whole matrix: Flax's own
    function does those. Flax makes some of its masks as numbers: what is not zero attends. A query
    whose keys are all masked gets zeros; Flax averages all values there.
    """
    if module is not None or precision is not None or (dropout_rate > 0.0 and not deterministic):
        averaged = nnx.dot_product_attention(
            query,
            key,
            value,
            bias,
            mask,
            dropout_rate=dropout_rate,
            deterministic=deterministic,
            is_causal=is_causal,
            precision=precision,
            module=module,
            broadcast_dropout=broadcast_dropout,
            dropout_rng=dropout_rng,
            dtype=dtype,
        )
        if mask is None:
            return averaged
        seen = mask != 0
        if is_causal:
            seen = seen & F.masks.causal(query.shape[-3], key.shape[-3])
        rows = seen.any(axis=-1).swapaxes(-1, -2)[..., None]
        return jax.numpy.where(rows, averaged, 0)
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    batch = query.shape[:-3]
    mask = None if mask is None else mask != 0

    def flat(x: Array, rank: int) -> Array:
        """Several batch axes as one, since the functional form takes one or none."""
        return x.reshape(math.prod(batch), *x.shape[-rank:])

    def spread(x: Array | None) -> Array | None:
        if x is None or x.ndim <= 4:
            return x
        return flat(jax.numpy.broadcast_to(x, (*batch, *x.shape[-3:])), 3)

    out = F.dot_product_attention(
        flat(query, 3),
        flat(key, 3),
        flat(value, 3),
        spread(bias),
        spread(mask),
        is_causal=is_causal,
    )
    return out.reshape(*batch, *out.shape[-3:])


class _Projection(nnx.LinearGeneral):
    """To the heads, or back from them."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Array:
        return with_bias(self, inputs, super().__call__(inputs, *args, **kwargs))


def _apart_dot_general(lhs: Array, rhs: Array, *args: Any, **kwargs: Any) -> Array:
    """`functional.dot_general` for one of several products of lhs."""
    return F.dot_general(*apart((lhs, rhs)), *args, **kwargs)


class MultiHeadAttention(nnx.MultiHeadAttention):
    """`flax.nnx.MultiHeadAttention` with `functional.dot_product_attention` and `dot_general`.

    >>> layer = MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 5, 8))).shape
    (4, 5, 8)
    """

    def __init__(self, num_heads: int, in_features: int, *args: Any, **kwargs: Any):
        features = args[0] if args else kwargs.get("qkv_features")
        features = in_features if features is None else features
        _check_heads(num_heads, features)
        kwargs.setdefault("attention_fn", attention_fn)
        for part in ("qkv", "out"):
            kwargs.setdefault(f"{part}_promote_dtype", without_bias)
        kwargs.setdefault("qkv_dot_general", _apart_dot_general)
        kwargs.setdefault("out_dot_general", F.dot_general)
        super().__init__(num_heads, in_features, *args, **kwargs)
        for layer in (self.query, self.key, self.value, self.out):
            # Flax has no argument for the class of its projections.
            object.__setattr__(layer, "__class__", _Projection)


class NeighborhoodAttention(nnx.Module):
    """Multi-head attention of each vector to those in a window around it, with a relative bias.

    Parameters: the projections `query`, `key`, `value`, `out`, and `bias [N, *(2 window - 1)]`.

    Args:
      num_heads: N.
      in_features: D, of each vector, going in and coming out.
      window, dilation, is_causal, border: as of `functional.neighborhood_attention`, which has the
        formula, the errors and the source.

    Raises:
      UsageError: `in_features` is no multiple of `num_heads`.

    >>> layer = NeighborhoodAttention(2, 8, (3, 3), rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 5, 6, 8))).shape
    (4, 5, 6, 8)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        window: Sequence[int],
        *,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        border: str = "shift",
        rngs: nnx.Rngs,
    ):
        _check_heads(num_heads, in_features)
        check_axes("window", window)
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            Linear(in_features, in_features, rngs=rngs) for _ in range(4)
        )
        self.bias = nnx.Param(jax.numpy.zeros((num_heads, *(2 * extent - 1 for extent in window))))
        self.attend = functools.partial(
            F.neighborhood_attention,
            window=tuple(window),
            dilation=dilation,
            is_causal=is_causal,
            border=border,
        )

    def __call__(
        self, x: Float[Array, "B *grid D"], mask: Bool[Array, "B *grid"] | None = None
    ) -> Float[Array, "B *grid D"]:
        """Vectors that are not there, where `mask` is False, are seen by none."""
        query, key, value = (
            _heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value)
        )
        bias, scale = self.bias[...].astype(x.dtype), query.shape[-1] ** -0.5
        if mask is not None:
            # A feature more: 1 in each query, and far below all scores in a key that is not there.
            away = jax.numpy.where(mask, 0, jax.numpy.finfo(key.dtype).min / 4)[..., None, None]
            one = jax.numpy.ones_like(query[..., :1])
            # Where a whole window is not there, its mean is zero.
            present = jax.numpy.where(mask[..., None, None], value, 0)
            query, key, value = (
                jax.numpy.concatenate([heads, more * one], axis=-1)
                for heads, more in ((query, 1), (key, away.astype(key.dtype)), (present, 0))
            )
        y = self.attend(query, key, value, bias=bias, scale=scale)
        return self.out(y[..., : x.shape[-1] // self.num_heads].reshape(x.shape))


class GatedAttention(nnx.Module):
    """Gated positional self-attention on a grid, which may start as a convolution.

    `functional.gated_positional_attention` with the position's scores `v_n . (|d|^2, d)` of head n
    for a key at the offset d. Started as a convolution, `v_n . (|d|^2, d) = -|d - d_n|^2 + |d_n|^2`
    with an offset `d_n` of its own for each head, the values are the input, and the gate is
    sigmoid(1): most of it looks by position.

    Parameters: projections `query`, `key`, `value`, `out`; `position [N, 1 + axes]`; `gate [N]`.

    Source: d'Ascoli et al. 2021, ConViT, section 3.

    Args:
      window: its offsets are those of the heads, one for each.
      in_features: of each vector.
      start: "convolution", or "random" with small scores of positions and an open gate.

    >>> layer = GatedAttention((3, 3), 18, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 5, 6, 18))).shape
    (4, 5, 6, 18)
    """

    def __init__(
        self,
        window: Sequence[int],
        in_features: int,
        *,
        start: str = "convolution",
        rngs: nnx.Rngs,
    ):
        if start not in ("convolution", "random"):
            raise unknown("start", start, ("convolution", "random"))
        check_axes("window", window)
        heads, rank = math.prod(window), len(window)
        _check_heads(heads, in_features)
        self.num_heads = heads
        self.query, self.key, self.value, self.out = (
            Linear(in_features, in_features, rngs=rngs) for _ in range(4)
        )
        if start == "convolution":
            offsets = F.positions.grid(window) - jax.numpy.array([(k - 1) // 2 for k in window])
            ones = jax.numpy.ones((heads, 1))
            self.position = nnx.Param(jax.numpy.concatenate([-ones, 2.0 * offsets], axis=1))
            self.gate = nnx.Param(jax.numpy.ones(heads))
            self.value.kernel[...] = jax.numpy.eye(in_features)
        else:
            self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (heads, 1 + rank)))
            self.gate = nnx.Param(jax.numpy.zeros(heads))

    def scores(self, grid: Sequence[int]) -> Float[Array, "N T T"]:
        """Of each head, for the key at a position from the query at another, in row-major order."""
        at = F.positions.grid(tuple(grid))
        apart = (at[None] - at[:, None]).astype(self.position.dtype)
        encoding = jax.numpy.concatenate([(apart**2).sum(-1, keepdims=True), apart], axis=-1)
        return jax.numpy.einsum("NE,TSE->NTS", self.position[...], encoding)

    def __call__(
        self, x: Float[Array, "B *grid D"], mask: Bool[Array, "B *grid"] | None = None
    ) -> Float[Array, "B *grid D"]:
        vectors = x.reshape(len(x), -1, x.shape[-1])
        query, key, value = (
            _heads(layer(vectors), self.num_heads) for layer in (self.query, self.key, self.value)
        )
        keys = None if mask is None else mask.reshape(len(x), 1, 1, -1)
        y = F.gated_positional_attention(
            query, key, value, self.scores(x.shape[1:-1]), self.gate[...], keys
        )
        return self.out(y.reshape(x.shape))


def _check_heads(heads: int, features: int) -> None:
    if features % heads:
        raise UsageError(
            f"num_heads={heads}: expected a divisor of the {features} features, "
            f"so that every head has as many"
        )


def _heads(x: Float[Array, "*axes D"], heads: int) -> Float[Array, "*axes N K"]:
    return x.reshape(*x.shape[:-1], heads, -1)
