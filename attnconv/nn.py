"""NNX modules: parameters around the functions of `attnconv.functional`.

`Conv`, `Linear` and `MultiHeadAttention` are Flax's modules with the operator exchanged: the
constructor's arguments, the names and the shapes of the parameters are Flax's, so a parameter tree
moves between the two unchanged. `LocallyConnected` and `PositionEmbedding` have no twin in Flax.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from attnconv import functional as F
from attnconv.errors import UsageError
from attnconv.functional import windows

he_normal = nnx.initializers.he_normal()


class Conv(nnx.Conv):
    """`flax.nnx.Conv` that convolves with `functional.conv_general_dilated`.

    >>> layer = Conv(3, 8, (3, 5), strides=2, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 16, 16, 3))).shape
    (4, 8, 8, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("conv_general_dilated", F.conv_general_dilated)
        super().__init__(*args, **kwargs)

    def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        if self.padding == "VALID":
            rank = len(self.kernel_size)
            dilation = 1 if self.kernel_dilation is None else self.kernel_dilation
            spans = windows.spans(self.kernel_size, windows.per_axis("dilation", dilation, rank))
            windows.check_fits(inputs.shape[-rank - 1 : -1], spans)
        return super().__call__(inputs, *args, **kwargs)


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with `functional.dot_general`.

    >>> Linear(3, 8, rngs=nnx.Rngs(0))(jax.numpy.ones((4, 5, 3))).shape
    (4, 5, 8)
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("dot_general", F.dot_general)
        super().__init__(*args, **kwargs)


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
    **kwargs: Any,
) -> Float[Array, "*B T N K"]:
    """`functional.dot_product_attention` as the `attention_fn=` of `nnx.MultiHeadAttention`.

    Dropout inside the softmax, sown weights and a precision need the whole matrix: Flax's own
    function does those. Flax makes some of its masks as numbers: what is not zero attends.
    """
    if module is not None or precision is not None or (dropout_rate > 0.0 and not deterministic):
        return nnx.dot_product_attention(
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
            **kwargs,
        )
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


class MultiHeadAttention(nnx.MultiHeadAttention):
    """`flax.nnx.MultiHeadAttention` with `functional.dot_product_attention` and `dot_general`.

    >>> layer = MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((4, 5, 8))).shape
    (4, 5, 8)
    """

    def __init__(self, num_heads: int, in_features: int, *args: Any, **kwargs: Any):
        features = args[0] if args else kwargs.get("qkv_features")
        features = in_features if features is None else features
        if features % num_heads:
            raise UsageError(
                f"num_heads={num_heads}: expected a divisor of the {features} features, "
                f"so that every head has as many"
            )
        kwargs.setdefault("attention_fn", attention_fn)
        kwargs.setdefault("qkv_dot_general", F.dot_general)
        kwargs.setdefault("out_dot_general", F.dot_general)
        super().__init__(num_heads, in_features, *args, **kwargs)


class LocallyConnected(nnx.Module):
    """A convolution whose weights are not shared: one kernel for each output position.

    Parameters: `kernel [*positions, *window, C, O]` and `bias [*positions, O]`.

    >>> layer = LocallyConnected((8, 8), 1, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    >>> layer.kernel.shape
    (4, 4, 3, 3, 1, 4)
    """

    def __init__(
        self,
        input_size: Sequence[int],
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ):
        shape = F.local_kernel_shape(
            tuple(input_size),
            tuple(kernel_size),
            in_features,
            out_features,
            stride=strides,
            padding=padding,
        )
        rank = len(kernel_size)
        self.positions = shape[:rank]
        init = nnx.initializers.variance_scaling(
            2.0,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(rank, 2 * rank + 1)),
            out_axis=-1,
            batch_axis=tuple(range(rank)),
        )
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jax.numpy.zeros((*self.positions, out_features)))
        self.strides, self.padding = strides, padding

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *positions O"]:
        return F.locally_connected(
            x, self.kernel[...], self.bias[...], stride=self.strides, padding=self.padding
        )


class PositionEmbedding(nnx.Module):
    """A learned vector for each position, added to the input: `a_i <- a_i + e_i`.

    >>> PositionEmbedding(5, 8, rngs=nnx.Rngs(0))(jax.numpy.zeros((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(self, length: int, features: int, *, rngs: nnx.Rngs):
        # As large as what it is added to: on digits, 97.8 % on validation against 97.1 % at 0.02.
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (length, features)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x + F.positions.learned(self.embedding[...], x.shape[1]).astype(x.dtype)[None]


class EncoderBlock(nnx.Module):
    """Self-attention, then a two-layer net on each vector; each adds to its input.

    Pre-norm: `x + attend(norm(x))`, then `x + mlp(norm(x))` (Xiong et al. 2020).
    """

    def __init__(self, features: int, hidden: int, *, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.attention = MultiHeadAttention(heads, features, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(features, rngs=rngs)
        self.expand = Linear(features, hidden, rngs=rngs)
        self.contract = Linear(hidden, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "#B 1 #T T"] | None = None
    ) -> Float[Array, "B T D"]:
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.contract(jax.nn.gelu(self.expand(self.mlp_norm(x))))
