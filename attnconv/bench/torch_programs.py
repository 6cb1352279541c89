"""Programs of PyTorch, in the layout that it is faster in where it has two."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attnconv.bench import forms, torch_device
from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays, Form, Program, channels_first, window

Tensors = dict[str, torch.Tensor]

TRIALS = 3  # runs of each layout, to choose
free = torch_device.free
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def program(case: Case, peer: str) -> Program:
    """The faster of the programs in PyTorch's default layout and with channels last."""
    torch_device.settle(case)
    if case.mode == "step":
        from attnconv.bench import torch_steps

        programs = torch_steps.programs(case)
    else:
        form = (_flex if peer == "flex" else _FORMS[case.operator])(case)
        ranks = (
            {len(case.arrays["x"])} if "kernel" in case.arrays or "pool" in case.operator else {}
        )
        layouts = (False, True) if set(ranks) & set(_CHANNELS_LAST) else (False,)
        programs = [_operator(case, form, channels_last=last) for last in layouts]
    return programs[0] if len(programs) == 1 else min(programs, key=_trial)


def _trial(program: Program) -> float:
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        program.run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def layout(tensor: torch.Tensor, *, channels_last: bool) -> torch.Tensor:
    """The tensor with channels last in memory, if asked and if it is an image or a kernel."""
    if channels_last and tensor.ndim in _CHANNELS_LAST:
        return tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.ndim])
    return tensor


