"""The cases at the sizes of an accelerator: the suite `gpu`."""

from collections.abc import Mapping
from typing import Any

from attnconv.bench.case import Case, Floors

_VIT = {"image": 224, "channels": 3, "patch": 16, "features": 384, "hidden": 1536, "heads": 6}
_CONVNEXT = {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)}
_OTHERS = ("attnconv", "jax", "torch")
_ALL = (*_OTHERS, "jax cudnn")


def _case(
    name: str,
    mode: str,
    operator: str,
    sizes: Mapping[str, int],
    arrays: Mapping[str, str],
    *,
    peers: tuple[str, ...],
    least: Floors | None = None,
    dtype: str = "bfloat16",
    seeds: int = 1,
    **options: Any,
) -> Case:
    return Case(
        f"gpu-{name}",
        "gpu",
        operator,
        mode,
        sizes,
        arrays,
        options,
        least or {},
        peers,
        seeds=seeds,
        dtype=dtype,
        platform="gpu",
    )


def _attention(
    name: str,
    mode: str = "gradient",
    B: int = 4,
    T: int = 4096,
    N: int = 16,
    K: int = 128,
    also: Mapping[str, str] | None = None,
    **rest: Any,
) -> Case:
    sizes = {"B": B, "T": T, "S": T, "N": N, "G": N, "K": K}
    arrays = {"query": "BTNK", "key": "BSGK", "value": "BSGK", **(also or {})}
    return _case(f"attention-{name}-{mode}", mode, "attention", sizes, arrays, **rest)


def _neighborhood(name: str, B: int, window: int, **rest: Any) -> Case:
    sizes = {"B": B, "H": 56, "W": 56, "N": 8, "K": 64, "h": window, "w": window}
    arrays = dict.fromkeys(("query", "key", "value"), "BHWNK")
    name = f"neighborhood-{name}-gradient"
    return _case(name, "gradient", "neighborhood", sizes, arrays, window=window, **rest)


def _conv(name: str, n: int, channels: int, window: int, groups: int) -> Case:
    """Images of n x n; the gradient of a depthwise one has floors."""
    inner = channels // groups
    sizes = {"B": 64, "H": n, "W": n, "C": channels, "h": window, "w": window}
    sizes |= {"I": inner, "O": channels}
    arrays, peers = {"x": "BHWC", "kernel": "hwIO"}, ("attnconv", "jax", "torch")
    least = {"jax": 1.5, "torch": 1} if inner == 1 else {}
    name = f"{name}-gradient"
    return _case(name, "gradient", "conv", sizes, arrays, peers=peers, least=least, groups=groups)


def _step(name: str, model: str, images: tuple[int, ...], **rest: Any) -> Case:
    sizes = dict(zip("BHWC", images, strict=True))
    return _case(f"{name}", "step", model, sizes, {"images": "BHWC", "labels": "B"}, **rest)


_IMAGES, _PLAIN = (256, 224, 224, 3), {"jax cudnn": 0.95, "torch": 0.95}
_STEP: dict[str, Any] = {"peers": ("attnconv", "flax", "torch"), "least": {"torch": 1}}
_SEEDS: dict[str, Any] = {"peers": ("attnconv", "alone"), "least": {"alone": 10}, "seeds": 32}
_NEAR: dict[str, Any] = {"peers": ("attnconv", "flex"), "least": {"flex": 1}}
CASES = (
    _attention("t4096", "forward", peers=_ALL, least=_PLAIN),
    _attention("t4096", peers=_ALL, least=_PLAIN),
    _attention("causal-t4096", peers=_ALL, least=_PLAIN, is_causal=True),
    _attention("bias-t4096", also={"bias": "1NTS"}, peers=_ALL, least={"jax": 3}),
    _attention("key-mask-t4096", also={"mask": "B11S"}, peers=_OTHERS, least={"jax": 3}),
    _attention(
        "float32-t2048", T=2048, K=64, peers=_OTHERS, least={"torch": 0.95}, dtype="float32"
    ),
    _neighborhood("b64-w7", 64, 7, **_NEAR),
    _neighborhood("b64-w13", 64, 13, **_NEAR),
    _neighborhood("b64-w7-float32", 64, 7, **_NEAR, dtype="float32"),
    _neighborhood(
        "b4-w7", 4, 7, peers=("attnconv", "flex", "jax", "torch"), least={"flex": 1, "jax": 4}
    ),
    _conv("depthwise-7x7-56x56x96", 56, 96, 7, 96),
    _conv("depthwise-7x7-28x28x192", 28, 192, 7, 192),
    _conv("depthwise-7x7-14x14x384", 14, 384, 7, 384),
    _conv("depthwise-7x7-7x7x768", 7, 768, 7, 768),
    _conv("grouped-3x3-28x28x256", 28, 256, 3, 8),
    _step("vit-s16-step", "vit", _IMAGES, **_STEP, **_VIT, depth=12, classes=1000),
    _step("convnext-t-step", "convnext", _IMAGES, **_STEP, **_CONVNEXT, classes=1000),
    _step("cnn-step-32-seeds", "cnn", (128, 28, 28, 1), **_SEEDS),
    _step("cnn-step-32-seeds-float32", "cnn", (128, 28, 28, 1), **_SEEDS, dtype="float32"),
)
