"""What cannot be lowered for a platform is found without its hardware."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from attnconv import compiled, models, train
from attnconv import functional as F
from attnconv.lowering import attention as lowering
from attnconv.lowering import kernels
from attnconv.spec import Spec

PLATFORMS = ("cuda", "tpu")
SLOW = pytest.mark.slow


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def half(*shape):
    return array(*shape, dtype=jnp.bfloat16)


def lower(function, *args):
    for platform in PLATFORMS:
        export.export(jax.jit(function), platforms=[platform])(*args)


def gradient(function):
    """Of the sum of squares, in all arrays."""

    def loss(*args):
        return jnp.square(function(*args).astype(jnp.float32)).sum()

    return lambda *args: jax.grad(loss, argnums=tuple(range(len(args))))(*args)


attention = F.dot_product_attention
LONG = array(2, 1024, 4, 32)
IMAGE = array(2, 14, 12, 4, 16)
CASES = {
    "attention": (attention, [array(2, 49, 4, 16)] * 3),
    "attention, half precision": (attention, [half(2, 256, 4, 64)] * 3),
    "one query": (attention, [array(2, 1, 4, 16), array(2, 99, 2, 16), array(2, 99, 2, 16)]),
    "many examples": (attention, [array(64, 128, 4, 16)] * 3),
    "long": (attention, [LONG] * 3),
    "long, causal": (functools.partial(attention, is_causal=True), [LONG] * 3),
    "long, bias": (attention, [LONG, LONG, LONG, array(1, 4, 1024, 1024)]),
    "longer, causal, a mask and a bias": (
        lambda q, k, v, bias: attention(q, k, v, bias, bias > 0, is_causal=True),
        [*[array(4, 4000, 8, 16)] * 3, array(1, 1, 4000, 4000)],
    ),
    "window": (functools.partial(attention, local_window_size=(64, 0)), [LONG] * 3),
    "neighborhood": (functools.partial(F.neighborhood_attention, window=7), [IMAGE] * 3),
    "neighborhood, half precision, dilated, clipped": (
        functools.partial(
            F.neighborhood_attention,
            window=(3, 5),
            dilation=2,
            border="zero",
            is_causal=(True, False),
        ),
        [half(2, 14, 12, 4, 16)] * 3,
    ),
    "neighborhood, bias": (
        lambda q, k, v, bias: F.neighborhood_attention(q, k, v, window=5, bias=bias),
        [IMAGE, IMAGE, IMAGE, array(4, 9, 9)],
    ),
    "conv": (functools.partial(F.conv, stride=2), [array(2, 9, 8, 3), array(3, 3, 3, 8)]),
    "conv, half precision": (F.conv, [half(8, 32, 32, 64), half(3, 3, 64, 64)]),
    "depthwise": (
        functools.partial(F.conv, groups=96),
        [array(2, 28, 28, 96), array(7, 7, 1, 96)],
    ),
    "sequence": (functools.partial(F.conv, dilation=2), [array(2, 50, 4), array(9, 4, 8)]),
    "volume": (F.conv, [array(2, 5, 6, 7, 3), array(3, 3, 3, 3, 4)]),
    "transposed": (
        functools.partial(F.conv_transpose, stride=2),
        [array(2, 5, 6, 3), array(3, 3, 3, 4)],
    ),
    "locally connected": (F.locally_connected, [array(2, 8, 8, 3), array(8, 8, 3, 3, 3, 4)]),
    "max pool": (functools.partial(F.max_pool, window=(3, 3), stride=2), [array(2, 9, 8, 3)]),
    "layer norm": (F.layer_norm, [array(4, 7, 32)]),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_and_their_gradients_lower(name):
    function, args = CASES[name]
    lower(function, *args)
    lower(gradient(function), *args)


TRITON = "__gpu$xla.gpu.triton"


def kernels_of(function, *args):
    """How many kernels a function of these arrays lowers to for CUDA."""
    return lowered_for_cuda(function, *args).count(f"custom_call @{TRITON}")


def lowered_for_cuda(function, *args):
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        exported = export.export(
            jax.jit(function),
            platforms=["cuda"],
            disabled_checks=[export.DisabledSafetyCheck.custom_call(TRITON)],
        )(*args)
    return exported.mlir_module()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((4096,), {"window": 13, "is_causal": True}),
        ((56, 56), {"window": 7}),
        ((56, 56), {"window": 13, "dilation": 2, "border": "zero"}),
        ((8, 14, 14), {"window": 5}),
    ],
)
def test_neighborhoods_lower_to_kernels(grid, options, dtype):
    """One for the values, one for the gradient of queries and one for that of keys and values."""
    attend = functools.partial(F.neighborhood_attention, implementation="pallas", **options)
    arrays = [array(2, *grid, heads, 64, dtype=dtype) for heads in (4, 2, 2)]
    assert kernels_of(gradient(attend), *arrays) == 3


@pytest.mark.parametrize("K", [16, 40, 128])
@pytest.mark.parametrize(
    ("bias", "mask", "options"),
    [
        (None, None, {}),
        (None, (4, 1, 1, 300), {"local_window_size": (64, 3)}),
        ((1, 4, 200, 300), None, {}),
        ((4, 1, 1, 300), (1, 1, 200, 1), {"is_causal": True}),
        ((1, 1, 1, 1), None, {}),
    ],
)
def test_attention_lowers_to_kernels(bias, mask, options, K):
    """And one for the gradient of a bias."""
    attend = functools.partial(attention, implementation="pallas", **options)
    moving = [half(4, n, heads, K) for n, heads in ((200, 4), (300, 2), (300, 2))]
    moving += [] if bias is None else [half(*bias)]
    restriction = None if mask is None else jnp.ones(mask, bool)
    both = gradient(lambda *arrays: attend(*arrays, mask=restriction))
    assert kernels_of(both, *moving) == (3 if bias is None else 4)


@pytest.fixture
def hopper(monkeypatch):
    """A machine that kernels are taken on."""
    monkeypatch.setattr(kernels, "missing", lambda: None)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_depthwise_convolution_lowers_to_kernels(dtype):
    arrays = [array(64, 56, 56, 96, dtype=dtype), array(7, 7, 1, 96, dtype=dtype)]
    assert kernels_of(gradient(functools.partial(F.conv, groups=96)), *arrays) == 3
    dense = [array(2, 8, 8, 16, dtype=dtype), array(3, 3, 16, 16, dtype=dtype)]
    assert kernels_of(gradient(F.conv), *dense) == 0


@pytest.mark.usefixtures("hopper")
def test_kernels_are_written_in_the_instructions_that_triton_would_not_choose():
    convolve = functools.partial(F.conv, groups=96)
    text = lowered_for_cuda(convolve, half(4, 8, 8, 96), half(3, 3, 1, 96))
    assert "fma.rn.f32" in text and "shl.b32" in text
    assert "shl.b32" not in lowered_for_cuda(convolve, array(4, 8, 8, 96), array(3, 3, 1, 96))
    attend = functools.partial(attention, implementation="pallas")
    assert "ex2.approx" in lowered_for_cuda(attend, *[half(2, 64, 4, 64)] * 3)
    with jax.enable_x64(True):
        wide = [array(2, 64, 4, 64, dtype=jnp.float64)] * 3
        assert "ex2.approx" not in lowered_for_cuda(attend, *wide)


@pytest.mark.usefixtures("hopper")
def test_kernels_are_taken_where_they_are_measured_to_be_faster():
    def forms(function, *args, **options):
        return [choice.form for choice in F.explain(function, *args, **options)]

    long, short = [half(2, 1024, 4, 64)] * 3, [half(2, 8, 4, 64)] * 3
    mask = {"mask": jnp.ones((1024, 1024), bool)}
    assert forms(attention, *long, **mask) == ["blocks", "kernel", "matrix"]
    assert forms(attention, *short, bias=jnp.zeros((8, 8))) == ["matrix", "matrix", "matrix"]
    few = half(2, 4, 4, 64), *long[1:]
    assert forms(attention, *few, mask=jnp.ones((4, 1024), bool))[1] == "matrix"
    eight = jnp.zeros((1, 1, 1, 1024), jnp.float8_e4m3fn)
    assert forms(attention, *long, bias=eight)[1] == "matrix"
    assert forms(attention, *[array(2, 512, 4, 64)] * 3)[1] == "matrix"
    assert forms(attention, *[array(2, 1024, 4, 64)] * 3)[1] == "kernel"
    assert forms(attention, *[array(2, 1024, 4, 128)] * 3)[1] == "matrix"
    near = functools.partial(F.neighborhood_attention, window=3)
    assert forms(near, *[half(2, 9, 9, 4, 64)] * 3) == ["tiles", "kernel", "all tiles"]
    assert forms(near, *[half(2, 9, 9, 4, 64)] * 2, array(2, 9, 9, 4, 64))[1] == "all tiles"


@pytest.mark.usefixtures("hopper")
def test_kernels_lower_with_wide_integers():
    near = functools.partial(F.neighborhood_attention, window=3)
    image, bias = half(2, 9, 9, 4, 64), half(4, 3, 3)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        both = gradient(lambda *arrays: near(*arrays[:3], bias=arrays[3]))
        assert kernels_of(both, image, image, image, bias) == 4
        attend = gradient(lambda *arrays: attention(*arrays[:3], bias=arrays[3]))
        assert kernels_of(attend, *[half(2, 64, 4, 64)] * 3, half(1, 4, 64, 64)) == 4
        depthwise = gradient(functools.partial(F.conv, groups=96))
        assert kernels_of(depthwise, half(2, 9, 9, 96), half(7, 7, 1, 96)) == 3


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("folds", [True, False])
def test_mapped_calls_are_one_batch_of_kernels(folds):
    """Unless a bias that is one for all would be one for each."""
    near = functools.partial(F.neighborhood_attention, window=3)
    image, sequence = half(3, 2, 9, 9, 4, 64), half(3, 2, 64, 4, 64)
    bias = None if folds else jnp.zeros((1, 4, 64, 64), jnp.bfloat16)
    by_entry = None if folds else jnp.zeros((4, 3, 3), jnp.bfloat16)
    mask = jnp.ones((2, 1, 64, 64), bool)
    for function, x in (
        (functools.partial(near, bias=by_entry), image),
        (functools.partial(attention, bias=bias, mask=mask), sequence),
    ):
        mapped = jax.vmap(gradient(function))
        text = lowered_for_cuda(mapped, x, x, x)
        # Also that for the gradient of the bias, which XLA leaves out later.
        assert text.count(f"custom_call @{TRITON}") == (3 if folds else 4)
        assert ("tensor<6x" in text) == folds and ("stablehlo.while" in text) != folds


@pytest.mark.parametrize(
    "name",
    ["cnn", "attention", *(pytest.param(n, marks=SLOW) for n in ("neighborhood", "gated"))],
)
def test_training_steps_lower(name):
    spec = Spec((8, 8, 1), 10)
    size = models.size_for(name, spec, budget=5000)
    programs = compiled.Programs(functools.partial(models.make, name, spec, size), train.Recipe())
    data = train.Data(array(100, 8, 8, 1), array(100, dtype=jnp.int32))
    order = array(4, 32, dtype=jnp.int32)
    for platform in PLATFORMS:
        exported = export.export(programs.advance, platforms=[platform])
        exported(programs.init(0.01, 10, 0), data, order, array(dtype=jnp.int32))


def test_elsewhere_long_attention_has_no_matrix_of_all_scores():
    shape = array(4, 4096, 16, 8)
    *_, elsewhere = F.explain(attention, shape, shape, shape)
    assert elsewhere.form == "rows"
    exported = export.export(jax.jit(gradient(attention)), platforms=["cuda"])(shape, shape, shape)
    types = re.findall(r"tensor<([0-9x]+)xf32>", exported.mlir_module())
    most = max(math.prod(map(int, sizes.split("x"))) for sizes in types)
    assert lowering.AT_ONCE / 2 < most <= lowering.AT_ONCE
