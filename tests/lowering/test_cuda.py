"""On a GPU, every operator and its gradients against the same in float64 on the CPU.

They are skipped where JAX finds no GPU; `make accelerated` runs them where there is one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnconv import functional as F

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
attention, neighborhood = F.dot_product_attention, F.neighborhood_attention


def draw(rng, dtype, *shape):
    return jnp.asarray(rng.normal(size=shape), dtype)


def results(function, moving, ct):
    """The output and the gradients of `<y, ct>`."""
    y, pull = jax.vjp(function, *moving)
    return [y, *pull(ct.astype(y.dtype))]


def check(function, formula, moving, ct):
    """Errors are parts of the norm of each result; a result of zeros must be zeros."""
    dtype = moving[0].dtype.name
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda *moving: results(function, moving, ct))(*moving)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        moving, ct = ([jnp.asarray(np.float64(x)) for x in xs] for xs in (moving, [ct]))
        expected = jax.jit(lambda *moving: results(formula, moving, ct[0]))(*moving)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == dtype and actual.shape == wanted.shape
        error = np.linalg.norm(np.float64(actual) - np.float64(wanted))
        assert error <= TOLERANCE[dtype] * np.linalg.norm(wanted), f"{error:.2e}"


def restrictions(rng, B, N, T, S):
    """Each option of attention with a chance of its own."""
    sizes = [size if rng.random() < 0.5 else 1 for size in (B, N, T, S)]
    options = {}
    if rng.random() < 0.4:
        options["mask"] = rng.random(sizes) < 0.6
    if rng.random() < 0.4:
        options["is_causal"] = True
    if rng.random() < 0.4:
        options["local_window_size"] = tuple(map(int, rng.integers(0, 99, 2)))
    if rng.random() < 0.3:
        options["query_seq_lengths"] = rng.integers(0, T + 1, B)
    if rng.random() < 0.4:
        options["key_value_seq_lengths"] = rng.integers(0, S + 1, B)
    return options


def as_arrays(options):
    return {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


@pytest.mark.parametrize("implementation", ["auto", "pallas"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(4))
def test_attention(implementation, dtype, seed):
    rng = np.random.default_rng(seed)
    B, G, T, S = (int(rng.integers(*ends)) for ends in [(1, 4), (1, 3), (1, 400), (2, 400)])
    N, K = G * int(rng.integers(1, 4)), int(rng.choice([8, 24, 64, 80, 128]))
    options = as_arrays(restrictions(rng, B, N, T, S))
    moving = [draw(rng, dtype, B, n, h, K) for n, h in ((T, N), (S, G), (S, G))]
    if seed % 2:
        # One number for all keys would have a gradient of zero.
        moving.append(draw(rng, dtype, *(n if rng.random() < 0.5 else 1 for n in (B, N, T)), S))
    function = functools.partial(attention, **options)
    check(
        functools.partial(function, implementation=implementation),
        functools.partial(function, implementation="reference"),
        moving,
        draw(rng, dtype, B, T, N, K),
    )


PLAIN = {
    "all": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "local_window_size": (40, 0)},
    "key mask": {"mask": np.random.default_rng(0).random((2, 1, 1, 320)) < 0.5},
    "mask": {"mask": np.random.default_rng(0).random((1, 4, 320, 320)) < 0.5},
    "no keys": {"mask": np.arange(2)[:, None, None, None] * np.ones((1, 1, 1, 320)) > 0},
    "lengths": {"query_seq_lengths": np.array([99, 0]), "key_value_seq_lengths": np.array([7, 64])},
    "no lengths": {"key_value_seq_lengths": np.array([0, 192])},
    "causal lengths": {"key_value_seq_lengths": np.array([5, 64]), "is_causal": True},
}


@pytest.mark.parametrize("T", [64, 192])
@pytest.mark.parametrize("name", PLAIN)
def test_attention_at_lengths_that_broke_kernels(name, T):
    """cuDNN has been reported to give gradients that are not numbers at 64 mod 128."""
    rng = np.random.default_rng(T)
    options = as_arrays(PLAIN[name])
    if "mask" in options:
        options["mask"] = (
            options["mask"][..., :T]
            if options["mask"].shape[2] == 1
            else (options["mask"][..., :T, :T])
        )
    moving = [draw(rng, "bfloat16", 2, T, n, 64) for n in (4, 2, 2)]
    if name == "lengths":
        moving[0] *= 30  # exp of a score that is not seen is not finite
    function = functools.partial(attention, **options)
    formula = functools.partial(function, implementation="reference")
    check(function, formula, moving, draw(rng, "bfloat16", 2, T, 4, 64))


def test_one_query_and_the_keys_of_its_length():
    rng = np.random.default_rng(0)
    moving = [draw(rng, "bfloat16", 3, n, h, 64) for n, h in ((1, 4), (300, 2), (300, 2))]
    options = {"key_value_seq_lengths": jnp.array([300, 1, 70])}
    function = functools.partial(attention, **options)
    formula = functools.partial(function, implementation="reference")
    check(function, formula, moving, draw(rng, "bfloat16", 3, 1, 4, 64))


@pytest.mark.parametrize("implementation", ["auto", "pallas"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(4))
def test_neighborhood(implementation, dtype, seed):
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 2
    grid = tuple(map(int, rng.integers(26, 40, rank))) if rank == 2 else (600,)
    options = {
        "window": tuple(map(int, rng.integers(1, 14, rank))),
        "dilation": tuple(map(int, rng.integers(1, 3, rank))),
        "is_causal": tuple(map(bool, rng.integers(0, 2, rank))),
        "border": str(rng.choice(["shift", "zero"])),
    }
    B, N, G, K = 2, 4, int(rng.choice([2, 4])), int(rng.choice([24, 32, 64, 128]))
    moving = [draw(rng, dtype, B, *grid, n, K) for n in (N, G, G)]
    if seed > 1:
        sizes = options["window"] if seed % 2 else [2 * w - 1 for w in options["window"]]
        moving.append(draw(rng, dtype, N, *sizes))

    def function(query, key, value, bias=None):
        return neighborhood(query, key, value, bias=bias, implementation=implementation, **options)

    def formula(query, key, value, bias=None):
        near = F.neighborhood_bias(grid, bias=bias, **options)
        q, k, v = (x.reshape(B, -1, *x.shape[-2:]) for x in (query, key, value))
        # Only where a key is seen, a gradient reaches the bias.
        y = attention(q, k, v, bias=near, implementation="reference")
        return y.reshape(query.shape)

    check(function, formula, moving, draw(rng, dtype, B, *grid, N, K))


CONVOLUTIONS = {
    "dense": ((9, 8), (3, 3), 12, 12, 20, {}),
    "strided": ((17, 12), (5, 3), 12, 12, 20, {"stride": (2, 3), "dilation": 2}),
    "grouped": ((14, 14), (3, 3), 64, 8, 64, {"groups": 8}),
    "several of a channel": ((14, 9), (3, 3), 12, 1, 24, {"groups": 12}),
    "depthwise 7x7": ((14, 17), (7, 7), 96, 1, 96, {"groups": 96}),
    "depthwise 5x3": ((9, 30), (5, 3), 20, 1, 20, {"groups": 20, "padding": "VALID"}),
    "depthwise, strided": ((15, 14), (3, 3), 32, 1, 32, {"groups": 32, "stride": 2}),
    "depthwise, dilated": ((15, 14), (3, 5), 32, 1, 32, {"groups": 32, "dilation": (2, 3)}),
    "depthwise, padded": ((5, 6), (3, 3), 40, 1, 40, {"groups": 40, "padding": ((4, 0), (1, 3))}),
    "depthwise sequence": ((50,), (9,), 16, 1, 16, {"groups": 16}),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name, dtype):
    rng = np.random.default_rng(0)
    spatial, window, channels, inner, features, options = CONVOLUTIONS[name]
    moving = [draw(rng, dtype, 3, *spatial, channels), draw(rng, dtype, *window, inner, features)]
    function = functools.partial(F.conv, **options)
    shape = jax.eval_shape(function, *moving).shape
    check(function, function, moving, draw(rng, dtype, *shape))


def test_under_vmap():
    """Of gradients, where each has kernels of its own."""
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.random((2, 1, 99, 99)) < 0.8)
    for function, shapes in (
        (functools.partial(F.conv, groups=32), [(2, 9, 9, 32), (3, 3, 1, 32)]),
        (F.conv, [(2, 9, 9, 16), (3, 3, 16, 32)]),
        (functools.partial(F.conv, stride=2), [(2, 9, 9, 1), (5, 3, 1, 32)]),
        (functools.partial(neighborhood, window=5, implementation="pallas"), [(2, 99, 4, 32)] * 3),
        (functools.partial(attention, implementation="pallas"), [(2, 99, 4, 32)] * 3),
        (attention, [(2, 99, 4, 32)] * 3),
        (functools.partial(attention, mask=mask), [(2, 99, 4, 32)] * 3),
    ):
        moving = [draw(rng, "bfloat16", 3, *shape) for shape in shapes]
        gradient = jax.grad(lambda *xs, f=function: jnp.float32(f(*xs)).sum(), (0, 1))
        together = jax.jit(jax.vmap(gradient))(*moving)
        for i in range(3):
            alone = jax.jit(gradient)(*(x[i] for x in moving))
            for a, b in zip(together, alone, strict=True):
                error = np.linalg.norm(np.float64(a[i]) - np.float64(b))
                assert error <= TOLERANCE["bfloat16"] * np.linalg.norm(np.float64(b))
