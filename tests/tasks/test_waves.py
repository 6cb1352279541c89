"""Frames of waves, folders of `.wav` made here, and key tones in noise."""

import struct

import numpy as np
import pytest
import scipy.signal
from scipy.io import wavfile

from attnconv.errors import UsageError
from attnconv.functional.audio import mel_filterbank
from attnconv.tasks import audio, dtmf
from attnconv.tasks.raw import validate

RATE = 8000
RNG = np.random.default_rng(0)


def pcm(n=1000, dtype=np.int16):
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, n, dtype)


def log_mel(wave):
    """Of a wave from -1 to 1 at RATE, in float64."""
    frames = np.lib.stride_tricks.sliding_window_view(np.float64(wave), 200)[::80]
    power = np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", 200), 256)) ** 2
    return np.log(power @ np.float64(mel_filterbank(40, 256, RATE)) + 1e-6)


def folder(root, classes=("no", "yes"), each=3, rate=RATE):
    """Writes waves of different lengths, and returns them by file."""
    made = {}
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            file = root / name / f"{index}_ann.wav"
            made[file] = pcm(500 + 300 * len(made))
            wavfile.write(file, rate, made[file])
    return made


def refusal(path):
    """The one line with which a folder is refused, the path itself cut out."""
    with pytest.raises(UsageError) as error:
        audio.folder(path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "PATH")


def test_frames_are_those_of_each_wave_alone():
    """Whatever its length: within a piece, at the end of one, over several batches of them."""
    end = 200 + 63 * 80  # samples of a piece
    lengths = [200, 279, 280, 3000, end, end + 79, end + 80, 2 * end, 70 * end, 200]
    waves = [RNG.uniform(-1, 1, n) for n in lengths]
    frames = audio.as_frames(waves, RATE)
    assert frames.shape == (10,) and frames.dtype == object
    for wave, of in zip(waves, frames, strict=True):
        assert of.dtype == np.float32 and of.shape == (1 + (wave.size - 200) // 80, 40)
        np.testing.assert_allclose(of, log_mel(wave), atol=1e-3)
    assert audio.as_frames([], RATE).shape == (0,)


def test_a_short_wave_is_one_frame():
    wave = RNG.uniform(-1, 1, 50)
    (frames,) = audio.as_frames([wave], RATE)
    np.testing.assert_allclose(frames, log_mel(np.pad(wave, (0, 150))), atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, lambda x: (x - 128.0) / 128),
        (np.int8, lambda x: x / 2.0**7),
        (np.int16, lambda x: x / 2.0**15),
        (np.int32, lambda x: x / 2.0**31),
    ],
)
def test_integers_are_scaled_by_their_dtype(dtype, expected):
    wave = pcm(dtype=dtype)
    (frames,) = audio.as_frames([wave], RATE)
    np.testing.assert_allclose(frames, log_mel(expected(wave)), atol=1e-3)


def test_int64_holds_16_bits():
    wave = pcm()
    ours, expected = audio.as_frames([wave.astype(np.int64), wave], RATE)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0), "wave 1: expected 1 or more samples, found none"),
        (np.array([0, np.nan]), "wave 1: expected finite samples, found nan"),
        (np.array([0, 1e300]), "wave 1: expected finite samples, found 1e+300"),
        (
            np.zeros([2, 2, 2]),
            "wave 1: expected numbers [t] or [t, channels], found float64 of shape (2, 2, 2)",
        ),
        (
            np.array(["a"]),
            "wave 1: expected numbers [t] or [t, channels], found <U1 of shape (1,)",
        ),
    ],
)
def test_waves_that_are_refused(wave, message):
    with pytest.raises(UsageError) as error:
        audio.as_frames([np.zeros(300), wave], RATE)
    assert str(error.value) == message


def test_a_folder_of_classes(tmp_path):
    made = folder(tmp_path / "words")
    (tmp_path / "words" / "no" / "notes.txt").write_text("not a wave")
    (tmp_path / "words" / "no" / "._0_ann.wav").write_bytes(b"a Mac's notes on the file")
    raw = audio.folder(tmp_path / "words")
    validate(raw)
    x, y = raw.splits["train"]
    assert (raw.name, raw.class_names, raw.output) == ("words", ("no", "yes"), "label")
    assert raw.source == f"waves in {tmp_path / 'words'}, 8000 Hz"
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert raw.names == {"train": ["0_ann.wav", "1_ann.wav", "2_ann.wav"] * 2}
    for frames, wave in zip(x, made.values(), strict=True):
        np.testing.assert_allclose(frames, log_mel(wave / 32768), atol=1e-3)


