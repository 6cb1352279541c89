"""Convolution against loops in float64, jax.lax and Flax."""

import functools
import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from attnconv import functional as F

NHWC = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
examples = functools.partial(settings, deadline=None, derandomize=True)


def loops(x, kernel, ct, *, stride, pads, dilation, groups):
    """y and, for the cotangent ct (None: ones), dx and dkernel; a position at a time."""
    x, kernel = np.float64(x), np.float64(kernel)
    rank = kernel.ndim - 2
    window, (inputs, outputs) = kernel.shape[:rank], (kernel.shape[-2], kernel.shape[-1] // groups)
    image = np.pad(x, [(0, 0), *pads, (0, 0)])
    size = [
        len(range(0, n - (k - 1) * d, s))
        for n, k, s, d in zip(image.shape[1:-1], window, stride, dilation, strict=True)
    ]
    y = np.zeros((len(x), *size, kernel.shape[-1]))
    ct = np.ones_like(y) if ct is None else np.float64(ct)
    dimage, dkernel = np.zeros_like(image), np.zeros_like(kernel)
    for i in np.ndindex(*size):
        for k in np.ndindex(*window):
            at = tuple(a * s + b * d for a, s, b, d in zip(i, stride, k, dilation, strict=True))
            for g in range(groups):
                c, o = slice(g * inputs, (g + 1) * inputs), slice(g * outputs, (g + 1) * outputs)
                seen, weights = image[(slice(None), *at, c)], kernel[(*k, slice(None), o)]
                here = ct[(slice(None), *i, o)]
                y[(slice(None), *i, o)] += seen @ weights
                dimage[(slice(None), *at, c)] += here @ weights.T
                dkernel[(*k, slice(None), o)] += seen.T @ here
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(pads, x.shape[1:-1], strict=True))
    return y, dimage[(slice(None), *inner)], dkernel


def same(n, span, stride):
    """Zeros that make every stride-th position, the first included, the seat of a window."""
    total = max(stride * (len(range(0, n, stride)) - 1) + span - n, 0)
    return total // 2, total - total // 2


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@st.composite
def cases(draw, gaps=False):
    """x, kernel and the keywords of loops; the window always fits."""
    rank = draw(st.integers(1, 3))

    def each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    window, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    spatial = tuple(
        (k - 1) * d + extra for k, d, extra in zip(window, dilation, each(1, 4), strict=True)
    )
    pads = tuple(zip(each(0, 2), each(0, 2), strict=True))
    groups, inputs, outputs = draw(
        st.sampled_from([(1, 2, 3), (1, 9, 2), (1, 1, 1), (2, 2, 1), (3, 1, 1), (3, 1, 2)])
    )
    seed, batch = draw(st.integers(0, 99)), draw(st.integers(1, 2))
    x = normal(seed, (batch, *spatial, groups * inputs))
    kernel = normal(seed + 1, (*window, inputs, groups * outputs))
    options = {"stride": stride, "pads": pads, "dilation": dilation, "groups": groups}
    return x, kernel, options | ({"gaps": each(1, 2)} if gaps else {})


def value_and_vjp(function, x, kernel, ct=None):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(jnp.ones_like(y) if ct is None else ct)


def cosines(shape):
    return jnp.cos(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)


def assert_close(actual, expected, tolerance=1e-4):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=tolerance, atol=tolerance)


@examples(max_examples=16)
@given(cases())
def test_values_and_gradients_are_those_of_loops(case):
    x, kernel, options = case
    keywords = {k: v for k, v in options.items() if k != "pads"} | {"padding": options["pads"]}
    conv = functools.partial(F.conv, **keywords)
    ct = cosines(jax.eval_shape(conv, x, kernel).shape)
    actual = jax.jit(functools.partial(value_and_vjp, conv))(x, kernel, ct)
    assert_close(actual, loops(x, kernel, ct, **options))