def _operator(case: Case, form: Form, *, channels_last: bool) -> Program:
    inputs, device = case.inputs(), torch_device.device(case)

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        found = torch_device.tensor(form.into(name, array), device)
        return layout(found, channels_last=channels_last)

    tensors = {name: tensor(name, array) for name, array in inputs.items()}

    @torch.no_grad()
    def forward(tensors: Tensors) -> torch.Tensor:
        return form.function(**tensors)

    def found(name: str, tensor: torch.Tensor) -> np.ndarray:
        """One of the results in our layout; for an accelerator the part that is checked."""
        result = form.back(name, _host(tensor), inputs[name].shape if name != "y" else None)
        return case.part(name, result) if case.platform == "gpu" else result

    note = "channels last" if channels_last else ""
    if case.mode == "forward":
        return _program(case, forward, tensors, lambda y: {"y": found("y", y)}, note)
    for name in case.trained:
        tensors[name].requires_grad_()
    y = form.function(**tensors)
    dy = tensor("y", forms.cotangent(form.back("y", np.empty(y.shape)).shape, case.dtype))
    del y

    def gradient(tensors: Tensors) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        y = form.function(**{name: x for name, x in tensors.items() if name != "dy"})
        return y, torch.autograd.grad(y, [tensors[name] for name in case.trained], tensors["dy"])

    def read(results: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> Arrays:
        y, gradients = results
        named = zip(case.trained, gradients, strict=True)
        return {"y": found("y", y), **{name: found(name, gradient) for name, gradient in named}}

    return _program(case, gradient, {**tensors, "dy": dy}, read, note)


def _host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _program(
    case: Case,
    function: Callable[[Tensors], Any],
    tensors: Tensors,
    read: Callable[[Any], Arrays],
    note: str,
) -> Program:
    def run() -> Any:
        result = function(tensors)
        torch_device.wait(case)
        return result

    found = Program(run=run, read=lambda: read(run()), compiled=lambda: run, note=note)
    if case.platform == "cpu":
        return found
    count = forms.copies(sum(x.nbytes for x in tensors.values()))
    sets = [tensors, *(_copied(tensors) for _ in range(count - 1))]
    return torch_device.queued(case, found, lambda i: function(sets[i % count]))


def _copied(tensors: Tensors) -> Tensors:
    """Copies with the layout of each, and a gradient where it has one."""
    return {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in tensors.items()}


def _attention(case: Case) -> Form:
    T, S, N, G = (case.sizes[axis] for axis in "TSNG")
    options: dict[str, Any] = {"is_causal": case.options.get("is_causal", False)}
    fixed = None
    if "local_window_size" in case.options:
        left, right = case.options["local_window_size"]
        offset = torch.arange(S) - torch.arange(T)[:, None]
        fixed = (offset >= -left) & (offset <= right)

    def function(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        key_value_seq_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        attend = fixed if mask is None else mask
        attend = attend if bias is None else bias
        if key_value_seq_lengths is not None:
            attend = (torch.arange(S) < key_value_seq_lengths[:, None])[:, None, None]
        return TF.scaled_dot_product_attention(
            query, key, value, attend, enable_gqa=N != G, **options
        )

    return Form(function, axes=dict.fromkeys(("query", "key", "value", "y"), (0, 2, 1, 3)))


def _near(case: Case) -> Callable[..., torch.Tensor]:
    """Whether the query at an index sees the key at another, whose window moves inside."""
    (H, W), window = case.shape("query")[1:3], case.options["window"]

    def along(n: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        place = key - (query - window // 2).clamp(0, n - window)
        return (place >= 0) & (place < window)

    return lambda query, key: along(H, query // W, key // W) & along(W, query % W, key % W)


def _flex(case: Case) -> Form:
    """FlexAttention, heads before positions, which skips the blocks that no window reaches."""
    near, positions = _near(case), math.prod(case.shape("query")[1:3])
    device = torch_device.device(case)
    blocks = create_block_mask(
        lambda b, h, query, key: near(query, key), None, None, positions, positions, device=device
    )
    attend = torch_device.compiled(case, flex_attention)

    def function(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        y = attend(*(x.flatten(2, 3) for x in (query, key, value)), block_mask=blocks)
        return y.reshape(query.shape)

    return Form(function, axes=dict.fromkeys(("query", "key", "value", "y"), (0, 3, 1, 2, 4)))


def _dense_neighborhood(case: Case) -> Form:
    """SDPA of all positions to all under the mask of the windows."""
    index = torch.arange(math.prod(case.shape("query")[1:3]), device=torch_device.device(case))
    mask = _near(case)(index[:, None], index)

    def function(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
        y = TF.scaled_dot_product_attention(q, k, v, mask)
        return y.transpose(1, 2).reshape(query.shape)

    return Form(function)


def _multi_head(case: Case) -> Form:
    B, T, D, N, K = (case.sizes[axis] for axis in "BTDNK")

    def function(
        x: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
    ) -> torch.Tensor:
        q, k, v = (TF.linear(x, w).view(B, T, N, K).transpose(1, 2) for w in (query, key, value))
        y = TF.scaled_dot_product_attention(q, k, v)
        return TF.linear(y.transpose(1, 2).reshape(B, T, N * K), out)

    projections = ("query", "key", "value")
    axes = {**dict.fromkeys(projections, (1, 2, 0)), "out": (2, 0, 1)}
    shapes = {**dict.fromkeys(projections, (N * K, D)), "out": (D, N * K)}
    return Form(function, axes=axes, shapes=shapes)


def _conv(case: Case) -> Form:
    extents, dilation = window(case), case.options.get("dilation", 1)
    pairs = case.options.get("padding", [((k - 1) * dilation // 2,) for k in extents])
    convolve = (TF.conv1d, TF.conv2d, TF.conv3d)[len(extents) - 1]

    def function(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return convolve(
            x,
            kernel,
            stride=case.options.get("stride", 1),
            padding=tuple(pair[0] for pair in pairs),
            dilation=dilation,
            groups=case.options.get("groups", 1),
        )

    # Not compiled: H200, 56x56x96 to 7x7x768, ms 0.62 0.32 0.18 0.12, compiled 0.67 0.85 0.49 0.34.
    return Form(function, axes=channels_first(case))


def _conv_transpose(case: Case) -> Form:
    stride = case.options["stride"]
    padding = [(k - stride) // 2 for k in window(case)]

    def function(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return TF.conv_transpose2d(x, kernel, stride=stride, padding=padding)

    # A gradient of convolution, so its kernel lies [C, O, *window] and runs backwards.
    axes = {**channels_first(case), "kernel": (2, 3, 0, 1)}
    return Form(function, axes=axes, flipped={"kernel": (2, 3)})


def _pool(function: Callable[..., torch.Tensor]) -> Callable[[Case], Form]:
    return lambda case: Form(
        lambda x: function(x, case.options["window"]), axes=channels_first(case)
    )


def _layer_norm(case: Case) -> Form:
    def function(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return TF.layer_norm(x, scale.shape, scale, bias, eps=1e-6)

    return Form(function)


_FORMS: dict[str, Callable[[Case], Form]] = {
    "attention": _attention,
    "neighborhood": _dense_neighborhood,
    "multi_head": _multi_head,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "max_pool": _pool(TF.max_pool2d),
    "avg_pool": _pool(TF.avg_pool2d),
    "layer_norm": _layer_norm,
}
