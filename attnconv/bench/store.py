"""The file of measurements: the environment, what the machine can do, a row for each case."""

import collections
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnconv import results
from attnconv.bench import cases
from attnconv.bench.measure import Row
from attnconv.errors import UsageError

Measured = dict[str, Any]  # "environment", "rates", "rows"


def name(device: str) -> str:
    """What the measurements of a device are called.

    >>> name("1 x NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub("[^a-z0-9]+", "-", device.partition(" x ")[2].lower()).strip("-")


def load(path: Path) -> Measured | None:
    """What the file holds, None where there is none.

    Raises:
      UsageError: it is not such a file.
    """
    if not path.exists():
        return None
    try:
        measured = json.loads(path.read_text())
        known = set(measured) == {"environment", "rates", "rows"}
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: expected measurements as JSON, got {error}") from None
    if not known:
        raise UsageError(f"{path}: expected environment, rates and rows, got {sorted(measured)}")
    return measured


def begin(old: Measured | None, environment: dict[str, str], rates: dict[str, float]) -> Measured:
    """Where new rows go: to the old ones, if they come from this hardware.

    Raises:
      UsageError: they come from another.
    """
    rows = [] if old is None else old["rows"]
    if old is not None and old["environment"]["device"] != environment["device"]:
        raise UsageError(
            f"out holds measurements of {old['environment']['device']}, this is "
            f"{environment['device']}; name another out"
        )
    return {"environment": environment, "rates": rates, "rows": rows}


def merge(rows: Iterable[Row], new: Row) -> list[Row]:
    """The rows with this one in place of that of the same case and JAX, in the table's order.

    >>> old = [{"case": "a", "jax": "0.10.2"}, {"case": "b", "jax": "0.10.2"}]
    >>> [row.get("n") for row in merge(old, {"case": "b", "jax": "0.10.2", "n": 1})]
    [None, 1]
    """
    order = {case.name: i for i, case in enumerate(cases.CASES)}
    kept = [row for row in rows if (row["case"], row["jax"]) != (new["case"], new["jax"])]
    return sorted([*kept, new], key=lambda row: (order.get(row["case"], len(order)), row["jax"]))


def save(path: Path, measured: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_json(path, measured)


def rows_of(measured: Measured, jax: str | None = None) -> list[Row]:
    """The rows of a version of JAX, by default of the one that measured last."""
    wanted = measured["environment"]["jax"] if jax is None else jax
    return [row for row in measured["rows"] if row["jax"] == wanted]


def commits(rows: list[Row]) -> str:
    """What was measured, where cases were measured again by themselves.

    >>> commits([{"commit": "a1b2c3d"}])
    'commit a1b2c3d'
    >>> commits([{"commit": "a1b2c3d"}, {"commit": "d4e5f6a"}, {"commit": "a1b2c3d"}])
    'commits a1b2c3d (2 cases), d4e5f6a (1)'
    """
    counts = collections.Counter(row["commit"] for row in rows)
    if len(counts) == 1:
        return f"commit {next(iter(counts))}"
    (first, count), *others = counts.most_common()
    return ", ".join([f"commits {first} ({count} cases)", *(f"{c} ({n})" for c, n in others)])