@examples(max_examples=12)
@given(cases(gaps=True))
def test_gaps_in_the_image(case):
    x, kernel, options = case
    numbers = NHWC[kernel.ndim - 2]
    arguments = {
        "window_strides": options["stride"],
        "padding": options["pads"],
        "lhs_dilation": options["gaps"],
        "rhs_dilation": options["dilation"],
        "feature_group_count": options["groups"],
        "dimension_numbers": numbers,
    }
    ours, stock = (
        functools.partial(f, **arguments)
        for f in (F.conv_general_dilated, lax.conv_general_dilated)
    )
    ct = cosines(jax.eval_shape(stock, x, kernel).shape)
    actual, expected = (
        jax.jit(functools.partial(value_and_vjp, form))(x, kernel, ct) for form in (ours, stock)
    )
    assert_close(actual, expected)


# Dense, image by image, by gathering, merged groups, depthwise, depthwise with a multiplier.
FORMS = [
    ((2, 6, 5, 8), (3, 3, 8, 6), 1),
    ((2, 32, 32, 64), (3, 2, 64, 65), 1),
    ((2, 7, 6, 2), (3, 3, 2, 4), 1),
    ((2, 6, 5, 8), (3, 3, 2, 12), 4),
    ((2, 5, 4, 68), (3, 2, 17, 8), 4),
    ((2, 6, 5, 8), (3, 3, 1, 8), 8),
    ((2, 6, 5, 4), (3, 3, 1, 8), 4),
]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, kernel_shape, groups", FORMS)
def test_derivatives_of_every_order_and_mode(shape, kernel_shape, groups, stride):
    x, kernel = normal(0, shape), normal(1, kernel_shape) / np.prod(kernel_shape[:3]) ** 0.5
    dx, dkernel = normal(2, shape), normal(3, kernel_shape)
    options = {"window_strides": (stride, stride), "padding": "SAME", "dimension_numbers": NHWC[2]}
    options["feature_group_count"] = groups

    def all_of(form):
        conv = functools.partial(form, **options)
        loss = jax.grad(lambda x, kernel: jnp.sin(conv(x, kernel)).sum(), (0, 1))
        return (
            jax.jvp(conv, (x, kernel), (dx, dkernel)),
            jax.jvp(loss, (x, kernel), (dx, dkernel)),
            jax.vjp(loss, x, kernel)[1]((dx, dkernel)),
            jax.grad(lambda kernel: (loss(x, kernel)[1] ** 2).sum())(kernel),
        )

    actual, expected = (
        jax.jit(functools.partial(all_of, f))()
        for f in (F.conv_general_dilated, lax.conv_general_dilated)
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3)])
@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_vmap_over_images_kernels_and_both(axes, groups):
    x, kernel = normal(0, (3, 3, 6, 5, 4)), normal(1, (3, 3, 2, 4 // groups, 4))
    x = x if axes[0] is not None else x[0]
    kernel = kernel if axes[1] is not None else kernel[0]
    if axes[1] == 3:
        kernel = jnp.moveaxis(kernel, 0, 3)

    def gradients(form):
        def loss(x, kernel):
            y = form(x, kernel, (1, 1), "SAME", None, None, NHWC[2], groups)
            return jnp.sin(y).sum()

        return jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(x, kernel)

    assert_close(gradients(F.conv_general_dilated), gradients(lax.conv_general_dilated))


@pytest.mark.parametrize("groups, stride", [(1, 1), (1, 9), (4, 1)])
def test_large_windows(groups, stride):
    x, kernel = normal(0, (1, 10, 9, 4)), normal(1, (9, 9, 4 // groups, 4))
    options = {"stride": (stride,) * 2, "dilation": (1, 1), "groups": groups}
    expected = loops(x, kernel, None, pads=[(4, 4), (4, 4)], **options)
    conv = functools.partial(F.conv, padding=4, **options)
    assert_close(jax.jit(functools.partial(value_and_vjp, conv))(x, kernel), expected)


@pytest.mark.parametrize("rank, stride", [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL", "CIRCULAR", "REFLECT", "same", 2])
def test_named_padding(padding, rank, stride):
    dilation, n = 2, 7
    x, kernel = normal(0, (2, *[n] * rank, 3)), normal(1, (*range(3, 3 + rank), 3, 4))
    spans = [(k - 1) * dilation + 1 for k in kernel.shape[:rank]]
    whole = [((s - 1) // 2, s // 2) for s in spans]
    pads, mode = {
        "SAME": ([same(n, s, stride) for s in spans], "constant"),
        "VALID": ([(0, 0)] * rank, "constant"),
        "CAUSAL": ([(s - 1, 0) for s in spans], "constant"),
        "CIRCULAR": (whole, "wrap"),
        "REFLECT": (whole, "reflect"),
        "2": ([(2, 2)] * rank, "constant"),
    }[str(padding).upper()]
    image = np.pad(np.float64(x), [(0, 0), *pads, (0, 0)], mode)
    geometry = {"stride": (stride,) * rank, "dilation": (dilation,) * rank, "groups": 1}
    expected, *_ = loops(image, kernel, None, pads=[(0, 0)] * rank, **geometry)
    actual = F.conv(x, kernel, padding=padding, stride=stride, dilation=dilation)
    assert_close([actual], [expected])
    assert_close([F.conv(x[0], kernel, padding=padding, stride=stride, dilation=2)], [expected[0]])


@pytest.mark.parametrize("padding", [1, [1, 2], [[0, 1], [2, 0]]])
def test_padding_of_numpy(monkeypatch, padding):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, kernel = normal(0, (1, 5, 6, 2)), normal(1, (3, 2, 2, 3))
    found = F.conv(x, kernel, padding=np.array(padding))
    np.testing.assert_array_equal(found, F.conv(x, kernel, padding=padding))


def test_bias_is_added_to_every_position():
    x, kernel, bias = normal(0, (2, 5, 5, 3)), normal(1, (3, 3, 3, 4)), normal(2, (4,))
    plain = F.conv(x, kernel)
    np.testing.assert_allclose(
        F.conv(x, kernel, bias) - plain, jnp.broadcast_to(bias, plain.shape), atol=1e-6
    )
    gradient = jax.grad(lambda b: F.conv(x, kernel, b).sum())(bias)
    np.testing.assert_allclose(gradient, [50.0] * 4)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(dtype, groups):
    dtype = jnp.dtype(dtype)
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = normal(0, (2, 6, 5, 6), dtype), normal(1, (3, 2, 6 // groups, 6), dtype)
        ct = normal(2, (2, 6, 5, 6), dtype)
        conv = functools.partial(F.conv, groups=groups)
        actual = jax.jit(functools.partial(value_and_vjp, conv))(x, kernel, ct)
        assert all(a.dtype == dtype for a in actual)
        pads = [same(6, 3, 1), same(5, 2, 1)]
        expected = loops(x, kernel, ct, stride=(1, 1), pads=pads, dilation=(1, 1), groups=groups)
        # one rounding of the result, no more
        assert_close(
            actual, expected, float(jnp.finfo(dtype).eps) * (1 if dtype.itemsize < 4 else 40)
        )


def test_half_precision_is_summed_in_float32():
    x, kernel = jnp.ones((1, 3, 3, 512), jnp.bfloat16), jnp.ones((3, 3, 512, 1), jnp.bfloat16)
    y, dx, dkernel = value_and_vjp(F.conv, x, kernel)
    assert y[0, 1, 1, 0] == 9 * 512  # bfloat16 sums of ones stop at 256
    assert dx[0, 1, 1, 0] == 9 and dkernel[1, 1, 0, 0] == 9


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_vmap_over_kernels_and_scan(groups):
    x, kernels = normal(0, (3, 6, 6, 4)), normal(1, (5, 3, 3, 4 // groups, 8))
    conv = functools.partial(F.conv, groups=groups, stride=2)
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(conv(x, k)))))
    expected = jnp.stack([gradient(k) for k in kernels])
    assert_close([jax.vmap(gradient)(kernels)], [expected])
    _, scanned = jax.jit(lambda ks: lax.scan(lambda c, k: (c, gradient(k)), 0, ks))(kernels)
    assert_close([scanned], [expected])


def test_forward_mode_and_second_derivatives():
    x, kernel, direction = normal(0, (2, 5, 3)), normal(1, (3, 3, 2)), normal(2, (3, 3, 2))

    def loss(k):
        return jnp.sum(F.conv(x, k) ** 2)

    _, along = jax.jvp(loss, (kernel,), (direction,))
    np.testing.assert_allclose(along, jnp.vdot(jax.grad(loss)(kernel), direction), rtol=1e-5)
    # The loss is quadratic: twice its value is the curvature along the kernel itself.
    curved = jax.jvp(jax.grad(loss), (kernel,), (kernel,))[1]
    np.testing.assert_allclose(jnp.vdot(curved, kernel), 2 * loss(kernel), rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_platform_is_given_its_form_only(groups):
    x, kernels = normal(0, (2, 6, 6, 4)), normal(1, (3, 3, 3, 4 // groups, 4))

    def loss(x, k):
        return jnp.sum(jnp.sin(F.conv(x, k, groups=groups)))

    @jax.jit
    def train(x, kernels):
        gradients = jax.vmap(jax.grad(loss, (0, 1)), (None, 0))
        return lax.scan(lambda c, _: (c, gradients(x, kernels)), 0, length=2)

    traced = train.trace(x, kernels)
    on_cpu = traced.lower(lowering_platforms=("cpu",))
    assert_canonical(on_cpu.as_text())
    assert "conditional(" not in on_cpu.compile().as_text()
    cuda, other = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu"))
    assert other.count("stablehlo.convolution") >= 3
    assert "stablehlo.dot_general" not in other and "stablehlo.while" in other
    # Small ones, of one kernel for each mapped example.
    assert ("stablehlo.dot_general" in cuda) == (groups == 1)
    assert ("stablehlo.convolution" in cuda) == (groups > 1)


def assert_canonical(lowered):
    """Every convolution is one that XLA has a fast form of on a CPU, also inside a loop."""
    for line in (line for line in lowered.splitlines() if "stablehlo.convolution" in line):
        assert "dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line
        assert "feature_group_count = 1 " in line and "batch_group_count = 1 " in line
        assert "reverse = [true" not in line


def test_shard_map():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, kernel = normal(0, (4, 6, 6, 3)), normal(1, (3, 3, 3, 2))
    P = jax.sharding.PartitionSpec
    sharded = jax.shard_map(F.conv, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert_close(value_and_vjp(jax.jit(sharded), x, kernel), value_and_vjp(F.conv, x, kernel), 1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel_shape"),
    [
        ((0, 8, 2), (1, 2, 3)),
        ((0, 8, 2), (3, 2, 3)),
        ((2, 8, 0), (3, 0, 3)),
        ((2, 8, 2), (3, 2, 0)),
    ],
)
def test_nothing_of_an_axis(shape, kernel_shape):
    x, kernel = jnp.ones(shape), jnp.ones(kernel_shape)
    for function in (
        functools.partial(F.conv, stride=2, padding="VALID"),
        functools.partial(F.conv_transpose, stride=2),
    ):
        y, dx, dkernel = value_and_vjp(function, x, kernel)
        assert not y.any() and y.shape[::2] == (shape[0], kernel_shape[-1])
        assert (dx.shape, dkernel.shape) == (shape, kernel_shape) and not dkernel.any()


def test_vmap_over_none():
    x, kernel = jnp.ones((0, 2, 8, 3)), jnp.ones((0, 3, 3, 4))
    assert jax.vmap(F.conv, (0, None))(x, jnp.ones((3, 3, 4))).shape == (0, 2, 8, 4)
    of_kernel = jax.grad(lambda kernel: F.conv(jnp.ones((2, 8, 3)), kernel).sum())
    assert jax.vmap(of_kernel)(kernel).shape == kernel.shape


# --- the signature of lax ---


def test_conv_general_dilated_has_the_signature_of_lax():
    ours, stock = map(inspect.signature, (F.conv_general_dilated, lax.conv_general_dilated))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in stock.parameters.values()
    ]


@pytest.mark.parametrize(
    "served, options",
    [
        (True, {"padding": "SAME"}),
        (True, {"padding": "SAME_LOWER", "window_strides": (2, 3), "rhs_dilation": (2, 1)}),
        (True, {"padding": [(3, 0), (-1, 2)], "lhs_dilation": (1, 2)}),
        (False, {"padding": "VALID", "precision": "highest"}),
        (False, {"padding": "VALID", "preferred_element_type": jnp.float32}),
        (False, {"padding": [(-3, -3), (0, 0)]}),
        (False, {"padding": "SAME", "batch_group_count": 2}),
    ],
)
def test_conv_general_dilated_is_that_of_lax(served, options):
    x, kernel = normal(0, (2, 8, 7, 4)), normal(1, (3, 2, 4, 6))
    options = {"window_strides": (1, 1), "dimension_numbers": NHWC[2]} | options
    ours, stock = (
        functools.partial(f, **options) for f in (F.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(value_and_vjp(ours, x, kernel), value_and_vjp(stock, x, kernel))
    gradient = jax.grad(lambda x, kernel: ours(x, kernel).sum(), (0, 1))
    lowered = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    if served:
        assert_canonical(lowered)
    else:
        with pytest.raises(AssertionError):
            assert_canonical(lowered)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_conv_general_dilated_of_other_layouts(dtype):
    x, kernel = normal(0, (2, 4, 8, 7), dtype), normal(1, (6, 2, 3, 2), dtype)
    options = {"window_strides": (2, 1), "padding": "SAME", "feature_group_count": 2}
    np.testing.assert_allclose(
        F.conv_general_dilated(x, kernel, **options), lax.conv_general_dilated(x, kernel, **options)
    )


def test_conv_general_dilated_leaves_errors_to_lax():
    x, kernel = normal(0, (2, 8, 7, 4)), normal(1, (3, 2, 4, 6), jnp.bfloat16)
    with pytest.raises(TypeError, match="same dtypes"):
        F.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC[2])


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", "REFLECT", [2, (0, 1)]])
def test_in_flax(padding):
    options = {"strides": 2, "kernel_dilation": (1, 2), "feature_group_count": 2}
    build = functools.partial(nnx.Conv, 4, 6, (3, 2), padding=padding, **options)
    stock = build(rngs=nnx.Rngs(0))
    ours = build(rngs=nnx.Rngs(0), conv_general_dilated=F.conv_general_dilated)
    x = normal(0, (3, 8, 9, 4))
    assert_close([ours(x)], [stock(x)], 1e-5)
    by_hand = F.conv(
        x, stock.kernel[...], stock.bias[...], stride=2, padding=padding, dilation=(1, 2), groups=2
    )
    assert_close([by_hand], [stock(x)], 1e-5)


# --- transposed ---


@examples(max_examples=9)
@given(cases(), st.sampled_from(["SAME", "VALID", "explicit"]))
def test_conv_transpose_is_that_of_lax(case, padding):
    x, kernel, options = case
    kernel = kernel[..., :1, :].repeat(x.shape[-1], -2)
    rank = kernel.ndim - 2
    padding = options["pads"] if padding == "explicit" else padding
    if not isinstance(padding, str):
        spans = [(k - 1) * d for k, d in zip(kernel.shape, options["dilation"], strict=False)]
        padding = tuple((lo + s, hi) for (lo, hi), s in zip(padding, spans, strict=True))
    ours = functools.partial(
        F.conv_transpose, stride=options["stride"], padding=padding, dilation=options["dilation"]
    )
    stock = functools.partial(
        lax.conv_transpose,
        strides=options["stride"],
        padding=padding,
        rhs_dilation=options["dilation"],
        dimension_numbers=NHWC[rank],
    )
    ct = cosines(jax.eval_shape(ours, x, kernel).shape)
    assert_close(value_and_vjp(ours, x, kernel, ct), value_and_vjp(stock, x, kernel, ct))


def test_conv_transpose_spreads_each_position_over_a_window():
    x, kernel, bias = normal(0, (5, 2)), normal(1, (3, 2, 4)), normal(2, (4,))
    expected = np.tile(np.float64(bias), (11, 1))  # (5 - 1) 2 + 3 positions
    for i in range(5):
        for k in range(3):
            expected[2 * i + k] += np.float64(x[i]) @ np.float64(kernel[2 - k])
    for padding in (2, "VALID"):
        assert_close([F.conv_transpose(x, kernel, bias, stride=2, padding=padding)], [expected])


# --- errors ---

X, KERNEL = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 6))
SMALL = r"image smaller than the kernel: expected at least \(3, 3\) positions, .*, came "
PAIRS = "padding: expected .* pair for each of the 2 window axes, came "
INTS = "expected a positive int, or one for each of the 2 window axes, came "


@pytest.mark.parametrize(
    "message, change",
    [
        ("kernel: .* C / groups = 4 / 1 = 4 input channels, came 3", {"kernel": KERNEL[:, :, 1:]}),
        ("kernel: .* C / groups = 4 / 2 = 2 input channels, came 4", {"groups": 2}),
        ("groups: .* divisor of the 4 channels of x and of the 6 .*, came 4", {"groups": 4}),
        ("groups: expected .*, came 0", {"groups": 0}),
        (SMALL + r"\(2, 8\)", {"x": X[:, :2], "padding": "VALID"}),
        (SMALL + r"\(2, 10\)", {"x": X[:, :0]}),
        (r"at least \(9, 9\) .* came \(8, 8\)", {"padding": "VALID", "dilation": 4}),
        ("unknown padding 'SAMEE'; did you mean 'SAME'", {"padding": "SAMEE"}),
        (PAIRS + r"\[\(1, 1\)\]", {"padding": [(1, 1)]}),
        (PAIRS + "-1", {"padding": -1}),
        (PAIRS + r"\[\(1, 1, 1\), 2\]", {"padding": [(1, 1, 1), 2]}),
        ("stride: " + INTS + r"\(1, 1, 1\)", {"stride": (1, 1, 1)}),
        ("stride: " + INTS + "0", {"stride": 0}),
        ("dilation: " + INTS + r"\(1, -1\)", {"dilation": (1, -1)}),
        ("window: " + INTS + r"\(0, 3\)", {"kernel": KERNEL[:0]}),
        (r"x: .* with 2 spatial axes, came shape \(8, 4\)", {"x": X[0, 0]}),
        (r"kernel: .* 1, 2 or 3 window axes, came shape \(4, 6\)", {"kernel": KERNEL[0, 0]}),
        ("kernel: .* dtype of x, float32, came float16", {"kernel": KERNEL.astype(jnp.float16)}),
        ("bias: .* dtype of x, float32, came float16", {"bias": jnp.zeros(6, jnp.float16)}),
        (r"bias: expected shape \(6,\), came \(1,\)", {"bias": jnp.zeros(1)}),
    ],
)
def test_errors_name_argument_expected_and_came(message, change):
    with pytest.raises(ValueError, match=message) as error:
        F.conv(**{"x": X, "kernel": KERNEL} | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stride", [np.int64(2), np.array([2, 2]), [2, 2]])
def test_strides_of_numpy_are_strides(stride, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    np.testing.assert_array_equal(F.conv(X, KERNEL, stride=stride), F.conv(X, KERNEL, stride=2))


@pytest.mark.parametrize(
    "message, change",
    [
        ("unknown padding 'CIRCULAR'. Known: SAME, VALID", {"padding": "CIRCULAR"}),
        ("kernel: .* = 4 input channels, came 3", {"kernel": KERNEL[:, :, 1:]}),
        (SMALL + r"\(1, 8\)", {"x": X[:, :1], "padding": 0}),
        ("stride: " + INTS + "0", {"stride": 0}),
    ],
)
def test_errors_of_conv_transpose(message, change):
    with pytest.raises(ValueError, match=message):
        F.conv_transpose(**{"x": X, "kernel": KERNEL} | change)
