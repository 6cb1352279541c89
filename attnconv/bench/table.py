"""Rows of measurements as text: cells, verdicts, the lines of the terminal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from attnconv.bench.measure import Row

WIDTHS = (39, 9, 17, 17, 24, 6)


class Floor(NamedTuple):
    """One thing that a case is held to."""

    against: str
    wanted: str
    found: str
    met: bool | None  # None where it was not measured


def floors(row: Row) -> list[Floor]:
    """What the row is held to, and whether it holds."""
    found = []
    for peer, least in row["floors"].items():
        ratio = row["peers"].get(peer, {}).get("ratio")
        met = None if ratio is None else ratio["median"] >= least
        found.append(Floor(peer, f">= {least:.3g}", spread(ratio), met))
    if row["most_memory"] is not None:
        memory = row["peers"]["attnconv"].get("memory")
        met = None if memory is None else memory <= row["most_memory"]
        wanted = f"<= {megabytes(row['most_memory'])} MB"
        found.append(Floor("memory", wanted, f"{megabytes(memory)} MB", met))
    if row["most_seconds"] is not None:
        more = extra(row)
        met = None if more is None else more["median"] <= row["most_seconds"]
        found.append(Floor("compile", f"<= +{row['most_seconds']:g} s", seconds(more), met))
    return found


def extra(row: Row) -> dict[str, float] | None:
    """How many seconds longer than stock JAX a compile of ours takes."""
    saved = next((peer["saved"] for peer in row["peers"].values() if "saved" in peer), None)
    if saved is None:
        return None
    return {"low": -saved["high"], "median": -saved["median"], "high": -saved["low"]}


def verdict(row: Row) -> str:
    """One word for all floors of a row."""
    if row["error"] is not None:
        return "ERROR"
    verdicts = [floor.met for floor in floors(row)]
    return "MISSED" if False in verdicts else "met" if True in verdicts else "-"


def number(value: int | float) -> str:
    """Three digits, as far as they are behind the point.

    >>> number(0.953), number(12.34), number(1234.5)
    ('0.95', '12.3', '1234')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def spread(quartiles: Mapping[str, float] | None) -> str:
    """A median with its quartiles."""
    if quartiles is None:
        return "-"
    low, median, high = (number(quartiles[part]) for part in ("low", "median", "high"))
    return f"{median} [{low}, {high}]"


def seconds(quartiles: Mapping[str, float] | None) -> str:
    """A difference in seconds with its quartiles."""
    if quartiles is None:
        return "-"
    low, median, high = (f"{quartiles[part]:+.2f}" for part in ("low", "median", "high"))
    return f"{median} [{low}, {high}] s"


def milliseconds(peer: Mapping[str, Any]) -> str:
    return f"{1e3 * peer['seconds']['median']:.3g}" if "seconds" in peer else "-"


def megabytes(size: int | float | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f}"


def share(row: Row, rates: Mapping[str, float], peer: str = "attnconv") -> str:
    """The least time this machine could need, as a part of the time taken.

    The least time is that of the FLOPs at the rate of a large matrix product of the row's dtype or
    that of the bytes at the rate of a large copy, whichever is longer.
    """
    if "flops" not in row or "seconds" not in row["peers"][peer]:
        return "-"
    dtype = row.get("dtype", "float32")
    flops = rates["flops" if dtype == "float32" else f"flops_{dtype}"]
    least = max(row["flops"] / flops, row["bytes"] / rates["bytes"])
    return f"{least / row['peers'][peer]['seconds']['median']:.0%}"


def header() -> str:
    return _line(
        "case", "ours, ms", "stock JAX / ours", "PyTorch / ours", "others / ours", "floors"
    )


def line(row: Row) -> str:
    """A row for the terminal; an error has a line of its own."""
    peers = row["peers"]
    stock = next((peer for peer in ("jax", "flax") if peer in peers), "")
    others = ", ".join(
        f"{name} {number(peer['ratio']['median'])}"
        for name, peer in peers.items()
        if "ratio" in peer and name not in (stock, "torch")
    )
    if row["suite"] == "compile":
        others = seconds(extra(row))
    ratios = (spread(peers.get(name, {}).get("ratio")) for name in (stock, "torch"))
    text = _line(row["case"], milliseconds(peers["attnconv"]), *ratios, others, verdict(row))
    return text if row["error"] is None else f"{text}\n  {row['error']}"


def _line(*cells: str) -> str:
    return " ".join(c.ljust(width) for c, width in zip(cells, WIDTHS, strict=True)).rstrip()
