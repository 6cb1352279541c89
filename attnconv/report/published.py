"""What is known of a task from elsewhere, to set the scores beside."""

from attnconv.report import values
from attnconv.report.values import Summary

_KNOWN = {
    "scan/simple": "Published: 99.8 % exact match, the best of several recurrent networks on this "
    "split (Lake and Baroni 2018, ICML, experiment 1).",
    "scan/length": "Published: 20.8 % exact match, the best of several recurrent networks on this "
    "split (Lake and Baroni 2018, ICML, experiment 2).",
    "scan/addprim_jump": "Published: 1.2 % exact match, the best of several recurrent networks on "
    "this split (Lake and Baroni 2018, ICML, experiment 3).",
    "rt_polarity": "Published: 76.1 % accuracy, CNN-rand, a convolution whose word vectors are not "
    "pretrained, in 10-fold cross-validation (Kim 2014, EMNLP, table 2).",
    "universal_dependencies/en_ewt": "Baseline: 85.7 % accuracy, the most frequent tag of each "
    "word, NOUN where a word is unknown (counted on release 1.0.1: 21,821 of 25,451 test words).",
}


def known(summary: Summary) -> list[str]:
    """A sentence with its source where something is known of the task, as it is by default.

    Other fields, another test split, fewer training examples and what is no text make another task
    of the same name.

    >>> task = {"name": "scan/length:1.1.1", "vocabulary": 16, "train": 90}
    >>> known({"task": task, "config": {}, "cells": [{"train_size": 90}]})[0][:34]
    'Published: 20.8 % exact match, the'
    """
    task, sizes = summary["task"], values.train_sizes(summary)
    other = any(summary["config"].get(name) for name in ("fields", "hold_out"))
    if other or task["vocabulary"] is None or task["train"] not in sizes:
        return []
    name = task["name"].partition(":")[0]
    return [_KNOWN[name]] if name in _KNOWN else []
