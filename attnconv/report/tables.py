"""The tables that the terminal, summary.md and report.html show: a header, and rows of text."""

import re
from collections.abc import Mapping
from typing import Any

from attnconv.report import values
from attnconv.report.values import Row, Summary

Table = tuple[list[str], list[list[str]]]


def scores(summary: Summary) -> Table:
    """A row for each model: its score at every train size, then what it costs at the largest."""
    sizes, decimals = values.train_sizes(summary), values.digits(summary)
    cells = {(cell["model"], cell["train_size"]): cell for cell in summary["cells"]}
    header = ["model", *map(values.count, sizes), "params", "flops", "s/run", "lr"]
    rows = []
    for model in values.models(summary):
        row = [cells.get((model, size)) for size in sizes]
        last = [cell for cell in row if cell is not None][-1]
        scored = ["-" if cell is None else values.percent(cell["test"], decimals) for cell in row]
        cost = [f"{last['params']:,}", values.short(last["flops"]), values.short(last["seconds"])]
        rows.append([model, *scored, *cost, _learning_rate(last)])
    return header, rows


def cells(summary: Summary) -> Table:
    """A row for each cell with all that was measured."""
    columns = ["train size", "model", "test", "each seed", "validation", "train", "learning rate"]
    header = [*columns, "width", "params", "flops", "steps", "s/run"]
    decimals = values.digits(summary)
    rows = []
    for size in values.train_sizes(summary):
        for cell in values.cells_at(summary, size):
            seeds = " ".join(f"{100 * score:.{decimals}f}" for score in cell["test_by_seed"])
            rows.append(
                [
                    values.count(size),
                    cell["model"],
                    values.percent(cell["test"], decimals),
                    seeds,
                    *(f"{100 * cell[split]:.{decimals}f}" for split in ("validation", "train")),
                    _learning_rate(cell),
                    str(cell["width"]),
                    f"{cell['params']:,}",
                    f"{cell['flops']:,}",
                    f"{cell['steps']:,}",
                    values.short(cell["seconds"]),
                ]
            )
    return header, rows


def comparisons(summary: Summary) -> Table:
    """A row for each pair of models at a train size; the largest train size first."""
    header = ["train size", "a", "b", "a - b, points", "established"]
    decimals = values.digits(summary)
    rows = [
        [
            values.count(size),
            row["a"],
            row["b"],
            values.points(row["difference"], decimals),
            "yes" if row["established"] else "not established",
        ]
        for size in reversed(values.train_sizes(summary))
        for row in values.comparisons_at(summary, size)
    ]
    return header, rows


def settings(group: Mapping[str, Any]) -> Table:
    """The names and values of the configuration or of the environment."""
    return ["name", "value"], [[name, setting(value)] for name, value in group.items()]


def setting(value: Any) -> str:
    """A value as it is written on the command line; in a list of train sizes None is all of them.

    >>> setting([100, None]), setting(None), setting("digits")
    ('100,all', 'not set', 'digits')
    """
    if isinstance(value, (list, tuple)):
        return ",".join("all" if item is None else str(item) for item in value)
    return "not set" if value is None else str(value)


def notes(table: Table) -> list[str]:
    """The explanation of the mark that a learning rate carries, where some rate carries it."""
    marked = any(cell.endswith("*") for row in table[1] for cell in row)
    return ["* at the edge of the grid of learning rates"] if marked else []


def numeric(table: Table) -> list[bool]:
    """Which columns hold numbers, which line up at the right."""
    columns = zip(*table[1], strict=True)
    return [all(re.match(r"[-+]?\d", cell) for cell in column) for column in columns]


def _learning_rate(cell: Row) -> str:
    return f"{cell['learning_rate']:g}" + ("*" if cell["learning_rate_at_edge"] else "")
