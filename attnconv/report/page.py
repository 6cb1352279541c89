"""report.html: the whole comparison on one page that needs nothing else, not even a network."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources

from attnconv.report import figures, method, tables, values
from attnconv.report.conclusions import findings
from attnconv.report.markup import document, items, paragraph, plot, table_html
from attnconv.report.plots import plots
from attnconv.report.text import caption
from attnconv.report.values import Summary

_SIGNS = {
    "circle": "\N{BLACK CIRCLE}",
    "square": "\N{BLACK SQUARE}",
    "triangle": "\N{BLACK UP-POINTING TRIANGLE}",
    "inverted_triangle": "\N{BLACK DOWN-POINTING TRIANGLE}",
    "diamond": "\N{BLACK DIAMOND}",
    "hex": "\N{BLACK HEXAGON}",
    "star": "\N{BLACK STAR}",
    "plus": "\N{HEAVY PLUS SIGN}",
}


def write(summary: Summary, path: Path) -> None:
    """Writes the page: findings in words, scores, figures, differences, how it was measured."""
    path.write_text(html(summary), encoding="utf-8")


def html(summary: Summary) -> str:
    """The page as HTML5; Bokeh's script is part of it, and every text is escaped."""
    script, divs = components(plots(summary))
    resources = Resources(mode="inline", components=["bokeh"])
    title = f"{values.title(summary, longest=200)}: test {summary['metric']}"
    return document(title, [*_body(summary, title, divs), script], head=f"{resources.render()}\n")


def _body(summary: Summary, title: str, divs: dict[str, Any]) -> Iterable[str]:
    largest = values.count(values.train_sizes(summary)[-1])
    costs = {f"test scores against {of}": divs[f"by_{key}"] for key, of in figures.COSTS}
    forests = {
        f"pairwise {name.replace('_', ' ')}": div
        for name, div in divs.items()
        if name.startswith("differences")
    }

    yield f"<h1>{escape(title)}</h1>"
    yield paragraph(", ".join(values.models(summary)), kind="soft")
    yield "<h2>Findings</h2>"
    yield items(findings(summary))

    yield "<h2>Scores</h2>"
    yield paragraph(caption(summary), kind="soft")
    yield table_html(tables.scores(summary))
    yield plot(divs["by_train_size"], "test scores against the number of training examples")
    yield paragraph("A click on a name in the legend hides it.", kind="soft")

    yield f"<h2>Scores against costs, {largest} training examples</h2>"
    yield _key(summary)
    yield _grid(costs)
    if "by_window" in divs:
        yield f"<h2>Scores against the window, {largest} training examples</h2>"
        yield plot(divs["by_window"], "test scores against the window")
    if forests:
        yield "<h2>Differences</h2>"
        yield paragraph(
            "Filled and in the colour of the one ahead: established. Hollow: not established.",
            kind="soft",
        )
        yield _key(summary)
        yield _grid(forests)
        yield table_html(tables.comparisons(summary), faint="not established")

    yield "<h2>Every cell</h2>"
    yield table_html(tables.cells(summary))
    yield "<h2>How it was measured</h2>"
    yield from map(paragraph, method.paragraphs(summary))
    yield items(method.SOURCES, kind="soft")
    yield "<h2>Task, configuration and environment</h2>"
    seconds = ("seconds of training, all runs", values.short(summary["seconds"]))
    yield table_html((["task", ""], [list(row) for row in method.about(summary)]), kind="words")
    _, rows = tables.settings(summary["config"])
    yield table_html((["configuration", ""], rows), kind="words")
    _, rows = tables.settings(summary["environment"])
    yield table_html((["environment", ""], [*rows, list(seconds)]), kind="words")


def _key(summary: Summary) -> str:
    """Which colour and which marker is which family."""
    looks = values.styles(values.models(summary))
    names = [
        f'<span><b style="color: {look.colour}">{_SIGNS[look.glyph]}</b> {escape(name)}</span>'
        for name, look in looks.items()
    ]
    return f'<p class="soft key">{" ".join(names)}</p>'


def _grid(divs: Mapping[str, str]) -> str:
    inner = "\n".join(plot(div, label) for label, div in divs.items())
    return f'<div class="plots">\n{inner}\n</div>'
