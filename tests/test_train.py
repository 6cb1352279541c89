"""One step against AdamW written out, runs against each other, and what is compiled how often."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import batching, checkpoint, models, runs, tasks, train
from attnconv.errors import UsageError
from attnconv.spec import Spec

SPEC = Spec((4, 4, 1), classes=3)


def toy(examples: int = 60, seed: int = 0) -> train.Data:
    """Three classes that differ in the row which is bright, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, examples).astype(np.int32)
    inputs = rng.normal(0, 0.3, (examples, 4, 4, 1)).astype(np.float32)
    inputs[np.arange(examples), labels] += 1
    return train.Data(inputs, labels)


@functools.cache
def programs(name: str = "mlp") -> train.Programs:
    make = functools.partial(models.make, name, SPEC, models.Size(8, 8))
    return train.Programs(make, train.Recipe(batch=16))


def run_of(rate: float = 0.01, seed: int = 0, steps: int = 120) -> runs.Run:
    return runs.Run(rate, seed, batching.order(np.arange(60), steps=steps, batch=16, seed=seed))


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


def test_what_is_trained_on_is_augmented_anew_at_each_step_and_nothing_else_is():
    """Images exchanged for noise teach nothing; labels, scores and other seeds are as before."""
    data, make = toy(), functools.partial(models.make, "mlp", SPEC, models.Size(8, 8))
    drawn = []

    def noise(rng, x):
        jax.debug.callback(lambda key: drawn.append(key.tobytes()), jax.random.key_data(rng))
        return jax.random.normal(rng, x.shape)

    def trained(augment, seed=0):
        own = train.Programs(make, train.Recipe(batch=16), augment=augment)
        return runs.train_one(own, data, run_of(seed=seed), validation=data)

    plain = trained(None)
    same = trained(lambda rng, x: x)
    chex.assert_trees_all_equal(plain.params, same.params)
    assert plain.train.accuracy == 1.0
    blind = trained(noise)
    assert blind.train.accuracy < 0.8
    jax.effects_barrier()
    assert len(drawn) == len(set(drawn)) == 120
    trained(noise, seed=1)
    jax.effects_barrier()
    assert len(drawn) == len(set(drawn)) == 240


