"""The training steps of `jax_steps` in PyTorch, from the same parameters.

Eager on a CPU; on an accelerator compiled. In half precision all is computed but the loss, as in
ours, with the parameters in float32: under autocast norms and sums would not be.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as TF
from flax import nnx
from torch import nn
from torch.func import functional_call

from attnconv.bench import jax_steps, torch_device
from attnconv.bench.case import Case
from attnconv.bench.forms import CHECKED_STEPS, Arrays, Program
from attnconv.bench.jax_steps import RECIPE, STEPS


class CNN(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        self.first = _conv(weights["first"], padding=1)
        self.second = _conv(weights["second"], padding=1)
        self.dense = _linear(weights["dense"])
        # Here the channels come before the positions.
        rows = np.arange(7 * 7 * 64).reshape(49, 64).T.ravel()
        self.dense.weight.data = self.dense.weight.data[:, rows].contiguous()
        self.head = _linear(weights["head"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = TF.avg_pool2d(TF.relu(self.first(x)), 2)
        x = TF.avg_pool2d(TF.relu(self.second(x)), 2)
        return self.head(TF.relu(self.dense(x.flatten(1))))


class Block(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        attention = weights["attention"]
        parts = [_flat(attention[name]) for name in ("query", "key", "value")]
        joined = {key: np.concatenate([part[key] for part in parts], -1) for key in parts[0]}
        self.split = (3, *attention["query"]["bias"].shape)
        self.attention_norm = _norm(weights["attention_norm"])
        self.heads = _linear(joined)
        self.out = _linear(_flat(attention["out"]))
        self.mlp_norm = _norm(weights["mlp_norm"])
        self.expand = _linear(weights["expand"])
        self.contract = _linear(weights["contract"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.heads(self.attention_norm(x)).unflatten(-1, self.split)
        y = TF.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.contract(TF.gelu(self.expand(self.mlp_norm(x)), approximate="tanh"))


class ViT(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        self.embed = _conv(weights["embed"], stride=len(weights["embed"]["kernel"]))
        self.position = nn.Parameter(torch.tensor(weights["position"]))
        self.blocks = nn.Sequential(*map(Block, _listed(weights["blocks"])))
        self.norm = _norm(weights["norm"])
        self.head = _linear(weights["head"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Residual(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        features = weights["scale"].size
        self.depthwise = _conv(weights["depthwise"], padding=3, groups=features)
        self.norm = _norm(weights["norm"])
        self.expand = _linear(weights["expand"])
        self.contract = _linear(weights["contract"])
        self.scale = nn.Parameter(torch.tensor(weights["scale"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.contract(TF.gelu(self.expand(y), approximate="tanh"))
        return x + y.permute(0, 3, 1, 2)


class Halve(nn.Module):
    """A norm over the channels, then a convolution."""

    def __init__(self, norm: Any, conv: Any):
        super().__init__()
        self.norm, self.conv = _norm(norm), _conv(conv, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        norms, halves = _listed(weights["norms"]), _listed(weights.get("halves", {}))
        self.stem = _conv(weights["stem"], stride=4)
        self.stem_norm = _norm(weights["stem_norm"])
        between = [nn.Identity(), *map(Halve, norms, halves)]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(first, *map(Residual, _listed(stage)))
                for first, stage in zip(between, _listed(weights["stages"]), strict=True)
            )
        )
        self.norm = _norm(norms[-1])
        self.head = _linear(weights["head"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.norm(self.stages(x).mean((2, 3))))


MODELS: dict[str, Any] = {"cnn": CNN, "vit": ViT, "convnext": ConvNeXt}


def programs(case: Case) -> list[Program]:
    """The step in the default layout and, for convolutions, with channels last.

    On an accelerator with channels last only, where it is the faster one: compiling takes long.
    """
    formats = {"": torch.contiguous_format, "channels last": torch.channels_last}
    if case.platform == "gpu":
        formats.pop("")
    elif case.operator == "vit":
        formats.pop("channels last")
    return [_program(case, note, format) for note, format in formats.items()]


def _program(case: Case, note: str, format: torch.memory_format) -> Program:
    state = nnx.to_pure_dict(jax_steps.initial(case))
    weights = jax.tree.map(np.asarray, state)
    rates = np.asarray(jax.vmap(jax_steps.learning_rate)(jnp.arange(STEPS))).tolist()
    inputs, device = case.inputs(), torch_device.device(case)
    images = torch_device.tensor(inputs["images"].transpose(0, 3, 1, 2), device)
    images = images.contiguous(memory_format=format)
    labels = torch_device.tensor(inputs["labels"], device).long()
    dtype = getattr(torch, case.dtype)

    def training() -> Any:
        model = MODELS[case.operator](weights).to(device, memory_format=format)

        def predict(params: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
            cast = {name: p.to(dtype) for name, p in params.items()}
            return functional_call(model, cast, (images.to(dtype),))

        forward = torch_device.compiled(case, predict)
        params = dict(model.named_parameters())
        kernels = [p for name, p in params.items() if p.ndim > 1 and name != "position"]
        others = [p for name, p in params.items() if p.ndim == 1 or name == "position"]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": RECIPE.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        step = 0
        while True:
            for group in optimizer.param_groups:
                group["lr"] = rates[min(step, STEPS - 1)]
            scores = forward(params, images).float()
            loss = TF.cross_entropy(scores, labels, label_smoothing=RECIPE.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(params.values(), RECIPE.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            yield loss.detach()

    going = training()  # the only one, since compiling another takes as long again
    first: list[torch.Tensor] = []

    def advance() -> torch.Tensor:
        loss = next(going)
        if len(first) < CHECKED_STEPS:
            first.append(loss)
        return loss

    def read() -> Arrays:
        while len(first) < CHECKED_STEPS:
            advance()
        return {"losses": np.array([[loss.item()] for loss in first])}

    def run() -> float:
        return advance().item()

    found = Program(run=run, read=read, compiled=lambda: run, note=note)
    return torch_device.queued(case, found, lambda i: advance())


def _linear(weights: Any) -> nn.Linear:
    layer = nn.Linear(*weights["kernel"].shape)
    layer.weight.data = torch.tensor(weights["kernel"]).T.contiguous()
    layer.bias.data = torch.tensor(weights["bias"])
    return layer


def _conv(weights: Any, *, stride: int = 1, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    h, w, inner, features = weights["kernel"].shape
    layer = nn.Conv2d(groups * inner, features, (h, w), stride, padding, groups=groups)
    layer.weight.data = torch.tensor(weights["kernel"]).permute(3, 2, 0, 1).contiguous()
    assert layer.bias is not None
    layer.bias.data = torch.tensor(weights["bias"])
    return layer


def _norm(weights: Any) -> nn.LayerNorm:
    layer = nn.LayerNorm(weights["scale"].size, eps=1e-6)
    layer.weight.data, layer.bias.data = (torch.tensor(weights[n]) for n in ("scale", "bias"))
    return layer


def _flat(weights: Any) -> dict[str, np.ndarray]:
    """A projection of Flax's, its heads and features per head as one axis."""
    bias = weights["bias"].reshape(-1)
    return {"kernel": weights["kernel"].reshape(-1, bias.size), "bias": bias}


def _listed(weights: Any) -> list[Any]:
    """The members of a list of modules, which are named by their numbers."""
    return [weights[i] for i in sorted(weights)]
