"""The parts of an HTML page that needs nothing else; every text is escaped."""

from collections.abc import Iterable
from html import escape

from attnconv.report import tables
from attnconv.report.tables import Table

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


def document(title: str, body: Iterable[str], *, head: str = "", style: str = "") -> str:
    """The page as HTML5."""
    inner = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n{head}</head>\n"
        f"<body>\n{inner}\n</body>\n</html>\n"
    )


def plot(drawing: str, label: str) -> str:
    """A figure, and what it shows for those who do not see it."""
    return f'<div class="plot" role="figure" aria-label="{escape(label)}">{drawing}</div>'


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


def items(texts: Iterable[str], *, kind: str = "words") -> str:
    inner = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">\n{inner}\n</ul>'


def paragraph(text: str, *, kind: str = "words") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'
