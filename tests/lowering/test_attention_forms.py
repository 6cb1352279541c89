"""Attention of few queries, in parts, blocks, chunks and kernels against the whole matrix.

The limits are so low that all of them act.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.functional import dot_product_attention
from attnconv.lowering import (
    attention,
    attention_cpu,
    attention_kernel,
    attention_loops,
    key_blocks,
)


@pytest.fixture(
    params=["few", "parts", "blocks", pytest.param("chunked", marks=pytest.mark.slow), "pallas"]
)
def form(request, monkeypatch):
    """Small arrays take the form; a head has several blocks of queries and of keys."""
    monkeypatch.setattr(attention, "MATRIX", 0)
    monkeypatch.setattr(attention, "PART", 300)
    monkeypatch.setattr(attention, "FEW", 1 << 40 if request.param == "few" else 0)
    monkeypatch.setattr(attention, "LONG", 0)
    for name in ("BLOCKS", "BLOCKS_NARROW"):
        monkeypatch.setattr(attention, name, 0 if request.param == "blocks" else 1 << 40)
    monkeypatch.setattr(attention, "AT_ONCE", 500)
    for name, size in {"WHOLE": 24, "STEPS": 3, "STEP": 4, "EVEN": 5}.items():
        monkeypatch.setattr(key_blocks, name, size)
    for name, size in {"ROWS": 7, "ROWS_BACK": 5, "NARROW": 6, "ROWS_NARROW": 3}.items():
        monkeypatch.setattr(attention_cpu, name, size)
    monkeypatch.setattr(attention_kernel, "OF_QUERIES", attention_loops.Sizes(8, 32, 4, 2))
    monkeypatch.setattr(attention_kernel, "OF_KEYS", attention_loops.Sizes(16, 16, 4, 2))
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


def arrays(seed, dtype=jnp.float32):
    """Random sizes, and every restriction with a chance of its own."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    B, G, T, S, K = (
        int(rng.integers(*ends)) for ends in [(2, 4), (1, 3), (2, 40), (1, 60), (2, 5)]
    )
    N = G * int(rng.integers(1, 3))
    sizes = [size if rng.random() < 0.5 else 1 for size in (B, N, T, S)]
    options = {}
    if rng.random() < 0.4:
        mask = rng.random(sizes) < 0.6
        options["mask"] = jnp.asarray(
            mask & (np.arange(sizes[3]) >= sizes[3] * rng.integers(2) / 2)
        )
    if rng.random() < 0.4:
        options["is_causal"] = True
    if rng.random() < 0.4:
        options["local_window_size"] = tuple(map(int, rng.integers(0, 9, 2)))
    if rng.random() < 0.3:
        options["query_seq_lengths"] = jnp.asarray(rng.integers(0, T + 1, B))
    if rng.random() < 0.3:
        options["key_value_seq_lengths"] = jnp.asarray(rng.integers(0, S + 1, B))
    bias = normal(*(size if rng.random() < 0.5 else 1 for size in (B, N, T, S)))
    moving = [normal(B, T, N, K), normal(B, S, G, K), normal(B, S, G, K)]
    if rng.random() < 0.5:
        moving.append(bias)
    return moving, options, normal(B, T, N, K)


def both(form, of, options, *arrays):
    """`of(attention, *arrays)`, compiled, for the form under test and for the whole matrix."""
    for name in (form if form in ("chunked", "pallas") else "auto", "reference"):
        attend = functools.partial(dot_product_attention, implementation=name, **options)
        yield jax.jit(functools.partial(of, attend))(*arrays)


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max()))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 24))]
)
def test_values_and_gradients(form, seed):
    moving, options, ct = arrays(seed)

    def of(attend, ct, scale, *moving):
        def call(scale, *moving):
            return attend(*moving, scale=scale, return_residual=True)

        out, vjp = jax.vjp(call, scale, *moving)
        return jax.tree.map(lambda x: jnp.maximum(x, -1e30), (out, vjp((ct, ct[..., 0]))))

    assert_close(*both(form, of, options, ct, jnp.float32(0.7), *moving))


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(jnp.bfloat16, 3e-2), pytest.param(jnp.float64, 1e-12, marks=pytest.mark.slow)],
)
def test_dtypes(form, dtype, tolerance):
    with jax.enable_x64(True):
        moving, options, ct = arrays(2, dtype)

        def of(attend, ct, *moving):
            y, vjp = jax.vjp(attend, *moving)
            return y, vjp(ct)

        assert_close(*both(form, of, options, ct, *moving), tolerance)


@pytest.mark.slow
def test_mixed_dtypes(form):
    (query, key, value, *_), options, ct = arrays(3)
    moving = query.astype(jnp.bfloat16), key, value.astype(jnp.float16)

    def of(attend, ct, *moving):
        y, vjp = jax.vjp(attend, *moving)
        return y, vjp(ct.astype(y.dtype))

    assert_close(*both(form, of, options, ct, *moving), 3e-2)


@pytest.mark.parametrize(
    "window",
    [
        (2**31 - 1, 3),
        pytest.param((5, 2**31 - 1), marks=pytest.mark.slow),
        pytest.param((2**31 - 40, 2**31 - 40), marks=pytest.mark.slow),
    ],
)
def test_windows_beyond_the_arrays_and_lengths_of_few_bits(form, window):
    rng = np.random.default_rng(0)
    moving = [jnp.asarray(rng.normal(size=(2, 300, 2, 3)), jnp.float32) for _ in "qkv"]
    options = {"local_window_size": window, "key_value_seq_lengths": jnp.array([100, 7], jnp.int8)}

    def of(attend, *moving):
        y, vjp = jax.vjp(attend, *moving)
        return y, vjp(jnp.cos(y))

    assert_close(*both(form, of, options, *moving))


