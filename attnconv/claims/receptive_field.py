"""How much of its receptive field a stack of convolutions uses."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attnconv import functional as F
from attnconv.analysis.receptive import effective, gaussian_fit, theoretical, width
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Measured,
    Part,
    Series,
    Setting,
    exactly,
    over_seeds,
)

SEEDS, NETS, CHANNELS = 5, 8, 8
DEPTHS = (2, 4, 8, 16, 32)
EXPONENT, EXPLAINED = (0.4, 0.6), 0.98
KINDS: dict[str, Callable[[Array], Array]] = {
    "equal weights": lambda x: x,
    "random weights": lambda x: x,
    "random weights, ReLU": jax.nn.relu,
}


def test(setting: Setting) -> Evidence:
    parts, rows, series = [], [], []
    for kind, activation in KINDS.items():
        field_of = jax.jit(functools.partial(field, activation))
        found = [
            [measured(field_of, kind, depth, [setting.seed, i]) for depth in DEPTHS]
            for i in range(1 if kind == "equal weights" else SEEDS)
        ]
        widths, explained = np.moveaxis(np.array(found), -1, 0)  # [seeds, depths]
        slopes = np.polyfit(np.log(DEPTHS), np.log(widths).T, 1)[0]
        low, high = EXPONENT
        parts.append(
            Part(
                f"{kind}: exponent of width in depth",
                _mean(slopes),
                above=low,
                below=high,
            )
        )
        parts.append(
            Part(
                f"{kind}, {DEPTHS[-1]} layers: R^2 of a Gaussian",
                _mean(explained[:, -1]),
                above=EXPLAINED,
            )
        )
        of_depth = [_mean(column) for column in widths.T]
        for i, depth in enumerate(DEPTHS):
            size = theoretical([3] * depth)
            part = 2 * of_depth[i].estimate / size
            fit = f"{explained[:, i].mean():.4f}"
            rows.append([kind, str(depth), str(size), of_depth[i].text(2), f"{part:.2f}", fit])
        series.append(Series.of(kind, DEPTHS, of_depth))
    even = [theoretical([3] * depth) / 12**0.5 for depth in DEPTHS]
    series.append(Series("the whole field, evenly", DEPTHS, even))
    return Evidence(
        parts,
        ["stack", "layers", "field", "width", "2 width / field", "R^2 of a Gaussian"],
        rows,
        Figure("layers (log)", "width, pixels (log)", series),
        "Untrained stacks of 3 x 3 convolutions of stride 1 without padding on the field of one "
        f"output, {CHANNELS} channels (equal weights: one), weights and inputs normal, ReLU "
        f"between layers; each of {SEEDS} seeds is the mean of {NETS} nets. Width: standard "
        "deviation along an axis of the squared gradient of the output, summed over channels; "
        "R^2: of the marginals of that.",
    )


def field(
    activation: Callable[[Array], Array],
    kernels: Sequence[Float[Array, "3 3 I O"]],
    x: Float[Array, "B H W C"],
) -> Float[Array, "H W"]:
    """The effective receptive field of a stack's one output, on an image of the field's size."""

    def stack(x: Array) -> Array:
        for i, kernel in enumerate(kernels):
            x = F.conv(x if i == 0 else activation(x), kernel, padding="VALID")
        return x

    return effective(stack, x, (0, 0))


def measured(
    field_of: Callable[..., Array], kind: str, depth: int, seed: Sequence[int]
) -> tuple[float, float]:
    """Width and fit of a Gaussian, of the mean field of several nets; the mean of both axes."""
    rng = np.random.default_rng([*seed, depth])
    equal = kind == "equal weights"
    channels = 1 if equal else CHANNELS
    size = theoretical([3] * depth)
    fields = []
    for _ in range(1 if equal else NETS):
        shape = (depth, 3, 3, channels, channels)
        scale = (2 / (9 * channels)) ** 0.5
        kernels = np.full(shape, 1 / 9) if equal else scale * rng.normal(size=shape)
        x = rng.normal(size=(1, size, size, channels))
        fields.append(
            field_of(list(jnp.asarray(kernels, jnp.float32)), jnp.asarray(x, jnp.float32))
        )
    mean = jnp.stack(fields).mean(axis=0)
    return float(width(mean).mean()), float(gaussian_fit(mean).mean())


def _mean(values: Float[np.ndarray, "seeds"]) -> Measured:
    """With its interval over seeds; equal weights know no seed."""
    return exactly(float(values[0])) if len(values) == 1 else over_seeds(values)


CLAIM = Claim(
    "receptive_field",
    "The effective receptive field of a stack of convolutions is a Gaussian that grows as the root "
    "of depth, while the theoretical one grows with depth.",
    "Luo et al. 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural "
    "Networks, sections 2 and 3.1.",
    f"For equal and for random weights, and with ReLU: the exponent of a power law of its width in "
    f"{DEPTHS[0]} to {DEPTHS[-1]} layers is between {EXPONENT[0]:g} and {EXPONENT[1]:g}, and at "
    f"{DEPTHS[-1]} layers the Gaussian of the same width explains more than "
    f"{100 * EXPLAINED:g} % of the variation of its marginals.",
    test,
)
