"""The file of measurements and the page, from numbers written by hand."""

import json

import pytest

from attnconv.bench import page, store, table
from attnconv.errors import UsageError


def spread(median, width=0.1):
    return {"low": median - width, "median": float(median), "high": median + width}


def row(case, suite, ours, peers, jax="0.10.2", **change):
    found = {"attnconv": {"seconds": spread(ours, 0.0), "memory": 3_000_000}}
    for peer, ratio in peers.items():
        found[peer] = {
            "seconds": spread(ratio * ours, 0.0),
            "ratio": spread(ratio),
            "saved": spread((ratio - 1) * ours, 0.0),
            "memory": 9_000_000,
        }
    return {
        "case": case,
        "suite": suite,
        "jax": jax,
        "commit": "abc1234",
        "steps": 1,
        "rounds": 7,
        "flops": 1_000_000_000,
        "bytes": 1_000_000,
        "floors": {"jax": 0.95},
        "most_memory": None,
        "most_seconds": None,
        "peers": found,
        "error": None,
        **change,
    }


def measured(*rows, jax="0.10.2"):
    environment = {"attnconv": "0.1.0", "jax": jax, "device": "cpu: slow, 2 cores"}
    rates = {"flops": 1e11, "bytes": 1e10}
    return {"environment": environment | {"commit": "abc1234"}, "rates": rates, "rows": [*rows]}


FAST = row("depthwise-3x3-forward", "conv", 0.02, {"jax": 30, "torch": 0.3})
FAST["floors"] = {"jax": 20, "torch": 0.4}
EQUAL = row("tiny-3x3-forward", "conv", 0.002, {"jax": 1.0})
LONG = row("attention-t16384-gradient", "attention", 9.0, {"torch": 1.5}, floors={})
LONG["most_memory"] = 2_000_000
COMPILE = row("compile-local-3x3-forward", "compile", 2.5, {"jax": 0.1}, floors={})
COMPILE["most_seconds"] = 2.0


def test_floors_are_met_missed_or_not_measured():
    assert [(f.against, f.met) for f in table.floors(FAST)] == [("jax", True), ("torch", False)]
    assert table.verdict(FAST) == "MISSED"
    assert table.verdict(EQUAL) == "met"
    assert [f.met for f in table.floors(LONG)] == [False]
    (floor,) = table.floors(COMPILE)
    assert (floor.met, floor.found) == (False, "+2.25 [+2.25, +2.25] s")
    alone = row("tiny-3x3-forward", "conv", 0.002, {})
    assert [f.met for f in table.floors(alone)] == [None]
    assert table.verdict(alone) == "-"
    assert table.verdict(EQUAL | {"error": "torch: broke"}) == "ERROR"


def test_the_share_is_of_the_slower_of_products_and_copies():
    assert table.share(FAST, {"flops": 1e11, "bytes": 1e10}) == "50%"
    assert table.share(FAST, {"flops": 1e12, "bytes": 1e8}) == "50%"


def test_terminal_lines_are_narrow():
    long = row(
        "depthwise-3x3-multiplier-2-gradient", "conv", 0.123456, {"jax": 99.9, "torch": 88.8}
    )
    long["peers"] |= {name: {"ratio": spread(99.9)} for name in ("flax", "equinox")}
    for line in (table.header(), table.line(long)):
        assert len(line) <= 120
    assert table.line(EQUAL | {"error": "torch: broke"}).splitlines()[1] == "  torch: broke"


def test_page_has_hardware_floors_and_a_row_for_each_case(tmp_path):
    paths = page.write(measured(FAST, EQUAL, LONG, COMPILE), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "cpu: slow, 2 cores" in text
    assert "commit abc1234" in text
    assert "| depthwise-3x3-forward | stock JAX | >= 20 | 30.0 [29.9, 30.1] | yes |" in text
    assert "| depthwise-3x3-forward | PyTorch | >= 0.4 | 0.30 [0.20, 0.40] | **no** |" in text
    assert "| attention-t16384-gradient | memory | <= 2 MB | 3 MB | **no** |" in text
    assert "1 of 1 cases whose only floor" in text
    assert "0 of 1 first" in text
    assert "| compile-local-3x3-forward | 2.5e+03 | 250 | +2.25 [+2.25, +2.25] s |" in text
    names = [path.name for path in paths]
    assert names == ["benchmarks.md", "benchmarks-attention.svg", "benchmarks-conv.svg"]
    figure = (tmp_path / "benchmarks-conv.svg").read_bytes()
    assert b"tiny-3x3-forward" in figure
    page.write(measured(FAST, EQUAL, LONG, COMPILE), tmp_path)
    assert (tmp_path / "benchmarks-conv.svg").read_bytes() == figure


def test_page_shows_another_jax_beside(tmp_path):
    newer = row("tiny-3x3-forward", "conv", 0.004, {"jax": 1.23}, jax="0.11.0")
    page.write(measured(FAST, EQUAL), tmp_path, measured(newer, jax="0.11.0"))
    text = (tmp_path / "benchmarks.md").read_text()
    assert "ours, ms, JAX 0.11.0 | stock JAX / ours, JAX 0.11.0" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| tiny-3x3-forward"))
    assert line.endswith("| 4 | 1.23 [1.13, 1.33] | - |")


def test_errors_are_on_the_page(tmp_path):
    failed = row("tiny-3x3-forward", "conv", 0.0, {}, error="attnconv: broke")
    failed["peers"] = {"attnconv": {}, "jax": {}}
    page.write(measured(failed, FAST), tmp_path)
    assert "- tiny-3x3-forward: attnconv: broke" in (tmp_path / "benchmarks.md").read_text()


def test_merging_replaces_the_case_for_the_same_jax_in_the_order_of_the_table():
    again = row("depthwise-3x3-forward", "conv", 0.5, {"jax": 2})
    newer = row("depthwise-3x3-forward", "conv", 0.6, {"jax": 3}, jax="0.11.0")
    rows = store.merge(store.merge([EQUAL, FAST], again), newer)
    assert rows == [again, newer, EQUAL]
    assert store.rows_of(measured(*rows)) == [again, EQUAL]


def test_measurements_of_other_hardware_or_other_files_are_refused(tmp_path):
    old = measured(FAST)
    other = old["environment"] | {"device": "cpu: fast, 64 cores"}
    with pytest.raises(UsageError, match=r"slow, 2 cores.*name another out"):
        store.begin(old, other, old["rates"])
    assert store.begin(old, old["environment"], {})["rows"] == [FAST]
    path = tmp_path / "bench.json"
    assert store.load(path) is None
    store.save(path, old)
    assert store.load(path) == json.loads(json.dumps(old))
    path.write_text("[1, 2]")
    with pytest.raises(UsageError, match="expected environment, rates and rows"):
        store.load(path)
    path.write_text("{")
    with pytest.raises(UsageError, match="expected measurements as JSON"):
        store.load(path)
