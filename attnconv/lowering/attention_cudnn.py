"""Dot-product attention by cuDNN's fused kernel, where its rules allow it.

Where arrays are sharded, so must be the examples or heads only, and alike. A mask of keys, which it
has not, is one of lengths with the keys in another order: first those that are seen. Left out is
what it takes but has been seen to get wrong, or to make slow: a bias, whose gradient it has in
narrow cases only, and so any other mask, which it takes as a bias, with a gradient that is not a
number where T mod 128 is 64 (pytorch/pytorch issue 196678).
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from attnconv.lowering import kernels
from attnconv.lowering.attention_cpu import Fixed
from attnconv.lowering.key_blocks import Window
from attnconv.lowering.rules import Moving, Residual

_NAMES = (
    *("cuda_versions", "check_cudnn_version", "MaskType", "AttentionLayout"),
    *(f"_dot_product_attention_{which}_p_wrapper" for which in ("fwd", "bwd")),
)


_ARRAYS = (
    *("query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets"),
    *("page_table_k", "page_table_v"),
)
_OPTIONS = (
    *("scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout"),
    *("sliding_window_length", "is_training"),
)
_MODIFIED = ("score_mod_args", "score_mod")  # scores by a function: since JAX 0.12


def _bindings() -> Any:
    """JAX's own bindings of the kernel (jax.nn rounds their residual); None where they changed."""
    try:
        found = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    except ImportError:
        return None
    if not all(hasattr(found, name) for name in _NAMES):
        return None
    taken = set(_parameters(found)) - set(_MODIFIED)
    return found if taken == {*_ARRAYS, *_OPTIONS} else None


def _parameters(bindings: Any) -> list[str]:
    function = getattr(bindings, "_dot_product_attention_fwd_impl", None)
    return [] if function is None else list(inspect.signature(function).parameters)


cudnn = _bindings()
HALF = ("bfloat16", "float16")
EVERY = 8  # features must be a multiple of it
MOST, MOST_HOPPER = 128, 256  # features; more than the first only on a Hopper, of capability 9
EXAMPLES = 65535  # at once: its kernels fail with more (pytorch/pytorch issue 181085)
LEAST, HOPPER = (8, 0), 9
BROKEN = (91000, 91001)  # versions in which NVIDIA's own frontend refuses it
LATEST, SINCE = (10, 3), 91100  # what this capability needs


def refusal(
    moving: Moving, fixed: Fixed, *, is_causal: bool, window: Window, scale: float | None
) -> str | None:
    """Why cuDNN cannot take a call, by the first rule that excludes it; None if it can.

    `scale` is None where it is not known when the call is traced.
    """
    query, key, value, bias, _ = moving
    T, S, K = query.shape[1], key.shape[1], query.shape[-1]
    restricted = any(x is not None for x in fixed)
    ahead = None if window is None or is_causal else window[1]
    rules = (
        (query.dtype in HALF, f"dtype {query.dtype}, not bfloat16 or float16"),
        (query.dtype == key.dtype == value.dtype, "arrays of several dtypes"),
        (K % EVERY == 0, f"K = {K} is no multiple of {EVERY}"),
        (K <= MOST_HOPPER, f"K = {K} > {MOST_HOPPER}"),
        (S > 1, "one key"),
        (bias is None, "a bias"),
        (fixed.mask is None or fixed.mask.shape[1:3] == (1, 1), "a mask of more than keys"),
        (fixed.mask is None or not (is_causal or window), "a mask of keys in their order"),
        (not (restricted and window), "lengths and a window"),
        (not restricted or kernels.alone(), "lengths on several devices outside of shard_map"),
        (not ahead, f"a window of {ahead} keys ahead"),
        (T == S or not (is_causal or window), f"T = {T}, S = {S}, which are not aligned"),
        (scale is not None, "a scale that is an array"),
    )
    broken = next((reason for holds, reason in rules if not holds), None)
    return _missing(K) if broken is None else broken


def _missing(K: int) -> str | None:
    """What the machine lacks."""
    if cudnn is None:
        return f"JAX {jax.__version__}, whose bindings of cuDNN are not what they were"
    if jax.default_backend() != "gpu" or cudnn.cuda_versions is None:
        return "a call without a CUDA device and cuDNN"
    major, minor = map(int, jax.devices()[0].compute_capability.split("."))
    return _too_old(K, (major, minor), cudnn.check_cudnn_version())


def _too_old(K: int, capability: tuple[int, int], version: int) -> str | None:
    device = f"a device of compute capability {capability[0]}.{capability[1]}"
    if capability < LEAST:
        return device
    if K > MOST and capability[0] != HOPPER:
        return f"K = {K} on {device}"
    if version in BROKEN or (capability == LATEST and version < SINCE):
        return f"{device} with version {version}"
    return None


def by_example(moving: Moving, fixed: Fixed) -> Fixed:
    """With a mask of keys for each example, as `vmap` needs it to make one batch of many."""
    mask = fixed.mask
    if mask is None or mask.shape[:3] != (1, 1, 1):
        return fixed
    return fixed._replace(mask=jnp.broadcast_to(mask, (len(moving.query), *mask.shape[1:])))


