"""Depthwise kernels, interpreted, against XLA's convolution; and what they are left out of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.lowering import conv, conv_kernel, kernels
from attnconv.lowering.views import Geometry, Problem


def problem(spatial, window, padding, channels, stride=1):
    geometry = Geometry((stride, stride), padding, (1, 1), (1, 1))
    return Problem(geometry, channels, spatial, window)


# Images, sizes, windows, paddings and channels; rows and channels that do not fill their tiles.
CASES = {
    "several tiles": (3, (9, 19), (7, 7), ((3, 3), (3, 3)), 40),
    "small": (1, (3, 2), (3, 3), ((1, 1), (1, 1)), 3),
    "valid": (2, (8, 10), (3, 5), ((0, 0), (0, 0)), 12),
    "much padding": (2, (5, 6), (5, 3), ((6, 0), (0, 7)), 33),
    "one": (2, (4, 5), (1, 1), ((0, 0), (0, 0)), 8),
    "even": (1, (6, 7), (4, 2), ((1, 2), (1, 0)), 16),
}


SLOW = ("several tiles", "much padding", "valid", "even")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_values_and_gradients(monkeypatch, name, dtype):
    monkeypatch.setattr(conv_kernel, "PROGRAMS", 4)  # each goes over several tiles
    images, spatial, window, padding, channels = CASES[name]
    given = problem(spatial, window, padding, channels)
    rng = np.random.default_rng(0)
    x, kernel, y = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in (
            (images, *spatial, channels),
            (*window, 1, channels),
            (images, *given.size, channels),
        )
    )
    convolve = functools.partial(conv_kernel.convolve, interpret=True)
    found = {
        "y": convolve(given, x, kernel),
        "x": conv._mirrored(convolve, given, kernel, y),
        "kernel": conv_kernel.kernel_gradient(given, x, y, interpret=True),
    }
    wide = {"x": jnp.float32(x), "kernel": jnp.float32(kernel), "y": jnp.float32(y)}
    for array, actual in found.items():
        others = [wide[name] for name in ("x", "kernel", "y") if name != array]
        expected = conv._STOCK[array](given, *others)
        assert actual.dtype == dtype and actual.shape == expected.shape
        error = np.linalg.norm(np.float64(actual) - np.float64(expected))
        limit = 1e-6 if dtype == "float32" else float(jnp.finfo(dtype).eps)
        assert error < limit * np.linalg.norm(expected)


def shaped(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "reason"),
    [
        (shaped(2, 9, 9, 8), shaped(3, 3, 1, 8), 1, None),
        (shaped(2, 9, 9, 8), shaped(3, 3, 1, 16), 1, "several channels in a kernel"),
        (shaped(2, 9, 9, 8), shaped(3, 3, 1, 8), 2, "steps of more than 1"),
        (shaped(2, 9, 9, 8), shaped(3, 9, 1, 8), 1, "a window of more than 7"),
        (
            shaped(2, 9, 9, 8, dtype="int32"),
            shaped(3, 3, 1, 8, dtype="int32"),
            1,
            "dtypes int32 and int32",
        ),
        (shaped(0, 9, 9, 8), shaped(3, 3, 1, 8), 1, "an empty array"),
    ],
)
def test_refuses(monkeypatch, x, kernel, stride, reason):
    monkeypatch.setattr(kernels, "missing", lambda: None)
    given = problem((9, 9), kernel.shape[:2], ((1, 1), (1, 1)), x.shape[-1], stride)
    assert conv_kernel.refusal("y", given, x, kernel) == reason


def test_a_kernel_with_more_channels_in_than_out_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda: None)
    given = problem((9, 9), (3, 3), ((1, 1), (1, 1)), 8)
    kernel, y = shaped(3, 3, 2, 8), shaped(2, 9, 9, 8)
    assert conv_kernel.refusal("x", given, kernel, y) == "several channels in a kernel"
    assert conv_kernel.refusal("x", given, shaped(3, 3, 1, 8), y) is None


class Device:
    def __init__(self, capability):
        self.compute_capability = capability


@pytest.mark.parametrize(
    ("backend", "devices", "reason"),
    [
        ("cpu", ["9.0"], "a call without a CUDA device"),
        ("gpu", ["8.0"], "a GPU that is no Hopper, on which they were measured"),
        ("gpu", ["9.0"], None),
        ("gpu", ["9.0", "9.0"], "several devices outside of shard_map"),
    ],
)
def test_machines_that_kernels_are_taken_on(monkeypatch, backend, devices, reason):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device(name) for name in devices])
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))
    assert kernels.missing() == reason
    with jax.default_device(jax.local_devices()[0]):
        assert kernels.missing() == (
            reason if backend == "cpu" else "a default device that is no GPU"
        )


def test_inside_of_shard_map_an_array_is_on_one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    found = []

    def look(x):
        found.append(kernels.alone())
        return x

    jax.jit(look)(jnp.zeros(2))
    for check in (True, False):
        specs = {"in_specs": P("data"), "out_specs": P("data"), "check_vma": check}
        jax.shard_map(look, mesh=mesh, **specs)(jnp.zeros(2))
    assert found == [False, True, True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_traced_with_wide_integers(monkeypatch, dtype):
    """And where arrays of several ranks must not be mixed."""
    given = problem((9, 9), (3, 3), ((1, 1), (1, 1)), 8)
    x, kernel = shaped(2, 9, 9, 8, dtype=dtype), shaped(3, 3, 1, 8, dtype=dtype)
    monkeypatch.setattr(kernels, "missing", lambda: None)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(functools.partial(conv_kernel.convolve, given))(x, kernel)
        jax.make_jaxpr(functools.partial(conv_kernel.kernel_gradient, given))(x, x)
