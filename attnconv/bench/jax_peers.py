"""The operators as ours, stock JAX, Flax and Equinox have them.

Flax and Equinox are imported where they are used: a process that measures memory starts sooner.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from attnconv import functional as F
from attnconv.bench.case import Case
from attnconv.bench.forms import Form, channels_first, window

_NUMBERS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


def form(case: Case, peer: str) -> Form:
    """The peer's form of the case's operator."""
    return _FORMS[peer, case.operator](case)


def precise(case: Case, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with float32 products as such on an accelerator, where TF32 is the default."""
    if case.platform == "cpu" or case.dtype != "float32":
        return function

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return call


def memory(compiled: Any) -> int:
    """Bytes that a compiled function takes above its arguments, as the compiler planned them."""
    plan = compiled.memory_analysis()
    return plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes


def _function(function: Callable[..., Any]) -> Callable[[Case], Form]:
    """The form of a function that takes our arrays and options as they are."""

    return lambda case: Form(functools.partial(function, **case.options))


def _dense_neighborhood(case: Case) -> Form:
    """Attention of all positions to all under the mask of the windows."""
    grid = case.shape("query")[1:3]
    mask = F.neighborhood_bias(grid, **case.options) == 0

    def function(query: Array, key: Array, value: Array) -> Array:
        q, k, v = (x.reshape(len(x), -1, *x.shape[3:]) for x in (query, key, value))
        return jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(query.shape)

    return Form(function)


def _lax_conv(
    x: Array,
    kernel: Array,
    stride: int = 1,
    padding: Any = "SAME",
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    rank = kernel.ndim - 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * rank,
        padding,
        rhs_dilation=(dilation,) * rank,
        dimension_numbers=_NUMBERS[rank],
        feature_group_count=groups,
    )


def _lax_conv_transpose(x: Array, kernel: Array, stride: int) -> Array:
    rank = kernel.ndim - 2
    return lax.conv_transpose(x, kernel, (stride,) * rank, "SAME", dimension_numbers=_NUMBERS[rank])


def _lax_pool(x: Array, size: tuple[int, ...], start: float, combine: Any) -> Array:
    extents = (1, *size, 1)
    return lax.reduce_window(x, start, combine, extents, extents, "VALID")


def _lax_max_pool(x: Array, window: tuple[int, ...]) -> Array:
    return _lax_pool(x, window, -jax.numpy.inf, lax.max)


def _lax_avg_pool(x: Array, window: tuple[int, ...]) -> Array:
    return _lax_pool(x, window, 0.0, lax.add) / (window[0] * window[1])


def _jnp_layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-6) * scale + bias


