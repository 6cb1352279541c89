"""A signal in one of several patches of noise: generated, the same bits each time."""

import numpy as np
from jaxtyping import Float32, Int64

from attnconv.tasks.raw import Raw

PATCHES, FEATURES = 16, 16
# 0.8 / sqrt(PATCHES): the published bounds are for noise that falls as 1 / sqrt(PATCHES).
NOISE = 0.2

_EXAMPLES = {"train": 20_480, "validation": 2_000, "test": 4_000}


def dsd() -> Raw:
    """The dynamic signal distribution: which sign has the signal in one of 16 patches of noise?

    `x_i = y [i = t] w + n_i` for the patches i: a unit vector w of 16 features, the same in all
    examples, with the sign y, in a patch t drawn evenly; noise n of deviation 0.2 in every
    feature. The inputs are sequences of 16 patches.

    Source: Lahoti et al. 2024, Role of Locality and Weight Sharing in Image-Based Tasks (arXiv
    2403.15707), section 4: the distribution. The sizes and the noise are chosen here.

    >>> raw = dsd()
    >>> patches, labels = raw.splits["train"]
    >>> patches.shape, [raw.class_names[label] for label in labels[:3]]
    ((20480, 16, 16), ['+', '-', '+'])
    """
    rng = np.random.default_rng(16)
    signal = rng.normal(size=FEATURES)
    signal /= np.linalg.norm(signal)
    return Raw(
        name="dsd",
        source=f"generated: the sign of a signal in one of {PATCHES} patches of noise",
        class_names=("-", "+"),
        splits={split: examples(n, signal, rng) for split, n in _EXAMPLES.items()},
        one_scale=True,
    )


def examples(
    count: int, signal: np.ndarray, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "n T D"], Int64[np.ndarray, "n"]]:
    """Drawn examples with that signal, 1 where its sign is plus."""
    labels = rng.integers(0, 2, count)
    places = rng.integers(0, PATCHES, count)
    x = NOISE * rng.standard_normal((count, PATCHES, len(signal)), np.float32)
    x[np.arange(count), places] += (2 * labels - 1)[:, np.newaxis] * signal
    return x, labels
