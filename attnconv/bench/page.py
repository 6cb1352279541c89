"""The page of measurements, in Markdown, from the measurements alone."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from attnconv import results
from attnconv.bench import figure, store, table
from attnconv.bench.case import GENERAL, SECONDS
from attnconv.bench.measure import Row
from attnconv.bench.store import Measured, rows_of

TITLES = {
    "attention": "Attention",
    "conv": "Convolution, pooling, normalisation",
    "train": "Training steps",
    "compile": "First compile",
}
NAMES = {"attnconv": "ours", **{peer: label for peer, (_, _, label) in figure.LOOKS.items()}}


def write(measured: Measured, folder: Path, beside: Measured | None = None) -> list[Path]:
    """Writes benchmarks.md and the figures into the folder.

    Args:
      measured: what the page is about: the rows of the JAX that measured last.
      folder: an existing folder.
      beside: measurements with another version of JAX, shown in further columns.
    """
    rows = rows_of(measured)
    others = [] if beside is None else rows_of(beside)
    other_jax = "" if beside is None else f"JAX {beside['environment']['jax']}"
    parts, paths = [_introduction(measured, beside), _floors(rows, others, other_jax)], []
    for suite in TITLES:
        found = [row for row in rows if row["suite"] == suite]
        if not found:
            continue
        parts.append(f"## {TITLES[suite]}")
        if suite == "compile":
            parts.append(_compiles(found, others, other_jax))
            continue
        path = folder / f"benchmarks-{suite}.svg"
        figure.write(found, f"{TITLES[suite]}: {measured['environment']['device']}", path)
        paths.append(path)
        parts.append(f"![Ratios of the times in the table]({path.name})")
        parts.append(_times(found, others, other_jax, measured["rates"]))
    path = folder / "benchmarks.md"
    results.write_whole(path, "\n\n".join(parts) + "\n")
    return [path, *paths]


def _introduction(measured: Measured, beside: Measured | None) -> str:
    environment, rates = measured["environment"], measured["rates"]
    versions = ", ".join(
        f"{k} {v}" for k, v in environment.items() if k not in ("device", "commit")
    )
    paragraphs = [
        f"""Measured on {environment["device"]}, with {versions};
        {store.commits(rows_of(measured))}.
        The page is written by `make bench` from `bench.json`.""",
        """Float32. A case runs first once on every peer, whose results, gradients included, must
        agree within 1e-4 of the largest number. Then come rounds: in each, every peer is timed
        once, after runs that wake its threads, in changing order; ours, the rest of JAX and
        PyTorch have a process each. A ratio is the median over rounds of the peer's time divided by
        ours in the same round, with the quartiles; more than 1 means that ours is faster.
        `gradient` is forward and the gradients of all inputs. PyTorch's convolutions have the
        faster of its two layouts. Memory is the peak of one run in a fresh process above what it
        had with inputs and program ready. During training steps every process keeps the memory that
        it frees, as in the experiments; the operators run with the allocator as it comes.""",
        f"""The bound is the time that this machine would need at the rate of a large product,
        {rates["flops"] / 1e9:.0f} GFLOP/s, or of a large copy, {rates["bytes"] / 1e9:.1f} GB/s,
        whichever is longer, as a part of the time that ours takes. Arrays that stay in a cache move
        faster than that copy.""",
    ]
    if beside is not None:
        other = beside["environment"]
        paragraphs.append(f"Columns of JAX {other['jax']} were measured on {other['device']}.")
    return "\n\n".join(["# Benchmarks", *map(filled, paragraphs)])


def filled(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), 100, break_long_words=False)


def _floors(rows: Sequence[Row], others: Sequence[Row], other_jax: str) -> str:
    """What the cases are held to: floors of their own first, the general one as a count."""
    header = ["case", "against", "floor", "measured", "met"]
    if other_jax:
        header += [f"measured, {other_jax}", "met"]
    beside = {row["case"]: table.floors(row) for row in others}
    body, general = [], [0, 0]
    for row in rows:
        for floor in table.floors(row):
            if floor.wanted == f">= {GENERAL:.3g}":
                general[0] += floor.met is True
                general[1] += 1
                if floor.met is not False:
                    continue
            elif floor.against == "compile" and floor.met:
                continue
            cells = [row["case"], NAMES.get(floor.against, floor.against), floor.wanted]
            cells += [floor.found, met(floor)]
            if other_jax:
                same = [f for f in beside.get(row["case"], []) if f.against == floor.against]
                cells += [same[0].found, met(same[0])] if same else ["-", "-"]
            body.append(cells)
    compiles = [row for row in rows if row["suite"] == "compile"]
    fast = sum(table.verdict(row) == "met" for row in compiles)
    text = filled(
        f"""{general[0]} of {general[1]} cases whose only floor against stock JAX is the general
        one, a ratio of {GENERAL:g}, meet it; those that do not are in the table. {fast} of
        {len(compiles)} first compiles take at most {SECONDS:g} seconds more than those of stock
        JAX. The floors of cases by themselves were set on two cores of a later EPYC, whose rate of
        a large product is 469 GFLOP/s."""
    )
    parts = ["## Floors", text, *errors(rows), *([markdown(header, body)] if body else [])]
    return "\n\n".join(parts)


def errors(rows: Sequence[Row]) -> list[str]:
    """A list of what went wrong, if anything did."""
    found = [f"- {row['case']}: {row['error']}" for row in rows if row["error"] is not None]
    return ["Errors:\n\n" + "\n".join(found)] if found else []


def _times(
    rows: Sequence[Row], others: Sequence[Row], other_jax: str, rates: dict[str, float]
) -> str:
    peers = [peer for peer in figure.LOOKS if any(peer in row["peers"] for row in rows)]
    header = ["case", "ours, ms", *(f"{NAMES[peer]} / ours" for peer in peers), "bound"]
    header += ["memory, MB: ours", *(NAMES[peer] for peer in peers)]
    if other_jax:
        header += [f"ours, ms, {other_jax}", *(f"{NAMES[p]} / ours, {other_jax}" for p in peers)]
    beside = {row["case"]: row["peers"] for row in others}
    body = []
    for row in rows:
        found = row["peers"]
        cells = [row["case"], table.milliseconds(found["attnconv"])]
        cells += [table.spread(found.get(peer, {}).get("ratio")) for peer in peers]
        cells.append(table.share(row, rates))
        cells += [table.megabytes(found.get(p, {}).get("memory")) for p in ("attnconv", *peers)]
        if other_jax:
            same = beside.get(row["case"], {})
            cells.append(table.milliseconds(same.get("attnconv", {})))
            cells += [table.spread(same.get(peer, {}).get("ratio")) for peer in peers]
        body.append(cells)
    return markdown(header, body)


def _compiles(rows: Sequence[Row], others: Sequence[Row], other_jax: str) -> str:
    header = ["case", "ours, ms", "stock JAX, ms", "difference"]
    header += [f"difference, {other_jax}"] if other_jax else []
    beside = {row["case"]: table.seconds(table.extra(row)) for row in others}
    body = []
    for row in rows:
        times = [table.milliseconds(peer) for peer in row["peers"].values()]
        cells = [row["case"], *times, table.seconds(table.extra(row))]
        body.append(cells + ([beside.get(row["case"], "-")] if other_jax else []))
    return markdown(header, body)


def met(floor: table.Floor) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[floor.met]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)
