"""What `explain` says, and that it is what a call takes."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv import models
from attnconv.lowering import conv_dense
from attnconv.spec import Spec


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    "x, kernel, groups, form, reason",
    [
        ((8, 32, 32, 64), (3, 3, 1, 64), 64, "shifts", "one kernel of 9 <= 64 offsets"),
        ((8, 32, 32, 64), (9, 9, 1, 64), 64, "groups", "64 groups of 1 channels in 4 parts"),
        ((8, 32, 32, 64), (3, 3, 16, 64), 4, "groups", "4 groups of 16 channels in 4 parts"),
        ((32, 32, 32, 64), (3, 3, 64, 64), 1, "wide", "32 images side by side"),
        ((8, 8, 8, 64), (1, 1, 64, 64), 1, "product", "product of matrices"),
        ((8, 8, 8, 64), (3, 3, 64, 64), 1, "xla", "64 to 64 features in one group"),
    ],
)
def test_convolution(monkeypatch, x, kernel, groups, form, reason):
    monkeypatch.setattr(conv_dense, "ONE_CORE", True)
    cpu, cuda, other = F.explain(F.conv, shape(*x), shape(*kernel), groups=groups)
    assert (cpu.operator, cpu.platform, cpu.form) == ("conv", "cpu", form)
    assert reason in cpu.reason
    assert (cuda.platform, cuda.form) == ("cuda", "xla")
    assert cuda.reason.startswith("there is no kernel for ")
    assert (other.platform, other.form) == ("other", "xla")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"precision": "highest"}, "precision"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "channels are not last"),
    ],
)
def test_what_lax_is_left_with(options, reason):
    arguments = {"window_strides": (1, 1), "padding": "SAME"} | options
    arguments.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    x, kernel = shape(2, 3, 3, 3), shape(3, 3, 3, 3)
    (choice,) = F.explain(F.conv_general_dilated, x, kernel, **arguments)
    assert (choice.platform, choice.form) == ("any", "lax") and reason in choice.reason


def test_attention():
    x = shape(1, 4096, 8, 64)
    cpu, cuda, other = F.explain(F.dot_product_attention, x, x, x, is_causal=True)
    assert (cpu.form, cuda.form, other.form) == ("blocks", "rows", "rows")
    assert cuda.reason.startswith("cudnn cannot take dtype float32, not bfloat16 or float16, and ")
    assert "there is no kernel for a call without a CUDA device; B N T S" in cuda.reason
    assert cpu.reason == "T S = 16777216 >= 147456 scores in a head"
    few, *_ = F.explain(F.dot_product_attention, shape(8, 1, 8, 64), *[shape(8, 4096, 8, 64)] * 2)
    assert (few.form, few.reason) == (
        "few",
        "T N = 8 <= 64 queries of all heads, for S = 4096 keys",
    )
    (asked,) = F.explain(F.dot_product_attention, x, x, x, implementation="reference")
    assert (asked.platform, asked.form) == ("any", "matrix")


def test_a_whole_model_and_nothing_after():
    model = models.build("hybrid", Spec((8, 8, 1), 10), budget=30_000, rngs=nnx.Rngs(0))
    found = F.explain(model, shape(32, 8, 8, 1))
    assert {choice.operator for choice in found} == {"conv", "dot_product_attention"}
    assert F.explain(lambda x: F.layer_norm(x), shape(2, 3)) == ()
