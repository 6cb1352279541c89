"""What may be concluded from a summary, in sentences that claim no more than the intervals do."""

from collections.abc import Iterable, Iterator, Sequence

from attnconv.report import published, values
from attnconv.report.values import Row, Summary

_LISTED = 3  # differences that one sentence names; the table of differences has all of them
_FEW_SEEDS = 5
_QUESTION = (("cnn", "attention"), ("graph_conv", "graph_attention"))
_MISSED = (
    0.02  # of the parameters or FLOPs that each family may miss, where they were to be matched
)


def findings(summary: Summary) -> list[str]:
    """The question, each train size, the ranking, what is known from elsewhere, what to beware of.

    A difference that is not established is said to be so, and never to be an equality.
    """
    sizes = values.train_sizes(summary)
    found = [sentence for pair in _pairs(summary) for sentence in _question(summary, *pair)]
    found += [_at_size(summary, size) for size in reversed(sizes)]
    if len(values.models(summary)) > 1 and len(sizes) > 1:
        found.append(_ranking(summary))
    return found + published.known(summary) + _warnings(summary)


def _pairs(summary: Summary) -> Iterator[tuple[str, str, int | None]]:
    """The pairs that this is all about, of one window: without one, then the smallest first."""
    found = {values.parted(model): model for model in values.models(summary)}
    windows = sorted({window for _, window in found if window is not None})
    for a, b in _QUESTION:
        for window in (None, *windows):
            if (a, window) in found and (b, window) in found:
                yield found[a, window], found[b, window], window


def _question(summary: Summary, a: str, b: str, window: int | None) -> list[str]:
    """Convolution or self-attention, at every train size."""
    seen = "" if window is None else f" with a window of {window} positions"
    windows = {cell["model"]: cell["window"] for cell in summary["cells"]}
    if windows[a] != windows[b]:
        many = [f"{x} sees {windows[x] or 'all'} positions" for x in (a, b)]
        seen = f" ({', '.join(many)})"
    answers = [
        f"at {values.count(size)} training examples {_verdict(summary, row)}"
        for size in reversed(values.train_sizes(summary))
        for row in values.comparisons_at(summary, size)
        if {row["a"], row["b"]} == {a, b}
    ]
    return [f"Convolution or self-attention{seen}: {'; '.join(answers)}."] if answers else []


def _at_size(summary: Summary, size: int) -> str:
    """Who scored highest, by how much it is ahead, and what is not established."""
    cells = values.cells_at(summary, size)
    best = {cell["model"]: cell["test"] for cell in values.highest(cells)}
    decimals, unit = values.digits(summary), values.unit(summary)
    scores = [values.percent(score, decimals, unit=unit) for score in best.values()]
    leaders, score = _names(best), _names(dict.fromkeys(scores))
    where = f"At {values.count(size)} training examples"
    if len(cells) == 1:
        return f"{where} {leaders} scored {score}; it was run alone, so nothing is compared."
    how = "scored the same" if len(best) == len(cells) else "scored highest"
    sentences = [f"{where} {leaders} {how}: {score}."]

    rows = values.comparisons_at(summary, size)
    of_best = [row for row in rows if row["a"] in best or row["b"] in best]
    leads = [_lead(summary, row) for row in _widest(of_best) if row["established"]]
    for leader in best:
        by = [f"of {behind} by {lead}" for first, behind, lead in leads if first == leader]
        if by:
            sentences.append(f"{leader} is ahead {_listed(by)}.")
    open_rows = [row for row in of_best if not row["established"]]
    if open_rows:
        sides = (row["a"] if row["a"] in best else row["b"] for row in open_rows)
        against = [_against(summary, *of) for of in zip(open_rows, sides, strict=True)]
        sentences.append(f"Not established: {_listed(against)}.")
    others = [row for row in rows if row not in of_best]
    if others:
        sentences.append(_among_others(summary, others))
    return " ".join(sentences)


def _among_others(summary: Summary, rows: Sequence[Row]) -> str:
    established = _widest(row for row in rows if row["established"])
    leads = [_lead(summary, row) for row in established]
    named = [f"{first} ahead of {second} by {lead}" for first, second, lead in leads]
    if len(rows) == 1:
        if named:
            first, second, lead = leads[0]
            return f"Of the others {first} is ahead of {second} by {lead}."
        return f"Between {rows[0]['a']} and {rows[0]['b']} no difference is established."
    pairs = f"{len(rows)} pairs"
    if not established:
        return f"Among the other {pairs} no difference is established."
    number = "1 is" if len(named) == 1 else f"{len(named)} are"
    return f"Of the other {pairs} {number} established: {_listed(named)}."


def _ranking(summary: Summary) -> str:
    """Whether the order of the models depends on the train size, as far as is established."""
    sizes = values.train_sizes(summary)
    winners: dict[frozenset[str], dict[str, int]] = {}
    for size in sizes:
        for row in values.comparisons_at(summary, size):
            if row["established"]:
                first, _, _ = _lead(summary, row)
                seen = winners.setdefault(frozenset((row["a"], row["b"])), {})
                seen.setdefault(first, size)
    turns = []
    for seen in winners.values():
        if len(seen) == 2:
            (first, small), (second, large) = sorted(seen.items(), key=lambda item: item[1])
            turns.append(
                f"{first} is ahead of {second} at {values.count(small)}, "
                f"{second} of {first} at {values.count(large)}"
            )
    if turns:
        return f"The ranking changes with the number of training examples: {_listed(turns, '; ')}."
    best = {
        size: [cell["model"] for cell in values.highest(values.cells_at(summary, size))]
        for size in sizes
    }
    always = [model for model in best[sizes[0]] if all(model in of for of in best.values())]
    if always:
        alone = all(len(of) == 1 for of in best.values())
        every = "both" if len(sizes) == 2 else f"all {len(sizes)}"
        return (
            f"{_names(always)} scored highest{'' if alone else ', or as high as another,'} at "
            f"{every} train sizes; no pair of models changes its order in an established way."
        )
    changes = ", ".join(f"{_names(of)} at {values.count(size)}" for size, of in best.items())
    return (
        f"The highest score changes hands ({changes}), but no pair of models is established "
        f"in both orders: a change of the ranking is not established."
    )


