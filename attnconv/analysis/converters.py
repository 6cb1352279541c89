"""Exact converters along the bias ladder: from the more biased layer to the more flexible one.

Each takes the parameters of a layer and returns those of another whose outputs agree on any input.
What is counted on is the exact arithmetic of 0 and 1, so that the outputs differ by rounding only.
From neighborhood attention to attention between all positions it is `functional.neighborhood_bias`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv.errors import UsageError
from attnconv.functional import windows
from attnconv.functional.positions import grid
from attnconv.functional.windows import Padding, PerAxis


def local_from_conv(
    kernel: Float[Array, "*window I O"],
    bias: Float[Array, "O"] | None,
    spatial: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[Float[Array, "*out_window C O"], Float[Array, "*out O"]]:
    """Kernel and bias of the `locally_connected` that is this `conv` on an image of that size.

    Every position gets the same kernel; where channels are in groups, weights between them are 0.

    >>> kernel, bias = local_from_conv(jnp.ones((3, 1, 2)), None, (5,))
    >>> kernel.shape, bias.shape
    ((5, 3, 1, 2), (5, 2))
    """
    whole = ungrouped(kernel, groups)
    window = whole.shape[:-2]
    _, size = windows.place(spatial, window, stride=stride, padding=padding, dilation=dilation)
    bias = jnp.zeros(whole.shape[-1:], whole.dtype) if bias is None else bias
    return (
        jnp.broadcast_to(whole, (*size, *whole.shape)),
        jnp.broadcast_to(bias, (*size, *bias.shape)),
    )


def dense_from_local(
    kernel: Float[Array, "*out_window C O"],
    bias: Float[Array, "*out O"] | None,
    spatial: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
) -> tuple[Float[Array, "X Y"], Float[Array, "Y"]]:
    """`W` and `b` with `y = x W + b` for the flattened image x and output y of `locally_connected`.

    Row i of W is the layer's answer to the i-th unit vector.

    >>> matrix, _ = dense_from_local(*local_from_conv(jnp.ones((3, 1, 1)), None, (4,)), (4,))
    >>> matrix
    Array([[1., 1., 0., 0.],
           [1., 1., 1., 0.],
           [0., 1., 1., 1.],
           [0., 0., 1., 1.]], dtype=float32)
    """
    channels = kernel.shape[-2]
    inputs = math.prod(spatial) * channels
    units = jnp.eye(inputs, dtype=kernel.dtype).reshape(inputs, *spatial, channels)
    with jax.default_matmul_precision("highest"):
        rows = F.locally_connected(
            units, kernel, stride=stride, padding=padding, dilation=dilation
        ).reshape(inputs, -1)
    return rows, jnp.zeros(rows.shape[1], rows.dtype) if bias is None else bias.reshape(-1)


class GridAttention(NamedTuple):
    """Multi-head attention on an image, with scores by content and by relative position.

    Attributes:
      params: kernels and biases by the names and shapes of `flax.nnx.MultiHeadAttention`.
      position: scores of positions, `[1, N, T, S]`.
      gate: one for each head, `[N]`, of gated positional attention; None adds the two scores.
      vectors: an image `[B, *spatial, C]` as the vectors of queries `[B, T, C]` and keys
        `[B, S, C]`; the keys include zero vectors for the padding.
      size: the grid of the queries.
    """

    params: dict[str, dict[str, Array]]
    position: Float[Array, "1 N T S"]
    gate: Float[Array, "N"] | None
    vectors: Callable[[Array], tuple[Array, Array]]
    size: tuple[int, ...]

    def __call__(self, x: Float[Array, "B *spatial C"]) -> Float[Array, "B *out O"]:
        at_query, at_key = self.vectors(x)

        def project(name: str, x: Array) -> Array:
            layer = self.params[name]
            return jnp.einsum("BTC,CNK->BTNK", x, layer["kernel"]) + layer["bias"]

        query, key, value = (
            project("query", at_query),
            project("key", at_key),
            project("value", at_key),
        )
        if self.gate is None:
            heads = F.dot_product_attention(query, key, value, self.position)
        else:
            heads = F.gated_positional_attention(query, key, value, self.position[0], self.gate)
        out = self.params["out"]
        y = jnp.einsum("BTNK,NKO->BTO", heads, out["kernel"]) + out["bias"]
        return y.reshape(len(x), *self.size, y.shape[-1])


def attention_from_conv(
    kernel: Float[Array, "*window I O"],
    bias: Float[Array, "O"] | None,
    spatial: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "SAME",
    dilation: PerAxis = 1,
    groups: int = 1,
    sharpness: float = math.inf,
) -> GridAttention:
    """The multi-head self-attention that is this `conv`: one head for each offset of the kernel.

    Head n scores the key at position j from the window of query i by the quadratic encoding
    `-sharpness |j - i - offset_n|^2`, hands on what it finds there, and the output's projection
    applies the kernel's matrix of that offset. At `inf` a head sees its one key only, and the two
    layers agree exactly; below, it blurs, with an error that falls as the sharpness grows.

    Source: Cordonnier, Loukas and Jaggi 2020, On the Relationship between Self-Attention and
    Convolutional Layers, theorem 1 and lemma 2.

    >>> attention = attention_from_conv(jnp.array([[[1.0]], [[10.0]], [[100.0]]]), None, (4,))
    >>> attention(jnp.arange(1.0, 5.0).reshape(1, 4, 1))[0, :, 0].tolist()
    [210.0, 321.0, 432.0, 43.0]
    """
    whole = ungrouped(kernel, groups)
    *window, C, features = whole.shape
    N = math.prod(window)
    geometry, size = windows.place(
        spatial, window, stride=stride, padding=padding, dilation=dilation
    )
    extended = tuple(n + sum(pair) for n, pair in zip(spatial, geometry.padding, strict=True))
    corners = grid(size) * jnp.array(geometry.stride)
    offsets = grid(window) * jnp.array(geometry.dilation)
    apart = grid(extended)[None, None] - corners[None, :, None] - offsets[:, None, None]
    squared = (apart**2).sum(axis=-1).astype(whole.dtype)
    position = jnp.where(squared == 0, 0, -sharpness * squared)[None]
    middle = [(span - 1) // 2 for span in windows.spans(window, geometry.dilation)]
    # All of them are inside; "clip" is what can be compiled.
    centres = jnp.ravel_multi_index(tuple((corners + jnp.array(middle)).T), extended, mode="clip")

    def vectors(x: Array) -> tuple[Array, Array]:
        x, left = windows.extend(x, padding, geometry)
        x = jnp.pad(x, ((0, 0), *left.padding, (0, 0))).reshape(len(x), len(squared[0, 0]), C)
        return x[:, centres], x

    nothing = {"kernel": jnp.zeros((C, N, C), whole.dtype), "bias": jnp.zeros((N, C), whole.dtype)}
    same = jnp.broadcast_to(jnp.eye(C, dtype=whole.dtype)[:, None], (C, N, C))
    params = {
        "query": nothing,
        "key": nothing,
        "value": {"kernel": same, "bias": nothing["bias"]},
        "out": {
            "kernel": whole.reshape(N, C, features),
            "bias": jnp.zeros(features, whole.dtype) if bias is None else bias,
        },
    }
    return GridAttention(params, position, None, vectors, size)


def gated_from_conv(
    kernel: Float[Array, "*window I O"],
    bias: Float[Array, "O"] | None,
    spatial: Sequence[int],
    *,
    gate: float = math.inf,
    **conv: Any,
) -> GridAttention:
    """Gated positional attention started as this `conv`: `attention_from_conv` behind the gate.

    At a gate of `inf` it is the convolution whatever its queries and keys are; a finite one is the
    start of training. `conv` takes the arguments of `attention_from_conv`.

    Source: d'Ascoli et al. 2021, ConViT, section 3.

    >>> gated_from_conv(jnp.ones((3, 1, 1)), None, (4,), gate=1.0).gate.tolist()
    [1.0, 1.0, 1.0]
    """
    start = attention_from_conv(kernel, bias, spatial, **conv)
    return start._replace(gate=jnp.full(start.position.shape[1], gate, kernel.dtype))


def depthwise_from_neighborhood(
    bias: Float[Array, "N *window"], features: int
) -> Float[Array, "*window 1 O"]:
    """The kernel of the depthwise `conv` that neighborhood attention is where its queries are zero.

    `softmax(bias)` of head n is the kernel of its channels. With a window of w and a dilation of d
    along an axis, a query's first key is `(w - 1) // 2 d` positions before it with `border="zero"`,
    and `w // 2 d` with "shift": so many zeros are the `padding` before the image, and what is left
    of `(w - 1) d` that after it. Both are "SAME" where w is odd. Inside, where windows are whole,
    that is the same function; at the border the convolution sees zeros, which `border="zero"` does
    once the image has zero vectors around.

    Args:
      bias: by place in the window, `[N, *window]`.
      features: of each head, K; a convolution over `N K` channels in as many groups.

    >>> depthwise_from_neighborhood(jnp.zeros((1, 4)), 2)[:, 0].tolist()
    [[0.25, 0.25], [0.25, 0.25], [0.25, 0.25], [0.25, 0.25]]
    """
    weights = jax.nn.softmax(bias.reshape(len(bias), -1), axis=1).reshape(bias.shape)
    return jnp.repeat(jnp.moveaxis(weights, 0, -1), features, axis=-1)[..., None, :]


def neighborhood_from_depthwise(kernel: Float[Array, "*window 1 O"]) -> Float[Array, "O *window"]:
    """The bias, a head for each channel, whose softmax is the kernel of a depthwise `conv`.

    Raises:
      UsageError: a kernel of more channels than one, with a negative weight, or with weights of a
        channel whose sum is not 1; no softmax gives those. It reads the values: not under `jit`.

    >>> neighborhood_from_depthwise(jnp.array([[[0.25]], [[0.75]]])).shape
    (1, 2)
    """
    if kernel.shape[-2] != 1:
        raise UsageError(f"kernel: expected [*window, 1, O], got {list(kernel.shape)}")
    weights = jnp.moveaxis(kernel[..., 0, :], -1, 0)
    sums = weights.reshape(len(weights), -1).sum(axis=1)
    if not (bool((weights >= 0).all()) and bool(jnp.allclose(sums, 1, atol=1e-5))):
        raise UsageError(
            f"kernel: expected weights of no less than 0 with the sum 1 in each channel, got the "
            f"least {float(weights.min()):.3g} and sums from {float(sums.min()):.3g} to "
            f"{float(sums.max()):.3g}"
        )
    return jnp.log(weights)


def ungrouped(kernel: Float[Array, "*window I O"], groups: int) -> Float[Array, "*window C O"]:
    """The kernel of `groups=1`: weights between channels and features of other groups are 0.

    >>> ungrouped(jnp.array([[[1.0, 2.0]]]), groups=2)[0]
    Array([[1., 0.],
           [0., 2.]], dtype=float32)
    """
    *window, channels, features = kernel.shape
    if groups < 1 or features % groups:
        raise UsageError(f"groups={groups}: expected a divisor of the kernel's {features} features")
    blocks = kernel.reshape(*window, 1, channels, groups, features // groups)
    own = jnp.eye(groups, dtype=kernel.dtype).reshape(groups, 1, groups, 1)
    return (blocks * own).reshape(*window, groups * channels, features)
