"""Reading a summary: its models and train sizes, its numbers as text, a look for each family.

A summary is what `study.run` returns and summary.json holds: "task", "cells" (one for each model
and train size), "comparisons" (pairs of models at a train size), "config", "environment", "metric".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Summary = Mapping[str, Any]
Row = Mapping[str, Any]
Number = int | float

_FINE_TEST_SET = 2000  # from here on one example weighs less than 0.05 points


@dataclasses.dataclass(frozen=True)
class Style:
    """How a model looks in every figure: its colour, its matplotlib and its Bokeh marker."""

    colour: str
    marker: str
    glyph: str


# Okabe and Ito's palette, which keeps its differences under every common colour blindness.
_FAMILIES = {
    "mlp": Style("#222222", "s", "square"),
    "local": Style("#e69f00", "^", "triangle"),
    "cnn": Style("#0072b2", "o", "circle"),
    # These two and those of graphs never stand in one figure.
    "neighborhood": Style("#56b4e9", "v", "inverted_triangle"),
    "gated": Style("#cc79a7", "*", "star"),
    "attention": Style("#d55e00", "D", "diamond"),
    "hybrid": Style("#009e73", "h", "hex"),
    "graph_conv": Style("#56b4e9", "v", "inverted_triangle"),
    "graph_attention": Style("#cc79a7", "*", "star"),
}
# For other names: Tol's muted palette, whose 9 colours and 5 markers give 45 looks.
_COLOURS = (
    *("#332288", "#cc6677", "#117733", "#882255", "#44aa99"),
    *("#999933", "#aa4499", "#88ccee", "#ddcc77"),
)
_MARKERS = (
    ("*", "star"),
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle"),
    ("D", "diamond"),
)
# For windows, which have the colour of their family: the smallest window has the first marker.
_WINDOWS = (
    ("^", "triangle"),
    ("s", "square"),
    ("v", "inverted_triangle"),
    ("*", "star"),
    ("P", "plus"),
    ("h", "hex"),
)


def styles(models: Sequence[str]) -> dict[str, Style]:
    """The look of each model: fixed for the known families, by position for other names.

    A window keeps the colour of its family; its marker is that of the window in every family.

    >>> styles(["cnn", "mine"])["mine"]
    Style(colour='#332288', marker='*', glyph='star')
    >>> styles(["cnn:9", "cnn:33"])["cnn:33"]
    Style(colour='#0072b2', marker='s', glyph='square')
    """
    parts = [parted(model) for model in models]
    others = list(dict.fromkeys(family for family, _ in parts if family not in _FAMILIES))
    windows = sorted({window for _, window in parts if window is not None})
    found = {}
    for model, (family, window) in zip(models, parts, strict=True):
        if family in _FAMILIES:
            look = _FAMILIES[family]
        else:
            place = others.index(family)
            colour = _COLOURS[place % len(_COLOURS)]
            look = Style(colour, *_MARKERS[place % len(_MARKERS)])
        if window is not None:
            look = Style(look.colour, *_WINDOWS[windows.index(window) % len(_WINDOWS)])
        found[model] = look
    return found


def parted(model: str) -> tuple[str, int | None]:
    """The family of a model, and its window where it has one.

    >>> parted("cnn:33"), parted("graph_conv")
    (('cnn', 33), ('graph_conv', None))
    """
    family, _, window = model.partition(":")
    return (family, int(window)) if window.isdecimal() else (model, None)


def models(summary: Summary) -> list[str]:
    """The models, in the order asked."""
    return list(dict.fromkeys(cell["model"] for cell in summary["cells"]))


def train_sizes(summary: Summary) -> list[int]:
    """The train sizes, ascending."""
    return sorted({cell["train_size"] for cell in summary["cells"]})


def cells_at(summary: Summary, train_size: int) -> list[Row]:
    """The cells of a train size, in the order of the models."""
    return [cell for cell in summary["cells"] if cell["train_size"] == train_size]


def comparisons_at(summary: Summary, train_size: int) -> list[Row]:
    """The comparisons of a train size."""
    return [row for row in summary["comparisons"] if row["train_size"] == train_size]


def highest(cells: Sequence[Row]) -> list[Row]:
    """The cells of the highest score; equal are scores that differ by rounding only."""
    top = max(cell["test"]["estimate"] for cell in cells)
    return [cell for cell in cells if math.isclose(cell["test"]["estimate"], top)]


def by_window(summary: Summary) -> dict[str, list[Row]]:
    """The families with windows: their cells at the largest train size, the smallest window first.

    The cell that sees all is the last. There are none where no family has two windows.
    """
    cells = cells_at(summary, train_sizes(summary)[-1])
    families: dict[str, set[int]] = {}
    for cell in cells:
        if cell["window"] is not None:
            families.setdefault(parted(cell["model"])[0], set()).add(cell["window"])
    if max(map(len, families.values()), default=0) < 2:
        return {}
    order = sorted(cells, key=lambda cell: cell["window"] or math.inf)
    return {name: [cell for cell in order if parted(cell["model"])[0] == name] for name in families}


def title(summary: Summary, longest: int = 60) -> str:
    """The task's name, on one line, cut where it is too long for the top of a figure."""
    name = " ".join(str(summary["task"]["name"]).split())
    return name if len(name) <= longest else name[: longest - 3] + "..."


