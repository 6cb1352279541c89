"""The table of cases that the benchmark measures and the tests check.

A floor says how many times as long as ours a peer must take.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from attnconv.bench import gpu_cases
from attnconv.bench.case import Case, Floors
from attnconv.errors import unknown

SUITES = ("attention", "conv", "train", "compile", "gpu")

_MODULES = ("attnconv", "jax", "flax", "equinox", "torch")
_FUNCTIONS = ("attnconv", "jax", "torch")
_PEERS = {
    "attention": _FUNCTIONS,
    "neighborhood": _FUNCTIONS,
    "multi_head": ("attnconv", "flax", "equinox", "torch"),
    "conv": _MODULES,
    "conv_transpose": _FUNCTIONS,
    "max_pool": _MODULES,
    "avg_pool": _MODULES,
    "layer_norm": _MODULES,
    "locally_connected": ("attnconv", "jax"),
    "cnn": ("attnconv", "flax", "torch"),
    "vit": ("attnconv", "flax", "torch"),
}
_STOCK = ("attnconv", "jax", "flax")
_SPATIAL = {1: "L", 2: "HW", 3: "FHW"}


def select(suite: str, parts: tuple[str, ...] = ()) -> list[Case]:
    """The cases of a suite, or of all, whose name contains one of the parts.

    >>> [case.name for case in select("attention", ("causal",))]
    ['attention-causal-t4096-forward', 'attention-causal-t4096-gradient']

    Raises:
      UsageError: an unknown suite, or a part that no name of it contains.
    """
    if suite not in (*SUITES, "all"):
        raise unknown("suite", suite, (*SUITES, "all"))
    found = [case for case in CASES if suite in (case.suite, "all")]
    for part in parts:
        if not any(part in case.name for case in found):
            raise unknown("case", part, {word for case in found for word in case.name.split("-")})
    return [case for case in found if not parts or any(part in case.name for part in parts)]


def _operator(
    name: str,
    suite: str,
    operator: str,
    sizes: Mapping[str, int],
    arrays: Mapping[str, str],
    forward: Floors | None = None,
    gradient: Floors | None = None,
    **options: Any,
) -> Iterator[Case]:
    """Its forward and its gradient, each with its floors."""
    for mode, least in (("forward", forward), ("gradient", gradient)):
        common = f"{name}-{mode}", suite, operator, mode, sizes, arrays, options
        yield Case(*common, least=least or {}, peers=_PEERS[operator])


def _attention(
    name: str,
    B: int,
    T: int,
    N: int = 8,
    K: int = 64,
    *,
    S: int | None = None,
    G: int | None = None,
    forward: Floors | None = None,
    gradient: Floors | None = None,
    also: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Case]:
    sizes = {"B": B, "T": T, "S": S or T, "N": N, "G": G or N, "K": K}
    arrays = {"query": "BTNK", "key": "BSGK", "value": "BSGK", **(also or {})}
    name = f"attention-{name}"
    return _operator(name, "attention", "attention", sizes, arrays, forward, gradient, **options)


def _multi_head(name: str, B: int, T: int, N: int, K: int) -> Iterator[Case]:
    sizes = {"B": B, "T": T, "D": N * K, "N": N, "K": K}
    arrays = {"x": "BTD", **dict.fromkeys(("query", "key", "value"), "DNK"), "out": "NKD"}
    return _operator(f"multi-head-{name}", "attention", "multi_head", sizes, arrays)


def _neighborhood(
    name: str, B: int, grid: tuple[int, int], N: int, K: int, *, window: int, **floors: Floors
) -> Iterator[Case]:
    """The others attend to all positions under a mask."""
    sizes = {"B": B, **dict(zip("HW", grid, strict=True)), "N": N, "K": K, "h": window, "w": window}
    arrays = dict.fromkeys(("query", "key", "value"), "BHWNK")
    name = f"neighborhood-{name}"
    return _operator(name, "attention", "neighborhood", sizes, arrays, **floors, window=window)


def _conv(
    name: str,
    image: tuple[int, ...],
    window: tuple[int, ...],
    features: int,
    *,
    operator: str = "conv",
    forward: Floors | None = None,
    gradient: Floors | None = None,
    **options: Any,
) -> Iterator[Case]:
    """An image `[B, *spatial, C]` and a window of as many axes."""
    axes = _SPATIAL[len(window)]
    channels = image[-1] // options.get("groups", 1)
    sizes = dict(
        zip(f"B{axes}C{axes.lower()}IO", (*image, *window, channels, features), strict=True)
    )
    kernel = f"{axes.lower()}IO" if operator != "locally_connected" else f"{axes}{axes.lower()}CO"
    arrays = {"x": f"B{axes}C", "kernel": kernel}
    return _operator(name, "conv", operator, sizes, arrays, forward, gradient, **options)


def _pool(kind: str) -> Iterator[Case]:
    sizes = {"B": 32, "H": 28, "W": 28, "C": 32}
    name = kind.replace("_", "-")
    return _operator(f"{name}-2x2", "conv", kind, sizes, {"x": "BHWC"}, window=(2, 2))


def _layer_norm(B: int, T: int, C: int) -> Iterator[Case]:
    sizes, arrays = {"B": B, "T": T, "C": C}, {"x": "BTC", "scale": "C", "bias": "C"}
    return _operator(f"layer-norm-{B}x{T}x{C}", "conv", "layer_norm", sizes, arrays)


def _in_scan(name: str, image: tuple[int, ...], features: int, steps: int) -> Case:
    """A dense 3x3 convolution whose inputs go down the gradient, step after step."""
    case = next(_conv(name, image, (3, 3), features))
    return dataclasses.replace(
        case,
        name=f"{name}-in-scan",
        mode="scan",
        least={"jax": 20},
        peers=("attnconv", "jax"),
        steps=steps,
    )


def _step(model: str, least: Floors, **change: Any) -> Case:
    sizes = {"B": 128, "H": 28, "W": 28, "C": 1}
    arrays = {"images": "BHWC", "labels": "B"}
    case = Case(f"{model}-step", "train", model, "step", sizes, arrays, least=least)
    return dataclasses.replace(case, **{"peers": _PEERS[model], **change})


def _long() -> Case:
    """Stock JAX would hold 8.6 GB of scores, and as much again for their gradient."""
    _, case = _attention("t16384", 1, 16384)
    return dataclasses.replace(case, peers=("attnconv", "torch"), most_memory=1.5e9)


_IMAGE, _DEEP = (32, 32, 32, 64), (32, 16, 16, 128)
_OPERATORS: tuple[Case, ...] = (
    *_attention(
        "b4-t1024", 4, 1024, forward={"jax": 4, "torch": 1.2}, gradient={"jax": 3, "torch": 1.1}
    ),
    *_attention(
        "t4096", 1, 4096, forward={"jax": 4.5, "torch": 1.5}, gradient={"jax": 3.5, "torch": 1.3}
    ),
    _long(),
    *_attention("causal-t4096", 1, 4096, forward={"jax": 8, "torch": 1.2}, is_causal=True),
    *_attention("window-t4096", 1, 4096, forward={"jax": 25}, local_window_size=(256, 256)),
    *_attention("narrow-window-t4096", 1, 4096, local_window_size=(32, 32)),
    *_attention("bias", 4, 1024, also={"bias": "1NTS"}),
    *_attention("mask", 4, 1024, also={"mask": "B1TS"}),
    *_attention("key-lengths", 4, 1024, also={"key_value_seq_lengths": "B"}),
    *_attention("grouped-heads", 4, 1024, G=2),
    *_attention("small-b32-t64", 32, 64, 4, 16),
    *_attention("small-b128-t49", 128, 49, 4, 16),
    *_attention("small-b8-t16", 8, 16, 2, 8),
    *_attention("odd-t1000-s777", 4, 1000, S=777),
    *_attention("cross-t256-s2048", 4, 256, S=2048),
    *_attention("decode-s4096", 8, 1, S=4096),
    *_attention("k128", 2, 1024, K=128),
    *_neighborhood("28x28-w7", 4, (28, 28), 4, 32, window=7),
    *_neighborhood("56x56-w7", 4, (56, 56), 4, 32, window=7, gradient={"jax": 10}),
    *_multi_head("b32-t64", 32, 64, 4, 16),
    *_multi_head("b4-t1024", 4, 1024, 8, 64),
    *_conv(
        "depthwise-3x3",
        _IMAGE,
        (3, 3),
        64,
        groups=64,
        forward={"jax": 20, "torch": 0.4},
        gradient={"jax": 6, "torch": 0.3},
    ),
    *_conv(
        "depthwise-7x7",
        _IMAGE,
        (7, 7),
        64,
        groups=64,
        forward={"jax": 20, "torch": 0.4},
        gradient={"jax": 6, "torch": 0.3},
    ),
    *_conv("grouped-3x3", _IMAGE, (3, 3), 64, groups=4, gradient={"jax": 50, "torch": 0.4}),
    *_conv("dense-3x3-64", _IMAGE, (3, 3), 64, gradient={"jax": 1.15, "torch": 0.45}),
    *_conv("dense-3x3-128", _DEEP, (3, 3), 128, gradient={"jax": 1.15, "torch": 0.45}),
    _in_scan("dense-8x8x32", (64, 8, 8, 32), 64, steps=8),
    _in_scan("dense-32x32x64", _IMAGE, 64, steps=2),
    *_conv("strided-3x3", _IMAGE, (3, 3), 64, stride=2, padding=((1, 1), (1, 1))),
    *_conv("dilated-3x3", _IMAGE, (3, 3), 64, dilation=2),
    *_conv("dense-1x1", _IMAGE, (1, 1), 64),
    *_conv("dense-5x5", _IMAGE, (5, 5), 64),
    *_conv("sequence-3", (32, 1024, 64), (3,), 64),
    *_conv("sequence-9", (32, 1024, 64), (9,), 64),
    *_conv("sequence-depthwise-9", (32, 1024, 64), (9,), 64, groups=64),
    *_conv("video-3x3x3", (4, 16, 32, 32, 16), (3, 3, 3), 32),
    *_conv("depthwise-3x3-multiplier-2", _IMAGE, (3, 3), 128, groups=64),
    *_conv("transposed-4x4", (32, 16, 16, 64), (4, 4), 64, operator="conv_transpose", stride=2),
    *_conv("first-3x3-32x32x3", (32, 32, 32, 3), (3, 3), 64),
    *_conv("first-3x3-28x28x1", (32, 28, 28, 1), (3, 3), 32),
    *_conv("tiny-3x3", (8, 8, 8, 4), (3, 3), 8),
    *_conv("local-3x3", (32, 16, 16, 16), (3, 3), 16, operator="locally_connected"),
    *_pool("max_pool"),
    *_pool("avg_pool"),
    *_layer_norm(128, 49, 64),
    *_layer_norm(4, 1024, 512),
    _step("cnn", {"flax": 1.4, "torch": 0.8}),
    _step("vit", {"flax": 1.7, "torch": 1.1}),
    _step(
        "cnn",
        {"alone": 5 / 5.5},  # five seeds in no more than 5.5 times the step of one
        name="cnn-step-5-seeds",
        seeds=5,
        peers=("attnconv", "flax", "alone"),
    ),
)

_COMPILED = (
    *("attention-b4-t1024", "attention-causal-t4096", "attention-window-t4096", "attention-bias"),
    *("attention-small-b32-t64", "depthwise-3x3", "depthwise-7x7", "grouped-3x3", "dense-3x3-64"),
    *("strided-3x3", "sequence-9", "video-3x3x3", "transposed-4x4", "local-3x3", "max-pool-2x2"),
    *("avg-pool-2x2", "layer-norm-128x49x64"),
)


def _compiled() -> Iterator[Case]:
    wanted = {f"{name}-{mode}" for name in _COMPILED for mode in ("forward", "gradient")}
    for case in _OPERATORS:
        if case.name in wanted | {"cnn-step", "vit-step"}:
            name, peers = f"compile-{case.name}", tuple(p for p in case.peers if p in _STOCK)
            yield dataclasses.replace(case, name=name, suite="compile", least={}, peers=peers[:2])


CASES = (*_OPERATORS, *_compiled(), *gpu_cases.CASES)
