"""Encoder and decoder: what a cache remembers, what may be seen, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnconv.errors import UsageError
from attnconv.models.seq2seq import AttentionSeq2Seq, ConvSeq2Seq
from attnconv.models.size import Size
from attnconv.spec import END, Graph, Spec

TOKENS = Spec((9,), 5, output="sequence", vocabulary=7, padded=True, steps=6)
FRAMES = Spec((9, 3), 5, output="sequence", padded=True, steps=6)
SIZE = Size(width=8, hidden=12)
FAMILIES = pytest.mark.parametrize("family", [AttentionSeq2Seq, ConvSeq2Seq])
EITHER = pytest.mark.parametrize(
    "family", [ConvSeq2Seq, pytest.param(AttentionSeq2Seq, marks=pytest.mark.slow)]
)
SPECS = pytest.mark.parametrize("spec", [TOKENS, FRAMES], ids=["tokens", "frames"])


@functools.cache
def programs(family, spec, size):
    """The structure of a model, and the compiled function that makes its parameters."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: family(spec, size, rngs=nnx.Rngs(0))))
    return graph, jax.jit(lambda key: nnx.split(family(spec, size, rngs=nnx.Rngs(params=key)))[1])


@functools.cache
def made(family, spec=TOKENS, seed=0):
    """A model none of whose parameters is zero, so that no bias or scale goes unnoticed."""
    graph, init = programs(family, spec, SIZE)
    rng = np.random.default_rng(seed)
    noisy = lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(noisy, init(jax.random.key(seed))))


def sources(spec=TOKENS, lengths=(6, 1, 4, 3), length=6, seed=0):
    rng = np.random.default_rng(seed)
    there = np.arange(length) < np.array(lengths)[:, None]
    if spec.vocabulary is None:
        x = rng.normal(size=(len(lengths), length, *spec.shape[1:])).astype(np.float32)
        return jnp.asarray(np.where(there[..., None], x, np.nan))
    x = rng.integers(1, spec.vocabulary, (len(lengths), length), dtype=np.int32)
    return jnp.asarray(np.where(there, x, 0))


def outputs(lengths=(6, 3, 1, 5), steps=6, seed=0):
    """Symbols, `END` as the last, -1 after it."""
    x = np.random.default_rng(seed).integers(1, 5, (len(lengths), steps), dtype=np.int32)
    at, lengths = np.arange(steps), np.array(lengths)[:, None]
    return jnp.asarray(np.where(at < lengths - 1, x, np.where(at == lengths - 1, END, -1)))


encode = jax.jit(lambda model, x: model.encode(x))
start = jax.jit(lambda model, x: model.start(model.encode(x)))
step = jax.jit(lambda model, cache, symbols, position: model.step(cache, symbols, position))
predict = jax.jit(lambda model, x: model.predict(x))


@jax.jit
def scores(model, x, labels, rng=None):
    return model(x, labels, rng=rng)


def filled(x, length):
    """The same sources with more room after the last vector."""
    pad = ((0, 0), (0, length - x.shape[1]), (0, 0))[: x.ndim]
    return jnp.pad(x, pad, constant_values=0 if x.ndim == 2 else jnp.nan)


@FAMILIES
def test_step_by_step_is_the_same_as_all_at_once(family):
    for seed in range(3):
        model, x, labels = made(family, seed=seed), sources(seed=seed), outputs(seed=seed)
        whole = scores(model, x, labels)
        cache = start(model, x)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {len(x)}
        last = jnp.full(len(x), TOKENS.classes)
        for position in range(TOKENS.steps):
            one, cache = step(model, cache, last, jnp.int32(position))
            np.testing.assert_allclose(one, whole[:, position], rtol=1e-5, atol=1e-5)
            last = jnp.maximum(labels[:, position], 0)


@FAMILIES
@pytest.mark.parametrize(
    "spec", [TOKENS, pytest.param(FRAMES, marks=pytest.mark.slow)], ids=["tokens", "frames"]
)
def test_room_after_the_last_changes_nothing(family, spec):
    model, x, labels = made(family, spec), sources(spec), outputs((3, 1, 4, 2), steps=4)
    more = jnp.pad(labels, ((0, 0), (0, 2)), constant_values=-1)
    found = scores(model, filled(x, 9), more)
    np.testing.assert_allclose(found[:, :4], scores(model, x, labels), atol=1e-5)


