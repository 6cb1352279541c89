"""Attention against loops over single numbers in float64, and against jax.nn."""

import functools
import inspect
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from attnconv.functional.attention import attention_weights, dot_product_attention


class Case(NamedTuple):
    """Arrays and options of one call, all of them in NumPy."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray | None
    mask: np.ndarray | None
    options: dict

    def jax(self, dtype=None):
        arrays = [None if x is None else jnp.asarray(x) for x in self[:5]]
        arrays[:4] = [x if x is None or dtype is None else x.astype(dtype) for x in arrays[:4]]
        options = {
            name: jnp.asarray(x) if isinstance(x, np.ndarray) else x
            for name, x in self.options.items()
        }
        return arrays, options


def random_case(seed, B=2, T=5, S=6, G=2, H=2, K=3, *, batched=True, **options):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    batch = (B,) if batched else ()
    query, key = normal(*batch, T, G * H, K), normal(*batch, S, G, K)
    return Case(query, key, normal(*batch, S, G, K), None, None, options)


@st.composite
def cases(draw):
    """Any combination of grouped heads, bias, mask, causal, lengths and window."""
    # Few sizes: most of the time would go into compiling for each of many.
    B, T, S, G, H = draw(st.sampled_from([(1, 4, 3, 1, 2), (2, 3, 4, 2, 2), (2, 4, 4, 3, 1)]))
    batched = B > 1 or draw(st.booleans())
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)

    def maybe(strategy):
        return draw(st.none() | strategy)

    def matrix():
        """A shape that broadcasts to [B, N, T, S]."""
        return tuple(size if draw(st.booleans()) else 1 for size in (B, G * H, T, S))

    def lengths(n):
        return maybe(st.lists(st.integers(0, n), min_size=B, max_size=B))

    window = st.integers(0, 3)
    options = {
        "scale": maybe(st.floats(-2, 2)),
        "is_causal": draw(st.booleans()),
        "query_seq_lengths": lengths(T),
        "key_value_seq_lengths": lengths(S),
        "local_window_size": maybe(window | st.tuples(window, window)),
    }
    for name in ("query_seq_lengths", "key_value_seq_lengths"):
        if options[name] is not None:
            options[name] = np.array(options[name], np.int32)
    case = random_case(seed, B, T, S, G, H, batched=batched, **options)
    bias = rng.normal(size=matrix()).astype(np.float32) if draw(st.booleans()) else None
    mask = rng.random(matrix()) < 0.7 if draw(st.booleans()) else None
    return case._replace(bias=bias, mask=mask)


def loops(case):
    """Output, weights, logarithm of the denominators: one number at a time, in float64."""
    query, key, value, bias, mask, options = case
    if query.ndim == 3:
        y, weights, residual = loops(
            case._replace(query=query[None], key=key[None], value=value[None])
        )
        return y[0], weights[0], residual[0]
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    B, T, N, K = query.shape
    S, G = key.shape[1:3]
    scale = options.get("scale")
    scale = 1 / np.sqrt(K) if scale is None else scale
    window = options.get("local_window_size")
    left, right = window if isinstance(window, tuple) else (window, window)
    query_lengths = options.get("query_seq_lengths")
    key_lengths = options.get("key_value_seq_lengths")

    def attends(b, n, i, j):
        return (
            (mask is None or np.broadcast_to(mask, (B, N, T, S))[b, n, i, j])
            and (not options.get("is_causal") or j <= i)
            and (window is None or i - left <= j <= i + right)
            and (query_lengths is None or i < query_lengths[b])
            and (key_lengths is None or j < key_lengths[b])
        )

    y = np.zeros((B, T, N, K))
    weights = np.zeros((B, N, T, S))
    residual = np.full((B, T, N), -np.inf)
    for b, n, i in itertools.product(range(B), range(N), range(T)):
        g = n // (N // G)
        scores = {}
        for j in range(S):
            if attends(b, n, i, j):
                scores[j] = scale * sum(query[b, i, n, c] * key[b, j, g, c] for c in range(K))
                if bias is not None:
                    scores[j] += float(np.broadcast_to(bias, (B, N, T, S))[b, n, i, j])
        total = sum(np.exp(score) for score in scores.values())
        for j, score in scores.items():
            weights[b, n, i, j] = np.exp(score) / total
            y[b, i, n] += weights[b, n, i, j] * value[b, j, g]
        if scores:
            residual[b, i, n] = np.log(total)
    return y, weights, residual


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, tolerance, tolerance)


def test_signature_is_that_of_jax_nn():
    def parameters(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert parameters(dot_product_attention) == parameters(jax.nn.dot_product_attention)


@settings(deadline=None, max_examples=12)
@given(cases())
def test_loops(case):
    y, weights, residual = loops(case)
    arrays, options = case.jax()

    actual_y, actual_residual = dot_product_attention(*arrays, **options, return_residual=True)
    close(actual_y, y)
    close(actual_residual, residual)
    query, key, value, bias, mask = arrays
    actual = attention_weights(query, key, bias, mask, **options)
    close(actual, weights)
    heads = jnp.repeat(value, query.shape[-2] // value.shape[-2], axis=-2)
    close(actual_y, jnp.einsum("...nts,...snk->...tnk", actual, heads))


@settings(deadline=None, max_examples=8)
@given(cases())
def test_gradients_are_those_of_jax_nn_and_a_masked_query_adds_none(case):
    """jax.nn averages all values where every key is masked: there its gradient is cut off."""
    (query, key, value, bias, mask), options = case.jax()
    alive = np.isfinite(loops(case)[2])[..., None]
    bias = jnp.zeros((1, 1, 1, 1)) if bias is None else bias
    direction = jax.random.normal(jax.random.key(1), query.shape)

    def gradients(attention, direction):
        def loss(query, key, value, bias):
            return (attention(query, key, value, bias, mask, **options) * direction).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(query, key, value, bias)

    ours = gradients(dot_product_attention, direction)
    theirs = gradients(jax.nn.dot_product_attention, direction * alive)
    for actual, expected in zip(ours, theirs, strict=True):
        close(actual, expected)


NOTHING_TO_SEE = {
    "mask": {"mask": jnp.array([[False], [True], [True]])},
    "bias": {"bias": jnp.array([[-jnp.inf], [0.5], [0.5]])},
    "mask and causal": {"mask": jnp.arange(4)[None] > 0, "is_causal": True},
    "mask and window": {"mask": jnp.arange(4)[None] > 1, "local_window_size": 1},
}


@pytest.mark.parametrize("way", NOTHING_TO_SEE)
def test_a_query_whose_every_key_is_masked_gets_zeros_with_zero_gradients(way):
    """Query 0 sees nothing; query 2 sees two keys or more. Never NaN, not even in between."""
    options = {"bias": jnp.zeros((3, 4))} | NOTHING_TO_SEE[way]
    bias = jnp.broadcast_to(options.pop("bias"), (3, 4))
    (query, key, value, *_), _ = random_case(0, B=1, T=3, S=4).jax()

    def attend(query, key, value, bias):
        return dot_product_attention(query, key, value, bias, **options)

    @jax.jit
    def run(*arrays):
        gradients = jax.grad(lambda *arrays: (attend(*arrays) ** 2).sum(), range(4))(*arrays)
        tangents = tuple(map(jnp.ones_like, arrays))
        return *jax.jvp(attend, arrays, tangents), *gradients

    with jax.debug_nans(True):
        y, tangent, by_query, by_key, by_value, by_bias = run(query, key, value, bias)
    for x in (y[0], tangent[0], by_query[0], by_bias):
        assert (x[0] == 0).all() and (x[2] != 0).any()
    for x in (by_key, by_value):
        assert jnp.isfinite(x).all() and (x != 0).any()


@pytest.mark.parametrize("implementation", ["auto", "reference", "chunked", "pallas"])
def test_no_keys_at_all(implementation):
    (query, key, value, *_), _ = random_case(0, S=0).jax()
    y = dot_product_attention(query, key, value, implementation=implementation)
    assert (y == jnp.zeros_like(query)).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_dtypes(dtype, tolerance):
    case = random_case(3, T=16, S=16, K=8, is_causal=True)
    rounded = [np.asarray(jnp.asarray(x, dtype).astype(jnp.float32)) for x in case[:3]]
    y, weights, _ = loops(Case(*rounded, None, None, case.options))
    arrays, options = case.jax(dtype)
    actual = dot_product_attention(*arrays, **options)
    assert actual.dtype == dtype
    close(actual.astype(jnp.float32), y, tolerance)
    actual = attention_weights(*arrays[:2], **options)
    assert actual.dtype == jnp.float32
    close(actual, weights, 1e-5)
    wide, _ = case.jax()
    by_query = jax.jit(jax.grad(lambda *arrays: (dot_product_attention(*arrays) ** 2).sum()))
    gradient, expected = by_query(*arrays), by_query(*wide)
    assert gradient.dtype == dtype
    close(gradient.astype(jnp.float32), expected, 4 * tolerance)


def test_float64():
    with jax.enable_x64(True):
        case = random_case(3, is_causal=True)
        case = case._replace(bias=np.random.default_rng(0).normal(size=(1, 4, 5, 6)))
        arrays, options = case.jax("float64")
        y = dot_product_attention(*arrays, **options)
        assert y.dtype == jnp.float64
        close(y, loops(case)[0], 1e-13)
        attend = jax.jit(lambda *qkvb: dot_product_attention(*qkvb, **options))
        check_grads(attend, arrays[:4], order=1)


def test_scores_beyond_the_range_of_float16():
    """The product of the first key is 90,000; the other keys lose by far."""
    query = jnp.full((1, 1, 4), 150.0, jnp.float16)
    key = jnp.array([150.0, 100.0, -150.0], jnp.float16)[:, None, None] * jnp.ones(
        (1, 1, 4), jnp.float16
    )
    value = jnp.array([7.0, 8.0, 9.0], jnp.float16)[:, None, None] * jnp.ones(
        (1, 1, 4), jnp.float16
    )
    assert (dot_product_attention(query, key, value, scale=1.0) == 7.0).all()


def test_mixed_dtypes_follow_the_query():
    (query, key, value, *_), _ = random_case(0).jax()
    y = dot_product_attention(query, key.astype(jnp.bfloat16), value.astype(jnp.bfloat16))
    assert y.dtype == jnp.float32
    close(y, dot_product_attention(query, key, value), 3e-2)


def test_scale_may_be_zero_and_may_be_learned():
    (query, key, value, *_), _ = random_case(0, H=1).jax()
    y = dot_product_attention(query, key, value, scale=0.0)
    close(y, jnp.broadcast_to(value.mean(axis=1, keepdims=True), query.shape))
    loss = lambda scale: (dot_product_attention(query, key, value, scale=scale) ** 2).sum()  # noqa: E731
    step = 1e-2
    slope = (loss(0.5 + step) - loss(0.5 - step)) / (2 * step)
    close(jax.grad(loss)(0.5), slope, 1e-2)


def test_jit_equals_eager():
    (query, key, value, *_), _ = random_case(2).jax()
    bias = jax.random.normal(jax.random.key(0), (1, 4, 5, 6))
    options = {"is_causal": True, "local_window_size": (2, 0), "return_residual": True}

    def attend(query, key, value, bias, lengths):
        return dot_product_attention(
            query, key, value, bias, key_value_seq_lengths=lengths, **options
        )

    arrays = query, key, value, bias, jnp.array([0, 4])
    for actual, expected in zip(jax.jit(attend)(*arrays), attend(*arrays), strict=True):
        close(actual, expected, 1e-6)


def test_vmap_and_scan_equal_the_batch():
    (query, key, value, *_), _ = random_case(5, B=3).jax()
    lengths = jnp.array([0, 3, 6])
    expected = dot_product_attention(query, key, value, key_value_seq_lengths=lengths)

    def one(query, key, value, length):
        return dot_product_attention(query, key, value, key_value_seq_lengths=length)

    close(jax.vmap(one)(query, key, value, lengths), expected)
    _, scanned = jax.lax.scan(lambda c, x: (c, one(*x)), 0, (query, key, value, lengths))
    close(scanned, expected)
    close(one(query[1], key[1], value[1], lengths[1:2]), expected[1])


def test_the_residual_has_no_gradient():
    (query, key, value, *_), _ = random_case(0).jax()
    residual = lambda q: dot_product_attention(q, key, value, return_residual=True)[1].sum()  # noqa: E731
    assert (jax.grad(residual)(query) == 0).all()


def test_memory_holds_few_matrices_of_scores():
    """Two forward (scores, weights), three with the gradient; the mask is not one of them."""
    B, T, N, K = 1, 256, 4, 8
    shape = jax.ShapeDtypeStruct((B, T, N, K), jnp.float32)

    def matrices(function):
        compiled = jax.jit(function).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * B * N * T * T)

    def attend(query, key, value):
        return dot_product_attention(query, key, value, is_causal=True)

    assert matrices(attend) < 2.5
    assert matrices(jax.grad(lambda *qkv: (attend(*qkv) ** 2).sum(), (0, 1, 2))) < 3.5


@pytest.fixture
def without_runtime_types(monkeypatch):
    """The checks of the tests would refuse a wrong shape before the function's own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


