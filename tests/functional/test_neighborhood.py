"""Neighborhood attention against loops in float64, and the dense attention that it is a part of."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attnconv import functional as F
from attnconv.lowering import neighborhood_tiles as lowering
from attnconv.lowering import tiles


def seen(i, n, window, dilation, causal, border):
    """The positions that query i of an axis sees, each with its place and offset in the window."""
    group = list(range(i % dilation, n, dilation))
    at = group.index(i)
    if causal:
        first = at - window + 1
    elif border == "shift":
        first = min(max(at - window // 2, 0), len(group) - window)
    else:
        first = at - (window - 1) // 2
    places = [p for p in range(window) if 0 <= first + p < len(group)]
    return [(group[first + p], p, first + p - at + window - 1) for p in places]


def loops(query, key, value, bias, scale, *, window, dilation, is_causal, border):
    """One query, head and key at a time."""
    query, key, value = map(np.float64, (query, key, value))
    B, *grid, N, _ = query.shape
    share = N // key.shape[-2]
    by_place = bias is not None and bias.shape[1:] == tuple(window)
    y = np.zeros_like(query)
    for i in np.ndindex(*grid):
        axes = [
            seen(*each, border) for each in zip(i, grid, window, dilation, is_causal, strict=True)
        ]
        keys = [tuple(zip(*each, strict=True)) for each in itertools.product(*axes)]
        for b, n in np.ndindex(B, N):
            scores = []
            for at, place, offset in keys:
                score = scale * query[(b, *i, n)] @ key[(b, *at, n // share)]
                if bias is not None:
                    score += np.float64(bias)[(n, *(place if by_place else offset))]
                scores.append(score)
            weights = np.exp(np.array(scores) - max(scores))
            weights /= weights.sum()
            for weight, (at, *_) in zip(weights, keys, strict=True):
                y[(b, *i, n)] += weight * value[(b, *at, n // share)]
    return y


def random_case(seed):
    """Random sizes of every kind: arrays and options."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    most = {1: 23, 2: 9, 3: 5}[rank]
    border = ["shift", "zero"][int(rng.integers(2))]
    window = tuple(map(int, rng.integers(1, {1: 7, 2: 6, 3: 4}[rank], rank)))
    dilation = tuple(map(int, rng.integers(1, 4, rank)))
    is_causal = tuple(bool(c) for c in rng.random(rank) < 0.3)
    low = [
        w * d if border == "shift" and not c else 1
        for w, d, c in zip(window, dilation, is_causal, strict=True)
    ]
    grid = tuple(int(rng.integers(n, max(n, most) + 1)) for n in low)
    G, K = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    N, B = G * int(rng.integers(1, 3)), int(rng.integers(1, 4))

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    shape = [None, window, tuple(2 * w - 1 for w in window)][int(rng.integers(3))]
    bias = None if shape is None else normal(N, *shape)
    arrays = [normal(B, *grid, heads, K) for heads in (N, G, G)]
    options = {"window": window, "dilation": dilation, "is_causal": is_causal, "border": border}
    return arrays, bias, options


