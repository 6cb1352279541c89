"""How the numbers of a summary came about, in words: what a reader needs to trust or redo them."""

from attnconv.report import tables, values
from attnconv.report.values import Summary

SOURCES = (
    "Agresti and Min 2005, Statistics in Medicine 24, 729-740 (paired proportions)",
    "Banerjee 1960, Sankhya 22, 357-358 (one t quantile for each variance)",
    "Chernozhukov, Chetverikov and Kato 2013, Annals of Statistics 41, 2786-2819 "
    "(multiplier bootstrap)",
    "Cochran 1977, Sampling Techniques, section 6.4 (ratio of sums)",
    "Korn and Graubard 1998, Survey Methodology 24, 193-201 (effective number of examples)",
    "Owen 2007, Annals of Applied Statistics 1, 386-411 (resampling rows and columns)",
    "Romano and Wolf 2005, JASA 100, 94-108 (the largest |t| of all pairs)",
    "Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3 (moderated variance)",
    "Wilson 1927, JASA 22, 209-212 (interval of a proportion)",
)

# Over what the metric is taken, and what counts as right where that is not plain; by the output.
_METRICS = {
    "label": ("on the test split", ""),
    "labels": ("over all test vectors that have a label", ""),
    "sequence": (
        "on the test split",
        ": a sequence counts where the whole of it is right, its length included",
    ),
}


def paragraphs(summary: Summary) -> list[str]:
    """Splits, budget, tuning, intervals and correction: a paragraph each."""
    found = [_splits(summary), _budget(summary), _tuning(summary), _intervals(summary)]
    return [*found, _corrections(summary)] if summary["comparisons"] else found


def about(summary: Summary) -> list[tuple[str, str]]:
    """The task in a few lines: where its data come from and how large they are."""
    task = summary["task"]
    return [
        ("task", str(task["name"])),
        ("source", str(task["source"])),
        ("one example", str(task["example"])),
        (
            "splits",
            f"{task['train']:,} training, {task['validation']:,} validation, "
            f"{task['test']:,} test examples{_held_out(summary)}",
        ),
    ]


def _held_out(summary: Summary) -> str:
    part = summary["config"].get("hold_out")
    return "" if part is None else f" whose name contains {part!r}"


def _seeds(summary: Summary) -> int:
    return max(cell["seeds"] for cell in summary["cells"])


def _rates(summary: Summary) -> int:
    return len(summary["config"].get("learning_rates") or ())


def _splits(summary: Summary) -> str:
    task, sizes = summary["task"], values.train_sizes(summary)
    of, counts = _METRICS[task["output"]]
    use = "are scored too" if _rates(summary) == 1 else "choose the learning rate"
    by = "" if _rates(summary) == 1 else ", by the runs with the chosen learning rate"
    averaged = ", averaged over seeds" if _seeds(summary) > 1 else ""
    return (
        f"Splits. The models are trained on {', '.join(map(values.count, sizes))} of "
        f"{task['train']:,} training examples{_subset(summary)}; "
        f"{task['validation']:,} validation examples {use}, "
        f"and {task['test']:,} test examples{_held_out(summary)} are read once{by}. "
        f"Scores are {summary['metric']} {of}, in percent{averaged}{counts}."
    )


def _subset(summary: Summary) -> str:
    """What a part of the training split has in common with the whole."""
    task = summary["task"]
    if min(values.train_sizes(summary)) == task["train"]:
        return ""
    drawn = ", drawn anew by each seed"
    if task["output"] == "label":
        drawn += ", of each class the same number while there are enough"
    if task["vocabulary"] is not None:
        drawn += " (the vocabulary is that of all of them)"
    return drawn


