"""The suite of accelerators, so small that a CPU computes it: results, measuring, the page."""

import contextlib
import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

from attnconv.bench import cases, count, gpu_cases, gpu_page, in_turn, jax_peers, measure
from attnconv.bench import reference as formulas
from attnconv.bench.process import (
    REFERENCE,
    WORKERS,
    PeerError,
    Process,
    framework,
    installed,
    worker,
)

MOST = {"B": 3, "T": 40, "S": 40, "N": 5, "G": 5, "K": 16, "H": 15, "W": 14}
MODELS = {
    "cnn": {},
    "vit": {"image": 16, "channels": 3, "patch": 8, "features": 8, "hidden": 16}
    | {"heads": 2, "depth": 2, "classes": 10},
    "convnext": {"depths": (1, 2), "widths": (8, 16), "classes": 10},
}
NOT_HERE = {"jax cudnn": "cuDNN is not detected", "flex": "does not support backward on CPU"}


def tiny(case):
    """The case with few examples, positions, heads, channels, layers and seeds."""
    if case.mode == "step":
        sizes = {**case.sizes, "B": 4} | ({} if case.operator == "cnn" else {"H": 16, "W": 16})
        options, seeds = MODELS[case.operator], min(case.seeds, 3)
        return dataclasses.replace(case, sizes=sizes, options=options, seeds=seeds)
    sizes, options = {axis: min(n, MOST.get(axis, n)) for axis, n in case.sizes.items()}, {}
    if case.operator == "conv":
        inner = min(case.sizes["I"], 4)
        sizes |= {"H": 9, "W": 8, "I": inner, "C": 6 * inner, "O": 6 * inner}
        options = {"groups": 6}
    return dataclasses.replace(case, sizes=sizes, options={**case.options, **options})


FIELDS = dataclasses.fields(cases.Case)


class Whole(cases.Case):
    """A case of which everything is checked."""

    def checked(self):
        return self


TINY = {case.name: tiny(case) for case in gpu_cases.CASES}
# As tiny as another one, they are equal to it.
SAME = ("attention-t4096", "28x28x192", "14x14x384", "7x7x768", "neighborhood-b64-w7-gradient")
QUICK = ("neighborhood-b4-w7", "attention-bias", "56x56x96")  # whose gradients are checked too
# What PyTorch says of its own compiler, and where FlexAttention is not compiled.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning"),
]


@contextlib.contextmanager
def eagerly(peer):
    """What would be compiled by PyTorch runs as it is; there is no time for it."""
    if worker(peer) != "torch":
        yield
        return
    torch = pytest.importorskip("torch")
    with torch.compiler.set_stance("force_eager"):
        yield


def program(case, peer):
    programs = importlib.import_module(f"attnconv.bench.{framework(worker(peer))}_programs")
    return programs.program(case, peer)


def operators():
    for name, case in TINY.items():
        if case.mode != "step":
            slow = any(part in name for part in SAME)
            slow |= case.mode == "gradient" and not any(part in name for part in QUICK)
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(case, id=name, marks=marks)


@pytest.mark.parametrize("case", list(operators()))
def test_every_peer_agrees_with_float64(case):
    expected = formulas.results(case)
    for peer in filter(installed, case.peers):
        with eagerly(peer):
            if peer in NOT_HERE:
                with pytest.raises((RuntimeError, NotImplementedError), match=NOT_HERE[peer]):
                    program(case, peer).read()
                continue
            made = program(case, peer)
            assert in_turn.distance(made.read(), expected) < in_turn.TOLERANCE[case.dtype]
            made.queued(2)


def test_flex_attention_sees_what_ours_sees():
    pytest.importorskip("torch")
    for window in (7, 13):
        case = TINY[f"gpu-neighborhood-b64-w{window}-gradient"]
        case = dataclasses.replace(case, mode="forward")
        with eagerly("flex"):
            found = program(case, "flex").read()
        assert in_turn.distance(found, formulas.results(case)) < 1e-2


@pytest.mark.slow
def test_pytorch_compiles_flex_attention():
    pytest.importorskip("torch")
    case = dataclasses.replace(TINY["gpu-neighborhood-b4-w7-gradient"], mode="forward")
    with Process("torch", accelerator=True) as process:
        found = process.ask("read", case, "flex")
        assert in_turn.distance(found, formulas.results(case)) < 1e-2
        assert process.ask("warm", "flex")[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in TINY.items() if case.mode == "step"])
