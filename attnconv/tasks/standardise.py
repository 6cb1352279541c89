"""Numbers at a mean of zero and a deviation of one in each channel, by the training split."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float32

from attnconv.errors import UsageError
from attnconv.tasks.raw import Raw

_BLOCK = 1024  # examples that are in float64 at a time


def splits(
    raw: Raw, inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, Float32[np.ndarray, "B *shape"]], bool]:
    """All splits by the moments of the training split; whether the lengths differ."""
    several = inputs["train"].dtype == object
    measured = np.concatenate(inputs["train"].tolist()) if several else inputs["train"]
    channels = 1 if raw.one_scale else measured.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in _standardised
        mean, deviation = _moments(measured, channels)
        if not several:
            return {
                split: _standardised(raw.name, of, mean, deviation) for split, of in inputs.items()
            }, False
        lengths = {len(one) for of in inputs.values() for one in of}
        done = {}
        for split, of in inputs.items():
            done[split] = np.full((len(of), max(lengths), measured.shape[-1]), np.nan, np.float32)
            for row, one in zip(done[split], of, strict=True):
                row[: len(one)] = _standardised(raw.name, one, mean, deviation)
    return done, len(lengths) > 1


def features(raw: Raw) -> Float32[np.ndarray, "V D"]:
    """The features of a graph's nodes, standardised, but for those that are zeros and ones.

    By all nodes: training knows the features of those, too, whose labels are held out.
    """
    assert raw.graph is not None
    features = raw.graph.features
    if np.isin(features, (0, 1)).all():
        return features.astype(np.float32)
    mean, deviation = _moments(features, features.shape[-1])
    return _standardised(raw.name, features, mean, deviation)


def _standardised(
    name: str, inputs: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> Float32[np.ndarray, "B *shape"]:
    out = np.empty(inputs.shape, np.float32)
    for block, x in _blocks(inputs, mean.size):
        out[block] = ((x - mean) / deviation).reshape(out[block].shape)
    if not (np.isfinite(deviation).all() and np.isfinite(out).all()):
        raise UsageError(f"{name}: the values are too large to standardise")
    return out


def _moments(inputs: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel; a constant one is given deviation 1."""
    n = inputs.size // channels
    # Measured from the first vector, so that the mean of a constant channel is that constant.
    origin = next(_blocks(inputs, channels))[1][0]
    mean = origin + sum(np.einsum("nc->c", x - origin) for _, x in _blocks(inputs, channels)) / n
    squares = (np.square(x - mean) for _, x in _blocks(inputs, channels))
    deviation = np.sqrt(sum(np.einsum("nc->c", square) for square in squares) / n)
    return mean, np.where(deviation == 0, 1.0, deviation)


def _blocks(inputs: np.ndarray, channels: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Consecutive examples as float64 vectors `[n, channels]`, bytes scaled to 0..1."""
    scale = 1 / 255 if inputs.dtype == np.uint8 else 1.0
    for start in range(0, len(inputs), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, inputs[block].reshape(-1, channels).astype(np.float64) * scale
