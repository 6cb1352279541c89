"""Programs of PyTorch, in the layout that it is faster in where it has two."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF

from attnconv.bench import forms
from attnconv.bench.case import Case
from attnconv.bench.forms import Arrays, Form, Program, channels_first, window

TRIALS = 3  # runs of each layout, to choose
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def program(case: Case, peer: str) -> Program:
    """The faster of the programs in PyTorch's default layout and with channels last."""
    if case.mode == "step":
        from attnconv.bench import torch_steps

        programs = torch_steps.programs(case)
    else:
        form = _FORMS[case.operator](case)
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
    inputs = case.inputs()

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        return layout(torch.from_numpy(form.into(name, array)), channels_last=channels_last)

    tensors = {name: tensor(name, array) for name, array in inputs.items()}

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return form.function(**tensors)

    note = "channels last" if channels_last else ""
    if case.mode == "forward":
        return _program(forward, lambda y: {"y": form.back("y", y.numpy())}, note)
    y = forward()
    dy = tensor("y", forms.cotangent(form.back("y", y.numpy()).shape))
    for name in case.trained:
        tensors[name].requires_grad_()
    trained = [tensors[name] for name in case.trained]

    def gradient() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        y = form.function(**tensors)
        return y, torch.autograd.grad(y, trained, dy)

    def read(results: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> Arrays:
        y, gradients = results
        found = {
            name: form.back(name, gradient.numpy(), inputs[name].shape)
            for name, gradient in zip(case.trained, gradients, strict=True)
        }
        return {"y": form.back("y", y.detach().numpy()), **found}

    return _program(gradient, read, note)


def _program(run: Callable[[], Any], read: Callable[[Any], Arrays], note: str) -> Program:
    return Program(run=run, read=lambda: read(run()), compiled=lambda: run, note=note)


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


def _dense_neighborhood(case: Case) -> Form:
    """SDPA of all positions to all under the mask of the windows, which move inside."""
    grid, extent = case.shape("query")[1:3], case.options["window"]
    seen = []
    for n in grid:
        first = (torch.arange(n) - extent // 2).clip(0, n - extent)
        place = torch.arange(n) - first[:, None]
        seen.append((place >= 0) & (place < extent))
    rows, columns = seen
    positions = grid[0] * grid[1]
    mask = (rows[:, None, :, None] & columns[None, :, None]).reshape(positions, positions)

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