def test_the_losses_of_training_steps_are_those_of_the_peers(name):
    case = TINY[name]
    ours, *others = filter(installed, case.peers)
    expected = program(case, ours).read()
    for peer in others:
        with eagerly(peer):
            made = program(case, peer)
            assert in_turn.distance(made.read(), expected) < in_turn.STEPS[case.dtype]
            made.queued(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu-vit-s16-step", "gpu-convnext-t-step"])
def test_pytorch_compiles_its_training_steps(name):
    """Here for the CPU; of what cannot be compiled its parts would be, and be slower."""
    pytest.importorskip("torch")
    with Process("torch", accelerator=True) as process:
        found = process.ask("read", TINY[name], "torch")
        assert in_turn.distance(found, program(TINY[name], "attnconv").read()) < 1e-2
        assert process.ask("warm", "torch")[0] > 0


def test_inputs_are_rounded_and_their_numbers_and_work_counted():
    case = TINY["gpu-attention-bias-t4096-gradient"]
    assert {str(array.dtype) for array in case.inputs().values()} == {"bfloat16"}
    q, bias = 3 * 40 * 5 * 16, 5 * 40 * 40
    moved = (3 * q + bias) + q  # of the forward pass, two bytes each; as much for the gradients
    assert count.work(case)["bytes"] == 2 * 2 * moved
    full = next(c for c in gpu_cases.CASES if c.name == "gpu-vit-s16-step")
    assert count.work(full)["flops"] == pytest.approx(3 * 256 * 9.2e9, rel=0.02)
    convnext = next(c for c in gpu_cases.CASES if c.name == "gpu-convnext-t-step")
    assert count.work(convnext)["flops"] == pytest.approx(3 * 256 * 8.9e9, rel=0.02)


def test_what_is_checked_has_nothing_to_do_with_the_rest():
    """The formula of the part is the part of the formula."""
    for name in ("attention-t4096", "attention-bias-t4096", "depthwise-7x7-7x7x768", "grouped"):
        case = next(case for key, case in TINY.items() if name in key and "gradient" in key)
        found = formulas.results(case)
        whole = Whole(**{field.name: getattr(case, field.name) for field in FIELDS})
        for array, expected in formulas.results(whole).items():
            part = case.part(array, expected)
            assert part.size < expected.size
            np.testing.assert_allclose(found[array], part, rtol=1e-9)


def test_small_forms_hold_their_windows():
    for case in gpu_cases.CASES:
        for form in (case.small(), case.checked()):
            for axis in {"h", "w"} & set(form.sizes):
                assert form.sizes[axis.upper()] >= form.sizes[axis]


class Scripted(Process):
    """A worker whose peers have these results, and notes what it is asked."""

    def __init__(self, results):
        super().__init__("scripted")
        self.results, self.asked = results, []

    def ask(self, name, *arguments):
        peer = arguments[-1] if arguments else ""
        self.asked.append(f"{name} {peer}")
        if name == "reference":
            return {"y": np.array([3.0, 4.0])}
        if name == "read":
            if isinstance(self.results[peer], str):
                raise PeerError(self.results[peer])
            return {"y": np.array(self.results[peer])}
        return {"warm": (0.1, "how"), "time": 0.5, "planned": 7}.get(name)


def in_turn_of(case, **processes):
    processes["reference"] = Scripted({})
    row = {"peers": {peer: {} for peer in case.peers}}
    return in_turn.measure(case, case.peers, processes, row), row["peers"]


def test_peers_are_made_and_checked_then_timed_one_after_the_other():
    case = dataclasses.replace(
        TINY["gpu-attention-t4096-forward"], peers=("attnconv", "jax", "torch", "jax cudnn")
    )
    ours = Scripted({"attnconv": [3.0, 4.01]})
    jax = Scripted({"jax": [3.0, 4.0], "jax cudnn": "no such device"})
    torch = Scripted({"torch": [3.0, 4.2]})
    samples, found = in_turn_of(case, ours=ours, jax=jax, torch=torch)
    assert samples == [{"attnconv": 0.5, "jax": 0.5}] * in_turn.ROUNDS
    assert ours.asked[:3] == ["read attnconv", "warm attnconv", "time attnconv"]
    assert ours.asked[-1] == "planned attnconv"
    assert jax.asked[:3] == ["read jax", "read jax cudnn", "warm jax"]
    assert torch.asked == ["read torch"]
    assert found["attnconv"] == {
        "difference": pytest.approx(0.002),
        "note": "how",
        "memory": 7,
    }
    assert found["jax cudnn"] == {"error": "jax cudnn: no such device"}
    assert "torch: 4.0e-02 of the norm from the reference, 0.01 at most" in found["torch"]["error"]


def test_a_wrong_result_of_ours_is_an_error():
    case = dataclasses.replace(TINY["gpu-attention-t4096-forward"], peers=("attnconv",))
    ours = Scripted({"attnconv": [3.0, 4.2]})
    with pytest.raises(PeerError, match=r"attnconv: 4\.0e-02 of the norm"):
        in_turn_of(case, ours=ours)
    assert ours.asked == ["read attnconv"]


@pytest.mark.parametrize(("answer", "ended"), [(0.1, False), (0.3, True), (None, True)])
def test_a_process_that_keeps_much_or_died_is_ended(monkeypatch, answer, ended):
    asked = []

    def ask(self, name):
        if answer is None:
            raise PeerError("the process ended")
        return answer

    process = Process("ours")
    monkeypatch.setattr(Process, "ask", ask)
    monkeypatch.setattr(Process, "stop", lambda self: asked.append("stop"))
    process.forget()
    assert not asked  # nothing was started
    process.child = True
    process.forget()
    assert bool(asked) == ended


def test_training_steps_are_compared_with_ours():
    case = TINY["gpu-cnn-step-32-seeds-float32"]
    ours = Scripted({"attnconv": [3.0, 4.0], "alone": [3.0, 4.01]})
    samples, found = in_turn_of(case, ours=ours)
    assert found["attnconv"]["difference"] == 0
    assert "alone: 2.0e-03 of the norm" in found["alone"]["error"]
    assert set(samples[0]) == {"attnconv"}


@pytest.mark.slow
def test_workers_measure_a_case():
    case = TINY["gpu-attention-bias-t4096-gradient"]
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(Process(name, accelerator=True))
            for name in (*WORKERS, REFERENCE)
        }
        row = measure.measure(case, processes, seconds=0.0, memory=True)
    assert "cuDNN is not detected" in row["error"]
    assert row["dtype"] == "bfloat16"
    assert row["rounds"] == in_turn.ROUNDS
    assert row["peers"]["attnconv"]["memory"] > 0
    for peer in ("attnconv", "jax", *filter(installed, ["torch"])):
        assert row["peers"][peer]["seconds"]["median"] > 0
        assert row["peers"][peer]["difference"] < 1e-2


