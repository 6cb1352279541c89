"""What a person reads of the claims: a table of verdicts, then each with its table and figure."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import figure, style
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from attnconv import results
from attnconv.report import values
from attnconv.report.figures import BARS, LOOK, log_ticks
from attnconv.report.markup import document, paragraph, plot, table_html
from attnconv.report.tables import Table
from attnconv.report.text import escaped, markdown_table

# A claim with its evidence, as JSON values.
Result = Mapping[str, Any]
TITLE = "What the field claims, measured here"
LOG = " (log)"


def write(found: Sequence[Result], out: Path) -> None:
    """Writes claims.md and a figure for each claim into the folder."""
    with style.context(["default", LOOK]):
        for result in found:
            path = out / f"claims-{result['name']}.svg"
            draw(result["figure"]).savefig(path, format="svg", metadata={"Date": None})
    results.write_whole(out / "claims.md", markdown(found))


def write_page(found: Sequence[Result], out: Path) -> None:
    """Writes claims.html, with the figures that `write` left in the folder inside."""
    drawings = [(out / f"claims-{r['name']}.svg").read_text(encoding="utf-8") for r in found]
    results.write_whole(out / "claims.html", html(found, drawings))


def verdicts(found: Sequence[Result]) -> Table:
    """A row for each claim."""
    header = ["claim", "verdict", "statement", "seconds"]
    rows = [[r["name"], r["verdict"], r["statement"], f"{r['seconds']:.0f}"] for r in found]
    return header, rows


def parts(result: Result) -> Table:
    """A row for each quantity that the verdict rests on."""
    header = ["quantity", "measured", "widened", "claimed", "verdict"]
    rows = []
    for part in result["parts"]:
        number, (low, high) = values_of(part), part["widened"]
        wide = "-" if low == high else f"[{low:.3g}, {high:.3g}]"
        claimed = [f"above {part['above']:g}"] if part["above"] is not None else []
        claimed += [f"below {part['below']:g}"] if part["below"] is not None else []
        rows.append([part["what"], number, wide, " and ".join(claimed), part["verdict"]])
    return header, rows


def values_of(part: Mapping[str, Any]) -> str:
    """A number with its interval, if it has one, to three digits."""
    estimate, low, high = (f"{part[end]:.3g}" for end in ("estimate", "low", "high"))
    return estimate if part["low"] == part["high"] else f"{estimate} [{low}, {high}]"


def measured(result: Result) -> Table:
    """The table of what was measured."""
    return list(result["header"]), [list(row) for row in result["rows"]]


def markdown(found: Sequence[Result]) -> str:
    """The text of claims.md."""
    lines = [f"# {TITLE}", "", escaped(introduction(found)), ""]
    lines += markdown_table(verdicts(found))
    for result in found:
        name = escaped(result["name"])
        lines += ["", f"## {name}: {result['verdict']}", "", escaped(result["statement"])]
        lines += ["", f"![{escaped(shown(result))}](claims-{result['name']}.svg)", ""]
        lines += [*markdown_table(parts(result)), "", *markdown_table(measured(result)), ""]
        lines += [f"{escaped(text)}\n" for text in about(result)]
    return "\n".join(lines).rstrip() + "\n"


def html(found: Sequence[Result], drawings: Sequence[str]) -> str:
    """The page, with the text of an SVG file for each claim."""
    body = [f"<h1>{TITLE}</h1>", paragraph(introduction(found), kind="soft")]
    body.append(table_html(verdicts(found), kind="words"))
    for result, drawing in zip(found, drawings, strict=True):
        body += [
            f"<h2>{escape(result['name'])}: {escape(result['verdict'])}</h2>",
            paragraph(result["statement"]),
            plot(drawing[drawing.index("<svg") :], shown(result)),
            table_html(parts(result), kind="words"),
            table_html(measured(result)),
            *(paragraph(text, kind="soft") for text in about(result)),
        ]
    return document(TITLE, body, style="\n.plot svg { max-width: 100%; height: auto; }")


def shown(result: Result) -> str:
    """What its figure shows, in words."""
    drawn = result["figure"]
    of = ", ".join(line["name"] for line in drawn["series"])
    return f"{drawn['y']} against {drawn['x']}: {of}" if drawn["x"] else f"{drawn['y']}: {of}"


def introduction(found: Sequence[Result]) -> str:
    on = [f"{r['environment']['device']}, JAX {r['environment']['jax']}" for r in found]
    return (
        "Each claim has a criterion, first written before it was measured; where it or the "
        "experiment was mended after a measurement, it says so. A claim holds where the 95 % "
        "interval of every quantity lies where the claim says; it does not hold here where that of "
        "one lies wholly elsewhere, even widened until all of the claim hold together at 95 %, "
        "since one of many may lie elsewhere by chance; otherwise it is not decided: with these "
        "data, models and budgets, which are small. Intervals are over seeds and, of what is "
        "counted on test examples, over these too. Mended for all claims after a first "
        "measurement: the intervals were over seeds alone, and one quantity elsewhere at 95 % "
        "decided. Measured on "
        f"{' and '.join(dict.fromkeys(on))}, with seeds from {found[0]['seed']} on, in "
        f"{sum(r['seconds'] for r in found) / 60:.0f} minutes in all."
    )


def about(result: Result) -> list[str]:
    return [
        f"Source: {result['source']}",
        f"Criterion: {result['criterion']}",
        f"Setting: {result['setting']}",
    ]


def draw(drawn: Mapping[str, Any]) -> figure.Figure:
    """The figure of a claim: its series with their intervals, side by side where x are names."""
    canvas = figure.Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    series = drawn["series"]
    looks = values.styles([line["name"] for line in series])
    names = list(dict.fromkeys(x for line in series for x in line["x"] if isinstance(x, str)))
    for i, line in enumerate(series):
        aside = 0.3 * ((i + 0.5) / len(series) - 0.5)
        x = [names.index(at) + aside for at in line["x"]] if names else line["x"]
        _errors(axes, x, line, looks[line["name"]], joined=not names)
    if names:
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
    for label, axis, scale, name in (
        (drawn["x"], axes.xaxis, axes.set_xscale, axes.set_xlabel),
        (drawn["y"], axes.yaxis, axes.set_yscale, axes.set_ylabel),
    ):
        name(label.removesuffix(LOG))
        if label.endswith(LOG):
            scale("log")
            numbers = [at for line in series for at in line[axis.axis_name] if at > 0]
            ticks = log_ticks(numbers)
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        elif axis is axes.xaxis and all(isinstance(at, int) for line in series for at in line["x"]):
            axis.set_major_locator(MaxNLocator(integer=True))
    if len(series) > 1:
        canvas.legend(loc="outside right upper")
    return canvas


def _errors(
    axes: Axes, x: Sequence[Any], line: Mapping[str, Any], look: values.Style, *, joined: bool
) -> None:
    y = line["y"]
    error = None
    if line["low"] is not None:
        error = (
            [max(0.0, at - low) for at, low in zip(y, line["low"], strict=True)],
            [max(0.0, high - at) for at, high in zip(y, line["high"], strict=True)],
        )
    axes.errorbar(
        x,
        y,
        yerr=error,
        color=look.colour,
        marker=look.marker,
        linestyle="-" if joined else "",
        label=line["name"],
        **BARS,
    )