@FAMILIES
def test_the_encoder_is_that_of_the_source_without_padding(family):
    model = made(family)
    x = sources(lengths=(4,), length=9)
    memory, alone = encode(model, x), encode(model, x[:, :4])
    assert memory.mask.tolist() == [[True] * 4 + [False] * 5]
    np.testing.assert_allclose(memory.vectors[:, :4], alone.vectors, atol=1e-5)


@FAMILIES
def test_a_score_sees_the_symbols_before_it_and_no_other(family):
    model, x = made(family), sources()
    labels = outputs((6, 6, 6, 6))
    expected = scores(model, x, labels)
    for u in range(TOKENS.steps):
        changed = scores(model, x, labels.at[:, u].set((labels[:, u] + 1) % TOKENS.classes))
        np.testing.assert_array_equal(changed[:, : u + 1], expected[:, : u + 1])
        after = jnp.abs(changed - expected)[:, u + 1 : u + 2]
        assert after.size == 0 or float(after.max(axis=-1).min()) > 1e-3


@FAMILIES
def test_every_token_of_the_source_counts_and_so_does_its_place(family):
    model, labels = made(family), outputs((6,))
    x = jnp.array([[1, 2, 3, 4, 5, 6]])
    expected = scores(model, x, labels)
    for i in range(6):
        other = scores(model, x.at[0, i].set(1 + x[0, i] % 6), labels)
        assert float(jnp.abs(other - expected).max()) > 1e-3
    assert float(jnp.abs(scores(model, x[:, ::-1], labels) - expected).max()) > 1e-3


@FAMILIES
def test_greedy_is_a_plain_loop_that_starts_over_for_each_symbol(family):
    for seed in range(3):
        model, x = made(family, seed=seed), sources(seed=seed)
        expected = np.full((len(x), TOKENS.steps), -1, np.int32)
        for row, source in zip(expected, x, strict=True):
            for u in range(TOKENS.steps):
                row[u] = np.argmax(scores(model, source[None], jnp.asarray(row)[None])[0, u])
                if row[u] == END:
                    break
        np.testing.assert_array_equal(predict(model, x), expected)


@FAMILIES
def test_beams_have_the_probabilities_of_the_model(family):
    model, x = made(family), sources()
    symbols, values = jax.jit(lambda model, x: model.search(x, beams=4))(model, x)
    for i in range(4):
        logs = jax.nn.log_softmax(scores(model, x, symbols[:, i]))
        chosen = jnp.take_along_axis(logs, jnp.maximum(symbols[:, i], 0)[..., None], axis=2)[..., 0]
        expected = jnp.where(symbols[:, i] < 0, 0, chosen).sum(axis=1)
        np.testing.assert_allclose(values[:, i], expected, rtol=1e-4, atol=1e-5)


