"""Training runs against each other, and what is compiled how often."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnconv import batching, checkpoint, compiled, models, runs, search, tasks, train
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
def programs(name: str = "mlp") -> compiled.Programs:
    make = functools.partial(models.make, name, SPEC, models.Size(8, 8))
    return compiled.Programs(make, train.Recipe(batch=16))


def run_of(rate: float = 0.01, seed: int = 0, steps: int = 120) -> runs.Run:
    return runs.Run(rate, seed, batching.order(np.arange(60), steps=steps, batch=16, seed=seed))


def test_what_is_trained_on_is_augmented_anew_at_each_step_and_nothing_else_is():
    """Images exchanged for noise teach nothing; labels, scores and other seeds are as before."""
    data, make = toy(), functools.partial(models.make, "mlp", SPEC, models.Size(8, 8))
    drawn = []

    def noise(rng, x):
        jax.debug.callback(lambda key: drawn.append(key.tobytes()), jax.random.key_data(rng))
        return jax.random.normal(rng, x.shape)

    def trained(augment, seed=0):
        own = compiled.Programs(make, train.Recipe(batch=16), augment=augment)
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
    apart = search.train_all(programs(name), data, grid, validation=data)
    together = search.train_together(programs(name), data, grid, validation=data)
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
    # A batch of 16 images is 1024 bytes: 30 steps at once, or of two runs together 15.
    monkeypatch.setattr(runs, "PART_BYTES", 30 * 1024)
    sent, put = [], jax.device_put

    def counted(rows):
        sent.append(len(rows.inputs))
        return put(rows)

    monkeypatch.setattr(jax, "device_put", counted)
    in_parts = runs.train_one(programs(), data, run_of(), validation=data)
    chex.assert_trees_all_equal(on_device.params, in_parts.params)
    assert sent[:4] == [30 * 16] * 4
    order, of_two = run_of().order, np.stack([run_of().order] * 2)
    assert [runs.most_steps(data, order, every) for every in (100, 7)] == [30, 7]
    assert runs.most_steps(data, of_two) == 15
    assert runs.most_steps(data._replace(inputs=jnp.asarray(data.inputs)), order) == 100


def test_the_next_batches_are_put_in_order_before_a_loss_is_asked_for(monkeypatch):
    told = []

    def batches(data, order, start, count, most):
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
    own = compiled.Programs(
        functools.partial(models.make, "mlp", SPEC, models.Size(8, 8)), train.Recipe(batch=16)
    )
    data = runs.place(toy())
    for rate, steps in ((0.01, 30), (0.02, 150), (0.03, 101)):
        runs.train_one(own, data, run_of(rate, steps=steps), validation=toy(300))
    assert own.advance._cache_size() == own.judge._cache_size() == 1


def test_every_example_is_judged_in_order():
    data = toy(300)
    params = programs().init(0.01, 1, 0).params
    predicted, losses = compiled.judged(programs(), params, data)
    scores = np.asarray(programs().scores(params, data.inputs), np.float64)
    np.testing.assert_array_equal(predicted, scores.argmax(-1))
    log_softmax = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    np.testing.assert_allclose(losses, -log_softmax[np.arange(300), data.labels], rtol=1e-4)
    some, _ = compiled.judged(programs(), params, train.Data(data.inputs[250:], data.labels[250:]))
    np.testing.assert_array_equal(predicted[250:], some)


def test_a_loss_that_is_not_finite_is_refused():
    data = toy()
    data.inputs[5] = np.inf
    with pytest.raises(UsageError, match=r"learning_rate=0.01: expected a finite loss, got nan"):
        runs.train_one(programs(), data, run_of(), validation=toy())


@pytest.mark.parametrize("train_all", [search.train_all, search.train_together])
def test_runs_that_diverge_leave_none_and_the_others_what_they_do_alone(train_all):
    data = toy()
    grid = [run_of(), run_of()._replace(learning_rate=1e30), run_of()]
    first, none, last = train_all(programs(), data, grid, validation=data)
    alone = runs.train_one(programs(), data, run_of(), validation=data)
    assert none is None
    for found in (first, last):
        np.testing.assert_allclose(found.validation, alone.validation, rtol=1e-4)


def test_the_best_rate_is_that_of_the_best_mean_of_runs_that_all_ended():
    def ended(accuracy, loss):
        return runs.Trained({}, compiled.Score(0, 0), compiled.Score(accuracy, loss), 1.0)

    worse, equal, better = ended(0.5, 1.0), ended(0.7, 1.0), ended(0.7, 0.9)
    assert search.best_rate([worse, equal, better], [1.0, 2.0, 3.0])[0] == 2
    assert search.best_rate([better, equal, worse], [1.0, 2.0, 3.0])[0] == 0
    assert search.best_rate([worse, better, equal, equal], [1.0, 2.0])[0] == 1
    assert search.best_rate([better, None, worse, worse], [1.0, 2.0])[0] == 1, (
        "one of its runs diverged"
    )
    assert search.best_rate([worse, equal], [1.0]) == (0, [worse, equal])
    with pytest.raises(runs.Diverged, match=r"learning_rates=1, 2: expected a finite loss, each"):
        search.best_rate([None, better, None, None], [1.0, 2.0])


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

    own = compiled.Programs(Model, train.Recipe(dtype=dtype))
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
        own = compiled.Programs(make, train.Recipe(dtype=dtype))
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


@pytest.mark.parametrize("on_host", [False, True])
def test_nothing_is_compiled_while_a_saved_run_is_timed(tmp_path, monkeypatch, on_host):
    if on_host:
        monkeypatch.setattr(runs, "HOST_BYTES", 100)
    own = compiled.Programs(
        functools.partial(models.make, "mlp", SPEC, models.Size(8, 8)), train.Recipe(batch=16)
    )
    sizes, train_one = [], runs.train_one

    def counted(*args, **options):
        sizes.append((own.advance._cache_size(), own.judge._cache_size()))
        trained = train_one(*args, **options)
        sizes.append((own.advance._cache_size(), own.judge._cache_size()))
        return trained

    done = []

    def stop(steps):
        done.append(steps)
        if len(done) == 2:
            raise Killed

    monkeypatch.setattr(runs, "train_one", counted)
    saved = functools.partial(
        checkpoint.train_saved, own, toy(), run_of(), out=tmp_path, every=25, validation=toy()
    )
    with pytest.raises(Killed):
        saved(on_steps=stop)
    saved(on_steps=done.append)
    assert done == [25, 25, 25, 25, 25, 25, 20], "it was saved, and goes on from there"
    assert sizes == [(1, 1)] * 3