QUERY, KEY = jnp.zeros((2, 5, 4, 3)), jnp.zeros((2, 6, 2, 3))


@pytest.mark.parametrize(
    ("dtype", "lengths", "meant"),
    [
        (np.uint8, [250, 0], [250, 0]),
        (np.int8, [-1, 127], [0, 127]),
        (np.uint32, [2**32 - 1, 2**31], [300, 300]),
        (np.int32, [-(2**31), 301], [0, 300]),
    ],
)
@pytest.mark.parametrize("implementation", ["auto", "reference", "pallas"])
def test_lengths_are_any_integers(without_runtime_types, dtype, lengths, meant, implementation):
    """Beyond the sequence they are its ends, as the reference alone would have it."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 300, 2, 16))
    attend = functools.partial(dot_product_attention, query[:, :7], key, value)
    seen = np.arange(300) < np.array(meant)[:, None, None, None]
    found = attend(key_value_seq_lengths=jnp.array(lengths, dtype), implementation=implementation)
    expected = attend(mask=jnp.array(seen), implementation="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_numpy_makes_an_array_is_one(without_runtime_types):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 3, 2, 4))
    attend = functools.partial(dot_product_attention, query, key, value)
    mask, bias = [[True, False, True]] * 3, [[0.0, 1.0, 2.0]]
    found = attend(mask=mask, bias=bias, key_value_seq_lengths=np.array([2**40, 2]))
    expected = attend(
        mask=jnp.array(mask), bias=jnp.array(bias), key_value_seq_lengths=jnp.array([3, 2])
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(attend(mask=True, key_value_seq_lengths=[3, 3]), attend())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": QUERY[0, 0]}, r"query: expected shape \[B, T, N, K\], got \[4, 3\]"),
        ({"query": QUERY.astype(int)}, "query: expected a floating dtype, got int32"),
        ({"key": KEY[..., :2]}, r"key: expected shape \[2, S, G, 3\], got \[2, 6, 2, 2\]"),
        ({"key": KEY[:1]}, r"key: expected shape \[2, S, G, 3\], got \[1, 6, 2, 3\]"),
        ({"key": KEY[0]}, r"key: expected shape \[2, S, G, 3\], got \[6, 2, 3\]"),
        ({"value": KEY[:, :5]}, r"value: expected shape \[2, 6, 2, 3\], got \[2, 5, 2, 3\]"),
        ({"value": KEY.astype(int)}, "value: expected a floating dtype, got int32"),
        ({"query": QUERY[:, :, :3]}, "key: expected a number of heads that divides the 3 heads"),
        ({"mask": jnp.zeros((5, 6))}, "mask: expected a boolean array, .* got float32"),
        ({"mask": jnp.zeros((6, 5), bool)}, r"mask: .* \[2, 4, 5, 6\], .* got \[6, 5\]"),
        ({"bias": jnp.zeros((2, 5, 6))}, r"bias: .* \[2, 4, 5, 6\], .* got \[2, 5, 6\]"),
        ({"bias": jnp.zeros((1, 1, 1, 5, 6))}, r"bias: .* got \[1, 1, 1, 5, 6\]"),
        (
            {"query_seq_lengths": jnp.array([1])},
            r"query_seq_lengths: .* \[2\], got int32 of .*\[1\]",
        ),
        ({"key_value_seq_lengths": jnp.ones(2)}, "key_value_seq_lengths: .* got float32"),
        ({"local_window_size": (1, -1)}, r"local_window_size: .* got \(1, -1\)"),
        ({"local_window_size": (1, 1, 1)}, r"local_window_size: .* got \(1, 1, 1\)"),
        ({"implementation": "refrence"}, "implementation 'refrence'; did you mean 'reference'"),
    ],
)
def test_errors_name_the_argument(without_runtime_types, changes, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(**{"query": QUERY, "key": KEY, "value": KEY} | changes)


def test_implementations_agree():
    (query, key, value, *_), _ = random_case(1).jax()
    expected = dot_product_attention(query, key, value)
    for name in ("auto", "reference", "chunked", "pallas"):
        y = dot_product_attention(query, key, value, implementation=name)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_features_that_kernels_cannot_hold():
    (query, key, value, *_), _ = random_case(1, K=129).jax()
    with pytest.raises(ValueError, match="features of at most 512 bytes"):
        dot_product_attention(query, key, value, implementation="pallas")


@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 0, 2, 4), (1, 3, 2, 0)])
def test_nothing_of_an_axis(shape):
    x = jnp.zeros(shape)
    y, back = jax.vjp(lambda x: dot_product_attention(x, x, x), x)
    assert y.shape == back(y)[0].shape == shape


def test_a_bias_of_integers(without_runtime_types):
    (query, key, value, *_), _ = random_case(0, T=400, S=400).jax()
    bias = jnp.arange(400) % 3

    def loss(bias, query):
        return dot_product_attention(query, key, value, bias).sum()

    found = jax.grad(functools.partial(loss, bias))(query)
    expected = jax.grad(functools.partial(loss, bias.astype(jnp.float32)))(query)
    np.testing.assert_array_equal(found, expected)