def _budget(summary: Summary) -> str:
    match, budget = summary["config"].get("match"), summary["config"].get("budget")
    what = {"params": "number of parameters", "flops": "FLOPs of a forward pass"}.get(str(match))
    if what is None:
        sized = "The families keep their own sizes"
    else:
        goal = "" if budget is None else f" ({budget:,})"
        sized = f"The width of each family is chosen so that all have the same {what}{goal}"
    many = summary["runs_at_once"]
    at_once = "alone" if many == 1 else f"where {many} runs shared it"
    if summary["one_program"] and many > 1:
        at_once = f"its share of {many} runs that were one program"
    task, tokens = summary["task"], ""
    if task["vocabulary"] is not None and summary["config"].get("vectors") != "one_hot":
        tokens = (
            "Parameters do not count the table of token embeddings, the same for all families. "
        )
    steps = {}
    for cell in summary["cells"]:
        steps[cell["train_size"]] = f"{cell['steps']:,} at {values.count(cell['train_size'])}"
    return (
        f"Budget. {sized}; at a train size all train for the same number of steps "
        f"({', '.join(steps.values())}). {tokens}FLOPs are those of one forward pass "
        f"{_passed(summary)}; seconds are those of training one run on the device named below, "
        f"{at_once}."
    )


def _passed(summary: Summary) -> str:
    """What the FLOPs are counted for."""
    task = summary["task"]
    if task["graph"]:
        return "for the whole graph"
    if not task["padded"]:
        return "for one example"
    matched = summary["config"].get("match") == "flops"
    only = ", at which alone they are matched" if matched else ""
    return f"for one example of the greatest length{only}"


def _tuning(summary: Summary) -> str:
    rates = summary["config"].get("learning_rates")
    if _rates(summary) == 1:
        return f"Tuning. Every family has the learning rate {rates[0]:g}, the only one tried."
    grid = "" if rates is None else f" among {tables.setting(rates).replace(',', ', ')}"
    seeds = _seeds(summary)
    runs = "1 run" if seeds == 1 else f"{seeds} seeds"
    return (
        f"Tuning. For each family and train size the learning rate is chosen{grid}, by the mean "
        f"validation score of {runs}: every family gets the same number of runs."
    )


def _intervals(summary: Summary) -> str:
    level = f"{summary['confidence']:.0%}"
    if _seeds(summary) == 1:
        variance = (
            "the spread over test examples only: with one seed the spread of training is not in "
            "the interval"
        )
    else:
        variance = (
            "the spread over seeds and that over test examples, both taken as samples, each with "
            "the t quantile of its own degrees of freedom"
        )
    vectors = ""
    if summary["task"]["output"] == "labels":
        vectors = (
            "The sample is one of examples, not of their vectors, so the labels of one example do "
            "not count as independent: a score is a ratio of two sums over the examples (Cochran "
            "1977). "
        )
    return (
        f"Intervals. Brackets hold {level} intervals. Their width comes from {variance} (Banerjee "
        f"1960; Owen 2007); around a score they are Wilson's, with the effective number of "
        f"examples (Wilson 1927; Korn and Graubard 1998), so they stay within 0 and 100. {vectors}"
        f"Whether two such intervals overlap says little of a difference: differences have "
        f"intervals of their own."
    )


def _corrections(summary: Summary) -> str:
    level, pairs = f"{summary['confidence']:.0%}", len(summary["comparisons"])
    hold = (
        "Its interval holds" if pairs == 1 else f"All {values.count(pairs)} intervals hold together"
    )
    width = (
        "its width comes from |t|"
        if pairs == 1
        else "their width comes from the largest |t| of all pairs"
    )
    moderated = ""
    if pairs > 1 and _seeds(summary) > 1:
        moderated = (
            "The spread over a few seeds is averaged with what all pairs of the train size show "
            "(Smyth 2004). "
        )
    return (
        f"Differences. A difference is paired: taken seed by seed and example by example. {hold} "
        f"with {level} confidence: {width} in a bootstrap (Romano and Wolf 2005; Chernozhukov, "
        f"Chetverikov and Kato 2013). {moderated}One example more counts as undecided (Agresti and "
        f"Min 2005). "
        f"Established means that the interval excludes zero. Not established means that "
        f"this experiment cannot tell, not that the families are equal."
    )