@EITHER
def test_several_seeds_in_one_program(family):
    models = [made(family, seed=seed) for seed in range(3)]
    graph, _ = nnx.split(models[0])
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *(nnx.split(m)[1] for m in models))
    x, labels = sources(), outputs()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def both(params, x, labels):
        model = nnx.merge(graph, params)
        return model(x, labels), model.predict(x)

    together, symbols = both(stacked, x, labels)
    for i, model in enumerate(models):
        np.testing.assert_allclose(together[i], scores(model, x, labels), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(symbols[i], predict(model, x))


@EITHER
def test_every_parameter_has_a_gradient(family):
    """Also where a source has no tokens at all."""
    graph, params = nnx.split(made(family))
    x, labels = sources(lengths=(9, 9, 9, 4, 0), length=9), outputs((6, 6, 3, 1, 5))

    @jax.jit
    def gradient(params):
        model = nnx.merge(graph, params)
        return jax.grad(lambda m: (m(x, labels, rng=jax.random.key(0)) ** 2).mean())(model)

    for path, g in nnx.to_flat_state(nnx.state(gradient(params))):
        assert jnp.isfinite(g[...]).all(), path
        # A number added to all scores of a query leaves its weights as they are.
        assert float(jnp.abs(g[...]).max()) > 1e-6 or path[-2:] == ("key", "bias"), path


@EITHER
def test_dropout_is_there_with_a_key_only(family):
    """Of the layers: nothing is dropped of frames."""
    model, x, labels = made(family, FRAMES), sources(FRAMES), outputs()
    plain = scores(model, x, labels)
    a, again, b = (scores(model, x, labels, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert min(float(jnp.abs(p - q).max()) for p, q in ((plain, a), (plain, b), (a, b))) > 1e-2
    # With one symbol changed, what is dropped is still the same for the scores before it.
    later = scores(model, x, labels.at[:, 3].set(1), jax.random.key(0))
    np.testing.assert_array_equal(later[:, :4], a[:, :4])


@pytest.mark.parametrize("spec", [TOKENS, FRAMES], ids=["tokens", "frames"])
def test_parameters_are_those_of_the_layout(spec):
    w, h, classes = 8, 12, spec.classes
    dense = lambda a, b: (a + 1) * b  # noqa: E731
    attend, norm = 4 * dense(w, w), 2 * w
    shared = ((7 * 64 if spec is TOKENS else 0) + dense(spec.channels, w) + 9 * w + norm) + (
        (classes + 1) * w + 6 * w + norm + dense(w, classes)
    )
    mlp, conv = dense(w, h) + dense(h, w), dense(3 * w, 2 * h) + dense(h, w)
    expected = {
        AttentionSeq2Seq: 2 * (attend + mlp + 2 * norm) + 2 * (2 * attend + mlp + 3 * norm),
        ConvSeq2Seq: 2 * (conv + norm) + 2 * (conv + attend + 2 * norm),
    }
    for family, layers in expected.items():
        model = nnx.eval_shape(lambda: family(spec, SIZE, rngs=nnx.Rngs(0)))  # noqa: B023
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert sum(p.size for p in leaves) == shared + layers


def reversals(rng, count):
    """3 to 5 symbols of 6, to be written in reverse; a token is a symbol and one more."""
    lengths = rng.integers(3, 6, count)[:, None]
    at = np.arange(6)
    symbols = rng.integers(1, 7, (count, 6))
    x = np.where(at < lengths, symbols + 1, 0)[:, :5].astype(np.int32)
    back = np.take_along_axis(symbols, np.maximum(lengths - 1 - at, 0), axis=1)
    labels = np.where(at < lengths, back, np.where(at == lengths, END, -1)).astype(np.int32)
    return x, labels


@pytest.mark.slow
@pytest.mark.parametrize("family", [AttentionSeq2Seq], ids=["AttentionSeq2Seq"])
def test_it_learns_to_reverse(family):
    spec = Spec((5,), 7, output="sequence", vocabulary=8, padded=True, steps=6)
    graph, init = programs(family, spec, Size(width=32, hidden=64))
    params, optimizer = init(jax.random.key(0)), optax.adam(3e-3)

    def loss(params, x, labels, rng):
        scores = nnx.merge(graph, params)(x, labels, rng=rng)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(labels, 0))
        return jnp.where(labels < 0, 0, each).sum() / (labels >= 0).sum()

    @jax.jit
    def train(params, state, x, labels, rng):
        gradient = jax.grad(loss)(params, x, labels, rng)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state

    rng, state = np.random.default_rng(0), optimizer.init(params)
    for key in jax.random.split(jax.random.key(0), 200):
        params, state = train(params, state, *reversals(rng, 64), key)
    x, labels = reversals(rng, 500)
    found = predict(nnx.merge(graph, params), x)
    assert float((found == labels).all(axis=1).mean()) > 0.95


@FAMILIES
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec((9,), 5, vocabulary=7), "output=label, steps=0: expected sequences of at least one"),
        (Spec((9,), 5, output="sequence", vocabulary=7), "output=sequence, steps=0: expected"),
        (Spec((8, 8, 1), 5, output="sequence", steps=3), "expected a source that is a sequence"),
        (
            Spec((4, 2), 5, output="sequence", steps=3, graph=Graph(np.eye(4), np.eye(4) > 0)),
            "expected a source that is a sequence",
        ),
    ],
)
def test_another_kind_of_task_is_refused(family, spec, message):
    with pytest.raises(UsageError, match=message):
        family(spec, SIZE, rngs=nnx.Rngs(0))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="num_heads=4: expected a divisor of the 6 features"):
        AttentionSeq2Seq(TOKENS, Size(width=6, hidden=8), rngs=nnx.Rngs(0))
