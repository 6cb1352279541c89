"""Dot-product attention by cuDNN's fused kernel, where its rules allow it.

Where arrays are sharded, so must be the examples or heads only, and alike. Left out is what it
takes but has been seen to get wrong, or to make slow: a bias, whose gradient it
has in narrow cases only; and a mask, which it takes as a bias, with a gradient that is not a number
where T mod 128 is 64 (pytorch/pytorch issue 196678).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn  # jax.nn rounds the residual
from jaxtyping import Array

from attnconv.lowering.attention_cpu import Fixed
from attnconv.lowering.key_blocks import Window
from attnconv.lowering.rules import Moving, Residual

HALF = ("bfloat16", "float16")
EVERY = 8  # features must be a multiple of it
MOST, MOST_HOPPER = 128, 256  # features; more than the first only on a Hopper, of capability 9
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
    ahead = None if window is None or is_causal else window[1]
    rules = (
        (query.dtype in HALF, f"dtype {query.dtype}, not bfloat16 or float16"),
        (query.dtype == key.dtype == value.dtype, "arrays of several dtypes"),
        (K % EVERY == 0, f"K = {K} is no multiple of {EVERY}"),
        (K <= MOST_HOPPER, f"K = {K} > {MOST_HOPPER}"),
        (T > 1 or S > 1, "one query and one key"),
        (bias is None, "a bias"),
        (fixed.mask is None, "a mask"),
        (fixed.query_lengths is None and fixed.key_lengths is None, "lengths"),
        (not ahead, f"a window of {ahead} keys ahead"),
        (T == S or not (is_causal or window), f"T = {T}, S = {S}, which are not aligned"),
        (scale is not None, "a scale that is an array"),
    )
    broken = next((reason for holds, reason in rules if not holds), None)
    return _missing(K) if broken is None else broken


def _missing(K: int) -> str | None:
    """What the machine lacks."""
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


@dataclasses.dataclass(frozen=True)
class CuDNN:
    """cuDNN's kernels; the window reaches back only."""

    folds: ClassVar[bool] = True
    is_causal: bool
    window: Window
    scale: float

    def forward(self, moving: Moving, fixed: Fixed) -> tuple[Array, Residual]:
        del fixed
        y, log = cudnn._dot_product_attention_fwd_p_wrapper.bind(
            *moving[:3], *_nothing(moving, 7), **self._options(), is_training=True
        )
        log = log.swapaxes(1, 2)
        return y.astype(moving.scale.dtype), Residual(log, jnp.ones_like(log))

    def backward(
        self, moving: Moving, fixed: Fixed, y: Array, residual: Residual, ct: Array
    ) -> Moving:
        del fixed
        query = moving.query
        dquery, dkey, dvalue = cudnn._dot_product_attention_bwd_p_wrapper.bind(
            *moving[:3],
            *_nothing(moving, 7),
            residual.log.swapaxes(1, 2),
            y.astype(query.dtype),
            ct.astype(query.dtype),
            **self._options(),
        )
        # The scale is a number, of which nobody asks for the gradient.
        return Moving(dquery, dkey, dvalue, None, jnp.zeros_like(moving.scale))

    def _options(self) -> dict[str, Any]:
        causal = self.is_causal or self.window is not None
        return {
            "scale": self.scale,
            "seed": 0,
            "dropout_rate": 0.0,
            "variadic_args": (False, False),  # no bias, nor a gradient of it
            "mask_type": cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK,
            "layout": cudnn.AttentionLayout.BTNH.value,
            "sliding_window_length": None if self.window is None else self.window[0] + 1,
        }


def _nothing(moving: Moving, count: int) -> list[Array]:
    """In place of a bias, lengths, offsets and page tables."""
    return [jnp.zeros(0, moving.query.dtype)] * count
