"""The receptive field's experiment, small, with widths that are known."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from attnconv.claims import receptive_field
from attnconv.claims.claim import Setting

pytestmark = pytest.mark.slow

DEPTHS = (2, 4)


@pytest.fixture(scope="module")
def evidence():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receptive_field, "SEEDS", 2)
        patch.setattr(receptive_field, "NETS", 2)
        patch.setattr(receptive_field, "CHANNELS", 4)
        patch.setattr(receptive_field, "DEPTHS", DEPTHS)
        return receptive_field.CLAIM.test(Setting())


def test_every_kind_and_depth_is_measured(evidence):
    assert len(evidence.rows) == len(receptive_field.KINDS) * len(DEPTHS)
    assert len(evidence.parts) == 2 * len(receptive_field.KINDS)
    for part in evidence.parts:
        assert np.isfinite(part.measured).all()
    assert [row[2] for row in evidence.rows[:2]] == ["5", "9"]


def test_equal_weights_have_the_width_of_squared_sums_of_three(evidence):
    row = np.ones(1)
    for depth in range(1, DEPTHS[-1] + 1):
        row = np.convolve(row, np.ones(3))
        if depth in DEPTHS:
            share, at = row**2 / (row**2).sum(), np.arange(len(row)) - depth
            expected = (share * at**2).sum() ** 0.5
            found = evidence.figure.series[0].y[DEPTHS.index(depth)]
            assert found == pytest.approx(expected, rel=1e-4)


def test_random_weights_have_about_the_width_of_a_sum_of_steps(evidence):
    for line in evidence.figure.series[1:3]:
        np.testing.assert_allclose(line.y, [(2 * d / 3) ** 0.5 for d in DEPTHS], rtol=0.25)


def test_the_seed_decides():
    kind = "random weights, ReLU"
    field_of = functools.partial(receptive_field.field, receptive_field.KINDS[kind])
    one, again, other = (receptive_field.measured(field_of, kind, 2, [i]) for i in (0, 0, 1))
    assert one == again
    assert one[0] != other[0]


def test_relu_closes_what_it_holds_back():
    x = -jnp.ones((1, 5, 5, 1))
    kernels = [jnp.zeros((3, 3, 1, 1)).at[i, 1].set(1) for i in (0, 2)]
    field = functools.partial(receptive_field.field, receptive_field.KINDS["random weights, ReLU"])
    assert np.isnan(field(kernels, x)).all()
    assert field(kernels, -x).tolist() == np.eye(25)[2 * 5 + 2].reshape(5, 5).tolist()
