"""Frames, spectra and mel bands against SciPy and formulas written out in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.functional import audio


def noise(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), dtype)


def bank(mels, n_fft, rate, low, high):
    """The triangles, one weight at a time."""
    first, last = (2595 * math.log10(1 + f / 700) for f in (low, high))
    step = (last - first) / (mels + 1)
    points = [700 * (10 ** ((first + i * step) / 2595) - 1) for i in range(mels + 2)]
    weights = np.zeros([n_fft // 2 + 1, mels])
    for k in range(n_fft // 2 + 1):
        f = k * rate / n_fft
        for m in range(mels):
            left, peak, right = points[m : m + 3]
            if left < f <= peak:
                weights[k, m] = (f - left) / (peak - left)
            elif peak < f < right:
                weights[k, m] = (right - f) / (right - peak)
    return weights


def spectra(x, size, hop, n_fft):
    """Power `[..., T, n_fft // 2 + 1]` of a wave, by SciPy."""
    window = scipy.signal.get_window("hann", size)
    _, _, z = scipy.signal.stft(
        np.float64(x), 1.0, window, size, size - hop, n_fft, boundary=None, padded=False
    )
    return np.moveaxis(np.abs(z * window.sum()) ** 2, -1, -2)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(size=st.integers(1, 9), hop=st.integers(1, 9), more=st.integers(0, 20))
def test_frames_are_slices(size, hop, more):
    x = np.arange(2 * (size + more)).reshape(2, -1)
    starts = range(0, more + 1, hop)
    expected = np.stack([x[:, start : start + size] for start in starts], 1)
    np.testing.assert_array_equal(audio.frames(jnp.asarray(x), size, hop), expected)


@pytest.mark.parametrize(("size", "n_fft"), [(7, None), (8, None), (8, 11), (200, 256), (1, 4)])
def test_power_is_that_of_the_transform_written_out(size, n_fft):
    x = noise(2, 3, size)
    points = {7: 8, 8: 8}.get(size, n_fft) if n_fft is None else n_fft
    i, k = np.arange(size), np.arange(points // 2 + 1)
    window = np.sin(np.pi * i / size) ** 2
    expected = np.abs((np.float64(x) * window) @ np.exp(-2j * np.pi * np.outer(i, k) / points)) ** 2
    actual = jax.jit(functools.partial(audio.power_spectrum, n_fft=n_fft))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mels", "n_fft", "rate", "low", "high"),
    [(40, 512, 16000, 0.0, None), (20, 256, 8000, 300.0, 3400.0), (3, 15, 100.5, 10.0, 50.0)],
)
def test_triangles(mels, n_fft, rate, low, high):
    actual = audio.mel_filterbank(mels, n_fft, rate, low, high)
    expected = bank(mels, n_fft, rate, low, rate / 2 if high is None else high)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert actual.dtype == jnp.float32


@pytest.mark.parametrize(
    ("rate", "size", "hop", "n_fft"),
    [(8000, 200, 80, 256), (16000, 400, 160, 512), (22050, 551, 220, 1024), (2000, 50, 20, 256)],
)
def test_log_mel(rate, size, hop, n_fft):
    assert audio.frame_sizes(rate) == (size, hop)
    x = noise(2, 7 * size)
    expected = np.log(spectra(x, size, hop, n_fft) @ bank(40, n_fft, rate, 0, rate / 2) + 1e-6)
    actual = jax.jit(functools.partial(audio.log_mel, rate=rate))(x)
    assert actual.shape == (2, 1 + 6 * size // hop, 40)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_allclose(jax.vmap(lambda one: audio.log_mel(one, rate))(x), actual, atol=1e-4)


def test_every_argument_counts():
    x = noise(2000)
    options = {"window_ms": 16.0, "hop_ms": 5.0, "mels": 12, "low": 100.0, "high": 3000.0}
    actual = audio.log_mel(x, 8000, **options, floor=0.5)
    expected = np.log(spectra(x, 128, 40, 128) @ bank(12, 128, 8000, 100, 3000) + 0.5)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(dtype):
    dtype = jnp.dtype(dtype)
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("strict"):
        x = noise(2, 1000, dtype=dtype)
        y = audio.log_mel(x, 8000)
        assert y.dtype == dtype
        expected = np.log(spectra(x, 200, 80, 256) @ bank(40, 256, 8000, 0, 4000) + 1e-6)
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.float64(y), expected, rtol=eps, atol=max(4 * eps, 1e-12))


def test_no_rank_is_promoted():
    with jax.numpy_rank_promotion("raise"):
        assert audio.log_mel(noise(2, 3, 400), 8000).shape == (2, 3, 3, 40)


def test_a_band_is_never_empty():
    """At 128 bands, 16 kHz and 512 points some of the triangles would lie between frequencies."""
    with pytest.raises(ValueError, match=r"n_fft: expected a frequency in each .*, came 512, with"):
        audio.mel_filterbank(128, 512, 16000)
    y = audio.log_mel(noise(1600), 16000, mels=128)
    assert (y > -5).all()  # an empty one would be log(1e-6) = -13.8


def test_silence_and_gradients():
    def total(x):
        return jnp.sum(jnp.sin(audio.log_mel(x, 8000)))

    silence = jnp.zeros(400)
    np.testing.assert_allclose(audio.log_mel(silence, 8000), math.log(1e-6), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(total)(silence), 0.0)
    x, direction = noise(2, 400)
    wide = np.float64(x), np.float64(direction)
    with jax.enable_x64(True):
        up, down = (float(total(jnp.asarray(wide[0] + s * 1e-6 * wide[1]))) for s in (1, -1))
    slope = jnp.vdot(jax.grad(total)(x), direction)
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audio.frames(noise(5), 6, 1), r"x: expected 6 samples .*, came shape \(5,\)"),
        (lambda: audio.frames(noise(5), 0, 1), "size: expected 1 or more samples, came 0"),
        (lambda: audio.frames(noise(5), 1, 0), "hop: expected 1 or more samples, came 0"),
        (lambda: audio.power_spectrum(noise(5), n_fft=4), "n_fft: .* the 5 samples of x, came 4"),
        (lambda: audio.power_spectrum(noise(2, 0)), r"x: expected 1 .*, came shape \(2, 0\)"),
        (lambda: audio.mel_filterbank(0, 256, 8000), "mels: expected 1 or more, came 0"),
        (lambda: audio.mel_filterbank(4, 0, 8000), "n_fft: expected 1 or more, came 0"),
        (lambda: audio.mel_filterbank(4, 256, 8000, 0.0, 5000.0), r"4000.0 .*, came 0.0, 5000.0"),
        (lambda: audio.mel_filterbank(4, 256, 8000, 9.0, 9.0), r"low < high .*, came 9.0, 9.0"),
        (lambda: audio.mel_filterbank(4, 256, 8000, -1.0), "low, high: .*, came -1.0, 4000.0"),
        (lambda: audio.log_mel(jnp.arange(400), 8000), "x: expected floating .*, came dtype int32"),
        (lambda: audio.log_mel(noise(199), 8000), r"x: expected 200 .*, came shape \(199,\)"),
        (lambda: audio.log_mel(noise(400), 8000, floor=0.0), "floor: expected more .*, came 0.0"),
        (
            lambda: audio.log_mel(noise(400), 8000, window_ms=0.0),
            "window_ms: expected a sample or more at rate 8000 Hz, came 0.0 ms",
        ),
        (lambda: audio.log_mel(noise(400), 40), "hop_ms: expected .* at rate 40 Hz, came 10.0 ms"),
    ],
)
def test_errors_name_argument_expected_and_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