def _lax_local(case: Case) -> Form:
    *positions, h, w, channels, features = case.shape("kernel")

    def function(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated_local(
            x, kernel, (1, 1), "SAME", (h, w), dimension_numbers=_NUMBERS[2]
        )

    # Its patches run over channels first, then over the window.
    return Form(
        function,
        axes={"kernel": (0, 1, 4, 2, 3, 5)},
        shapes={"kernel": (*positions, channels * h * w, features)},
    )


def _conv_arguments(case: Case) -> tuple[int, int, tuple[int, ...]]:
    return case.sizes["C"], case.sizes["O"], window(case)


def _module(layer: Any) -> Callable[..., Array]:
    """An NNX module as a function of its input and its weights, by name."""
    from flax import nnx

    graph, state = nnx.split(layer)
    structure = jax.tree.structure(state)

    def function(x: Array, **weights: Array) -> Array:
        ordered = [weights[name] for name in sorted(weights)]  # the order of NNX's own leaves
        return nnx.merge(graph, jax.tree.unflatten(structure, ordered))(x)

    return function


def _flax_conv(case: Case) -> Form:
    from flax import nnx

    layer = nnx.Conv(
        *_conv_arguments(case),
        strides=case.options.get("stride", 1),
        padding=case.options.get("padding", "SAME"),
        kernel_dilation=case.options.get("dilation", 1),
        feature_group_count=case.options.get("groups", 1),
        use_bias=False,
        rngs=nnx.Rngs(0),
    )
    return Form(_module(layer))


def _flax_pool(name: str) -> Callable[[Case], Form]:
    def make(case: Case) -> Form:
        pool = getattr(importlib.import_module("flax.nnx"), name)
        extents = case.options["window"]
        return Form(lambda x: pool(x, window_shape=extents, strides=extents))

    return make


def _flax_layer_norm(case: Case) -> Form:
    from flax import nnx

    return Form(_module(nnx.LayerNorm(case.sizes["C"], rngs=nnx.Rngs(0))))


def _multi_head(module: str) -> Callable[[Case], Form]:
    """The module of this name that has Flax's arguments: Flax's own and ours."""

    def make(case: Case) -> Form:
        from flax import nnx

        layer = importlib.import_module(module).MultiHeadAttention(
            case.sizes["N"], case.sizes["D"], use_bias=False, decode=False, rngs=nnx.Rngs(0)
        )
        return Form(_module(layer))

    return make


def _equinox_conv(case: Case) -> Form:
    import equinox

    layer = equinox.nn.Conv(
        len(window(case)),
        *_conv_arguments(case),
        stride=case.options.get("stride", 1),
        padding=case.options.get("padding", "SAME"),
        dilation=case.options.get("dilation", 1),
        groups=case.options.get("groups", 1),
        use_bias=False,
        key=jax.random.key(0),
    )

    def function(x: Array, kernel: Array) -> Array:
        return jax.vmap(equinox.tree_at(lambda layer: layer.weight, layer, kernel))(x)

    return Form(function, axes=channels_first(case))


def _equinox_pool(name: str) -> Callable[[Case], Form]:
    def make(case: Case) -> Form:
        extents = case.options["window"]
        layer = getattr(importlib.import_module("equinox.nn"), name)(extents, stride=extents)
        return Form(lambda x: jax.vmap(layer)(x), axes=channels_first(case))

    return make


def _equinox_layer_norm(case: Case) -> Form:
    import equinox

    layer = equinox.nn.LayerNorm(case.sizes["C"], eps=1e-6)

    def function(x: Array, scale: Array, bias: Array) -> Array:
        filled = equinox.tree_at(lambda layer: (layer.weight, layer.bias), layer, (scale, bias))
        return jax.vmap(jax.vmap(filled))(x)

    return Form(function)


def _equinox_multi_head(case: Case) -> Form:
    import equinox

    D, N, K = (case.sizes[axis] for axis in "DNK")
    layer = equinox.nn.MultiheadAttention(N, D, key=jax.random.key(0))

    def weights(layer: Any) -> list[Any]:
        projections = layer.query_proj, layer.key_proj, layer.value_proj, layer.output_proj
        return [projection.weight for projection in projections]

    def function(x: Array, query: Array, key: Array, value: Array, out: Array) -> Array:
        filled = equinox.tree_at(weights, layer, [query, key, value, out])
        return jax.vmap(lambda x: filled(x, x, x))(x)

    projections = ("query", "key", "value")
    axes = {**dict.fromkeys(projections, (1, 2, 0)), "out": (2, 0, 1)}
    shapes = {**dict.fromkeys(projections, (N * K, D)), "out": (D, N * K)}
    return Form(function, axes=axes, shapes=shapes)


_FORMS: dict[tuple[str, str], Callable[[Case], Form]] = {
    ("attnconv", "attention"): _function(F.dot_product_attention),
    ("attnconv", "neighborhood"): _function(F.neighborhood_attention),
    ("attnconv", "multi_head"): _multi_head("attnconv.nn"),
    ("attnconv", "conv"): _function(F.conv),
    ("attnconv", "conv_transpose"): _function(F.conv_transpose),
    ("attnconv", "max_pool"): _function(F.max_pool),
    ("attnconv", "avg_pool"): _function(F.avg_pool),
    ("attnconv", "layer_norm"): _function(F.layer_norm),
    ("attnconv", "locally_connected"): _function(F.locally_connected),
    ("jax", "attention"): _function(jax.nn.dot_product_attention),
    ("jax cudnn", "attention"): _function(
        functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    ),
    ("jax", "neighborhood"): _dense_neighborhood,
    ("jax", "conv"): _function(_lax_conv),
    ("jax", "conv_transpose"): _function(_lax_conv_transpose),
    ("jax", "max_pool"): _function(_lax_max_pool),
    ("jax", "avg_pool"): _function(_lax_avg_pool),
    ("jax", "layer_norm"): _function(_jnp_layer_norm),
    ("jax", "locally_connected"): _lax_local,
    ("flax", "multi_head"): _multi_head("flax.nnx"),
    ("flax", "conv"): _flax_conv,
    ("flax", "max_pool"): _flax_pool("max_pool"),
    ("flax", "avg_pool"): _flax_pool("avg_pool"),
    ("flax", "layer_norm"): _flax_layer_norm,
    ("equinox", "multi_head"): _equinox_multi_head,
    ("equinox", "conv"): _equinox_conv,
    ("equinox", "max_pool"): _equinox_pool("MaxPool2d"),
    ("equinox", "avg_pool"): _equinox_pool("AvgPool2d"),
    ("equinox", "layer_norm"): _equinox_layer_norm,
}
