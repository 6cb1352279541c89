"""From a wave to the logarithm of its energy in mel bands: one vector for each short frame.

The defaults are frames of 25 ms, one every 10 ms. Sums are taken in float32 (float64 for such
input).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num, Shaped

from attnconv.lowering.promotion import ranked, wide

Real = int | float


def frame_sizes(rate: Real, *, window_ms: Real = 25.0, hop_ms: Real = 10.0) -> tuple[int, int]:
    """How many samples a frame has, and how many lie between the beginnings of two frames.

    Args:
      rate: samples in a second, Hz.
      window_ms, hop_ms: of a frame and between two, in milliseconds; rounded to whole samples.

    Raises:
      ValueError: either one is less than half a sample.

    >>> frame_sizes(16000)
    (400, 160)
    """
    sizes = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
    for name, ms, size in zip(("window_ms", "hop_ms"), (window_ms, hop_ms), sizes, strict=True):
        if size < 1:
            raise ValueError(f"{name}: expected a sample or more at rate {rate} Hz, came {ms} ms")
    return sizes


def frames(x: Shaped[Array, "*axes n"], size: int, hop: int) -> Shaped[Array, "*axes T {size}"]:
    """Pieces that overlap: `y_ti = x_(t hop + i)`, `T = 1 + floor((n - size) / hop)` of them.

    Only whole frames are taken, so that up to `hop - 1` samples at the end are left out.

    Args:
      x: `[..., n]`, of any dtype.
      size: samples in a frame.
      hop: samples from the beginning of a frame to that of the next.

    Returns:
      `[..., T, size]`.

    Raises:
      ValueError: a size or hop less than 1, or x shorter than a frame.

    >>> frames(jnp.arange(6), 3, 2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    for name, samples in {"size": size, "hop": hop}.items():
        if samples < 1:
            raise ValueError(f"{name}: expected 1 or more samples, came {samples}")
    if x.ndim < 1 or x.shape[-1] < size:
        raise ValueError(f"x: expected {size} samples or more (size), came shape {x.shape}")
    starts = hop * jnp.arange(1 + (x.shape[-1] - size) // hop)
    return x[..., starts[:, None] + jnp.arange(size)[None]]


def power_spectrum(
    x: Num[Array, "*axes n"], *, n_fft: int | None = None
) -> Float[Array, "*axes bins"]:
    """`y_k = |sum_i w_i x_i exp(-2 pi j i k / n_fft)|^2`, `w_i = (1 - cos(2 pi i / n)) / 2`.

    The window w is Hann's, periodic. `y_k` is the energy around the frequency `k rate / n_fft`.

    Args:
      x: frames `[..., n]`.
      n_fft: zeros are appended up to this length; None is the next power of two.

    Returns:
      `[..., n_fft // 2 + 1]`; float64 if x is, else float32: squares overflow half precision.

    Raises:
      ValueError: n_fft is less than n, or x has no samples.

    Source: Harris 1978, On the Use of Windows for Harmonic Analysis with the Discrete Fourier
    Transform, section V.C.

    >>> power_spectrum(jnp.ones(4)).round(3).tolist()  # the window's own: (2, -1, 0) squared
    [4.0, 1.0, 0.0]
    """
    n = x.shape[-1] if x.ndim else 0
    if n < 1:
        raise ValueError(f"x: expected 1 or more samples on the last axis, came shape {x.shape}")
    n_fft = _power_of_two(n) if n_fft is None else n_fft
    if n_fft < n:
        raise ValueError(f"n_fft: expected at least the {n} samples of x, came {n_fft}")
    x = x.astype(wide(x.dtype))
    hann = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n), x.dtype)
    spectrum = jnp.fft.rfft(x * ranked(hann, x.ndim), n_fft)
    # jnp.abs has no derivative at zero, which is what silence gives.
    return lax.square(spectrum.real) + lax.square(spectrum.imag)


def mel_filterbank(
    mels: int,
    n_fft: int,
    rate: Real,
    low: Real = 0.0,
    high: Real | None = None,
) -> Float[Array, "{n_fft//2+1} {mels}"]:
    """Triangles over the frequencies of a spectrum, equally wide on the mel scale.

    The scale is that of HTK, `mel(f) = 2595 log10(1 + f / 700)`. Of `mels + 2` points at equal
    distances on it, from low to high, triangle m rises from 0 at point m to 1 at point m + 1 and
    falls to 0 at point m + 2, linearly in Hz. The peak is 1 whatever the width.

    Args:
      mels: how many triangles.
      n_fft: points of the transform; frequency k is `k rate / n_fft`.
      rate: samples in a second, Hz.
      low, high: where the first begins and the last ends, Hz; a high of None is `rate / 2`.

    Returns:
      `[n_fft // 2 + 1, mels]`: a power spectrum times this is the energy in each band.

    Raises:
      ValueError: mels less than 1; not `0 <= low < high <= rate / 2`; n_fft so small that no
        frequency lies in one of the triangles.

    Source: Young et al. 2006, The HTK Book, section 5.4.

    >>> (100 * mel_filterbank(2, 8, 8000).T).round().astype(int).tolist()
    [[0, 68, 0, 0, 0], [0, 32, 91, 45, 0]]
    """
    return jnp.asarray(_filterbank(_edges(mels, rate, low, high), n_fft, rate))


