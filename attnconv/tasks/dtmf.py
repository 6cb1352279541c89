"""The keys of a telephone, as tones in noise: generated, the same bits each time."""

import numpy as np
from jaxtyping import Float32, Int64

from attnconv.tasks.audio import as_frames
from attnconv.tasks.raw import Raw

RATE = 8000
ROWS = (697, 770, 852, 941)  # Hz
COLUMNS = (1209, 1336, 1477, 1633)
KEYS = "123A456B789C*0#D"  # row by row

_EXAMPLES = 3200
_CLIP = 1600  # samples: 200 ms
_TONE = (480, 960)  # 60 to 120 ms
_TWIST_DB = 4.0  # the tone of the column over that of the row, at most, either way
_NOISE = 0.1


def dtmf() -> Raw:
    """3,200 clips of 200 ms: one of 16 keys, its two tones in white noise of the same power.

    The inputs are 18 log-mel frames of 40 bands each.

    Source: ITU-T Recommendation Q.23, Technical features of push-button telephone sets: the
    frequencies. The noise, the levels and the times are drawn here.

    >>> raw = dtmf()
    >>> frames, labels = raw.splits["train"]
    >>> frames.shape, [raw.class_names[label] for label in labels[:5]]
    ((3200, 18, 40), ['1', '2', '3', 'A', '4'])
    """
    x, keys = waves()
    return Raw(
        name="dtmf",
        source="generated: the key tones of ITU-T Q.23 in white noise at 0 dB, log-mel frames",
        class_names=tuple(KEYS),
        splits={"train": (np.stack(as_frames(x, RATE).tolist()), keys)},
    )


def waves() -> tuple[Float32[np.ndarray, "n t"], Int64[np.ndarray, "n"]]:
    """The clips themselves, at 8 kHz, and the index of each one's key.

    Each tone begins at a phase of its own. Both sound for the same 60 to 120 ms, somewhere in the
    clip; the louder is at most 4 dB above the other. While they sound, their power together is
    that of the noise.
    """
    rng = np.random.default_rng(23)
    keys = np.arange(_EXAMPLES) % len(KEYS)
    frequency = np.stack([np.array(ROWS)[keys // 4], np.array(COLUMNS)[keys % 4]])
    twist = 10 ** (rng.uniform(-_TWIST_DB, _TWIST_DB, _EXAMPLES) / 20)
    row = _NOISE * np.sqrt(2 / (1 + twist**2))  # so that (row^2 + column^2) / 2 = noise^2
    amplitude = np.stack([row, row * twist])
    phase = rng.uniform(0, 2 * np.pi, (2, _EXAMPLES))
    length = rng.integers(*_TONE, _EXAMPLES, endpoint=True)
    start = rng.integers(0, _CLIP - length, endpoint=True)
    clips = rng.normal(0, _NOISE, (_EXAMPLES, _CLIP))
    time = np.arange(_CLIP)
    sounds = (time >= start[:, np.newaxis]) & (time < (start + length)[:, np.newaxis])
    for tone in range(2):
        angle = 2 * np.pi / RATE * frequency[tone, :, np.newaxis] * time
        wave = np.sin(angle + phase[tone, :, np.newaxis])
        clips += sounds * amplitude[tone, :, np.newaxis] * wave
    return clips.astype(np.float32), keys
