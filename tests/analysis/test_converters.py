"""Converters along the bias ladder: each layer against the one that it is made from, and loops."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from attnconv import functional as F
from attnconv import nn
from attnconv.analysis import converters
from attnconv.errors import UsageError

pytestmark = pytest.mark.slow

PADDINGS = ("SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", "explicit")


class Case(NamedTuple):
    """A random convolution: an image, its weights and options."""

    x: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    options: dict

    @property
    def spatial(self):
        return self.x.shape[1:-1]

    @property
    def weights(self):
        return jnp.asarray(self.kernel), jnp.asarray(self.bias)

    def conv(self):
        return F.conv(jnp.asarray(self.x), *self.weights, **self.options)


def random_case(rank, padding, seed=0, **fixed):
    """Sizes that the window fits into, also where the image is mirrored."""
    rng = np.random.default_rng([rank, PADDINGS.index(padding), seed])

    def each(low, high):
        return tuple(map(int, rng.integers(low, high + 1, rank)))

    window, stride = each(1, 3 if rank < 3 else 2), each(1, 3)
    dilation = each(1, 2)
    spatial = tuple(
        (k - 1) * d + extra for k, d, extra in zip(window, dilation, each(1, 3), strict=True)
    )
    if padding == "explicit":
        padding = tuple(zip(each(0, 2), each(0, 2), strict=True))
    groups, inputs, outputs = [(1, 2, 3), (2, 1, 2), (3, 2, 1), (1, 1, 2)][int(rng.integers(4))]
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    options |= fixed

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x = normal(2, *spatial, groups * inputs)
    kernel, bias = normal(*window, inputs, groups * outputs), normal(groups * outputs)
    return Case(x, kernel, bias, options)


def without_groups(case):
    return {key: value for key, value in case.options.items() if key != "groups"}


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(np.float64(actual), np.float64(expected), tolerance, tolerance)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --- convolution, local connection, dense, attention ---


@functools.partial(jax.jit, static_argnums=0)
def forms(case_of, x, weights, local):
    """All that is made of a convolution and of a local connection, as one program."""
    spatial, options = case_of()
    plain = {key: value for key, value in options.items() if key != "groups"}

    def dense(matrix, vector):
        return x.reshape(len(x), -1) @ matrix + vector

    shared = converters.local_from_conv(*weights, spatial, **options)
    attention = converters.attention_from_conv(*weights, spatial, **options)
    matrix, vector = converters.dense_from_local(*local, spatial, **plain)
    return {
        "conv": F.conv(x, *weights, **options),
        "shared": F.locally_connected(x, *shared, **plain),
        "shared as a matrix": dense(*converters.dense_from_local(*shared, spatial, **plain)),
        "local": F.locally_connected(x, *local, **plain),
        "matrix": matrix,
        "local as a matrix": dense(matrix, vector),
        "attention": attention(x),
        "multi-head attention": moved(attention, x),
        "gated": with_content(converters.gated_from_conv(*weights, spatial, **options))(x),
        "keys": (attention.position == 0).sum(axis=-1),
    }


def moved(attention, x):
    """The same by the module, with the parameters and a mask of the keys at distance zero."""
    heads, channels, features = attention.params["out"]["kernel"].shape
    layer = nn.MultiHeadAttention(
        heads,
        channels,
        qkv_features=heads * channels,
        out_features=features,
        decode=False,
        rngs=nnx.Rngs(0),
    )
    for name, values in attention.params.items():
        for key, value in values.items():
            param = getattr(getattr(layer, name), key)
            assert param.shape == value.shape
            param[...] = value
    at_query, at_key = attention.vectors(x)
    return layer(at_query, at_key, mask=attention.position == 0)


def with_content(start):
    """The same with queries and keys of random numbers."""
    params = dict(start.params)
    for seed, name in enumerate(("query", "key")):
        params[name] = {key: normal(seed, *value.shape) for key, value in params[name].items()}
    return start._replace(params=params)


class Made(NamedTuple):
    case: Case
    local: tuple
    forms: dict


@pytest.fixture(
    scope="module", params=[(rank, padding) for rank in (1, 2, 3) for padding in PADDINGS], ids=str
)
def made(request):
    case = random_case(*request.param)
    shape = F.local_kernel_shape(
        case.spatial, case.kernel.shape[:-2], case.x.shape[-1], 2, **without_groups(case)
    )
    local = normal(1, *shape), normal(2, *shape[: len(case.spatial)], 2)
    found = forms(lambda: (case.spatial, case.options), jnp.asarray(case.x), case.weights, local)
    return Made(case, local, found)


@pytest.mark.parametrize(
    "form",
    ["shared", "shared as a matrix", "attention", "multi-head attention", "gated"],
)
def test_each_form_of_a_convolution_is_the_convolution(made, form):
    expected = made.forms["conv"]
    close(made.forms[form].reshape(expected.shape), expected, 2e-5)


def test_each_head_of_each_query_sees_the_one_key_at_its_offset(made):
    keys, size = made.forms["keys"], made.forms["conv"].shape[1:-1]
    assert keys.shape == (1, math.prod(made.case.kernel.shape[:-2]), math.prod(size))
    assert (keys == 1).all()


def sources(spatial, window, *, stride, dilation, padding):
    """For each position and offset of the window the flat index of what it sees; -1 is a zero."""
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}.get(str(padding), "constant")
    if padding == "SAME":
        totals = [
            max((math.ceil(n / s) - 1) * s + span - n, 0)
            for n, s, span in zip(spatial, stride, spans, strict=True)
        ]
        padding = [(total // 2, total - total // 2) for total in totals]
    elif mode != "constant":
        padding = [((span - 1) // 2, span // 2) for span in spans]
    elif padding in ("VALID", "CAUSAL"):
        padding = [(span - 1 if padding == "CAUSAL" else 0, 0) for span in spans]
    flat = np.arange(math.prod(spatial)).reshape(spatial)
    fill = {"constant_values": -1} if mode == "constant" else {}
    flat = np.pad(flat, padding, mode, **fill)
    size = [
        len(range(0, n - span + 1, s)) for n, span, s in zip(flat.shape, spans, stride, strict=True)
    ]
    seen = np.zeros((*size, *window), int)
    for i in np.ndindex(*size):
        for k in np.ndindex(*window):
            seen[i + k] = flat[
                tuple(a * s + b * d for a, s, b, d in zip(i, stride, k, dilation, strict=True))
            ]
    return seen


def test_a_local_connection_is_a_matrix_with_its_weights_where_loops_put_them(made):
    case, (kernel, _), found = made
    window, channels = case.kernel.shape[:-2], case.x.shape[-1]
    size = kernel.shape[: len(window)]
    kernel = np.asarray(kernel)
    expected = np.zeros((math.prod(case.spatial), channels, math.prod(size), 2))
    seen = sources(case.spatial, window, **without_groups(case))
    assert seen.shape == (*size, *window)
    for place, i in enumerate(np.ndindex(*size)):
        for k in np.ndindex(*window):
            if seen[i + k] >= 0:
                expected[seen[i + k], :, place] += kernel[i + k]
    close(found["matrix"], expected.reshape(found["matrix"].shape))
    y = found["local"]
    close(found["local as a matrix"].reshape(y.shape), y, 2e-5)


def test_without_a_bias_it_is_zero():
    case = random_case(2, "SAME")
    kernel, bias = converters.local_from_conv(case.weights[0], None, case.spatial, **case.options)
    assert (bias == 0).all()
    _, vector = converters.dense_from_local(kernel, None, case.spatial, **without_groups(case))
    assert vector.shape == (bias.size,) and (vector == 0).all()


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_ungrouped_has_zeros_between_groups(groups):
    kernel = np.random.default_rng(0).normal(size=(3, 2, 2, 6)).astype(np.float32)
    expected = np.zeros((3, 2, 2 * groups, 6))
    share = 6 // groups
    for g in range(groups):
        own = slice(g * share, (g + 1) * share)
        expected[:, :, 2 * g : 2 * g + 2, own] = kernel[..., own]
    close(converters.ungrouped(jnp.asarray(kernel), groups), expected, 0)


@pytest.mark.parametrize("groups", [0, -1, 4])
def test_groups_that_do_not_divide_the_features_are_refused(groups):
    message = f"groups={groups}: expected a divisor of the kernel's 6 features"
    with pytest.raises(UsageError, match=message):
        converters.ungrouped(jnp.ones((3, 2, 6)), groups)


@pytest.mark.parametrize("rank, padding", [(1, "CAUSAL"), (2, "SAME"), (2, "CIRCULAR")])
def test_the_error_falls_as_the_sharpness_grows(rank, padding):
    case = random_case(rank, padding, stride=1)
    expected = case.conv()

    @functools.partial(jax.jit, static_argnums=0)
    def error(sharpness):
        attention = converters.attention_from_conv(
            *case.weights, case.spatial, **case.options, sharpness=sharpness
        )
        return jnp.abs(attention(jnp.asarray(case.x)) - expected).max()

    errors = [error(sharpness) for sharpness in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[0] > 0.1
    assert error(40.0) < 1e-4


def test_gradients_are_those_of_the_convolution():
    case = random_case(2, "SAME", groups=1)
    x, (kernel, bias) = jnp.asarray(case.x), case.weights
    kernel = normal(3, *kernel.shape[:-2], x.shape[-1], len(bias))

    def as_attention(x, kernel, bias):
        return converters.attention_from_conv(kernel, bias, case.spatial, **case.options)(x)

    def gradients(layer):
        def loss(*arrays):
            return jnp.sin(layer(*arrays)).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(x, kernel, bias)

    expected = gradients(lambda *arrays: F.conv(*arrays, **case.options))
    for actual, wanted in zip(gradients(as_attention), expected, strict=True):
        close(actual, wanted, 1e-4)


# --- convolution behind a gate ---


def test_a_gate_mixes_the_convolution_with_attention_by_content():
    case = random_case(2, "SAME", stride=1, dilation=1)
    x = jnp.asarray(case.x)

    @jax.jit
    def of(gate):
        start = converters.gated_from_conv(*case.weights, case.spatial, **case.options)
        start = with_content(start)
        gates = jnp.full_like(start.gate, gate)
        plain = start._replace(gate=None, position=jnp.zeros_like(start.position))
        return start._replace(gate=gates)(x), plain(x)

    by_content, attention = of(-jnp.inf)
    by_position, _ = of(jnp.inf)
    close(by_content, attention)
    assert float(jnp.abs(by_content - by_position).max()) > 0.1
    for gate in (-1.5, 0.0, 1.0):
        share = 1 / (1 + math.exp(-gate))
        close(of(gate)[0], (1 - share) * by_content + share * by_position)
    start = converters.gated_from_conv(*case.weights, case.spatial, gate=1.0, **case.options)
    assert start.gate.tolist() == [1.0] * start.position.shape[1]


# --- neighborhood attention and depthwise convolution ---

WINDOWS = [
    ((4,), (1,), False),
    ((3,), (2,), False),
    ((3,), (2,), True),
    ((3, 2), (1, 2), False),
    ((2, 3), (2, 1), (True, False)),
    ((3, 2, 1), (1, 1, 2), False),
]


def around(window, dilation, is_causal):
    """How far a window reaches before and after its query, along each axis."""
    causal = is_causal if isinstance(is_causal, tuple) else (is_causal,) * len(window)
    before = [k - 1 if c else (k - 1) // 2 for k, c in zip(window, causal, strict=True)]
    return [(b * d, (k - 1 - b) * d) for b, k, d in zip(before, window, dilation, strict=True)]


@pytest.mark.parametrize("window, dilation, is_causal", WINDOWS)
def test_without_queries_neighborhood_attention_is_a_depthwise_convolution(
    window, dilation, is_causal
):
    heads, features = 2, 3
    grid = tuple((k + 1) * d + 1 for k, d in zip(window, dilation, strict=True))
    bias, key = normal(0, heads, *window), normal(1, 2, *grid, heads, features)
    value = normal(2, 2, *grid, heads, features)
    reach = around(window, dilation, is_causal)
    kernel = converters.depthwise_from_neighborhood(bias, features)
    assert kernel.shape == (*window, 1, heads * features)
    image = value.reshape(2, *grid, -1)
    convolved = F.conv(image, kernel, padding=reach, dilation=dilation, groups=heads * features)

    def attend(key, value):
        y = F.neighborhood_attention(
            jnp.zeros_like(key),
            key,
            value,
            window=window,
            dilation=dilation,
            is_causal=is_causal,
            bias=bias,
            border="zero",
        )
        return y.reshape(*y.shape[:-2], -1)

    def inner(x, sides):
        return x[
            (
                slice(None),
                *(
                    slice(low, n - high)
                    for (low, high), n in zip(sides, x.shape[1:-1], strict=True)
                ),
            )
        ]

    close(inner(attend(key, value), reach), inner(convolved, reach))
    if any(map(any, reach)):
        assert not np.allclose(attend(key, value), convolved, atol=1e-3), "the border differs"
    zeros = [(0, 0), *reach, (0, 0), (0, 0)]
    extended = attend(jnp.pad(key, zeros), jnp.pad(value, zeros))
    close(inner(extended, reach), convolved)


def test_a_depthwise_convolution_of_weights_that_sum_to_one_is_neighborhood_attention():
    window, channels, grid = (3, 2), 4, (5, 6)
    kernel = jax.nn.softmax(normal(0, 6, channels), axis=0).reshape(*window, 1, channels)
    bias = converters.neighborhood_from_depthwise(kernel)
    assert bias.shape == (channels, *window)
    close(converters.depthwise_from_neighborhood(bias, 1), kernel)
    x = normal(1, 2, *grid, channels)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)))[..., None]
    y = F.neighborhood_attention(
        jnp.zeros_like(padded), padded, padded, window=window, bias=bias, border="zero"
    )
    close(y[:, 1:-1, :-1, :, 0], F.conv(x, kernel, padding=((1, 1), (0, 1)), groups=channels))


@pytest.mark.parametrize(
    "weights, message",
    [
        ([0.5, 0.6], r"the least 0.5 and sums from 1.1 to 1.1"),
        ([1.5, -0.5], r"the least -0.5 and sums from 1 to 1"),
        ([math.nan, 0.5], "expected weights of no less than 0"),
    ],
)
def test_weights_that_no_softmax_gives_are_refused(weights, message):
    with pytest.raises(UsageError, match=message):
        converters.neighborhood_from_depthwise(jnp.array(weights).reshape(2, 1, 1))


@pytest.mark.parametrize("border", ["zero", "shift"])
@pytest.mark.parametrize("window, dilation", [(3, 1), (2, 1), (2, 2), (4, 1), (4, 2), (3, 2)])
def test_the_padding_that_is_told_makes_it_the_same_inside(border, window, dilation):
    bias, x = normal(0, 1, window), normal(1, 1, 24, 1)
    before = (window - 1) // 2 if border == "zero" else window // 2
    sides = before * dilation, (window - 1 - before) * dilation
    kernel = converters.depthwise_from_neighborhood(bias, 1)
    vectors = x[..., None]
    y = F.neighborhood_attention(
        jnp.zeros_like(vectors),
        vectors,
        vectors,
        window=window,
        dilation=dilation,
        bias=bias,
        border=border,
    )[..., 0]
    inside = slice(2 * dilation * window, -2 * dilation * window or None)
    convolved = F.conv(x, kernel, padding=(sides,), dilation=dilation)
    assert convolved.shape == x.shape
    close(y[:, inside], convolved[:, inside])
    if window % 2:
        close(convolved, F.conv(x, kernel, dilation=dilation))


def test_a_weight_of_zero_is_a_bias_of_minus_infinity():
    kernel = converters.depthwise_from_neighborhood(jnp.array([[0.0, 200.0, -jnp.inf]]), 1)
    bias = converters.neighborhood_from_depthwise(kernel)
    np.testing.assert_array_equal(bias, [[-jnp.inf, 0, -jnp.inf]])
    np.testing.assert_array_equal(converters.depthwise_from_neighborhood(bias, 1), kernel)


def test_no_examples_are_attended_to():
    attention = converters.attention_from_conv(jnp.ones((3, 1, 2)), None, (4,))
    assert attention(jnp.ones((0, 4, 1))).shape == (0, 4, 2)


def test_a_kernel_that_is_not_depthwise_is_refused(monkeypatch):
    # The checks of the tests would refuse the shape before the function's own message.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=r"kernel: expected \[\*window, 1, O\], got \[2, 3, 1\]"):
        converters.neighborhood_from_depthwise(jnp.full((2, 3, 1), 0.5))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)])
def test_a_window_as_large_as_the_grid_is_global_attention(grid):
    arrays = [normal(i, 2, *grid, 2, 3) for i in range(3)]
    table = normal(3, 2, *(2 * n - 1 for n in grid))

    @jax.jit
    def of(arrays, table):
        flat = [x.reshape(2, -1, 2, 3) for x in arrays]
        pairs = F.neighborhood_bias(grid, window=grid)
        by_offset = F.neighborhood_bias(grid, window=grid, bias=table)
        relative = F.positions.relative_bias(table, grid)
        plain, biased = (
            F.neighborhood_attention(*arrays, window=grid, bias=bias) for bias in (None, table)
        )
        everywhere = F.dot_product_attention(*flat)
        return pairs, [
            (by_offset, relative),
            (F.dot_product_attention(*flat, pairs), everywhere),
            (plain.reshape(everywhere.shape), everywhere),
            (biased.reshape(everywhere.shape), F.dot_product_attention(*flat, relative)),
        ]

    pairs, equal = of(arrays, table)
    assert (pairs == 0).all()
    for actual, expected in equal:
        close(actual, expected)