def dense(query, key, value, bias=None, *, scale=None, **options):
    """The same as attention between all positions."""
    grid = query.shape[1:-2]
    flat = [x.reshape(len(x), -1, *x.shape[-2:]) for x in (query, key, value)]
    pairs = F.neighborhood_bias(grid, bias=bias, **options)
    y = F.dot_product_attention(*flat, pairs, scale=scale, implementation="reference")
    return y.reshape(query.shape)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))]
)
def test_is_what_loops_say(seed):
    arrays, bias, options = random_case(seed)
    scale = 1 / np.sqrt(arrays[0].shape[-1])
    expected = loops(*arrays, bias, scale, **options)
    actual = F.neighborhood_attention(*arrays, bias=bias, **options)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(dense(*arrays, bias, **options), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("border", ["shift", "zero"])
def test_tiles_that_are_alike_along_one_axis_only(border, monkeypatch):
    """One query of the first axis and two of the second: at the border and inside."""

    def small_tiles(axes):
        return tuple(
            tiles.Tiling(axis, rows, -(-axis.length // rows))
            for axis, rows in zip(axes, (1, 2), strict=True)
        )

    monkeypatch.setattr(tiles, "tile", small_tiles)
    query, key, value = small(grid=(6, 7))
    options = {"window": (3, 3), "dilation": (1, 1), "is_causal": (False,) * 2, "border": border}
    for offsets in (3, 5):
        bias = np.random.default_rng(offsets).normal(size=(2, offsets, offsets))
        bias = jnp.asarray(bias, jnp.float32)
        expected = loops(query, key, value, bias, 1.0, **options)
        actual = F.neighborhood_attention(query, key, value, bias=bias, scale=1.0, **options)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.fixture(params=["one example at a time", "all at once"])
def part(request, monkeypatch):
    monkeypatch.setattr(lowering, "PART", 1 if request.param[:3] == "one" else 1 << 40)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize(
    "seed", [100, 102, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (101, 103))]
)
def test_gradients_are_those_of_dense_attention(seed):
    arrays, bias, options = random_case(seed)
    moving = [*arrays, jnp.float32(0.7)] + ([] if bias is None else [bias])
    ct = jnp.asarray(np.random.default_rng(seed).normal(size=arrays[0].shape), jnp.float32)

    def of(attention):
        def loss(query, key, value, scale, bias=None):
            y = attention(query, key, value, bias=bias, scale=scale, **options)
            return (y * ct).sum(), y

        gradient = jax.value_and_grad(loss, range(len(moving)), has_aux=True)
        (_, y), gradients = jax.jit(gradient)(*moving)
        return y, *gradients

    for actual, expected in zip(of(F.neighborhood_attention), of(dense), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    "seed", [200, 202, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (201, 203))]
)
def test_all_tiles_at_once_are_the_same(seed):
    """The form that other platforms take."""
    (query, key, value), bias, options = random_case(seed)
    border, shape = options["border"], query.shape[1:-2]
    axes = tuple(
        tiles.Axis(n, w, d, c, border == "shift" and not c)
        for n, w, d, c in zip(
            shape, *(options[name] for name in ("window", "dilation", "is_causal")), strict=True
        )
    )
    moving = lowering.Moving(query, key, value, bias, jnp.float32(0.6))
    form = lowering.Tiles(tiles.tile(axes))
    y, residual = form.forward(moving, ())
    for actual, expected in zip(form.plain(moving, ()), (y, residual.log), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def small(seed=0, grid=(5, 4), heads=2, features=3):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, *grid, heads, features)), jnp.float32) for _ in "qkv"]


@pytest.mark.slow
@pytest.mark.parametrize("border", ["shift", "zero"])
def test_every_order_and_mode(border):
    arrays = small()
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 2)), jnp.float32)
    attend = functools.partial(F.neighborhood_attention, window=(3, 2), border=border)

    def y(*moving):  # the numerical derivative comes as NumPy's
        query, key, value, bias = map(jnp.asarray, moving)
        return attend(query, key, value, bias=bias)

    check_grads(y, (*arrays, bias), order=2, atol=0.02, rtol=0.02)


def test_under_vmap_and_scan():
    arrays = small()
    attend = functools.partial(F.neighborhood_attention, window=3)
    expected = attend(*arrays)
    each = jax.vmap(lambda *one: attend(*(x[None] for x in one))[0])(*arrays)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    _, looped = jax.lax.scan(lambda c, x: (c, attend(*x)), 0, [x[None] for x in arrays])
    np.testing.assert_allclose(looped[0], expected, rtol=1e-5, atol=1e-6)


def test_under_shard_map():
    arrays = small()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def gradient(*arrays):
        attend = functools.partial(F.neighborhood_attention, window=3)
        return jax.grad(lambda *moving: attend(*moving).sum(), (0, 1, 2))(*arrays)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec)
    for actual, expected in zip(jax.jit(sharded)(*arrays), gradient(*arrays), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype):
    arrays = [x.astype(dtype) for x in small(3, grid=(9,))]
    y = F.neighborhood_attention(*arrays, window=5, dilation=1)
    assert y.dtype == dtype
    wide = F.neighborhood_attention(*(x.astype(jnp.float32) for x in arrays), window=5)
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(y), np.float64(wide), rtol=step, atol=step / 8)


def kernel_case(name):
    """More than one tile, and more than one part of a run, along each axis but those of three."""
    rng = np.random.default_rng(len(name))
    grid, window, dilation, is_causal, border, offsets = {
        "sequence": ((150,), (9,), (2,), (True,), "shift", (17,)),
        "image": ((19, 12), (5, 4), (2, 1), (False, False), "shift", (9, 7)),
        "image, clipped": ((13, 10), (7, 3), (1, 1), (False, True), "zero", (7, 3)),
        "image, no bias": ((9, 17), (8, 13), (1, 1), (False, False), "shift", None),
        "volume": ((5, 6, 5), (3, 3, 4), (1, 2, 1), (False,) * 3, "shift", None),
    }[name]
    arrays = [jnp.asarray(rng.normal(size=(2, *grid, n, 3)), jnp.float32) for n in (2, 1, 1)]
    bias = None if offsets is None else jnp.asarray(rng.normal(size=(2, *offsets)), jnp.float32)
    options = {"window": window, "dilation": dilation, "is_causal": is_causal, "border": border}
    return arrays, bias, options