def test_float32_products_are_not_tf32_on_an_accelerator():
    x = np.ones((2, 2), np.float32)
    case = TINY["gpu-attention-float32-t2048-gradient"]
    for platform in ("gpu", "cpu"):
        function = jax_peers.precise(dataclasses.replace(case, platform=platform), jax.numpy.matmul)
        (equation,) = jax.make_jaxpr(function)(x, x).eqns
        assert ("HIGHEST" in str(equation)) == (platform == "gpu")


def test_select_has_the_suite():
    assert {case.platform for case in cases.select("gpu")} == {"gpu"}
    assert {case.platform for case in cases.select("conv")} == {"cpu"}


def measured():
    spread = {"low": 0.9, "median": 1.0, "high": 1.1}
    peers = {
        "attnconv": {"seconds": {"median": 0.002}, "difference": 2e-3, "memory": 3_000_000},
        "jax cudnn": {"error": "jax cudnn: broke"},
        "torch": {"seconds": {"median": 0.002}, "ratio": spread, "difference": 1e-3},
    }
    row = {"case": "gpu-attention-t4096-forward", "suite": "gpu", "dtype": "bfloat16"}
    row |= {"flops": 10**12, "bytes": 10**6, "floors": {"torch": 0.95, "jax cudnn": 0.95}}
    row |= {"most_memory": None, "most_seconds": None, "jax": "0.11.0", "peers": peers}
    row |= {"error": "jax cudnn: broke", "commit": "abc1234"}
    environment = {"jax": "0.11.0", "device": "1 x NVIDIA H200", "commit": "abc1234"}
    rates = {"flops": 5e13, "flops_bfloat16": 1e15, "bytes": 4e12}
    return {"environment": environment, "rates": rates, "rows": [row]}


def test_the_page_has_a_section_for_each_file_of_results(tmp_path):
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\nOf a CPU.\n")
    gpu_page.append(tmp_path)
    assert path.read_text() == "# Benchmarks\n\nOf a CPU.\n"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "nvidia-h200.json").write_text(json.dumps(measured()))
    for _ in range(2):  # again, it takes the place of what was there
        gpu_page.append(tmp_path)
        text = path.read_text()
        assert text.startswith("# Benchmarks\n\nOf a CPU.\n\n## On an accelerator\n")
        assert text.count("## On an accelerator") == text.count("### 1 x NVIDIA H200") == 1
    assert "1000 TFLOP/s in bfloat16" in text and "commit abc1234." in text
    assert "- gpu-attention-t4096-forward: jax cudnn: broke" in text
    case = "| gpu-attention-t4096-forward |"
    assert f"{case} ours | 2 | - |  |  | 50% | 2.0e-03 | 3 |" in text
    assert f"{case} JAX, cuDNN | - | - | >= 0.95 | not measured | - | - | - |" in text
    assert f"{case} PyTorch | 2 | 1.00 [0.90, 1.10] | >= 0.95 | yes | 50% | 1.0e-03 | - |" in text
    assert (tmp_path / "benchmarks-nvidia-h200.svg").exists()