def digits(summary: Summary) -> int:
    """Decimals of a percentage: two where the test split is large enough to bear them."""
    return 1 if summary["task"]["test"] < _FINE_TEST_SET else 2


def percent(interval: Row, decimals: int, *, unit: str = "") -> str:
    """A score with its interval, in percent.

    >>> percent({"estimate": 0.989, "low": 0.98, "high": 0.995}, 1)
    '98.9 [98.0, 99.5]'
    """
    estimate, low, high = (
        f"{100 * interval[end]:.{decimals}f}" for end in ("estimate", "low", "high")
    )
    return f"{estimate}{unit} [{low}, {high}]"


def points(interval: Row, decimals: int, *, unit: str = "", sign: bool = True) -> str:
    """A difference with its interval, in points; more decimals where an end would round to zero.

    >>> points({"estimate": 0.019, "low": 0.006, "high": 0.032}, 1)
    '+1.9 [0.6, 3.2]'
    >>> points({"estimate": 0.008, "low": 0.0004, "high": 0.0156}, 1)
    '+0.80 [0.04, 1.56]'
    """
    for end in ("low", "high"):
        while interval[end] and decimals < 4 and not float(f"{100 * interval[end]:.{decimals}f}"):
            decimals += 1
    low, high = (f"{100 * interval[end]:z.{decimals}f}" for end in ("low", "high"))
    estimate = f"{100 * interval['estimate']:{'+' if sign else ''}z.{decimals}f}"
    return f"{estimate}{unit} [{low}, {high}]"


def reversed_interval(interval: Row) -> dict[str, float]:
    """The interval of b minus a, from that of a minus b."""
    return {
        "estimate": -interval["estimate"],
        "low": -interval["high"],
        "high": -interval["low"],
    }


def unit(summary: Summary) -> str:
    """What stands after a score: the metric is named where it is not the usual one.

    >>> unit({"metric": "accuracy"}), unit({"metric": "exact match"})
    (' %', ' % exact match')
    """
    return " %" if summary["metric"] == "accuracy" else f" % {summary['metric']}"


def count(number: Number) -> str:
    """A whole number, grouped by thousands once it has five digits.

    >>> count(1167), count(60000)
    ('1167', '60,000')
    """
    return f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:.0f}"


def short(number: Number) -> str:
    """A number with three digits and a suffix.

    >>> short(1234567), short(20011), short(1.9), short(0)
    ('1.23M', '20k', '1.9', '0')
    """
    value, suffix = float(number), ""
    for larger in ("k", "M", "G", "T", "P"):
        if abs(float(f"{value:.3g}")) < 1000:
            break
        value, suffix = value / 1000, larger
    return f"{value:.3g}{suffix}"