@pytest.mark.parametrize(
    "least",
    [-1e9, *(pytest.param(x, marks=pytest.mark.slow) for x in (-1e5, float(np.finfo("f4").min)))],
)
def test_keys_that_are_all_as_good_as_masked(form, least):
    """Far from zero a logarithm is too coarse to say how many they are."""
    moving, _, ct = arrays(3)
    query, key, value, *_ = moving
    bias = jnp.zeros((query.shape[1], key.shape[1])).at[::2].set(least)

    def of(attend, ct, bias, *moving):
        y, vjp = jax.vjp(lambda *moving: attend(*moving, bias), *moving)
        return y, vjp(ct)

    tolerance = 1e-4 if least == -1e5 else 1e-5
    assert_close(*both(form, of, {}, ct, bias, query, key, value), tolerance)


def test_a_bias_has_its_gradient_whatever_the_dtypes():
    rng = np.random.default_rng(0)
    query, key, bias = (
        rng.normal(size=size) for size in [(1, 64, 1, 64), (1, 64, 1, 64), (64, 64)]
    )
    moving = jnp.asarray(query, jnp.bfloat16), *(jnp.asarray(x, jnp.float32) for x in (key, bias))

    def of(attend, *moving):
        y, vjp = jax.vjp(lambda query, key, bias: attend(query, key, key, bias), *moving)
        return y, vjp(jnp.cos(y))

    assert_close(*both("pallas", of, {}, *moving), 1e-2)


@pytest.mark.slow
def test_forward_mode_and_derivatives_of_gradients(form):
    moving, options, ct = arrays(1)

    def of(attend, ct, *moving):
        along = tuple(jnp.cos(x) for x in moving)
        gradient = jax.grad(lambda *moving: (attend(*moving) * ct).sum(), tuple(range(len(moving))))
        return (
            jax.jvp(attend, moving, along),
            jax.jvp(gradient, moving, along),
            jax.vjp(gradient, *moving)[1](along),
        )

    assert_close(*both(form, of, options, ct, *moving), 1e-4)


@pytest.mark.slow
def test_vmap_jit_checkpoint_and_shard_map(form):
    (query, key, value, *_), _, ct = arrays(3)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    data, one = P("data"), P()

    def of(attend):
        def gradients(query, key, value, scale):
            loss = jax.checkpoint(lambda *args: (attend(*args[:3], scale=args[3]) * ct).sum())
            return jax.grad(loss, (0, 1, 2, 3))(query, key, value, scale)

        scale = jnp.float32(0.5)
        scales = jnp.array([0.5, 2.0])
        sharded = jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(data, data, data, one),
            out_specs=(data, data, data, one),
            check_vma=form != "pallas",  # whose interpreter does not keep to these types
        )
        return (
            jax.vmap(gradients, (None, None, None, 0))(query, key, value, scales),
            jax.jit(gradients)(query, key, value, scale),
            jax.jit(sharded)(query, key, value, scale),
        )

    assert_close(*both(form, of, {"is_causal": True}))


def test_memory_is_linear_in_the_sequence():
    def held(T, gradient):
        x = jax.ShapeDtypeStruct((1, T, 1, 8), jnp.float32)
        compiled = jax.jit(gradient).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def gradient(implementation):
        def loss(query, key, value):
            return dot_product_attention(
                query, key, value, is_causal=True, implementation=implementation
            ).sum()

        return jax.grad(loss, (0, 1, 2))

    block = 4 * attention_cpu.ROWS * key_blocks.WHOLE
    assert held(16384, gradient("auto")) < 8 * block + 64 * 4 * 8 * 16384
    assert held(16384, gradient("auto")) < held(16384, gradient("reference")) / 16


@pytest.mark.parametrize(
    "query, key, window, expected",
    [
        ((1, 4096, 8, 64), (1, 4096, 8, 64), None, "blocks"),
        ((4, 1, 8, 64), (4, 500_000, 8, 64), None, "few"),
        ((8, 8, 8, 64), (8, 4096, 8, 64), None, "few"),
        ((8, 8, 8, 64), (8, 64, 8, 64), None, "matrix"),
        ((32, 128, 8, 64), (32, 128, 8, 64), None, "parts"),
        ((32, 128, 8, 64), (32, 128, 8, 64), (4, 4), "parts"),
        ((32, 256, 8, 64), (32, 256, 8, 64), None, "parts"),
        ((32, 256, 8, 64), (32, 256, 8, 64), (4, 4), "blocks"),
        ((32, 256, 8, 64), (32, 256, 8, 64), (60, 60), "parts"),
        ((32, 49, 4, 16), (32, 49, 4, 16), None, "matrix"),
        ((2, 4, 1, 3), (2, 0, 1, 3), None, "matrix"),
    ],
)
def test_the_form_that_shapes_take(query, key, window, expected):
    assert attention.form(query, key, False, window)[0] == expected


def test_a_window_that_does_not_look_ahead_is_narrower():
    shape = (32, 256, 8, 64)
    assert attention.form(shape, shape, True, (60, 60))[0] == "blocks"