KERNEL_CASES = ["sequence", "image", "image, clipped", "image, no bias", "volume"]
kernel = functools.partial(F.neighborhood_attention, implementation="pallas")


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_kernel_is_what_loops_say(name):
    arrays, bias, options = kernel_case(name)
    expected = loops(*arrays, bias, 0.7, **options)
    actual = kernel(*arrays, bias=bias, scale=0.7, **options)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["image", *(pytest.param(n, marks=pytest.mark.slow) for n in KERNEL_CASES if n != "image")],
)
def test_gradients_of_the_kernel_are_those_of_dense_attention(name):
    arrays, bias, options = kernel_case(name)
    moving = [*arrays, jnp.float32(0.7)] + ([] if bias is None else [bias])
    ct = jnp.asarray(np.random.default_rng(0).normal(size=arrays[0].shape), jnp.float32)

    def gradients(attention):
        def loss(query, key, value, scale, bias=None):
            y = attention(query, key, value, bias=bias, scale=scale, **options)
            return (y * ct).sum()

        return jax.jit(jax.grad(loss, range(len(moving))))(*moving)

    for actual, expected in zip(gradients(kernel), gradients(dense), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernel_in_half_precision(dtype):
    """Weights are rounded as products take them: a few roundings of numbers about 1."""
    arrays = [x.astype(dtype) for x in small(3, grid=(9, 10), features=20)]

    def both(attention, *arrays):
        y = attention(*arrays, window=5)
        gradients = jax.grad(
            lambda *xs: jnp.sin(attention(*xs, window=5).astype(jnp.float32)).sum(), (0, 1, 2)
        )(*arrays)
        return [y, *gradients]

    wide = both(F.neighborhood_attention, *(x.astype(jnp.float32) for x in arrays))
    for actual, expected in zip(both(kernel, *arrays), wide, strict=True):
        assert actual.dtype == dtype
        error = np.linalg.norm(np.float64(actual) - np.float64(expected))
        assert error < float(jnp.finfo(dtype).eps) * np.linalg.norm(expected)


@pytest.mark.slow
def test_kernel_under_vmap_and_shard_map():
    arrays = small()
    expected = F.neighborhood_attention(*arrays, window=3)
    each = jax.vmap(lambda *one: kernel(*(x[None] for x in one), window=3)[0])(*arrays)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")

    def gradient(attention, *arrays):
        return jax.grad(lambda *xs: jnp.sin(attention(*xs, window=3)).sum(), (0, 1, 2))(*arrays)

    of_kernel = functools.partial(gradient, kernel)
    # Pallas's interpreter does not keep to the types that check_vma looks at.
    sharded = jax.shard_map(of_kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    expected = gradient(F.neighborhood_attention, *arrays)
    for actual, one in zip(jax.jit(sharded)(*arrays), expected, strict=True):
        np.testing.assert_allclose(actual, one, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_kernel_in_every_order_and_mode():
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 2)), jnp.float32)

    def y(*moving):
        query, key, value, bias = map(jnp.asarray, moving)
        return kernel(query, key, value, bias=bias, window=(3, 2))

    check_grads(y, (*small(), bias), order=2, atol=0.02, rtol=0.02)


def test_kernel_gives_zeros_where_every_key_is_hidden():
    query, key, value = small(grid=(70,))
    bias = jnp.zeros((2, 3)).at[0].set(-jnp.inf)  # all keys of the first head

    def loss(*arrays):
        return kernel(*arrays, window=3, bias=bias, border="zero")

    y, back = jax.vjp(loss, query, key, value)
    assert not y[..., 0, :].any() and y[..., 1, :].any()
    for gradient in back(jnp.ones_like(y)):
        assert not gradient[..., 0, :].any() and gradient[..., 1, :].any()


def test_kernel_says_so_and_refuses():
    choices = F.explain(functools.partial(kernel, window=3), *small())
    assert [(choice.platform, choice.form) for choice in choices] == [
        ("cuda", "kernel"),
        ("cpu", "interpreted kernel"),
        ("other", "all tiles"),
    ]
    assert choices[0].reason == "implementation is 'pallas'; tiles of 8x8, 32 keys at once"
    with pytest.raises(ValueError, match="features of at most 512 bytes"):
        kernel(*[jnp.zeros((1, 3, 1, 129))] * 3, window=1)
    with pytest.raises(ValueError, match=r"implementation 'palas'.*pallas"):
        F.neighborhood_attention(*small(), window=3, implementation="palas")