def test_official_folders(tmp_path):
    parts = {split: folder(tmp_path / split, each=2) for split in ("train", "dev", "test")}
    wavfile.write(tmp_path / "test" / "yes" / "BOB.WAV", RATE, pcm())
    raw = audio.folder(tmp_path)
    validate(raw)
    assert list(raw.splits) == ["train", "validation", "test"]
    assert [len(x) for x, _ in raw.splits.values()] == [4, 4, 5]
    assert raw.names["test"] == ["0_ann.wav", "1_ann.wav", "0_ann.wav", "1_ann.wav", "BOB.WAV"]
    wave = list(parts["dev"].values())[-1]
    frames = raw.splits["validation"][0][-1]
    np.testing.assert_allclose(frames, log_mel(wave / 32768), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_channels_are_averaged(tmp_path, dtype):
    folder(tmp_path)
    stereo = np.stack([np.full(400, 10), 30 + np.arange(400) % 7], 1).astype(dtype)
    wavfile.write(tmp_path / "yes" / "9.wav", RATE, stereo)
    scaled = {np.int16: stereo / 32768, np.uint8: stereo / 128 - 1, np.float32: stereo}[dtype]
    frames = audio.folder(tmp_path).splits["train"][0][-1]
    np.testing.assert_allclose(frames, log_mel(scaled.mean(1)), atol=2e-3)


def test_24_bits_and_chunks_that_are_no_sound(tmp_path):
    folder(tmp_path)
    samples = pcm(dtype=np.int32) >> 8
    data = samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    head = struct.pack("<HHIIHH", 1, 1, RATE, 3 * RATE, 3, 24)
    chunks = b"".join(
        name + struct.pack("<I", len(body)) + body
        for name, body in ((b"fmt ", head), (b"cue ", b"note"), (b"data", data), (b"bext", b"note"))
    )
    whole = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    (tmp_path / "yes" / "9.wav").write_bytes(whole)
    frames = audio.folder(tmp_path).splits["train"][0][-1]
    np.testing.assert_allclose(frames, log_mel(samples / 2.0**23), atol=1e-3)


def test_rates_that_differ(tmp_path):
    folder(tmp_path)
    wavfile.write(tmp_path / "yes" / "1_ann.wav", 16000, pcm())
    assert refusal(tmp_path) == (
        "PATH/yes/1_ann.wav: expected 8000 Hz, as PATH/no/0_ann.wav has, found 16000 Hz"
    )


def test_files_that_are_refused(tmp_path):
    folder(tmp_path)
    broken = tmp_path / "yes" / "1_ann.wav"
    whole = broken.read_bytes()
    wavfile.write(broken, RATE, np.zeros(0, np.int16))
    assert refusal(tmp_path) == "PATH/yes/1_ann.wav: expected 1 or more samples, found none"
    wavfile.write(broken, RATE, np.array([0, np.inf], np.float32))
    assert refusal(tmp_path) == "PATH/yes/1_ann.wav: expected finite samples, found inf"
    wavfile.write(broken, 500, pcm())
    assert refusal(tmp_path) == "PATH/yes/1_ann.wav: expected 1000 Hz or more, found 500 Hz"
    wavfile.write(broken, RATE, pcm().astype(np.int64))
    assert refusal(tmp_path) == (
        "PATH/yes/1_ann.wav: expected at most 32 bits in an integer sample, found more"
    )
    unreadable = "PATH/yes/1_ann.wav: expected a whole wave file, cannot read it ("
    for content in (b"", b"not a wave file", whole[:20], whole[:40], whole[: len(whole) // 2]):
        broken.write_bytes(content)
        assert refusal(tmp_path).startswith(unreadable)
    broken.write_bytes(whole[:4] + struct.pack("<I", 28) + whole[8:36])
    assert refusal(tmp_path) == f"{unreadable}its header is broken)"
    broken.unlink()
    broken.mkdir()
    assert refusal(tmp_path).startswith(unreadable)


def test_folders_that_are_no_set(tmp_path):
    empty = "PATH: expected a folder of waves for each class, found no folder"
    assert refusal(tmp_path) == empty
    wavfile.write(tmp_path / "0.wav", RATE, pcm())
    assert refusal(tmp_path) == empty
    (tmp_path / "no").mkdir()
    assert refusal(tmp_path) == "PATH/no: expected waves of a class (.wav), found none"
    for split in ("train", "tets"):
        folder(tmp_path / split)
    (tmp_path / "no").rmdir()
    assert refusal(tmp_path).startswith("PATH: unknown split 'tets'; did you mean 'test'")


def test_keys_are_heard_by_the_energy_at_eight_frequencies():
    clips, keys = dtmf.waves()
    time = np.arange(clips.shape[1]) / dtmf.RATE
    rows, columns = (
        np.abs(clips @ np.exp(-2j * np.pi * np.outer(time, frequencies)))
        for frequencies in (dtmf.ROWS, dtmf.COLUMNS)
    )
    heard = 4 * rows.argmax(1) + columns.argmax(1)
    assert np.mean(heard == keys) > 0.99
    assert [dtmf.KEYS[i] for i in (0, 5, 13, 15)] == ["1", "5", "0", "D"]


def test_tones_are_as_loud_as_the_noise():
    """The sums of squares: noise everywhere, and once more while the tones sound."""
    clips, keys = dtmf.waves()
    power = np.square(np.float64(clips)).mean() / 0.1**2
    np.testing.assert_allclose(power, 1 + 90 / 200, rtol=0.01)
    assert np.abs(clips).max() < 1
    assert np.bincount(keys).tolist() == [200] * 16


def test_keys_are_the_same_each_time():
    first, second = dtmf.dtmf(), dtmf.dtmf()
    for ours, again in zip(first.splits["train"], second.splits["train"], strict=True):
        np.testing.assert_array_equal(ours, again)
    validate(first)
    x, _ = first.splits["train"]
    assert x.shape == (3200, 18, 40) and x.dtype == np.float32
    clips, _ = dtmf.waves()
    np.testing.assert_allclose(x[7], log_mel(clips[7]), atol=1e-3)
    np.testing.assert_allclose(clips[0, :3], [0.14992335, 0.08576658, -0.04123027], rtol=1e-6)