def log_mel(
    x: Num[Array, "*axes n"],
    rate: Real,
    *,
    window_ms: Real = 25.0,
    hop_ms: Real = 10.0,
    mels: int = 40,
    low: Real = 0.0,
    high: Real | None = None,
    floor: Real = 1e-6,
) -> Float[Array, "*axes T {mels}"]:
    """`y = log(power_spectrum(frames(x)) @ mel_filterbank + floor)`, the natural logarithm.

    The spectrum has the next power of two of points, or more where the lowest triangles are so
    narrow that a frequency might not lie in each.

    Args:
      x: waves `[..., n]`, from -1 to 1, floating.
      rate: samples in a second, Hz; this and what follows are fixed when traced.
      window_ms, hop_ms: of a frame and between two, milliseconds; rounded to whole samples.
      mels: numbers in the vector of a frame.
      low, high: the frequencies looked at, Hz; a high of None is `rate / 2`.
      floor: what silence is taken for. The default is above the noise of 16-bit rounding.

    Returns:
      `[..., T, mels]`, `T = 1 + floor((n - window) / hop)`, in the dtype of x.

    Raises:
      ValueError: x holds integers or is shorter than a frame, a floor that is not above 0, or
        what `frame_sizes` and `mel_filterbank` refuse.

    Source: Davis and Mermelstein 1980, Comparison of Parametric Representations for Monosyllabic
    Word Recognition in Continuously Spoken Sentences: its log energies, before the cosines.

    >>> tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(8000) / 8000)
    >>> y = log_mel(tone, 8000, mels=20)
    >>> y.shape, int(y[0].argmax())
    ((98, 20), 9)
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected floating numbers from -1 to 1, came dtype {x.dtype}")
    if not floor > 0:
        raise ValueError(f"floor: expected more than 0, came {floor}")
    size, hop = frame_sizes(rate, window_ms=window_ms, hop_ms=hop_ms)
    edges = _edges(mels, rate, low, high)
    # The first triangle is the narrowest. Its half holds a frequency at this many points.
    n_fft = _power_of_two(max(size, int(np.ceil(rate / (edges[1] - edges[0])))))
    power = power_spectrum(frames(x, size, hop), n_fft=n_fft)
    bank = jnp.asarray(_filterbank(edges, n_fft, rate), power.dtype)
    return jnp.log(jnp.matmul(power, bank, precision="highest") + floor).astype(x.dtype)


def _power_of_two(n: int) -> int:
    """The smallest that is not less than n."""
    return 1 << (n - 1).bit_length()


def _edges(mels: int, rate: Real, low: Real, high: Real | None) -> np.ndarray:
    """Where triangles begin, peak and end: `mels + 2` frequencies."""
    high = rate / 2 if high is None else high
    if mels < 1:
        raise ValueError(f"mels: expected 1 or more, came {mels}")
    if not 0 <= low < high <= rate / 2:
        raise ValueError(
            f"low, high: expected 0 <= low < high <= {rate / 2} (half of rate), came {low}, {high}"
        )
    first, last = (2595 * np.log10(1 + hertz / 700) for hertz in (low, high))
    return 700 * (10 ** (np.linspace(first, last, mels + 2) / 2595) - 1)


def _filterbank(edges: np.ndarray, n_fft: int, rate: Real) -> np.ndarray:
    if n_fft < 1:
        raise ValueError(f"n_fft: expected 1 or more, came {n_fft}")
    frequencies = np.arange(n_fft // 2 + 1)[:, np.newaxis] * rate / n_fft
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (frequencies - left) / (peak - left), (right - frequencies) / (right - peak)
    bank = np.maximum(0, np.minimum(rise, fall))
    empty = np.flatnonzero(bank.max(0) == 0)
    if empty.size:
        raise ValueError(
            f"n_fft: expected a frequency in each band, came {n_fft}, with none from "
            f"{left[empty[0]]:.1f} to {right[empty[0]]:.1f} Hz"
        )
    return bank
