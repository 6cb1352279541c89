"""The benchmark's table at small sizes: ours against float64, the peers against each other."""

import contextlib
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv.bench import cases, count, forms, jax_peers, jax_programs
from attnconv.bench.measure import TOLERANCE, difference
from attnconv.bench.process import framework, installed, worker
from attnconv.errors import UsageError
from attnconv.models import cost
from attnconv.spec import Spec

OPERATORS = [
    case for case in cases.CASES if case.suite not in ("compile", "gpu") and case.mode == "gradient"
]
PROBLEMS = {str((c.operator, c.small().sizes, c.arrays, c.options)): c for c in OPERATORS}
BY_NAME = {case.name: case for case in cases.CASES}
ONE_OF_EACH = (
    *("neighborhood-56x56-w7", "attention-bias", "multi-head-b32-t64"),
    *("depthwise-3x3-multiplier-2", "transposed-4x4", "local-3x3"),
    *("avg-pool-2x2", "max-pool-2x2", "layer-norm-128x49x64"),
)


@contextlib.contextmanager
def simply_compiled():
    """What need not be the program that users get compiles in half the time so."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def results(case, peer, dtype, rounded):
    """Output and gradients of a peer in a dtype, from inputs that were rounded to another."""
    form, inputs = jax_peers.form(case, peer), case.inputs()
    others = {name: jnp.asarray(form.into(name, array)) for name, array in inputs.items()}
    trained = {name: others.pop(name).astype(rounded).astype(dtype) for name in case.trained}

    @jax.jit
    def gradient(trained, dy):
        y, pull = jax.vjp(lambda trained: form.function(**trained, **others), trained)
        return y, pull(dy)[0]

    y = jax.eval_shape(lambda: form.function(**trained, **others))
    dy = forms.cotangent(form.back("y", np.empty(y.shape)).shape)
    dy = jnp.asarray(form.into("y", dy)).astype(rounded).astype(dtype)
    y, gradients = gradient(trained, dy)
    found = {
        name: form.back(name, np.asarray(array, np.float64), inputs[name].shape)
        for name, array in gradients.items()
    }
    assert {y.dtype, *(array.dtype for array in gradients.values())} == {np.dtype(dtype)}
    return {"y": form.back("y", np.asarray(y, np.float64)), **found}


def problems():
    """One of each operator, and the others as longer proofs."""
    for case in PROBLEMS.values():
        quick = case.name.removesuffix("-gradient") in ONE_OF_EACH
        yield pytest.param(case, id=case.name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("case", list(problems()))
def test_values_and_gradients_are_those_of_float64(case):
    small = case.small()
    # In bfloat16 maxima are often equal: ours share the gradient, stock JAX gives it to one.
    rounded = np.float32 if case.operator == "max_pool" else jnp.bfloat16
    with simply_compiled(), jax.enable_x64(True):
        expected = results(small, small.stock or "jax", np.float64, rounded)
    assert difference(results(small, "attnconv", np.float32, rounded), expected) < 1e-5
    if rounded == jnp.bfloat16:
        with simply_compiled():
            found = results(small, "attnconv", rounded, rounded)
        assert difference(found, expected) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn-step-5-seeds", "vit-step"])
def test_training_steps_have_the_losses_of_flax(name):
    small = BY_NAME[name].small()
    with simply_compiled():
        expected = jax_programs.program(small, "flax").read()
        for peer in ("attnconv", *("alone",) * (small.seeds > 1)):
            found = jax_programs.program(small, peer).read()
            assert found["losses"].shape == (forms.CHECKED_STEPS, small.seeds)
            assert difference(found, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn-step", "vit-step"])
def test_training_steps_have_the_losses_of_pytorch(name):
    pytest.importorskip("torch")
    from attnconv.bench import torch_programs

    small = BY_NAME[name].small()
    expected = torch_programs.program(small, "torch").read()
    with simply_compiled():
        assert difference(jax_programs.program(small, "flax").read(), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_peers_agree(name):
    small = BY_NAME[f"{name}-gradient"].small()
    reference, *others = (peer for peer in small.peers[1:] if installed(peer))
    with simply_compiled():
        expected = jax_programs.program(small, reference).read()
        for peer in others:
            programs = importlib.import_module(f"attnconv.bench.{framework(worker(peer))}_programs")
            assert difference(programs.program(small, peer).read(), expected) < TOLERANCE


def test_in_a_scan_every_step_counts():
    case = BY_NAME["dense-8x8x32-in-scan"].small()
    program = jax_programs.program(case, "attnconv")
    found = program.read()
    assert found["losses"].shape == (program.steps,) == (8,)
    assert difference(found, jax_programs.program(case, "jax").read()) < 1e-5
    assert np.ptp(found["losses"]) > 0


def test_flops_of_attention_are_those_of_the_pairs_that_attend():
    for name in ("causal-t4096", "window-t4096", "key-lengths", "odd-t1000-s777", "decode-s4096"):
        case = BY_NAME[f"attention-{name}-forward"].small()
        B, T, S, N, K = (case.sizes[axis] for axis in "BTSNK")
        mask = F.masks.window(T, S, *case.options.get("local_window_size", (T, S)))
        if case.options.get("is_causal"):
            mask = mask & F.masks.causal(T, S)
        if "key_value_seq_lengths" in case.arrays:
            mask = mask & F.masks.padding(jnp.asarray(case.inputs()["key_value_seq_lengths"]), S)
        pairs = np.broadcast_to(mask, (B, 1, T, S)).sum()
        assert count.work(case)["flops"] == 4 * N * K * pairs


def test_flops_of_convolution_are_those_of_the_reference():
    for name in ("grouped-3x3", "strided-3x3", "video-3x3x3", "sequence-depthwise-9"):
        case = BY_NAME[f"{name}-forward"]
        options = {
            "strides": case.options.get("stride", 1),
            "padding": case.options.get("padding", "SAME"),
            "feature_group_count": case.options.get("groups", 1),
        }
        sizes = case.sizes["C"], case.sizes["O"], forms.window(case)
        layer = nnx.Conv(*sizes, use_bias=False, rngs=nnx.Rngs(0), **options)
        expected = case.sizes["B"] * cost.flops(layer, Spec(case.shape("x")[1:], classes=1))
        assert count.work(case)["flops"] == expected
        gradient = BY_NAME[f"{name}-gradient"]
        assert count.work(gradient)["flops"] == 3 * expected


def test_bytes_are_those_of_inputs_and_results():
    images, kernel = 4 * 32 * 32 * 32 * 64, 4 * 9 * 64
    assert count.work(BY_NAME["depthwise-3x3-forward"])["bytes"] == 2 * images + kernel
    assert count.work(BY_NAME["depthwise-3x3-gradient"])["bytes"] == 4 * images + 2 * kernel


def test_every_case_is_held_to_something_and_its_name_is_its_own():
    assert len(BY_NAME) == len(cases.CASES)
    for case in cases.CASES:
        assert case.peers[0] == "attnconv"
        assert case.floors or case.most_memory or case.suite == "compile" or case.stock is None


def test_select_takes_parts_of_names_and_refuses_unknown_ones():
    names = [case.name for case in cases.select("conv", ("7x7", "tiny"))]
    assert names == [
        *("depthwise-7x7-forward", "depthwise-7x7-gradient", "tiny-3x3-forward"),
        "tiny-3x3-gradient",
    ]
    assert cases.select("all") == list(cases.CASES)
    with pytest.raises(UsageError, match="unknown suite 'convv'; did you mean 'conv'"):
        cases.select("convv")
    with pytest.raises(UsageError, match="unknown case 'depthwize'; did you mean 'depthwise'"):
        cases.select("conv", ("depthwize",))
