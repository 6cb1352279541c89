"""The parent's part of measuring, with workers that answer from a script, and a real one."""

import dataclasses
import itertools

import numpy as np
import pytest

from attnconv.bench import cases, measure
from attnconv.bench.process import PeerError, Process

CASE = next(case for case in cases.CASES if case.name == "tiny-3x3-forward")
TWO = dataclasses.replace(CASE, peers=("attnconv", "jax"))


class Scripted(Process):
    """A worker whose peers have these results and take these seconds."""

    def __init__(self, results, seconds):
        super().__init__("scripted")
        self.child = True
        self.results = {peer: np.asarray(y, float) for peer, y in results.items()}
        self.seconds = {peer: itertools.cycle(times) for peer, times in seconds.items()}
        self.order = []

    def ask(self, name, *arguments):
        if name == "work":
            return {"flops": 10, "bytes": 20}
        if name == "read":
            return {"y": self.results[arguments[1]]}
        if name == "warm":
            return next(self.seconds[arguments[0]]), ""
        if name == "time":
            self.order.append(arguments[0])
            return next(self.seconds[arguments[0]])
        assert name == "forget"
        return 0.0


def measured(worker, case=TWO, seconds=0.0):
    return measure.measure(case, {"ours": worker, "jax": worker}, seconds=seconds, memory=False)


def test_a_ratio_is_the_median_of_those_of_the_rounds():
    # The first of each is the warm run. Rounds: 4/2, 9/3, 8/2, 4/2, 9/3, 8/2, 4/2.
    worker = Scripted(
        {"attnconv": [1], "jax": [1]},
        {"attnconv": [2e-3, 2e-3, 3e-3], "jax": [8e-3, 4e-3, 9e-3]},
    )
    row = measured(worker)
    assert row["error"] is None
    assert row["rounds"] == measure.ROUNDS == 7
    assert row["peers"]["jax"]["ratio"] == pytest.approx({"low": 2.0, "median": 3.0, "high": 3.5})
    assert row["flops"] == 10
    rounds = [tuple(worker.order[i : i + 2]) for i in range(0, 14, 2)]
    assert set(rounds) == {("attnconv", "jax"), ("jax", "attnconv")}


def test_slow_cases_have_fewer_rounds():
    worker = Scripted({"attnconv": [1], "jax": [1]}, {"attnconv": [0.5], "jax": [1.5]})
    assert measured(worker)["rounds"] == measure.SLOW_ROUNDS == 3


def test_a_wrong_result_of_ours_is_an_error_and_nothing_is_timed():
    worker = Scripted({"attnconv": [1.0, 2.001], "jax": [1.0, 2.0]}, {})
    row = measured(worker)
    assert row["error"] == "attnconv: 5.0e-04 of the largest number from jax"
    assert worker.order == []


def test_a_wrong_result_of_a_peer_is_an_error_and_the_others_are_timed():
    results = {"attnconv": [1.0], "jax": [1.0], "flax": [float("nan")]}
    worker = Scripted(results, {"attnconv": [1e-3], "jax": [2e-3]})
    row = measured(worker, dataclasses.replace(CASE, peers=("attnconv", "jax", "flax")))
    assert row["error"] == "flax: nan of the largest number from jax"
    assert row["peers"]["jax"]["ratio"]["median"] == pytest.approx(2)
    assert "seconds" not in row["peers"]["flax"]


def test_a_case_without_a_peer_to_check_against_is_an_error():
    row = measured(Scripted({"attnconv": [1]}, {}), dataclasses.replace(CASE, peers=("attnconv",)))
    assert "to check against" in row["error"]


def test_difference_is_no_number_for_other_shapes_or_names():
    one = {"y": np.ones(3)}
    assert measure.difference(one, one) == 0
    assert np.isnan(measure.difference({"y": np.ones(2)}, one))
    assert np.isnan(measure.difference({"z": np.ones(3)}, one))


def test_a_worker_reports_what_a_peer_raised_and_goes_on():
    wrong = dataclasses.replace(TWO, options={"padding": "sideways"})
    with Process("jax") as process:
        with pytest.raises(PeerError, match="unknown padding"):
            process.ask("read", wrong, "attnconv")
        assert process.ask("read", TWO, "attnconv")["y"].shape == (8, 8, 8, 8)
        seconds, _ = process.ask("warm", "attnconv")
        assert 0 < process.ask("time", "attnconv") < 100 * seconds
        assert process.ask("memory", TWO, "attnconv") < 100e6
        process.child.kill()
        with pytest.raises(PeerError, match="ended with code"):
            process.ask("rates")
        assert process.ask("compile", TWO, "jax") > 0
