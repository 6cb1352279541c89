"""The training steps of `jax_steps` in PyTorch, eager, from the same parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as TF
from flax import nnx
from torch import nn

from attnconv.bench import jax_steps
from attnconv.bench.case import Case
from attnconv.bench.forms import CHECKED_STEPS, Arrays, Program
from attnconv.bench.jax_steps import BLOCKS, FEATURES, HEADS, HIDDEN, PATCH, RECIPE, STEPS


class CNN(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        self.first = _conv(nn.Conv2d(1, 32, 3, padding=1), weights["first"])
        self.second = _conv(nn.Conv2d(32, 64, 3, padding=1), weights["second"])
        self.dense = _linear(nn.Linear(7 * 7 * 64, 256), weights["dense"])
        # Here the channels come before the positions.
        rows = np.arange(7 * 7 * 64).reshape(49, 64).T.ravel()
        self.dense.weight.data = self.dense.weight.data[:, rows].contiguous()
        self.head = _linear(nn.Linear(256, 10), weights["head"])

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
        self.attention_norm = _norm(weights["attention_norm"])
        self.heads = _linear(nn.Linear(FEATURES, 3 * FEATURES), joined)
        self.out = _linear(nn.Linear(FEATURES, FEATURES), _flat(attention["out"]))
        self.mlp_norm = _norm(weights["mlp_norm"])
        self.expand = _linear(nn.Linear(FEATURES, HIDDEN), weights["expand"])
        self.contract = _linear(nn.Linear(HIDDEN, FEATURES), weights["contract"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.heads(self.attention_norm(x)).unflatten(-1, (3, HEADS, FEATURES // HEADS))
        y = TF.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.contract(TF.gelu(self.expand(self.mlp_norm(x)), approximate="tanh"))


class ViT(nn.Module):
    def __init__(self, weights: Any):
        super().__init__()
        self.embed = _conv(nn.Conv2d(1, FEATURES, PATCH, stride=PATCH), weights["embed"])
        self.position = nn.Parameter(torch.tensor(weights["position"]))
        self.blocks = nn.Sequential(*(Block(weights["blocks"][i]) for i in range(BLOCKS)))
        self.norm = _norm(weights["norm"])
        self.head = _linear(nn.Linear(FEATURES, 10), weights["head"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


MODELS: dict[str, Any] = {"cnn": CNN, "vit": ViT}


def programs(case: Case) -> list[Program]:
    """The step in the default layout, and for convolutions with channels last."""
    formats = {"": torch.contiguous_format, "channels last": torch.channels_last}
    chosen = list(formats.items())[: 2 if case.operator == "cnn" else 1]
    return [_program(case, note, format) for note, format in chosen]


def _program(case: Case, note: str, format: torch.memory_format) -> Program:
    state = nnx.to_pure_dict(jax_steps.initial(case))
    weights = jax.tree.map(np.asarray, state)
    rates = np.asarray(jax.vmap(jax_steps.learning_rate)(jnp.arange(STEPS))).tolist()
    inputs = case.inputs()
    images = torch.from_numpy(inputs["images"].transpose(0, 3, 1, 2)).contiguous(
        memory_format=format
    )
    labels = torch.from_numpy(inputs["labels"]).long()

    def training() -> Any:
        model = MODELS[case.operator](weights).to(memory_format=format)
        kernels = [p for name, p in model.named_parameters() if p.ndim > 1 and name != "position"]
        others = [p for name, p in model.named_parameters() if p.ndim == 1 or name == "position"]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": RECIPE.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        step = 0
        while True:
            for group in optimizer.param_groups:
                group["lr"] = rates[min(step, STEPS - 1)]
            optimizer.zero_grad()
            loss = TF.cross_entropy(model(images), labels, label_smoothing=RECIPE.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
            optimizer.step()
            step += 1
            yield loss.item()

    def read() -> Arrays:
        again = training()
        return {"losses": np.array([[next(again)] for _ in range(CHECKED_STEPS)])}

    going = training()
    return Program(
        run=lambda: next(going), read=read, compiled=lambda: lambda: next(going), note=note
    )


def _linear(layer: nn.Linear, weights: Any) -> nn.Linear:
    layer.weight.data = torch.tensor(weights["kernel"]).T.contiguous()
    layer.bias.data = torch.tensor(weights["bias"])
    return layer


def _conv(layer: nn.Conv2d, weights: Any) -> nn.Conv2d:
    layer.weight.data = torch.tensor(weights["kernel"]).permute(3, 2, 0, 1).contiguous()
    assert layer.bias is not None
    layer.bias.data = torch.tensor(weights["bias"])
    return layer


def _norm(weights: Any) -> nn.LayerNorm:
    layer = nn.LayerNorm(FEATURES, eps=1e-6)
    layer.weight.data, layer.bias.data = (torch.tensor(weights[n]) for n in ("scale", "bias"))
    return layer


def _flat(weights: Any) -> dict[str, np.ndarray]:
    """A projection of Flax's, its heads and features per head as one axis."""
    return {
        "kernel": weights["kernel"].reshape(FEATURES, FEATURES),
        "bias": weights["bias"].reshape(FEATURES),
    }
