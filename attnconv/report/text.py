"""The comparison as text: a table for the terminal, and summary.md."""

import re

from attnconv.report import method, tables, values
from attnconv.report.conclusions import findings
from attnconv.report.tables import Table
from attnconv.report.values import Summary

__all__ = ["findings", "markdown", "table"]


def table(summary: Summary) -> str:
    """Models by train sizes, monospaced: test scores, then what a model costs at the largest.

    Cells read `98.9 [98.0, 99.5]`: percent, with the interval.
    """
    scores = tables.scores(summary)
    header, rows = scores
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [caption(summary), "", line(header), rule, *map(line, rows), *tables.notes(scores)]
    return "\n".join(lines)


def caption(summary: Summary) -> str:
    """What the numbers of the table of scores are."""
    return (
        f"Test {summary['metric']} in percent with {summary['confidence']:.0%} intervals, by "
        f"number of training examples; costs at the largest."
    )


def markdown(summary: Summary) -> str:
    """The text of summary.md: findings first, then the tables, then how it was measured."""
    parts = [f"# {escaped(values.title(summary, longest=200))}", ""]
    parts += [f"- {escaped(finding)}" for finding in findings(summary)]
    parts += ["", "## Scores", "", escaped(caption(summary)), ""]
    parts += markdown_table(tables.scores(summary))
    if summary["comparisons"]:
        parts += ["", "## Differences", "", *markdown_table(tables.comparisons(summary))]
    parts += ["", "## Every cell", "", *markdown_table(tables.cells(summary))]
    parts += ["", "## How it was measured", ""]
    parts += [f"{escaped(paragraph)}\n" for paragraph in method.paragraphs(summary)]
    parts += ["Sources:", "", *(f"- {escaped(source)}" for source in method.SOURCES)]
    parts += ["", "## Task", ""]
    parts += [f"- {name}: {escaped(value)}" for name, value in method.about(summary)]
    parts += ["", "## Environment", "", *markdown_table(tables.settings(summary["environment"]))]
    parts += ["", f"All runs together trained for {values.short(summary['seconds'])} seconds."]
    parts += ["", "## Configuration", "", *markdown_table(tables.settings(summary["config"]))]
    return "\n".join(parts) + "\n"


def markdown_table(table: Table) -> list[str]:
    header, rows = table
    rule = ["---:" if number else "---" for number in tables.numeric(table)]
    lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
    drawn = [f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:])]
    return [*drawn, *(f"\n{escaped(note)}" for note in tables.notes(table))]


def escaped(text: str) -> str:
    """Text on one line with the characters disarmed that Markdown or HTML would take for markup."""
    return re.sub(r"[\\`*_<>|#~&]|\](?=\()", r"\\\g<0>", " ".join(text.split()))