def test_a_window_of_everything_is_global():
    query, key, value = small(grid=(4, 5))
    flat = [x.reshape(2, 20, 2, 3) for x in (query, key, value)]
    expected = F.dot_product_attention(*flat).reshape(query.shape)
    for options in [{"window": (4, 5)}, {"window": (7, 9), "border": "zero"}]:
        y = F.neighborhood_attention(query, key, value, **options)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_bias_of_minus_infinity_hides_a_key():
    query, key, value = small(grid=(6,))
    bias = jnp.zeros((2, 3)).at[:, 0].set(-jnp.inf)

    def y(value, bias):
        return F.neighborhood_attention(query, key, value, window=3, bias=bias, border="zero")

    changed = value.at[:, 2].add(100.0)
    difference = np.abs(y(changed, bias) - y(value, bias)).max(axis=(0, 2, 3))
    assert (difference > 0).tolist() == [False, True, True, False, False, False]
    nothing = jnp.full((2, 3), -jnp.inf)
    gradient = jax.grad(lambda v: y(v, nothing).sum())(value)
    assert not y(value, nothing).any() and not gradient.any()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_key_that_is_not_finite_is_seen_by_its_neighbors_only(number):
    query = key = jnp.ones((1, 20, 1, 1))
    y = F.neighborhood_attention(query, key.at[0, 0].set(number), query, window=3)
    assert np.isfinite(y[0, :, 0, 0]).tolist() == [False] * 2 + [True] * 18


def test_memory_does_not_grow_with_the_square():
    """Temporaries of the gradient at 16,384 positions, where all scores would be 1 GB."""
    x = jax.ShapeDtypeStruct((1, 16384, 1, 8), jnp.float32)

    def loss(query, key, value):
        return F.neighborhood_attention(query, key, value, window=17).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 2**20


def test_tiles_hold_every_window():
    for axis in itertools.starmap(
        tiles.Axis, itertools.product([11], range(1, 6), [1, 2], [False], [True, False])
    ):
        for tiling in {tiles.tile((axis,))[0], tiles.Tiling(axis, 2, -(-axis.length // 2))}:
            _, different, which = tiles.patterns(tiling)
            for residue, tile in np.ndindex(which.shape):
                start = tiling.key_starts[tile]
                for row in range(tiling.rows):
                    at = residue + axis.dilation * (tile * tiling.rows + row)
                    places = different[which[residue, tile], row]
                    keys = residue + axis.dilation * (start + np.nonzero(places >= 0)[0])
                    border = "shift" if axis.shift else "zero"
                    expected = (
                        []
                        if at >= 11
                        else [
                            k for k, *_ in seen(at, 11, axis.window, axis.dilation, False, border)
                        ]
                    )
                    assert keys.tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "window: expected at most 5 for 5 positions with dilation 1"),
        ({"window": 3, "dilation": 2}, "window: expected at most 2 for 5 positions"),
        ({"window": (3, 3, 3)}, "window: expected a positive int, or one for each of the 2"),
        ({"window": 0}, "window: expected a positive int"),
        ({"window": 3, "border": "same"}, "border"),
        ({"window": 3, "is_causal": (True,)}, "is_causal: expected one for each of 2 axes"),
        ({"window": 3, "bias": jnp.zeros((2, 3))}, r"bias: expected shape \[2, 3, 3\]"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        F.neighborhood_attention(*small(), **options)


def test_refuses_arrays_that_do_not_fit():
    query, key, value = small()
    with pytest.raises(ValueError, match="query: expected"):
        F.neighborhood_attention(query[0, 0], key[0, 0], value[0, 0], window=1)
    with pytest.raises(ValueError, match="key: expected shape"):
        F.neighborhood_attention(query, key[:, :4], value[:, :4], window=1)
    with pytest.raises(ValueError, match="key: expected heads that divide"):
        three = jnp.concatenate([query, query[..., :1, :]], axis=-2)
        F.neighborhood_attention(three, key, value, window=1)


def test_the_bias_of_pairs_has_minus_infinity_in_every_dtype():
    for dtype, of_pairs in {"float8_e4m3fn": "float32", "bfloat16": "bfloat16"}.items():
        found = F.neighborhood_bias((4,), window=3, bias=jnp.zeros((1, 3), dtype))
        assert found.dtype == of_pairs
        hidden = found[0, 0].astype("float32") == -jnp.inf
        assert hidden.astype(int).tolist() == [[0, 0, 0, 1]] * 2 + [[1, 0, 0, 0]] * 2
