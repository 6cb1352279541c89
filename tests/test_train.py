"""One step against AdamW written out; other gradients; the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attnconv import train


def test_steps_are_those_of_adamw_written_out():
    """Loshchilov and Hutter 2019, algorithm 2, in float64, on a loss with a known gradient."""
    recipe = train.Recipe(warmup=0.5, weight_decay=0.1, clip=1.0)
    target = np.array([[3.0, -2.0]])

    def loss(params, batch):
        del batch
        return ((params["kernel"] - target) ** 2).sum() + params["b"].sum()

    batch = train.Data(jnp.zeros((1, 1)), jnp.zeros(1, int))
    params = {"kernel": jnp.array([[1.0, 1.0]]), "b": jnp.array([0.5])}
    state = train.TrainState(
        params=params,
        opt_state=recipe.optimizer().init(params),
        step=jnp.int32(0),
        steps=jnp.int32(4),
        learning_rate=jnp.float32(0.3),
    )
    w, b = np.array([[1.0, 1.0]]), np.array([0.5])
    m = [np.zeros_like(w), np.zeros_like(b)]
    v = [np.zeros_like(w), np.zeros_like(b)]
    rates = [0.5, 1.0, 0.5, 0.0]  # half the steps up, then half a cosine down
    for t in range(1, 5):
        expected_loss = ((w - target) ** 2).sum() + b.sum()
        state, value = train.train_step(state, batch, loss=loss, recipe=recipe)
        assert float(value) == pytest.approx(expected_loss, rel=1e-5)
        gradient = [2 * (w - target), np.ones_like(b)]
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        gradient = [g / max(norm, 1.0) for g in gradient]
        m = [0.9 * a + 0.1 * g for a, g in zip(m, gradient, strict=True)]
        v = [0.999 * a + 0.001 * g**2 for a, g in zip(v, gradient, strict=True)]
        hat = [
            (a / (1 - 0.9**t)) / (np.sqrt(c / (1 - 0.999**t)) + 1e-8)
            for a, c in zip(m, v, strict=True)
        ]
        rate = 0.3 * rates[t - 1]
        w, b = w - rate * (hat[0] + 0.1 * w), b - rate * hat[1]
        np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.params["b"], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("examples, parts", [(32, 1), (33, 3), (128, 4), (97, 97), (5, 1)])
def test_a_batch_is_split_into_the_fewest_equal_parts_that_fit(examples, parts):
    assert train.microbatches(examples) == parts


def test_the_gradient_of_parts_is_that_of_the_batch_also_over_runs():
    rng = np.random.default_rng(0)
    batch = train.Data(jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.integers(0, 4, 12)))
    params = {"kernel": jnp.asarray(rng.normal(size=(2, 3, 4)))}

    def loss(params, batch):
        scores = jnp.tanh(batch.inputs @ params["kernel"])
        return train.cross_entropy(scores, batch.labels).sum()

    def of(parts):
        one = functools.partial(train.mean_gradient, loss, batch=batch, parts=parts)
        return jax.vmap(one)(params), one(jax.tree.map(lambda x: x[0], params))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), of(3), of(1))


def test_sharpness_aware_is_the_gradient_at_the_worst_point_of_a_ball():
    """Foret et al. 2021, algorithm 1, in float64, of the loss mean_b sum (w x_b - y_b)^4."""
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(3, 2)), rng.normal(size=(8, 2)), rng.normal(size=(8, 3))

    def loss(params, batch):
        return ((batch.inputs @ params["kernel"].T - y[: len(batch.inputs)]) ** 4).sum()

    def written_out(w):
        apart = x @ w.T - y
        return (apart**4).sum() / 8, 4 * apart.T**3 @ x / 8

    batch = train.Data(jnp.asarray(x), jnp.zeros(8, int))
    for radius in (0.0, 0.05, 0.5):
        value, direction = train.sharpness_aware(radius)(loss, {"kernel": jnp.asarray(w)}, batch, 1)
        expected, uphill = written_out(w)
        _, sharp = written_out(w + radius * uphill / np.linalg.norm(uphill))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(direction["kernel"], sharp, rtol=1e-4)


def test_sharpness_aware_of_parts_is_that_of_the_batch():
    rng = np.random.default_rng(0)
    batch = train.Data(jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.integers(0, 4, 12)))
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)))}

    def loss(params, batch):
        scores = jnp.tanh(batch.inputs @ params["kernel"])
        return train.cross_entropy(scores, batch.labels).sum()

    found = [train.sharpness_aware(0.3)(loss, params, batch, parts) for parts in (1, 3)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)


def test_a_step_takes_the_gradient_that_it_is_given():
    """Uphill instead of downhill: the first step of AdamW goes by the rate, the other way."""
    batch = train.Data(jnp.zeros((1, 1)), jnp.zeros(1, int))
    params = {"b": jnp.array([0.5, -2.0])}

    def loss(params, batch):
        del batch
        return (params["b"] ** 2).sum()

    def uphill(loss, params, batch, parts):
        value, gradient = train.mean_gradient(loss, params, batch, parts)
        return value, jax.tree.map(jnp.negative, gradient)

    recipe = train.Recipe(warmup=0.5)
    state = train.TrainState(
        params=params,
        opt_state=recipe.optimizer().init(params),
        step=jnp.int32(0),
        steps=jnp.int32(2),
        learning_rate=jnp.float32(0.3),
    )
    for gradient, sign in ((None, -1), (uphill, 1)):
        after, value = train.train_step(state, batch, loss=loss, recipe=recipe, gradient=gradient)
        assert float(value) == pytest.approx(4.25)
        expected = params["b"] + sign * 0.3 * jnp.sign(params["b"])
        np.testing.assert_allclose(after.params["b"], expected, rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("size", [0.01, 1.0, np.nan])
def test_clipping_is_that_of_optax(size, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    shapes = ((3, 4), (4,), (3, 4), (), (4,), (3, 4), (4, 3))
    gradient = [jnp.asarray(size * rng.normal(size=shape), jnp.float32) for shape in shapes]
    found = train.clipped(1.0).update(gradient, optax.EmptyState())[0]
    expected = optax.clip_by_global_norm(1.0).update(gradient, optax.EmptyState())[0]
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_on_a_gpu_arrays_of_one_shape_take_one_sum(monkeypatch):
    arrays = [jnp.ones((3, 4))] * 5 + [jnp.ones(4)] * 6
    for backend, sums in (("cpu", 11), ("gpu", 2)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        program = jax.make_jaxpr(lambda x: train.norm(x))(arrays)
        assert str(program).count("reduce_sum[") == sums


def test_cross_entropy_is_the_sum_written_out():
    scores = np.random.default_rng(0).normal(size=(5, 4))
    labels = np.array([0, 3, 1, -1, 2])
    p = 0.9 * np.eye(4)[labels] + 0.1 / 4
    log_softmax = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    value = train.cross_entropy(jnp.asarray(scores), jnp.asarray(labels), smoothing=0.1)
    expected = np.where(labels >= 0, -(p * log_softmax).sum(1), 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_a_warm_up_that_leaves_no_steps_is_refused(warmup):
    with pytest.raises(ValueError, match=f"warmup={warmup}: expected a part of the steps"):
        train.Recipe(warmup=warmup)
