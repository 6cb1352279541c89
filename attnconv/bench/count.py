"""The work of a case, the same on every machine: FLOPs, and the bytes that must be moved."""

import math

import jax
import numpy as np

from attnconv.bench import jax_peers, jax_steps
from attnconv.bench.case import Case
from attnconv.models import cost
from attnconv.spec import Spec

BACKWARD = 3  # a product has two more for its gradients


def work(case: Case) -> dict[str, int]:
    """FLOPs of the products, two for a multiply-add, and bytes of inputs and results.

    Counted is what the case asks for: masked pairs of attention by index do not count, nor what a
    form computes again or keeps in between. A training step counts its products only.
    """
    if case.mode == "step":
        spec = Spec(case.shape("images")[1:], classes=10)
        forward = case.sizes["B"] * cost.flops(jax_steps.model(case, jax_steps.STOCK), spec)
        return {"flops": BACKWARD * case.seeds * forward, "bytes": 0}
    inputs = case.inputs()
    form = jax_peers.form(case, "attnconv")
    y = jax.eval_shape(lambda arrays: form.function(**arrays), inputs)
    moved = sum(array.nbytes for array in inputs.values()) + y.dtype.itemsize * y.size
    flops = _products(case, y.size)
    if case.mode == "forward":
        return {"flops": flops, "bytes": moved}
    gradients = sum(inputs[name].nbytes for name in case.trained) + y.dtype.itemsize * y.size
    return {"flops": BACKWARD * flops, "bytes": moved + gradients}


def _products(case: Case, outputs: int) -> int:
    """FLOPs of the forward pass, which has this many outputs."""
    sizes = case.sizes
    if case.operator == "attention":
        return 4 * sizes["N"] * sizes["K"] * _pairs(case)
    if case.operator == "neighborhood":
        return 4 * math.prod(sizes.values())
    if case.operator == "multi_head":
        B, T, D, N, K = (sizes[axis] for axis in "BTDNK")
        return 8 * B * T * D * N * K + 4 * B * T * T * N * K
    if case.operator == "conv_transpose":
        return 2 * math.prod(case.shape("x")) * math.prod(case.shape("kernel")[:-2]) * sizes["O"]
    if case.operator in ("conv", "locally_connected"):
        window = math.prod(n for axis, n in sizes.items() if axis.islower())
        return 2 * outputs * window * sizes["I" if case.operator == "conv" else "C"]
    return 0


def _pairs(case: Case) -> int:
    """How many pairs of a query and a key attend in a head, over the batch; a mask skips none."""
    B, T, S = (case.sizes[axis] for axis in "BTS")
    left, right = case.options.get("local_window_size", (T, S))
    right = 0 if case.options.get("is_causal") else right
    query = np.arange(T)[:, None]
    ends = case.inputs().get("key_value_seq_lengths", np.full(B, S))
    keys = np.minimum(query + right + 1, ends) - np.maximum(query - left, 0)
    return int(np.maximum(keys, 0).sum())
