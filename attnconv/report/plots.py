"""The figures of the page: Bokeh figures of the same numbers, with what a pointer asks for."""

from collections.abc import Callable, Sequence
from typing import Any

from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import Legend, LegendItem, Span
from bokeh.plotting import figure

from attnconv.report import figures, values
from attnconv.report.values import Number, Row, Summary

_TOOLS = "box_zoom,reset,save"  # no wheel and no pan, which would take a phone's scrolling
_HOVER = [
    ("", "@model"),
    ("test", "@test"),
    ("training examples", "@train_size"),
    ("parameters", "@params"),
    ("FLOPs", "@flops"),
    ("seconds a run", "@seconds"),
    ("learning rate", "@learning_rate"),
]


def plots(summary: Summary) -> dict[str, Any]:
    """The figures by name, in the order of the page."""
    found = {"by_train_size": by_train_size(summary)}
    for key, label in figures.COSTS:
        found[f"by_{key}"] = by_cost(summary, key, label)
    if values.by_window(summary):
        found["by_window"] = by_window(summary)
    if summary["comparisons"]:
        for size in figures.forest_sizes(summary):
            found[f"differences_{size}"] = differences(summary, size)
    return found


def by_train_size(summary: Summary) -> figure:
    """Test scores with their intervals against the number of training examples."""
    sizes = values.train_sizes(summary)
    plot = _score_plot(summary, sizes, figures.spaced(sizes), values.count, height=420)
    plot.xaxis.axis_label = "Training examples"
    looks, items = values.styles(values.models(summary)), []
    for name in figures.ranked(summary):
        cells = [cell for cell in summary["cells"] if cell["model"] == name]
        source = _source(summary, cells, figures.size_positions(summary, cells))
        line = plot.line("x", "y", source=source, color=looks[name].colour, line_width=2)
        drawn: list[Any] = [line, *_points(plot, source, looks[name])]
        items.append(LegendItem(label=name, renderers=drawn))
    return _with_legend(plot, items)


def by_cost(summary: Summary, key: str, label: str) -> figure:
    """Test scores at the largest train size against one cost."""
    cells = values.cells_at(summary, values.train_sizes(summary)[-1])
    costs = [cell[key] for cell in cells]
    plot = _score_plot(summary, costs, figures.cost_ticks(cells, key), values.short, height=340)
    plot.xaxis.axis_label = figures.cost_label(cells, key, label)
    looks = values.styles(values.models(summary))
    for cell, x in zip(cells, figures.cost_positions(cells, key), strict=True):
        _points(plot, _source(summary, [cell], [x]), looks[cell["model"]])
    return plot


def by_window(summary: Summary) -> figure:
    """Test scores at the largest train size against the window, a line for each family."""
    families = values.by_window(summary)
    places, labels = figures.window_places(families)
    plot = _score_plot(summary, list(places.values()), list(labels), labels.__getitem__, height=420)
    plot.xaxis.axis_label = figures.WINDOW
    looks, items = values.styles(list(families)), []
    for name, cells in families.items():
        windows = [cell for cell in cells if cell["window"] is not None]
        x = [places[cell["model"]] for cell in cells]
        line = _source(summary, windows, x[: len(windows)])
        drawn: list[Any] = [
            plot.line("x", "y", source=line, color=looks[name].colour, line_width=2)
        ]
        drawn += _points(plot, _source(summary, cells, x), looks[name])
        items.append(LegendItem(label=name, renderers=drawn))
    return _with_legend(plot, items)