def test_cross_entropy_is_the_sum_written_out():
    scores = np.random.default_rng(0).normal(size=(5, 4))
    labels = np.array([0, 3, 1, -1, 2])
    p = 0.9 * np.eye(4)[labels] + 0.1 / 4
    log_softmax = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    value = train.cross_entropy(jnp.asarray(scores), jnp.asarray(labels), smoothing=0.1)
    expected = np.where(labels >= 0, -(p * log_softmax).sum(1), 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_order_uses_every_example_equally_often():
    order = batching.order(np.arange(7) * 10, steps=14, batch=4, seed=3)
    assert order.shape == (14, 4)
    assert np.bincount(order.ravel() // 10).tolist() == [8] * 7
    assert sorted(order.ravel()[:7]) == list(range(0, 70, 10))
    assert not np.array_equal(order, batching.order(np.arange(7) * 10, steps=14, batch=4, seed=4))


def test_training_learns_and_repeats_to_the_bit():
    data, held_out = toy(), toy(200, seed=1)
    first, again, other = (
        runs.train_one(programs(), data, run, validation=held_out)
        for run in (run_of(), run_of(), run_of(seed=1))
    )
    assert first.train.accuracy == 1.0
    assert first.validation.accuracy > 0.95
    assert first.validation.loss < 0.4
    chex.assert_trees_all_equal(first.params, again.params)
    assert first.validation == again.validation
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(first.params, other.params)


@pytest.mark.parametrize("name", ["cnn", pytest.param("attention", marks=pytest.mark.slow)])
def test_on_each_core_or_as_one_program_is_the_same(name):
    data = toy()
    grid = [run_of(rate, seed, steps=10) for rate in (0.003, 0.01) for seed in (0, 1)]
    apart = runs.train_all(programs(name), data, grid, validation=data)
    together = runs.train_together(programs(name), data, grid, validation=data)
    scores = [
        [programs(name).scores(result.params, data.inputs) for result in results]
        for results in (apart, together)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(scores[0][0] - scores[0][1]).max()) > 0.1
    alone = runs.train_one(programs(name), data, grid[2], validation=data)
    chex.assert_trees_all_equal(apart[2].params, alone.params)


def test_data_that_stay_on_the_host_train_the_same(monkeypatch):
    data = toy()
    on_device = runs.train_one(programs(), runs.place(data), run_of(), validation=data)
    monkeypatch.setattr(runs, "HOST_BYTES", 100)
    assert runs.place(data) is data
    streamed = runs.train_one(programs(), data, run_of(), validation=data)
    chex.assert_trees_all_equal(on_device.params, streamed.params)


def test_the_next_batches_are_put_in_order_before_a_loss_is_asked_for(monkeypatch):
    told = []

    def batches(data, order, start, count):
        told.append(f"batches {start} to {start + count}")
        return data, order, count

    def advance(state, data, order, count):
        told.append("advance")
        return state.replace(step=state.step + count), jnp.float32(0.5)

    monkeypatch.setattr(runs, "batches", batches)
    order = np.zeros((250, 4), np.int32)
    state = programs().init(0.01, 250, 0).replace(step=20)
    for part in runs.course(advance, state, toy(), order, start=20, every=130):
        assert part.state.step == part.end
        told.append(f"asked at {part.end}")
    assert told[:5] == [
        "batches 20 to 120",
        "advance",
        "batches 120 to 130",
        "asked at 120",
        "advance",
    ]
    assert [line for line in told if line.startswith("asked")] == [
        f"asked at {end}" for end in (120, 130, 230, 250)
    ]
    assert list(runs.course(advance, state, toy(), order, start=250)) == []


def test_one_program_serves_runs_of_any_length_and_rate():
    own = train.Programs(
        functools.partial(models.make, "mlp", SPEC, models.Size(8, 8)), train.Recipe(batch=16)
    )
    data = runs.place(toy())
    for rate, steps in ((0.01, 30), (0.02, 150), (0.03, 101)):
        runs.train_one(own, data, run_of(rate, steps=steps), validation=toy(300))
    assert own.advance._cache_size() == own.judge._cache_size() == 1


def test_every_example_is_judged_in_order():
    data = toy(300)
    params = programs().init(0.01, 1, 0).params
    predicted, losses = train.judged(programs(), params, data)
    scores = np.asarray(programs().scores(params, data.inputs), np.float64)
    np.testing.assert_array_equal(predicted, scores.argmax(-1))
    log_softmax = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    np.testing.assert_allclose(losses, -log_softmax[np.arange(300), data.labels], rtol=1e-4)
    some, _ = train.judged(programs(), params, train.Data(data.inputs[250:], data.labels[250:]))
    np.testing.assert_array_equal(predicted[250:], some)


def test_a_loss_that_is_not_finite_is_refused():
    data = toy()
    data.inputs[5] = np.inf
    with pytest.raises(UsageError, match=r"learning_rate=0.01: expected a finite loss, got nan"):
        runs.train_one(programs(), data, run_of(), validation=toy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_computes_in_the_dtype_of_the_recipe_and_the_rest_in_float32(dtype):
    told = []

    class Model(nnx.Module):
        """Scores the symbols of a sequence, or writes them."""

        any_length = False

        def __init__(self, rngs):
            self.kernel = nnx.Param(jnp.ones((3, 5)))

        def __call__(self, x, labels, *, rng=None):
            told.append(("scores", str(x.dtype), str(self.kernel.dtype)))
            return x @ self.kernel[...]

        def predict(self, x):
            told.append(("predict", str(x.dtype), str(self.kernel.dtype)))
            return jnp.zeros(x.shape[:2], jnp.int32)

    own = train.Programs(Model, train.Recipe(dtype=dtype))
    data = train.Data(jnp.ones((4, 2, 3)), jnp.ones((4, 2), jnp.int32))
    state = jax.eval_shape(own.init, 0.01, 2, 0)
    order = jnp.zeros((1, 4), jnp.int32)
    found = [
        jax.eval_shape(own.advance, state, data, order, 1),
        jax.eval_shape(own.judge, state.params, data),
        jax.eval_shape(own.scores, state.params, data.inputs, data.labels),
    ]
    assert set(told) == {("scores", dtype, dtype), ("predict", dtype, dtype)}
    assert {str(x.dtype) for x in jax.tree.leaves((state, found))} == {"float32", "int32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_digits_are_learned_as_well_in_half_precision(name):
    task = tasks.load("digits")
    data, held_out = (train.Data(s.inputs, s.labels) for s in (task.train, task.validation))
    order = batching.order(np.arange(len(data.labels)), steps=150, batch=32, seed=0)
    make = functools.partial(
        models.make, name, task.spec, models.size_for(name, task.spec, budget=5000)
    )
    scores = []
    for dtype in ("float32", "bfloat16"):
        own = train.Programs(make, train.Recipe(dtype=dtype))
        trained = runs.train_one(own, data, runs.Run(0.01, 0, order), validation=held_out)
        scores.append(trained.validation)
    whole, half = scores
    assert whole.accuracy > 0.9
    assert half.accuracy == pytest.approx(whole.accuracy, abs=0.02)
    assert half.loss == pytest.approx(whole.loss, rel=0.05) and half.loss != whole.loss


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_stopped_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    data = toy()

    def saved(**options):
        return checkpoint.train_saved(
            programs(), data, run_of(), out=tmp_path, every=25, validation=data, **options
        )

    seen = []

    def stop(steps):
        seen.append(steps)
        if sum(seen) > 70:
            raise Killed

    with pytest.raises(Killed):
        saved(on_steps=stop)
    assert [line["step"] for line in checkpoint.read_metrics(tmp_path / "metrics.jsonl")] == [
        25,
        50,
    ]
    counted = []
    resumed = saved(on_steps=counted.append)
    assert counted == [50, 25, 25, 20]
    lines = checkpoint.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [25, 50, 75, 100, 120]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["validation"] == resumed.validation.accuracy

    straight = runs.train_one(programs(), data, run_of(), validation=data)
    chex.assert_trees_all_equal(straight.params, resumed.params)
