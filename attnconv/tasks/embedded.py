"""Tasks whose data come with a dependency: no network and no download."""

import dataclasses
from collections.abc import Callable

import numpy as np

from attnconv.tasks import dsd, dtmf, generated, graphs
from attnconv.tasks.raw import Raw


def digits() -> Raw:
    """1,797 scans of handwritten digits, 8 x 8 pixels of 17 greys.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository,
    its test part, as scikit-learn carries it.

    >>> images, labels = digits().splits["train"]
    >>> images.shape, labels[:5].tolist()
    ((1797, 8, 8, 1), [0, 1, 2, 3, 4])
    """
    from sklearn.datasets import load_digits  # slow to import, and other tasks do without it

    scans = load_digits()
    return Raw(
        name="digits",
        source="scikit-learn's load_digits: scans of handwritten digits (UCI, 1998)",
        class_names=tuple(str(digit) for digit in range(10)),
        splits={"train": (scans.images[..., np.newaxis], scans.target)},
    )


def digits_rows() -> Raw:
    """`digits` as sequences of 8 rows of 8 pixels, scaled as the images are.

    >>> digits_rows().splits["train"][0].shape
    (1797, 8, 8)
    """
    images = digits()
    pixels, labels = images.splits["train"]
    return dataclasses.replace(
        images,
        name="digits_rows",
        source=f"{images.source}, one row of pixels at a time",
        splits={"train": (pixels[..., 0], labels)},
        one_scale=True,
    )


SOURCES: dict[str, Callable[[], Raw]] = {
    "digits": digits,
    "digits_rows": digits_rows,
    "python_tokens": generated.python_tokens,
    "dtmf": dtmf.dtmf,
    "dsd": dsd.dsd,
    "karate": graphs.karate,
    "number_words": generated.number_words,
}