def differences(summary: Summary, size: int) -> figure:
    """Every difference at a train size with its interval; filled where it is established."""
    rows = values.comparisons_at(summary, size)
    looks, decimals = values.styles(values.models(summary)), values.digits(summary)
    pairs = [f"{row['a']} \N{MINUS SIGN} {row['b']}" for row in rows]
    ahead = [row["a"] if row["difference"]["estimate"] > 0 else row["b"] for row in rows]
    colours = [
        looks[name].colour if row["established"] else figures.OPEN
        for row, name in zip(rows, ahead, strict=True)
    ]
    ends = {
        end: [100 * row["difference"][end] for row in rows] for end in ("low", "estimate", "high")
    }
    source = ColumnDataSource(
        {
            **ends,
            "pair": pairs,
            "colour": colours,
            "fill": [
                colour if row["established"] else "white"
                for row, colour in zip(rows, colours, strict=True)
            ],
            "text": [values.points(row["difference"], decimals, unit=" points") for row in rows],
            "verdict": ["established" if row["established"] else "not established" for row in rows],
        }
    )
    plot = _plot(
        height=110 + 24 * len(rows),
        y_range=pairs[::-1],
        title=f"{values.count(size)} training examples",
    )
    plot.add_layout(Span(location=0, dimension="height", line_color="#444444"))
    plot.segment("low", "pair", "high", "pair", source=source, color="colour", line_width=2)
    points = plot.scatter(
        "estimate", "pair", source=source, size=9, line_color="colour", fill_color="fill"
    )
    tips = [("", "@pair"), ("difference", "@text"), ("", "@verdict")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips))
    plot.xaxis.axis_label = "Difference, points"
    plot.ygrid.visible = False
    return plot


def _source(summary: Summary, cells: Sequence[Row], x: Sequence[float]) -> ColumnDataSource:
    decimals = values.digits(summary)
    return ColumnDataSource(
        {
            "x": list(x),
            "y": [100 * cell["test"]["estimate"] for cell in cells],
            "low": [100 * cell["test"]["low"] for cell in cells],
            "high": [100 * cell["test"]["high"] for cell in cells],
            "model": [cell["model"] for cell in cells],
            "test": [values.percent(cell["test"], decimals, unit=" %") for cell in cells],
            "train_size": [values.count(cell["train_size"]) for cell in cells],
            "params": [f"{cell['params']:,}" for cell in cells],
            "flops": [values.short(cell["flops"]) for cell in cells],
            "seconds": [values.short(cell["seconds"]) for cell in cells],
            "learning_rate": [f"{cell['learning_rate']:g}" for cell in cells],
        }
    )


def _points(plot: figure, source: ColumnDataSource, look: values.Style) -> list[Any]:
    """Points with whiskers; what the legend is to hide with them."""
    bars = plot.segment("x", "low", "x", "high", source=source, color=look.colour, line_width=1.5)
    size = 13 if look.glyph in ("diamond", "star") else 9  # of equal size these two look smaller
    points = plot.scatter("x", "y", source=source, color=look.colour, marker=look.glyph, size=size)
    plot.add_tools(HoverTool(renderers=[points], tooltips=_HOVER))
    return [bars, points]


def _with_legend(plot: figure, items: list[LegendItem]) -> figure:
    legend = Legend(items=items, click_policy="hide", ncols=3, location="left", spacing=10)
    legend.border_line_color = None
    plot.add_layout(legend, "below")
    return plot


def _score_plot(
    summary: Summary,
    positions: Sequence[Number],
    ticks: Sequence[Number],
    text: Callable[[Any], str],
    *,
    height: int,
) -> figure:
    low, high = figures.limits(positions)
    plot = _plot(height=height, x_axis_type="log", x_range=Range1d(start=low, end=high))
    plot.yaxis.axis_label = f"Test {summary['metric']}, %"
    plot.xaxis.ticker = list(ticks)
    plot.xaxis.major_label_overrides = {tick: text(tick) for tick in ticks}
    return plot


def _plot(**settings: Any) -> figure:
    plot = figure(tools=_TOOLS, toolbar_location="above", sizing_mode="stretch_width", **settings)
    plot.toolbar.active_drag = None
    plot.toolbar.logo = None
    plot.outline_line_color = None
    plot.grid.grid_line_color = "#e6e6e6"
    for axis in plot.axis:
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    return plot
