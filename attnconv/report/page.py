"""report.html: the whole comparison on one page that needs nothing else, not even a network."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources

from attnconv.report import figures, method, tables, values
from attnconv.report.conclusions import findings
from attnconv.report.plots import plots
from attnconv.report.tables import Table
from attnconv.report.text import caption
from attnconv.report.values import Summary

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6470; --line: #d9dde3;
  --page: #fcfcfd; --head: #f1f3f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3abb6; --line: #3a4048;
  --page: #16181b; --head: #22262b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1, li, p, td { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p, li { max-width: 46rem; }
li { margin: .4rem 0; }
.soft { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { background: var(--head); font-weight: 600; }
td.text, th.text, .words td, .words th { text-align: left; }
.words td { white-space: normal; }
tr.open td { color: var(--soft); }
.key span { white-space: nowrap; margin-right: 1rem; }
.key b { font-size: 1.1em; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr));
  margin-bottom: 1.5rem; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  margin: 1rem 0; min-width: 0; color-scheme: light; }
.plots .plot { margin: 0; }
"""

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
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n{resources.render()}"
    )
    body = "\n".join(_body(summary, title, divs))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n{body}\n{script}\n</body>\n</html>\n"
    )


def _body(summary: Summary, title: str, divs: dict[str, Any]) -> Iterable[str]:
    largest = values.count(values.train_sizes(summary)[-1])
    costs = [divs[f"by_{key}"] for key, _ in figures.COSTS]
    forests = [div for name, div in divs.items() if name.startswith("differences")]

    yield f"<h1>{escape(title)}</h1>"
    yield paragraph(", ".join(values.models(summary)), kind="soft")
    yield "<h2>Findings</h2>"
    yield _items(findings(summary))

    yield "<h2>Scores</h2>"
    yield paragraph(caption(summary), kind="soft")
    yield table_html(tables.scores(summary))
    yield f'<div class="plot">{divs["by_train_size"]}</div>'
    yield paragraph("A click on a name in the legend hides it.", kind="soft")

    yield f"<h2>Scores against costs, {largest} training examples</h2>"
    yield _key(summary)
    yield _grid(costs)
    if "by_window" in divs:
        yield f"<h2>Scores against the window, {largest} training examples</h2>"
        yield f'<div class="plot">{divs["by_window"]}</div>'
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
    yield _items(method.SOURCES, kind="soft")
    yield "<h2>Task, configuration and environment</h2>"
    seconds = ("seconds of training, all runs", values.short(summary["seconds"]))
    yield table_html((["task", ""], [list(row) for row in method.about(summary)]), kind="words")
    _, rows = tables.settings(summary["config"])
    yield table_html((["configuration", ""], rows), kind="words")
    _, rows = tables.settings(summary["environment"])
    yield table_html((["environment", ""], [*rows, list(seconds)]), kind="words")


def table_html(table: Table, *, kind: str = "numbers", faint: str = "") -> str:
    """A table that scrolls by itself where it is wide; rows that end in `faint` are drawn so."""
    header, rows = table
    aligned = ["" if number else ' class="text"' for number in tables.numeric(table)]
    cells = [f'<th scope="col"{a}>{escape(c)}</th>' for a, c in zip(aligned, header, strict=True)]
    lines = [f"<thead><tr>{''.join(cells)}</tr></thead>\n<tbody>"]
    for row in rows:
        cells = [f"<td{a}>{escape(c)}</td>" for a, c in zip(aligned, row, strict=True)]
        opening = '<tr class="open">' if faint and row[-1] == faint else "<tr>"
        lines.append(f"{opening}{''.join(cells)}</tr>")
    inner = "\n".join(lines)
    notes = "".join(paragraph(note, kind="soft") for note in tables.notes(table))
    return f'<div class="wide"><table class="{kind}">{inner}\n</tbody></table></div>{notes}'


def _key(summary: Summary) -> str:
    """Which colour and which marker is which family."""
    looks = values.styles(values.models(summary))
    names = [
        f'<span><b style="color: {look.colour}">{_SIGNS[look.glyph]}</b> {escape(name)}</span>'
        for name, look in looks.items()
    ]
    return f'<p class="soft key">{" ".join(names)}</p>'


def _grid(divs: Iterable[str]) -> str:
    inner = "\n".join(f'<div class="plot">{div}</div>' for div in divs)
    return f'<div class="plots">\n{inner}\n</div>'


def _items(texts: Iterable[str], *, kind: str = "words") -> str:
    inner = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">\n{inner}\n</ul>'


def paragraph(text: str, *, kind: str = "words") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'
