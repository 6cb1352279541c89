"""Families on examples of several lengths: what a score sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import (
    FITTING,
    LABEL,
    LABELS,
    LONGEST,
    THERE,
    T,
    compiled,
    inputs,
    made,
    scores,
    spec_of,
)

from attnconv import train
from attnconv.spec import Spec


@pytest.mark.parametrize(("name", "kind", "output"), [*LABEL, *LABELS])
def test_an_example_is_scored_by_what_is_in_it(name, kind, output):
    structure, params = made(name, spec_of(kind, output))
    x = inputs(kind)
    expected = np.asarray(scores(structure, params, x))
    assert expected.shape == ((4, 3) if output == "label" else (4, T, 3))
    assert np.isfinite(expected).all()
    # The others of the batch are other ones, and it stands elsewhere among them.
    others = inputs(kind, lengths=np.array([2, T, T, 9]), seed=1)
    found = np.asarray(scores(structure, params, np.stack([x[2], x[1], others[3], others[0]])))
    compared = THERE[[2, 1]] if output == "labels" else np.ones(2, bool)
    np.testing.assert_allclose(
        found[:2][compared], expected[[2, 1]][compared], rtol=1e-5, atol=1e-6
    )
    changed = x.copy()
    changed[1, 10] = 1 + x[1, 10] % 8 if kind == "tokens" else -x[1, 10]
    difference = np.abs(np.asarray(scores(structure, params, changed)) - expected)
    assert (difference.reshape(4, -1).max(1) > 1e-5).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("name", "kind", "output"), [*LABEL, *LABELS])
def test_what_lies_behind_the_end_is_not_read(name, kind, output):
    structure, params = made(name, spec_of(kind, output))
    x = inputs(kind)
    expected = scores(structure, params, x)
    if kind == "frames":
        behind = np.random.default_rng(2).choice([5.0, np.nan, -1e30], ((~THERE).sum(), 3))
        x[..., 1:][~THERE] = behind
    else:
        params = jax.tree.map(np.copy, params)
        params["inputs"]["embedding"].get_value()[0] = 1e6
    np.testing.assert_array_equal(scores(structure, params, x), expected)


@pytest.mark.parametrize(
    ("name", "kind", "output", "pooling"),
    [
        *((*case, "mean") for case in (*LABEL, *LABELS)),
        ("cnn", "frames", "label", "max"),
        ("cnn", "tokens", "label", "attention"),
        ("attention", "tokens", "label", "token"),
        ("hybrid", "frames", "label", "token"),
    ],
)
def test_examples_may_be_cut_to_the_longest_or_the_family_says_no(name, kind, output, pooling):
    spec = spec_of(kind, output, pooling=pooling)
    structure, params = made(name, spec)
    has_weights_for_each_position = output == "label" and name in ("mlp", "local")
    any_length = getattr(nnx.merge(structure, params), "any_length", False)
    assert any_length == (not has_weights_for_each_position)
    if has_weights_for_each_position:
        return
    expected = np.asarray(scores(structure, params, inputs(kind)))
    found = np.asarray(scores(structure, params, inputs(kind, LONGEST)))
    if output == "labels":
        there = THERE[:, :LONGEST]
        found, expected = found[there], expected[:, :LONGEST][there]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output", "pooling"),
    [
        *((name, "label", "mean") for name in FITTING["label"]),
        ("attention:5", "labels", "mean"),
        *((name, "label", "token") for name in ("attention", "hybrid")),
    ],
)
def test_whole_examples_have_the_scores_of_a_task_without_padding(name, output, pooling):
    padded, whole = (Spec((T, 4), 3, output, padded=p, pooling=pooling) for p in (True, False))
    x = inputs("frames", lengths=np.array([T, T]))
    structure, params = made(name, padded)
    without, _ = made(name, whole)
    found, expected = scores(structure, params, x), scores(without, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [13, 14, 15])
@pytest.mark.parametrize("name", ["cnn", "hybrid"])
def test_a_stride_lies_the_same_way_four_positions_further(name, length):
    structure, params = made(name, spec_of("frames", "label", length + 8))
    lengths = np.array([length, 11, 2, 5])
    whole, cut = (
        scores(structure, params, inputs("frames", width, lengths))
        for width in (length + 8, length)
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


@compiled
def slopes(structure, params, x, labels):
    def loss(params, x):
        found = nnx.merge(structure, params)(x)
        return train.cross_entropy(found, labels).sum()

    return jax.grad(loss, argnums=(0, 1))(params, x)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        pytest.param(c[0], c[2], marks=pytest.mark.slow if c in LABELS else ())
        for c in (*LABEL, *LABELS)[::2]
    ],
)
def test_no_gradient_comes_from_behind_the_end(name, output):
    """Nor is any not a number, though a window may hold nothing that is there."""
    structure, params = made(name, spec_of("frames", output))
    labels = np.arange(4) % 3
    if output == "labels":
        labels = np.where(THERE, np.arange(T) % 3, -1)
    of_params, of_x = slopes(structure, params, inputs("frames"), labels)
    of_x = np.asarray(of_x)
    assert (of_x[~THERE] == 0).all()
    # A short example may happen to open few of the ReLUs.
    assert (np.abs(of_x[THERE]).max(-1) > 1e-6).mean() > 0.8
    for path, slope in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.isfinite(slope).all() and np.asarray(slope).any(), jax.tree_util.keystr(path)


@compiled
def influence(structure, params, x):
    """Of each vector on each score, the largest over the examples: `[score, vector]`."""
    of = jax.jacrev(lambda x: nnx.merge(structure, params)(x).sum((0, 2)))(x)
    return jnp.abs(of).max((1, 3))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("mlp", 0),
        ("cnn:1", 0),
        ("cnn:9", 4),
        ("cnn", 8),
        ("neighborhood:9", 4),
        ("neighborhood", 8),
        ("gated", T),
        ("attention:1", 0),
        ("attention:5", 2),
        ("attention:9", 4),
        ("attention", T),
        ("hybrid", T),
    ],
)
def test_a_vector_sees_its_window_and_nothing_else(name, side):
    structure, params = made(name, spec_of("frames", "labels"))
    lengths = np.full(6, T - 3)
    found = np.asarray(influence(structure, params, inputs("frames", lengths=lengths)))
    there = np.arange(T) < T - 3
    between = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    expected = (between <= side) & there
    np.testing.assert_array_equal((found > 1e-7)[there], expected[there])
    assert (found[there][~expected[there]] == 0).all()


@pytest.mark.parametrize(("name", "side"), [("mlp", 0), ("cnn:9", 4), ("attention:5", 2)])
def test_a_token_is_seen_by_those_around_it(name, side):
    structure, params = made(name, spec_of("tokens", "labels"))
    x = inputs("tokens", lengths=np.array([14]))
    each = np.repeat(x, 14, 0)
    each[np.arange(14), np.arange(14)] = 1 + x[0, :14] % 8
    differences = np.abs(np.asarray(scores(structure, params, np.concatenate([x, each]))))
    found = np.abs(differences[1:] - differences[:1]).max(-1)[:, :14] > 1e-6
    between = np.abs(np.subtract.outer(np.arange(14), np.arange(14)))
    np.testing.assert_array_equal(found, between <= side)
