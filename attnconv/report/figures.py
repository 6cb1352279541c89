"""The figures as SVG files: score by train size, by cost and by window, differences.

The same summary gives the same bytes: no date, no random ids. Text stays text, so that a browser
can search it. Only matplotlib's objects are used, so no state outlives a call.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from attnconv.report import values
from attnconv.report.values import Number, Row, Style, Summary

COSTS = (("params", "Parameters"), ("flops", "FLOPs, forward"), ("seconds", "Seconds of training"))
WINDOW = "Window: positions that each output sees"
OPEN = "#8a8a8a"  # a difference that is not established
_AHEAD = "established, in the colour of the model ahead"

LOOK: dict[str, Any] = {
    "svg.hashsalt": "attnconv",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.constrained_layout.h_pad": 0.07,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
BARS: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1.3, "markersize": 6}


def write(summary: Summary, out: Path) -> list[Path]:
    """Writes the figures into the folder and returns their paths.

    There is no figure of differences where nothing was compared, and none of windows where no
    family has two.
    """
    draw = {"accuracy_by_train_size": by_train_size, "accuracy_by_cost": by_cost}
    if values.by_window(summary):
        draw["accuracy_by_window"] = by_window
    if summary["comparisons"]:
        draw["differences"] = differences
    paths = []
    with style.context(["default", LOOK]):
        for name, figure in draw.items():
            paths.append(out / f"{name}.svg")
            figure(summary).savefig(paths[-1], format="svg", metadata={"Date": None})
    return paths


def by_train_size(summary: Summary) -> Figure:
    """Test scores with their intervals against the number of training examples."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    names, sizes = values.models(summary), values.train_sizes(summary)
    looks = values.styles(names)
    for name in names:
        cells = [cell for cell in summary["cells"] if cell["model"] == name]
        x = size_positions(summary, cells)
        _error_bars(axes, x, cells, looks[name], line="-")
    _log_axis(axes, sizes, spaced(sizes), values.count)
    axes.set_xlabel("Training examples")
    _score_axis(axes, summary)
    axes.set_title(values.title(summary))
    handles = [_handle(looks[name], name) for name in ranked(summary)]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def by_cost(summary: Summary) -> Figure:
    """Test scores at the largest train size against parameters, FLOPs and seconds."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(COSTS), sharey=True)
    size = values.train_sizes(summary)[-1]
    cells = values.cells_at(summary, size)
    looks = values.styles(values.models(summary))
    for axes, (key, label) in zip(panels, COSTS, strict=True):
        for cell, x in zip(cells, cost_positions(cells, key), strict=True):
            _error_bars(axes, [x], [cell], looks[cell["model"]], line="")
        costs = [cell[key] for cell in cells]
        _log_axis(axes, costs, cost_ticks(cells, key), values.short)
        axes.set_xlabel(cost_label(cells, key, label))
    _score_axis(panels[0], summary)
    figure.suptitle(f"{values.title(summary)}, {values.count(size)} training examples", fontsize=10)
    handles = [_handle(looks[name], name) for name in values.models(summary)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def by_window(summary: Summary) -> Figure:
    """Test scores at the largest train size against the window, a line for each family."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    families = values.by_window(summary)
    places, labels = window_places(families)
    looks = values.styles(list(families))
    for name, cells in families.items():
        windows = [cell for cell in cells if cell["window"] is not None]
        for group, line in ((windows, "-"), (cells[len(windows) :], "")):
            x = [places[cell["model"]] for cell in group]
            if group:
                _error_bars(axes, x, group, looks[name], line=line)
    _log_axis(axes, list(places.values()), list(labels), labels.__getitem__)
    axes.set_xlabel(WINDOW)
    _score_axis(axes, summary)
    size = values.count(values.train_sizes(summary)[-1])
    axes.set_title(f"{values.title(summary)}, {size} training examples")
    handles = [_handle(looks[name], name) for name in families]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def differences(summary: Summary) -> Figure:
    """Every difference with its interval, a panel for each train size while that stays legible."""
    sizes = forest_sizes(summary)
    pairs = forest_pairs(summary)
    height = 1.3 + 0.27 * len(pairs)
    figure = Figure(figsize=(2.6 + 2.5 * max(len(sizes), 2), height), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    looks = values.styles(values.models(summary))
    for axes, size in zip(panels, sizes, strict=True):
        for row in values.comparisons_at(summary, size):
            _forest_row(axes, row, pairs.index((row["a"], row["b"])), looks)
        axes.axvline(0, color="#444444", linewidth=1, zorder=1)
        axes.set_title(f"{values.count(size)} training examples")
        axes.set_xlabel("Difference, points")
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(pairs)), [f"{a} \N{MINUS SIGN} {b}" for a, b in pairs])
    panels[0].set_ylim(len(pairs) - 0.4, -0.6)
    filled = Line2D([], [], color="#444444", marker="o", linestyle="", label=_AHEAD)
    hollow = Line2D([], [], color=OPEN, marker="o", mfc="white", ls="", label="not established")
    figure.legend(handles=[filled, hollow], loc="outside lower center", ncols=2)
    figure.suptitle(f"{values.title(summary)}: test {summary['metric']}", fontsize=10)
    return figure


def forest_sizes(summary: Summary) -> list[int]:
    """The train sizes that the forest shows: all while they stay legible, else the largest."""
    sizes = sorted({row["train_size"] for row in summary["comparisons"]})
    return sizes if len(sizes) <= 4 and len(forest_pairs(summary)) <= 15 else sizes[-1:]


def forest_pairs(summary: Summary) -> list[tuple[str, str]]:
    """The pairs of models that are compared, in order."""
    return list(dict.fromkeys((row["a"], row["b"]) for row in summary["comparisons"]))