class _Lengths(NamedTuple):
    """What is there, in words of lengths.

    Attributes:
      queries, keys: how many of each example; none is 0, which is no length for the kernel.
      order: the keys in the order in which those that are seen are the first; None for as it is.
      rows: which queries see any key.
      seen: which keys any query sees.
    """

    queries: Int[Array, "B"]
    keys: Int[Array, "B"]
    order: Int[Array, "B S"] | None
    rows: Bool[Array, "B T"]
    seen: Bool[Array, "B S"]

    def place(self, x: Array) -> Array:
        """Keys or values in the order."""
        return x if self.order is None else _taken(x, self.order)

    def back(self, dx: Array) -> Array:
        """Their gradients, of zero where a key is not seen."""
        if self.order is not None:
            dx = _taken(dx, jnp.argsort(self.order, axis=1))
        return jnp.where(self.seen[:, :, None, None], dx, 0)


def _taken(x: Array, at: Array) -> Array:
    return jnp.take_along_axis(x, at[:, :, None, None], axis=1, mode="clip")


def _lengths(moving: Moving, fixed: Fixed) -> _Lengths | None:
    """None where every query sees every key, or a rule of its own says which."""
    if all(x is None for x in fixed):
        return None
    (B, T), S = moving.query.shape[:2], moving.key.shape[1]
    mask, *lengths = fixed
    rows, seen = (
        jnp.ones((B, size), bool) if length is None else jnp.arange(size)[None] < length[:, None]
        for length, size in zip(lengths, (T, S), strict=True)
    )
    order = None
    if mask is not None:
        seen &= mask[:, 0, 0]
        order = jnp.argsort(~seen, axis=1, stable=True)
    queries, keys = rows.sum(axis=1, dtype=jnp.int32), seen.sum(axis=1, dtype=jnp.int32)
    rows &= keys[:, None] > 0
    seen &= rows.any(axis=1, keepdims=True)
    return _Lengths(jnp.maximum(queries, 1), jnp.maximum(keys, 1), order, rows, seen)


@dataclasses.dataclass(frozen=True)
class CuDNN:
    """cuDNN's kernels; the window reaches back only."""

    folds: ClassVar[bool] = True
    is_causal: bool
    window: Window
    scale: float

    def forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        return _some_at_once(self._forward, moving, fixed)

    def backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        return _some_at_once(self._backward, moving, fixed, y, residual, ct)

    def _forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        query, key, value, *_ = moving
        given = _lengths(moving, fixed)
        if given is not None:
            key, value = given.place(key), given.place(value)
        y, log = cudnn._dot_product_attention_fwd_p_wrapper.bind(
            query, key, value, *_others(moving, given), **self._options(given), is_training=True
        )
        log = log.swapaxes(1, 2)
        if given is not None:
            y = jnp.where(given.rows[:, :, None, None], y, 0)
            log = jnp.where(given.rows[:, :, None], log, -jnp.inf)
        return y.astype(moving.scale.dtype), Residual(log, jnp.ones_like(log))

    def _backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        query, key, value, *_ = moving
        given, log = _lengths(moving, fixed), residual.log
        ct = ct.astype(query.dtype)
        if given is not None:
            key, value = given.place(key), given.place(value)
            ct = jnp.where(given.rows[:, :, None, None], ct, 0)
            log = jnp.where(given.rows[:, :, None], log, 0)
        dquery, dkey, dvalue = cudnn._dot_product_attention_bwd_p_wrapper.bind(
            query,
            key,
            value,
            *_others(moving, given),
            log.swapaxes(1, 2),
            y.astype(query.dtype),
            ct,
            **self._options(given),
        )
        if given is not None:
            dquery = jnp.where(given.rows[:, :, None, None], dquery, 0)
            dkey, dvalue = given.back(dkey), given.back(dvalue)
        # The scale is a number, of which nobody asks for the gradient.
        return Moving(dquery, dkey, dvalue, None, jnp.zeros_like(moving.scale))

    def _options(self, given: _Lengths | None) -> dict[str, Any]:
        causal = self.is_causal or self.window is not None
        return {
            "scale": self.scale,
            "seed": 0,
            "dropout_rate": 0.0,
            "variadic_args": (False, False),  # no bias, nor a gradient of it
            "mask_type": cudnn.MaskType[_MASKS[given is not None, causal]],
            "layout": cudnn.AttentionLayout.BTNH.value,
            "sliding_window_length": None if self.window is None else self.window[0] + 1,
            **({"score_mod": None} if "score_mod" in _parameters(cudnn) else {}),
        }


# By whether lengths are given, and whether keys ahead are not seen.
_MASKS = {
    (False, False): "NO_MASK",
    (False, True): "CAUSAL",
    (True, False): "PADDING",
    (True, True): "PADDING_CAUSAL",
}


def _some_at_once(function: Callable[..., Any], *args: Any) -> Any:
    """The results of all examples; a number is the same for all of them."""
    examples = len(jax.tree.leaves(args)[0])
    if examples <= EXAMPLES:
        return function(*args)

    def part(start: int) -> Any:
        return jax.tree.map(lambda x: x[start : start + EXAMPLES] if x.ndim else x, args)

    found = [function(*part(start)) for start in range(0, examples, EXAMPLES)]
    return jax.tree.map(lambda *x: jnp.concatenate(x) if x[0].ndim else x[0], *found)


def _others(moving: Moving, given: _Lengths | None) -> list[Array]:
    """A bias, the lengths, offsets and page tables; of what there is not, an empty array."""
    others = [jnp.zeros(0, moving.query.dtype)] * 7
    if given is not None:
        others[1:3] = given.queries, given.keys
    return others
