"""What cuDNN is left out of, and that its kernels are called as they are meant to be.

The kernels themselves need the hardware: here others compute what theirs are documented to.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from attnconv import functional as F
from attnconv.lowering import attention_cudnn, rules

CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")


@pytest.fixture
def present(monkeypatch):
    """A machine that lacks nothing."""
    monkeypatch.setattr(attention_cudnn, "_missing", lambda K: None)
    jax.clear_caches()
    yield
    jax.clear_caches()


def choice(T=128, S=None, K=64, dtype=jnp.bfloat16, **options):
    query = jax.ShapeDtypeStruct((2, T, 4, K), dtype)
    key = jax.ShapeDtypeStruct((2, S or T, 2, K), dtype)
    _, cuda, _ = F.explain(F.dot_product_attention, query, key, key, **options)
    return cuda


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": jnp.float16, "is_causal": True},
        {"S": 77, "K": 256},
        {"local_window_size": (9, 0), "scale": 0.3},
        {"local_window_size": (9, 5), "is_causal": True},
        {"local_window_size": 127, "scale": np.float64(0.3)},  # all keys
        {"mask": jnp.ones((2, 1, 1, 128), bool)},
        {"mask": jnp.ones(128, bool), "key_value_seq_lengths": jnp.array([3, 4])},
        {"query_seq_lengths": jnp.array([3, 4]), "is_causal": True},
    ],
)
@pytest.mark.usefixtures("present")
def test_takes(options):
    assert choice(**options).form == "cudnn"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": jnp.float32}, "dtype float32, not bfloat16 or float16"),
        ({"K": 20}, "K = 20 is no multiple of 8"),
        ({"K": 264}, "K = 264 > 256"),
        ({"bias": jnp.zeros((128, 128))}, "a bias"),
        ({"mask": jnp.ones((2, 1, 128, 128), bool)}, "a mask of more than keys"),
        ({"mask": jnp.ones(128, bool), "is_causal": True}, "a mask of keys in their order"),
        (
            {"key_value_seq_lengths": jnp.array([3, 4]), "local_window_size": (9, 0)},
            "lengths and a window",
        ),
        ({"local_window_size": 3}, "a window of 3 keys ahead"),
        ({"S": 64, "is_causal": True}, "T = 128, S = 64, which are not aligned"),
        ({"scale": jnp.float32(0.1)}, "a scale that is an array"),
        ({"T": 1}, "one key"),
        ({"S": 1}, "one key"),
    ],
)
@pytest.mark.usefixtures("present")
def test_leaves_to_others(options, reason):
    found = choice(**options)
    assert found.form == "matrix" and found.reason.startswith(f"cudnn cannot take {reason}, ")


@pytest.mark.parametrize(
    ("K", "capability", "version", "reason"),
    [
        (64, (8, 0), 90500, None),
        (256, (9, 0), 90500, None),
        (64, (7, 5), 90500, "a device of compute capability 7.5"),
        (136, (8, 9), 90500, "K = 136 on a device of compute capability 8.9"),
        (256, (12, 0), 91200, "K = 256 on a device of compute capability 12.0"),
        (64, (9, 0), 91001, "a device of compute capability 9.0 with version 91001"),
        (64, (10, 3), 91000 + 99, "a device of compute capability 10.3 with version 91099"),
    ],
)
def test_devices_and_versions(K, capability, version, reason):
    assert attention_cudnn._too_old(K, capability, version) == reason


def test_mapped_examples_are_one_batch():
    """With keys for all, and derivatives."""
    calls = []

    def attend(query, key, scale):
        calls.append(query.shape)
        return (query * key.sum(axis=1, keepdims=True) * scale, jnp.zeros_like(scale))

    x, key = jnp.arange(24.0).reshape(2, 3, 4), jnp.arange(8.0).reshape(1, 2, 4)
    folded = rules._folded(attend)
    each = jax.vmap(folded, (0, None, None))(x[:, None], key, jnp.float32(2))
    twice = jax.vmap(jax.vmap(folded, (0, None, None)), (0, None, None))
    expected = x[:, None] * key.sum(axis=1) * 2
    np.testing.assert_allclose(each[0], expected)
    assert each[1].shape == (2,) and calls[-1] == (2, 3, 4)
    np.testing.assert_allclose(twice(x[None, :, None], key, jnp.float32(2))[0][0], expected)
    assert calls[-1] == (2, 3, 4)


def test_bindings_that_have_moved_are_a_reason_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.cudnn.fused_attention_stablehlo", None)
    assert attention_cudnn._bindings() is None
    partly = types.SimpleNamespace(cuda_versions=None)
    monkeypatch.setitem(sys.modules, "jax._src.cudnn.fused_attention_stablehlo", partly)
    assert attention_cudnn._bindings() is None
    names = dict.fromkeys(attention_cudnn._NAMES)
    taken = ", ".join((*attention_cudnn._ARRAYS, *attention_cudnn._OPTIONS))
    for more, known in (("", True), (", score_mod_args, score_mod", True), (", sink", False)):
        implemented = eval(f"lambda {taken}{more}: None")
        found = types.SimpleNamespace(_dot_product_attention_fwd_impl=implemented, **names)
        monkeypatch.setitem(sys.modules, "jax._src.cudnn.fused_attention_stablehlo", found)
        assert (attention_cudnn._bindings() is found) == known
    monkeypatch.setattr(attention_cudnn, "cudnn", None)
    x = jnp.ones((1, 8, 2, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"take JAX .*, whose bindings of cuDNN are not what they"):
        F.dot_product_attention(x, x, x, implementation="cudnn")
    assert F.dot_product_attention(x, x, x).shape == x.shape


def test_asked_for_where_it_is_not():
    x = jnp.zeros((1, 8, 2, 16), jnp.bfloat16)
    with pytest.raises(ValueError, match="'cudnn': cannot take a call without a CUDA device"):
        F.dot_product_attention(x, x, x, implementation="cudnn")


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True, "local_window_size": (9, 0)},
        {"local_window_size": np.array([9, 0])},
    ],
)
def test_lowers_to_its_kernels(options, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # NumPy's numbers are numbers
    x = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)

    def loss(query, key, value):
        return F.dot_product_attention(query, key, value, **options).astype(jnp.float32).sum()

    checks = [export.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    exported = export.export(
        jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["cuda"], disabled_checks=checks
    )(x, x, x)
    together = export.export(
        jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)))), platforms=["cuda"], disabled_checks=checks
    )(*[jax.ShapeDtypeStruct((3, *x.shape), x.dtype)] * 3)
    assert "while" not in together.mlir_module() and "6x128x4x64xbf16" in together.mlir_module()
    for name in CALLS:
        assert exported.mlir_module().count(f"custom_call @{name}(") == 1


@pytest.mark.usefixtures("present")
def test_layers_keep_their_outputs_in_half_precision():
    def loss(x):
        def layer(x, _):
            return x + F.dot_product_attention(x, x, x), None

        return jax.lax.scan(layer, x, length=5)[0].astype(jnp.float32).sum()

    checks = [export.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    x = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    lower = export.export(jax.jit(jax.grad(loss)), platforms=["cuda"], disabled_checks=checks)
    module = lower(x).mlir_module()
    assert "tensor<5x2x128x4x64xbf16>" in module and "tensor<5x2x128x4x64xf32>" not in module


RNG = np.random.default_rng(1)
RESTRICTED = {
    "mask": (RNG.random((3, 1, 1, 12)) < 0.5, None, None),
    "mask for all, and lengths": (RNG.random((1, 1, 1, 12)) < 0.7, None, np.array([12, 5, 1])),
    "a mask of one for all keys": (np.array([1, 0, 1]).reshape(3, 1, 1, 1) > 0, None, None),
    "lengths": (None, np.array([12, 0, 3]), np.array([5, 12, 0])),
    "no queries": (None, np.array([0, 12, 1]), None),
    "lengths of queries": (None, np.array([1, 12, 7], np.int8), None),
}


@pytest.mark.parametrize(
    ("name", "causal"),
    [
        ("mask for all, and lengths", False),
        ("no queries", False),
        *(
            pytest.param(name, causal, marks=pytest.mark.slow)
            for name, causal in [
                ("mask", False),
                ("a mask of one for all keys", False),
                ("lengths", False),
                ("lengths", True),
                ("lengths of queries", False),
            ]
        ),
    ],
)
def test_masks_of_keys_and_lengths_are_lengths_for_its_kernels(monkeypatch, name, causal):
    """What its kernels find beyond the lengths is noise."""
    rng = np.random.default_rng(0)
    query, key, value, ct = (
        jnp.asarray(rng.normal(size=(3, 12, n, 8)), jnp.float32) for n in (4, 2, 2, 4)
    )
    fixed = attention_cudnn.Fixed(
        *(None if x is None else jnp.asarray(x) for x in RESTRICTED[name])
    )

    def attend(query, key, value, lengths, options):
        assert options["mask_type"].name == ("PADDING_CAUSAL" if causal else "PADDING")
        assert all(length.dtype == jnp.int32 and (length > 0).all() for length in lengths)
        return F.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            query_seq_lengths=lengths[0],
            key_value_seq_lengths=lengths[1],
            implementation="reference",
            return_residual=True,
        )

    def noisy(x, lengths):
        there = jnp.arange(x.shape[1]) < lengths[:, None]
        return jnp.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), x, jnp.nan)

    def fwd(query, key, value, bias, queries, keys, *nothing, **options):
        y, residual = attend(query, key, value, (queries, keys), options)
        return noisy(y, queries), noisy(residual, queries).transpose(0, 2, 1)

    def bwd(query, key, value, bias, queries, keys, *others, **options):
        *_, activation, fwd_output, grad_output = others
        assert all(jnp.isfinite(x).all() for x in (activation, fwd_output, grad_output))
        lengths = queries, keys
        pull = jax.vjp(lambda *xs: attend(*xs, lengths, options)[0], query, key, value)[1]
        dquery, dkey, dvalue = pull(grad_output)
        return noisy(dquery, queries), noisy(dkey, keys), noisy(dvalue, keys)

    for which, function in {"fwd": fwd, "bwd": bwd}.items():
        fake = types.SimpleNamespace(bind=function)
        monkeypatch.setattr(
            attention_cudnn.cudnn, f"_dot_product_attention_{which}_p_wrapper", fake
        )
    moving = attention_cudnn.Moving(query, key, value, None, jnp.float32(8**-0.5))
    kind = attention_cudnn.CuDNN(causal, None, 8**-0.5)
    fixed = attention_cudnn.by_example(moving, fixed)
    y, residual = kind.forward(moving, fixed)

    def plain(*arrays):
        mask, *lengths = fixed
        return F.dot_product_attention(
            *arrays,
            mask=mask,
            is_causal=causal,
            query_seq_lengths=lengths[0],
            key_value_seq_lengths=lengths[1],
            implementation="reference",
            return_residual=True,
        )

    (expected, log), back = jax.vjp(plain, query, key, value)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(residual.log, log, rtol=1e-5, atol=1e-6)
    gradient = kind.backward(moving, fixed, y, residual, ct)
    for actual, wanted in zip(gradient[:3], back((ct, jnp.zeros_like(log))), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "at_once"), [(None, 2), ((3, 0), 1)])
def test_passes_on_what_its_kernels_take(monkeypatch, window, at_once):
    monkeypatch.setattr(attention_cudnn, "EXAMPLES", at_once)
    rng = np.random.default_rng(0)
    query, key, value, ct = (
        jnp.asarray(rng.normal(size=(2, 12, n, 8)), jnp.float32) for n in (4, 2, 2, 4)
    )

    def attend(query, key, value, options):
        assert options["mask_type"].name == ("NO_MASK" if window is None else "CAUSAL")
        assert options["sliding_window_length"] == (None if window is None else 4)
        return F.dot_product_attention(
            query,
            key,
            value,
            scale=options["scale"],
            local_window_size=window,
            implementation="reference",
            return_residual=True,
        )

    def fwd(query, key, value, *nothing, **options):
        assert [x.size for x in nothing] == [0] * 7 and options["is_training"]
        assert len(query) == len(key) == len(value) == at_once
        y, residual = attend(query, key, value, options)
        return y, residual.transpose(0, 2, 1)

    def bwd(query, key, value, *others, **options):
        *nothing, activation, fwd_output, grad_output = others
        assert [x.size for x in nothing] == [0] * 7
        y, residual = attend(query, key, value, options)
        np.testing.assert_allclose(activation, residual.transpose(0, 2, 1), rtol=1e-6)
        np.testing.assert_allclose(fwd_output, y, rtol=1e-6)
        pull = jax.vjp(lambda *moving: attend(*moving, options)[0], query, key, value)[1]
        return pull(grad_output)

    for name, function in {"fwd": fwd, "bwd": bwd}.items():
        fake = types.SimpleNamespace(bind=function)
        monkeypatch.setattr(attention_cudnn.cudnn, f"_dot_product_attention_{name}_p_wrapper", fake)
    moving = attention_cudnn.Moving(query, key, value, None, jnp.float32(0.4))
    kind = attention_cudnn.CuDNN(False, window, 0.4)
    fixed = attention_cudnn.Fixed(None, None, None)
    y, residual = kind.forward(moving, fixed)

    def plain(*arrays):
        return F.dot_product_attention(
            *arrays, scale=0.4, local_window_size=window, return_residual=True
        )

    expected, back, _ = jax.vjp(plain, query, key, value, has_aux=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(residual.log, plain(query, key, value)[1], rtol=1e-5, atol=1e-6)
    gradient = kind.backward(moving, fixed, y, residual, ct)
    for actual, wanted in zip(gradient[:3], back(ct), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
