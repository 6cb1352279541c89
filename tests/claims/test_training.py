"""Following a run by hand, and interpolation."""

import numpy as np

from attnconv import batching, compiled, runs, tasks, train
from attnconv.claims.training import at_loss, family, follow
from attnconv.train import Data


def test_values_at_a_loss():
    losses = np.array([2.0, 1.0, 0.25, 0.5, 0.1])
    values = np.stack([np.arange(5.0), 10 * np.arange(5.0)], axis=1)
    np.testing.assert_allclose(at_loss(losses, values, 1.0), [1, 10])
    np.testing.assert_allclose(at_loss(losses, values, 0.5), [1.5, 15])
    np.testing.assert_allclose(at_loss(losses, values, 0.25), [2, 20])
    assert np.isnan(at_loss(losses, values, 0.01)).all()
    assert np.isnan(at_loss(losses, values, 2.5)).all()


def test_a_run_that_is_followed_is_that_run():
    digits = tasks.load("digits", seed=0)
    data, other = (Data(s.inputs, s.labels) for s in (digits.train, digits.test))
    programs = compiled.Programs(family("mlp", digits.spec, params=5000), train.Recipe())
    order = batching.order(np.arange(100), steps=50, batch=32, seed=0)
    run = runs.Run(0.01, 0, order)
    seen = Data(data.inputs[:100], data.labels[:100])
    paths = follow(programs, runs.place(data), run, [seen, other], every=20)
    # Before, and after 20, 40 and 50 steps.
    assert [path.shape for path in paths] == [(4, 100, 2), (4, len(other.labels), 2)]
    ours, theirs = (path.mean(axis=1) for path in paths)
    alone = runs.train_one(programs, runs.place(data), run, validation=other)
    np.testing.assert_allclose(ours[-1], [alone.train.loss, alone.train.accuracy], rtol=1e-4)
    np.testing.assert_allclose(
        theirs[-1], [alone.validation.loss, alone.validation.accuracy], rtol=1e-4
    )
    (short,) = follow(programs, runs.place(data), run, [seen], every=20, least=ours[1, 0])
    np.testing.assert_array_equal(short, paths[0][:2])