def ranked(summary: Summary) -> list[str]:
    """The models by their score at the largest train size, as their lines end in a figure."""
    cells = values.cells_at(summary, values.train_sizes(summary)[-1])
    found = sorted(cells, key=lambda cell: -cell["test"]["estimate"])
    return [cell["model"] for cell in found]


def size_positions(summary: Summary, cells: Sequence[Row]) -> list[float]:
    """Where the cells stand on the axis of train sizes: the models of one size side by side."""
    names, sizes = values.models(summary), values.train_sizes(summary)
    positions = []
    for cell in cells:
        size = cell["train_size"]
        gaps = [abs(math.log10(other / size)) for other in sizes if other != size]
        place = (names.index(cell["model"]) + 0.5) / len(names) - 0.5
        room = min([0.125, *(0.6 * gap for gap in gaps)]) if gaps else 0.4
        positions.append(size * 10 ** (place * room))
    return positions


def window_places(
    families: Mapping[str, Sequence[Row]],
) -> tuple[dict[str, float], dict[float, str]]:
    """Where models stand on the axis of windows, the families side by side; ticks and their labels.

    A model that sees all stands to the right of the largest window, over its name.
    """
    found = {cell["window"] for cells in families.values() for cell in cells}
    windows = sorted(found - {None})
    labels = {float(window): values.count(window) for window in spaced(windows)}
    step = max(2.0, (windows[-1] / windows[0]) ** 0.2)
    places, right = {}, float(windows[-1])
    for i, cells in enumerate(families.values()):
        aside = 2 ** (0.15 * ((i + 0.5) / len(families) - 0.5))
        for cell in cells:
            if cell["window"] is None:
                right *= step
                labels[right] = cell["model"]
            places[cell["model"]] = right if cell["window"] is None else cell["window"] * aside
    return places, labels


def cost_positions(cells: Sequence[Row], key: str) -> list[float]:
    """Where the cells stand on the axis of a cost: side by side where it was matched."""
    costs = [float(cell[key]) for cell in cells]
    if not matched(cells, key):
        return costs
    centre = math.sqrt(min(costs) * max(costs))
    return [centre * 10 ** (0.4 * ((i + 0.5) / len(costs) - 0.5)) for i in range(len(costs))]


def limits(positions: Sequence[Number]) -> tuple[float, float]:
    """The ends of a log axis: a margin around the positions, and no less than 0.6 decades."""
    low, high = math.log10(min(positions)), math.log10(max(positions))
    margin = max(0.06 * (high - low) + 0.06, (0.6 - (high - low)) / 2)
    return 10 ** (low - margin), 10 ** (high + margin)


def log_ticks(positions: Sequence[Number]) -> list[float]:
    """Ticks for the log axis of the positions: 1, 2 and 5 while they are few, else powers of 10.

    >>> log_ticks([20_000, 20_300]), log_ticks([1e3, 9e6])
    ([20000.0], [1000.0, 10000.0, 100000.0, 1000000.0, 10000000.0])
    """
    low, high = limits(positions)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [float(step * 10**decade) for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 5:
            break
    return ticks


def spaced(sizes: Sequence[int]) -> list[int]:
    """The train sizes whose labels have room on the log axis; the largest is always among them."""
    kept = [sizes[-1]]
    low, high = limits(sizes)
    for size in reversed(sizes[:-1]):
        if math.log10(kept[0] / size) > 0.09 * math.log10(high / low):
            kept.insert(0, size)
    return kept


def matched(cells: Sequence[Row], key: str) -> bool:
    """Whether several cells cost the same within a tenth, too close to tell apart on the axis."""
    costs = [cell[key] for cell in cells]
    return len(costs) > 1 and max(costs) <= 1.1 * min(costs)


def cost_ticks(cells: Sequence[Row], key: str) -> list[float]:
    """Ticks of the axis of a cost; where it was matched, the one value that all share."""
    costs = [float(cell[key]) for cell in cells]
    return [math.sqrt(min(costs) * max(costs))] if matched(cells, key) else log_ticks(costs)


def cost_label(cells: Sequence[Row], key: str, label: str) -> str:
    """The label of the axis of a cost; it says how near equal costs are that stand side by side."""
    if not matched(cells, key):
        return label
    costs = [cell[key] for cell in cells]
    return f"{label} (equal within {max(costs) / min(costs) - 1:.1%})"


def _error_bars(
    axes: Axes, x: Sequence[Number], cells: Sequence[Row], look: Style, *, line: str
) -> None:
    scores = [cell["test"] for cell in cells]
    y = [100 * score["estimate"] for score in scores]
    below = [100 * (score["estimate"] - score["low"]) for score in scores]
    above = [100 * (score["high"] - score["estimate"]) for score in scores]
    axes.errorbar(
        x, y, yerr=(below, above), color=look.colour, marker=look.marker, linestyle=line, **BARS
    )


def _forest_row(axes: Axes, row: Row, place: int, looks: dict[str, Style]) -> None:
    low, middle, high = (100 * row["difference"][end] for end in ("low", "estimate", "high"))
    ahead = row["a"] if middle > 0 else row["b"]
    colour = looks[ahead].colour if row["established"] else OPEN
    axes.errorbar(
        [middle],
        [place],
        xerr=([middle - low], [high - middle]),
        color=colour,
        marker="o",
        markerfacecolor=colour if row["established"] else "white",
        **BARS,
    )


def _log_axis(
    axes: Axes, positions: Sequence[Number], ticks: Sequence[Number], text: Callable[[Any], str]
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits(positions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [text(tick) for tick in ticks])


def _score_axis(axes: Axes, summary: Summary) -> None:
    axes.set_ylabel(f"Test {summary['metric']}, %")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2.0), min(high, 102.0))


def _handle(look: Style, name: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=6, label=name)
