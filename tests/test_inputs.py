"""Where every family begins and ends: masks, embeddings, pooling and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import models, train
from attnconv.errors import UsageError
from attnconv.models.inputs import EMBEDDING_SCALE, Head, Inputs, dropout, per_layer
from attnconv.models.size import Size
from attnconv.spec import EMBEDDING, PAD, Graph, Spec

TOKENS = Spec((6,), 3, vocabulary=5, padded=True)
ONE_HOT = Spec((6,), 3, vocabulary=5, padded=True, one_hot=True)
FRAMES = Spec((6, 4), 3, padded=True)
X = jnp.array([[2, 4, 1, 0, 0, 0], [3, 3, 2, 4, 1, 2], [1, 0, 0, 0, 0, 0]])
LENGTHS = np.array([3, 6, 1])
THERE = np.arange(6) < LENGTHS[:, None]


def frames(seed=0):
    x = np.random.default_rng(seed).normal(size=(3, 6, 4)).astype(np.float32)
    return x, jnp.asarray(np.where(THERE[..., None], x, np.nan))


def test_tokens_are_rows_of_the_table_and_padding_is_zero():
    inputs = Inputs(TOKENS, rngs=nnx.Rngs(0))
    vectors, mask = inputs(X)
    table = np.asarray(inputs.embedding[...])
    assert table.shape == (5, EMBEDDING)
    np.testing.assert_array_equal(mask, THERE)
    np.testing.assert_array_equal(vectors, table[np.asarray(X)] * THERE[..., None])


def test_the_table_starts_small_and_by_seed():
    many = Spec((6,), 3, vocabulary=4000)
    first, again, other = (Inputs(many, rngs=nnx.Rngs(seed)).embedding[...] for seed in (0, 0, 1))
    # 256,000 draws: the standard errors are 1 / 506 and 1 / 716 of the deviation.
    assert float(first.mean()) == pytest.approx(0, abs=0.01 * EMBEDDING_SCALE)
    assert float(first.std()) == pytest.approx(EMBEDDING_SCALE, rel=0.01)
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > EMBEDDING_SCALE


def test_no_gradient_reaches_the_row_of_padding():
    inputs = Inputs(TOKENS, rngs=nnx.Rngs(0))
    slope = nnx.grad(lambda m: m(X)[0].sum())(inputs)["embedding"][...]
    expected = np.bincount(np.asarray(X)[THERE], minlength=5)
    np.testing.assert_array_equal(slope, np.repeat(expected[:, None], EMBEDDING, 1))
    assert expected[0] == 0


def test_one_hot_tokens_choose_rows_of_the_weights():
    vectors, mask = Inputs(ONE_HOT, rngs=nnx.Rngs(0))(X)
    np.testing.assert_array_equal(mask, THERE)
    assert not hasattr(Inputs(ONE_HOT, rngs=nnx.Rngs(0)), "embedding")
    weights = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    expected = np.where(THERE[..., None], weights[np.asarray(X)], 0)
    np.testing.assert_array_equal(np.asarray(vectors) @ weights, expected)


def test_one_hot_is_an_embedding_learned_by_the_first_layer():
    """With the table times the first weights as its weights it computes the same scores."""
    spec, one_hot = (Spec(s.shape, 3, "labels", 5, one_hot=s.one_hot) for s in (TOKENS, ONE_HOT))
    embedded, bare = (models.make("mlp", s, Size(4, 4), rngs=nnx.Rngs(0)) for s in (spec, one_hot))
    bare.second, bare.head = embedded.second, embedded.head
    bare.first.kernel[...] = embedded.inputs.embedding[...] @ embedded.first.kernel[...]
    found, expected = bare(X), embedded(X)
    np.testing.assert_allclose(np.asarray(found)[THERE], np.asarray(expected)[THERE], atol=1e-6)
    assert float(jnp.abs(expected).max()) > 1e-2


def test_vectors_that_begin_with_nan_are_not_there():
    x, padded = frames()
    vectors, mask = Inputs(FRAMES, rngs=nnx.Rngs(0))(padded)
    np.testing.assert_array_equal(mask, THERE)
    np.testing.assert_array_equal(vectors, x * THERE[..., None])
    vectors, mask = Inputs(Spec((6, 4), 3), rngs=nnx.Rngs(0))(jnp.asarray(x))
    assert mask is None
    np.testing.assert_array_equal(vectors, x)


def test_images_have_no_mask_and_stay_as_they_are():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    vectors, mask = Inputs(Spec((4, 5, 3), 3), rngs=nnx.Rngs(0))(x)
    assert mask is None
    np.testing.assert_array_equal(vectors, x)


def test_nodes_are_the_features_of_the_graph_whichever_are_asked_for():
    features = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    graph = Graph(features, ~np.eye(5, dtype=bool))
    inputs = Inputs(Spec((5, 2), 3, graph=graph), rngs=nnx.Rngs(0))
    for nodes in ([1], [4, 0, 0]):
        vectors, mask = inputs(jnp.array(nodes))
        assert mask is None
        np.testing.assert_array_equal(vectors, features[None])


def pooled_by_hand(x, mask, pooling, weights):
    """One vector of each example, in float64, one example at a time."""
    rows = []
    for vectors, there in zip(x.astype(np.float64), mask, strict=True):
        vectors = vectors[there]
        if pooling == "mean":
            rows.append(vectors.sum(0) / len(vectors))
        elif pooling == "max":
            rows.append([max(column) for column in vectors.T])
        elif pooling == "attention":
            share = np.exp(vectors @ weights)
            rows.append((share / share.sum()) @ vectors)
        else:
            rows.append(vectors[0])
    return np.array(rows)


@pytest.mark.parametrize("pooling", models.POOLINGS)
@pytest.mark.parametrize("masked", [True, False])
def test_scores_are_those_of_the_pooled_vector(pooling, masked):
    head = Head(Spec((6, 4), 3, padded=masked, pooling=pooling), 4, rngs=nnx.Rngs(0))
    head.scores.bias[...] = jnp.array([0.5, -1.0, 2.0])
    weights = np.zeros(4)
    if pooling == "attention":
        weights = np.asarray(head.pool.kernel[...], np.float64)[:, 0] * 3
        head.pool.kernel[...] = head.pool.kernel[...] * 3
        assert np.ptp(weights) > 0.5
    x, _ = frames()
    mask = jnp.asarray(THERE) if masked else None
    found = head(jnp.asarray(x), mask, jnp.asarray(x))
    by_hand = pooled_by_hand(x, THERE if masked else np.ones_like(THERE), pooling, weights)
    expected = by_hand @ np.asarray(head.scores.kernel[...], np.float64) + [0.5, -1.0, 2.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", models.POOLINGS)
def test_what_is_not_there_is_not_pooled_and_has_no_gradient(pooling):
    head = Head(Spec((6, 4), 3, padded=True, pooling=pooling), 4, rngs=nnx.Rngs(0))
    x, _ = frames()
    mask = jnp.asarray(THERE)

    def scores(x):
        return head(x, mask, x)

    other = np.where(THERE[..., None], x, 100.0).astype(np.float32)
    np.testing.assert_array_equal(scores(jnp.asarray(other)), scores(jnp.asarray(x)))
    slope = np.asarray(jax.grad(lambda x: scores(x).sum())(jnp.asarray(x)))
    assert (slope[~THERE] == 0).all()
    first = np.abs(slope[:, 0]).max(-1)
    assert (first > 1e-3).all() if pooling != "max" else np.isfinite(slope).all()
    if pooling == "token":
        assert (slope[:, 1:] == 0).all()


def test_an_image_is_pooled_over_both_axes():
    head = Head(Spec((3, 5, 1), 2, pooling="max"), 4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = x.max((1, 2)) @ np.asarray(head.scores.kernel[...])
    np.testing.assert_allclose(head(jnp.asarray(x), None, jnp.asarray(x)), expected, rtol=1e-5)


def test_each_vector_has_scores_of_its_own_where_each_has_a_label():
    head = Head(Spec((6, 4), 3, "labels", pooling="attention"), 4, rngs=nnx.Rngs(0))
    assert not hasattr(head, "pool")
    x, _ = frames()
    expected = x @ np.asarray(head.scores.kernel[...])
    found = head(jnp.asarray(x), jnp.asarray(THERE), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_nodes_that_are_asked_for_are_scored():
    graph = Graph(np.zeros((6, 4), np.float32), np.zeros((6, 6), bool))
    head = Head(Spec((6, 4), 3, graph=graph), 4, rngs=nnx.Rngs(0))
    x, _ = frames()
    expected = x[0] @ np.asarray(head.scores.kernel[...])
    found = head(jnp.asarray(x[:1]), None, jnp.array([5, 0, 5, 2]))
    np.testing.assert_allclose(found, expected[[5, 0, 5, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(rate):
    x = jnp.full((200, 500), 3.0)
    found = np.asarray(dropout(x, rate, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(found), [0, 3 / (1 - rate)], rtol=1e-6)
    # Five standard errors of 100,000 draws.
    error = 5 * (rate * (1 - rate) / found.size) ** 0.5
    assert (found == 0).mean() == pytest.approx(rate, abs=error)
    assert found.mean() == pytest.approx(3, abs=3 * error / (1 - rate))
    for axis in (0, 1):  # each number by itself: no row and no column is dropped as one
        assert (found == 0).mean(axis).std() < 0.05


def test_dropout_is_fixed_by_its_key_and_needs_one():
    x = jax.random.normal(jax.random.key(0), (8, 9))
    first, again, other = (dropout(x, 0.5, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).mean() > 0.25
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize(
    ("spec", "rate"),
    [
        (TOKENS, 0.5),
        (Spec((6,), 3, "labels", vocabulary=5), 0.3),
        (Spec((6,), 3, "sequence", vocabulary=5, steps=4), 0.1),
        (FRAMES, 0.0),
        (Spec((8, 8, 1), 3), 0.0),
    ],
)
def test_only_text_is_dropped(spec, rate):
    inputs = Inputs(spec, rngs=nnx.Rngs(0))
    x = jnp.ones((50, *spec.shape), jnp.int32 if spec.vocabulary else jnp.float32)
    dropped, plain = inputs(x, rng=jax.random.key(0))[0], inputs(x)[0]
    assert (np.asarray(dropped) == 0).mean() == pytest.approx(rate, abs=0.02)
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(
        np.asarray(dropped)[kept], np.asarray(plain)[kept] / (1 - rate), rtol=1e-5
    )


def test_inputs_and_scores_are_dropped_apart():
    """One key for both, but what is dropped at the end is not what is dropped at the beginning."""
    spec = Spec((6,), 64, "labels", vocabulary=5)
    ones = jnp.ones((1, 6), jnp.int32)
    inputs, head = Inputs(spec, rngs=nnx.Rngs(0)), Head(spec, EMBEDDING, rngs=nnx.Rngs(0))
    head.scores.kernel[...] = jnp.eye(EMBEDDING)
    key = jax.random.key(3)
    first = np.asarray(inputs(ones, rng=key)[0]) == 0
    last = np.asarray(head(jnp.ones((1, 6, EMBEDDING)), None, ones, key)) == 0
    # Independent, both: 0.3 x 0.3 of 384 numbers.
    assert (first & last).mean() == pytest.approx(0.09, abs=0.06)
    assert last.mean() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("name", ["mlp", "local", "cnn"])
def test_a_class_token_needs_attention(name):
    spec = Spec((16, 4), 3, pooling="token")
    message = f"^model {name}: it has no vector that looks at all others, for pooling=token"
    with pytest.raises(UsageError, match=message):
        models.shapes(name, spec, Size(8, 8))


@pytest.mark.parametrize("name", ["attention", "hybrid"])
def test_a_class_token_is_one_more_vector(name):
    spec, plain = (Spec((16, 4), 3, padded=True, pooling=p) for p in ("token", "mean"))
    model = models.shapes(name, spec, Size(4, 8))
    other = models.shapes(name, plain, Size(4, 8))
    features = model.encoder.token.shape[-1]
    assert models.parameters(model) == models.parameters(other) + 2 * features  # and its position
    assert (
        model.encoder.position.embedding.shape[0] == 1 + other.encoder.position.embedding.shape[0]
    )
    assert other.encoder.token is None


@pytest.mark.parametrize("name", ["cnn", "attention", "hybrid"])
def test_an_unknown_pooling_is_refused(name):
    with pytest.raises(
        UsageError, match=r"expected pooling by mean, max, attention, token, got 'sum'"
    ):
        models.shapes(name, Spec((16, 4), 3, pooling="sum"), Size(8, 8))


@pytest.mark.parametrize(
    ("window", "layers", "extent"), [(1, 4, 1), (9, 4, 3), (33, 4, 9), (9, 2, 5), (5, 1, 5)]
)
def test_layers_share_a_window(window, layers, extent):
    assert per_layer("cnn", window, layers) == extent
    assert 1 + layers * (extent - 1) == window


@pytest.mark.parametrize(
    ("window", "layers", "near"),
    [(8, 4, "1 or 9"), (10, 4, "9 or 17"), (11, 4, "9 or 17"), (7, 2, "5 or 9"), (0, 4, "1 or 9")],
)
def test_a_window_that_layers_cannot_share_is_refused_with_the_next_ones(window, layers, near):
    message = f"^model cnn:{window}: its {layers} layers can see {near} positions, not {window}$"
    with pytest.raises(UsageError, match=message):
        per_layer("cnn", window, layers)
    for possible in map(int, near.split(" or ")):
        assert 1 + layers * (per_layer("cnn", possible, layers) - 1) == possible


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "attention", "gated"])
def test_the_gradient_of_the_maximum_is_that_of_what_was_largest(name):
    """Also where the compiler computes twice, with other rounding, what the maximum is taken of."""
    T, B = 24, 4
    rng = np.random.default_rng(0)
    tokens = np.where(np.arange(T) <= np.arange(B)[:, None], rng.integers(1, 7, (B, T)), PAD)
    labels = jnp.asarray(rng.integers(0, 3, B), jnp.int32)
    spec = Spec((T,), 3, padded=True, vocabulary=7, pooling="max")
    model = models.make(name, spec, models.Size(36, 60), rngs=nnx.Rngs(1))
    structure, params = nnx.split(model)

    def loss(params):
        scores = nnx.merge(structure, params)(jnp.asarray(tokens, jnp.int32))
        return train.cross_entropy(scores, labels, smoothing=0.1).mean()

    eager, compiled = jax.grad(loss)(params), jax.jit(jax.grad(loss))(params)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(compiled), jax.tree.leaves(eager), strict=True
    ):
        atol = 1e-5 * float(max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(eager)))
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol, err_msg=jax.tree_util.keystr(path))
