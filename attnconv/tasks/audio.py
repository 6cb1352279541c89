"""Waves as sequences of log-mel frames, and the user's own folder of `.wav`."""

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32
from scipy.io import wavfile

from attnconv.errors import UsageError
from attnconv.functional import audio
from attnconv.tasks.folders import by_folder, files_of_classes, roots
from attnconv.tasks.raw import Raw, objects

WINDOW_MS = 25.0
HOP_MS = 10.0
MELS = 40

_SLOWEST = 1000  # Hz: of fewer samples a frame has no spectrum to speak of
# Waves of any length are cut into pieces of as many frames, and as many pieces are computed at
# once: XLA compiles one shape for each rate, and its memory does not grow with the longest wave.
_PIECE = 64
_BATCH = 64

_log_mel = jax.jit(audio.log_mel, static_argnames=("rate", "window_ms", "hop_ms", "mels"))


def as_frames(waves: Iterable[np.ndarray], rate: int) -> np.ndarray:
    """The logarithm of the energy in 40 mel bands, over 25 ms, every 10 ms: see `F.audio.log_mel`.

    Args:
      waves: each `[t]`, or `[t, channels]`, which are averaged. Integers are scaled to -1..1 by
        their dtype, unsigned ones around their middle. int64 is taken for 16-bit samples, as
        TensorFlow Datasets has them. A wave shorter than a frame is followed by zeros.
      rate: samples in a second, Hz, the same for all.

    Returns:
      Objects `[n]`, each float32 `[t, 40]`.

    Raises:
      UsageError: a wave that has no samples, or others than finite numbers.

    >>> frames = as_frames([np.zeros(8000, np.int16), np.ones(100)], rate=8000)
    >>> [one.shape for one in frames]
    [(98, 40), (1, 40)]
    """
    size, hop = audio.frame_sizes(rate, window_ms=WINDOW_MS, hop_ms=HOP_MS)
    counts = []

    def pieces() -> Iterator[np.ndarray]:
        for index, wave in enumerate(waves):
            mono = _mono(wave, called=f"wave {index}")
            counts.append(1 + max(0, mono.size - size) // hop)
            yield from _pieces(mono, counts[-1], size, hop)

    stream, done = pieces(), [np.empty((0, MELS), np.float32)]
    while batch := list(itertools.islice(stream, _BATCH)):
        x = np.zeros((_BATCH, batch[0].size), np.float32)
        x[: len(batch)] = batch
        y = _log_mel(x, rate=rate, window_ms=WINDOW_MS, hop_ms=HOP_MS, mels=MELS)
        done.append(np.asarray(y)[: len(batch)].reshape(-1, MELS))
    frames = np.concatenate(done)
    lengths = np.array([_PIECE * -(-count // _PIECE) for count in counts], np.int64)
    starts = np.cumsum(lengths) - lengths
    return objects(frames[at : at + count] for at, count in zip(starts, counts, strict=True))


def folder(path: Path) -> Raw:
    """The examples of a folder of waves, one label each: that of the folder they are in.

    It holds `CLASS/*.wav`, or `train/CLASS/` with `test/CLASS/`, `validation/CLASS/` or both. All
    files have one rate; channels are averaged. Names are those of the files, so that a speaker
    can be held out.

    Raises:
      UsageError: naming the file that cannot be read, is empty or has another rate, or the folder
        that is not as above.
    """
    path = Path(os.path.abspath(path))  # so that "." has a name too
    found = {
        split: files_of_classes(root, (".wav",), "waves") for split, root in roots(path).items()
    }
    first = found["train"][0]
    rate, _ = _read(first)

    def wave(file: Path) -> np.ndarray:
        other, samples = _read(file)
        if other != rate:
            raise UsageError(f"{file}: expected {rate} Hz, as {first} has, found {other} Hz")
        return samples

    inputs = {split: as_frames(map(wave, of), rate) for split, of in found.items()}
    return by_folder(path, f"waves in {path}, {rate} Hz", inputs, found)


def _pieces(wave: np.ndarray, count: int, size: int, hop: int) -> np.ndarray:
    """`[pieces, samples]`: each holds `_PIECE` frames, the last of the wave followed by zeros."""
    step, span = _PIECE * hop, size + (_PIECE - 1) * hop
    parts = -(-count // _PIECE)
    whole = np.zeros((parts - 1) * step + span, np.float32)
    wave = wave[: whole.size]
    whole[: wave.size] = wave
    return np.lib.stride_tricks.sliding_window_view(whole, span)[::step]


def _mono(wave: np.ndarray, *, called: str) -> Float32[np.ndarray, "t"]:
    """The mean of the channels, from -1 to 1."""
    if wave.ndim not in (1, 2) or wave.dtype.kind not in "iuf":
        raise UsageError(
            f"{called}: expected numbers [t] or [t, channels], found {wave.dtype} of shape "
            f"{wave.shape}"
        )
    if not wave.size:
        raise UsageError(f"{called}: expected 1 or more samples, found none")
    with np.errstate(over="ignore"):  # what overflows is refused below
        samples = wave.astype(np.float32)
    if wave.dtype.kind in "iu":
        bits = 16 if wave.dtype == np.int64 else 8 * wave.dtype.itemsize
        half = np.float32(2 ** (bits - 1))
        samples = samples / half - (1 if wave.dtype.kind == "u" else 0)
    if not np.isfinite(samples).all():
        raise UsageError(
            f"{called}: expected finite samples, found {wave[~np.isfinite(samples)][0]}"
        )
    return samples if samples.ndim == 1 else samples.mean(1)


def _read(file: Path) -> tuple[int, Float32[np.ndarray, "t"]]:
    """The rate and the samples."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # comments, cue points, ...
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, wave = wavfile.read(file)
    except Exception as error:  # SciPy's reader does not check headers: they fail anywhere in it
        told = isinstance(error, OSError | ValueError | Warning)
        why = " ".join(str(error).split()) if told else "its header is broken"
        raise UsageError(f"{file}: expected a whole wave file, cannot read it ({why})") from error
    if rate < _SLOWEST:
        raise UsageError(f"{file}: expected {_SLOWEST} Hz or more, found {rate} Hz")
    if wave.dtype.itemsize > 4 and wave.dtype.kind == "i":
        raise UsageError(f"{file}: expected at most 32 bits in an integer sample, found more")
    return rate, _mono(wave, called=str(file))