def _warnings(summary: Summary) -> list[str]:
    warnings = [*_most_frequent(summary), *_held_out(summary)]
    edges = _rates(
        (cell, [cell["learning_rate"]])
        for cell in summary["cells"]
        if cell["learning_rate_at_edge"]
    )
    if edges:
        warnings.append(
            f"The chosen learning rate lies at the edge of the grid for {edges}: a wider grid may "
            f"score higher, so widen it before relying on these scores."
        )
    diverged = _rates((cell, cell["diverged"]) for cell in summary["cells"])
    if diverged:
        warnings.append(
            f"Training diverged for {diverged}: these learning rates were left out of the choice."
        )
    seeds = min(cell["seeds"] for cell in summary["cells"])
    if seeds == 1:
        warnings.append(
            "One seed only: the spread of training is not in the intervals, so they speak of these "
            "trained models and not of their families."
        )
    elif seeds < _FEW_SEEDS:
        warnings.append(
            f"Only {seeds} seeds: they say little about the spread of training, so the intervals "
            f"are wide; with {_FEW_SEEDS} or more smaller differences can be established."
        )
    return warnings + _unmatched(summary)


def _rates(found: Iterable[tuple[Row, Sequence[float]]]) -> str:
    """Learning rates of cells in words, by model: `cnn (0.03 at 10, 30; 0.1 at 20)`."""
    by_model: dict[str, dict[float, list[str]]] = {}
    for cell, rates in found:
        for rate in rates:
            sizes = by_model.setdefault(cell["model"], {}).setdefault(rate, [])
            sizes.append(values.count(cell["train_size"]))
    listed = {
        model: "; ".join(f"{rate:g} at {', '.join(sizes)}" for rate, sizes in of_model.items())
        for model, of_model in by_model.items()
    }
    return "; ".join(f"{model} ({rates})" for model, rates in listed.items())


def _most_frequent(summary: Summary) -> list[str]:
    """A warning where a model may have learned no more than which class is the most frequent."""
    share, size = summary["task"]["most_frequent"], values.train_sizes(summary)[-1]
    cells = values.cells_at(summary, size)
    if share is None or all(cell["test"]["low"] > share for cell in cells):
        return []
    below = [cell["model"] for cell in cells if cell["test"]["low"] <= share]
    names = "every model" if len(below) == len(cells) else _names(below)
    score = f"{100 * share:.{values.digits(summary)}f}{values.unit(summary)}"
    return [
        f"Always the class most frequent in training would score {score}. Not established to be "
        f"above that at {values.count(size)} training examples: {names}."
    ]


def _held_out(summary: Summary) -> list[str]:
    part = summary["config"].get("hold_out")
    if part is None:
        return []
    tuned = len(summary["config"]["learning_rates"]) > 1
    chosen = ", and the learning rate is chosen on others" if tuned else ""
    return [
        f"The test split is the examples whose name contains {part!r}{chosen}: the intervals are "
        f"for more examples like these, and say nothing of other groups that could be held out."
    ]


def _unmatched(summary: Summary) -> list[str]:
    """A warning where the families are not of one size though they should be."""
    match = summary["config"].get("match")
    if match not in ("params", "flops"):
        return []
    sizes = {cell["model"]: cell[match] for cell in summary["cells"]}
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if (1 - _MISSED) * sizes[most] <= (1 + _MISSED) * sizes[least]:
        return []
    what = {"params": "parameters", "flops": "FLOPs"}[match]
    return [
        f"The {what} differ by more than {2 * _MISSED:.0%}, from {sizes[least]:,} ({least}) to "
        f"{sizes[most]:,} ({most}): part of a difference may be one of size."
    ]


def _verdict(summary: Summary, row: Row) -> str:
    if row["established"]:
        first, second, lead = _lead(summary, row)
        return f"{first} is ahead of {second} by {lead}"
    return f"not established, {_against(summary, row, row['a'])}"


def _lead(summary: Summary, row: Row) -> tuple[str, str, str]:
    """Who is ahead of whom, and by how much."""
    first, second, difference = row["a"], row["b"], row["difference"]
    if difference["estimate"] < 0:
        first, second = second, first
        difference = values.reversed_interval(difference)
    lead = values.points(difference, values.digits(summary), unit=" points", sign=False)
    return first, second, lead


def _against(summary: Summary, row: Row, first: str) -> str:
    """An open difference, taken from the side of the first."""
    second, difference = row["b"], row["difference"]
    if first != row["a"]:
        second, difference = row["a"], values.reversed_interval(difference)
    text = values.points(difference, values.digits(summary), unit=" points")
    return f"{first} against {second} ({text})"


def _widest(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -abs(row["difference"]["estimate"]))


def _listed(parts: Sequence[str], separator: str = ", ") -> str:
    rest = len(parts) - _LISTED
    if rest <= 1:  # naming the one that is left takes no more room than counting it
        return separator.join(parts)
    return f"{separator.join(parts[:_LISTED])} and {rest} more, in the table of differences"


def _names(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
