"""A case: an operator (or a training step) with sizes, and the floors it is held to."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

GENERAL = 0.95  # the floor of every case against stock JAX
Floors = Mapping[str, int | float]
SECONDS = 2.0  # how much longer than stock JAX a first compile may take

DRAWN = 16_777_259  # numbers that an array has of its own; what is larger repeats them
_SMALL = {"B": 2, "T": 520, "S": 520, "L": 64, "F": 5, "H": 10, "W": 10}
EXAMPLES, HEADS, CHANNELS = 2, 4, 4  # of the part of a case that is checked
_WHOLE = ("labels", "key_value_seq_lengths")


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal random numbers, drawn in float32 and rounded to the dtype.

    >>> normal(np.random.default_rng(0), (2,), "float32").dtype
    dtype('float32')
    """
    drawn = rng.standard_normal(min(math.prod(shape), DRAWN), np.float32)
    return np.resize(drawn.astype(jnp.dtype(dtype)), shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured, and what it is held to.

    Attributes:
      name: what `--cases` and the results know it by.
      suite: one of `cases.SUITES`.
      operator: a function of `attnconv.functional`, `multi_head`, or a model: `cnn`, `vit`,
        `convnext`.
      mode: "forward"; "gradient", which is forward and the gradients of all inputs; "scan", the
        same in a loop on the device; "step", a training step.
      sizes: the extent of each axis letter. Those of a window are lower-case; `I` is the channels
        of a group, `L` the length of a 1-D and `F` the frames of a 3-D image.
      arrays: the letters of each input; a `1` is an axis of one.
      options: the static arguments of the operator, or of the model.
      least: for each peer that is held to a floor, its least time divided by ours.
      peers: who takes part, ours first; the next is the reference of the results.
      steps: how many steps a scan takes.
      seeds: how many models a training step trains, side by side.
      most_memory: bytes above what the process had with the inputs made.
      dtype: of the inputs; of a training step, in which it computes.
      platform: "cpu", or "gpu": in the workers JAX's default device and PyTorch's "cuda".
    """

    name: str
    suite: str
    operator: str
    mode: str
    sizes: Mapping[str, int]
    arrays: Mapping[str, str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    least: Floors = dataclasses.field(default_factory=dict)
    peers: tuple[str, ...] = ()
    steps: int = 1
    seeds: int = 1
    most_memory: float | None = None
    dtype: str = "float32"
    platform: str = "cpu"

    @property
    def stock(self) -> str | None:
        """The peer that is stock JAX: its own function, or Flax where it has none."""
        return next((peer for peer in ("jax", "flax") if peer in self.peers), None)

    @property
    def floors(self) -> dict[str, int | float]:
        """The least ratio for each peer, the general floor included."""
        general = {} if self.stock is None or self.suite == "compile" else {self.stock: GENERAL}
        return {**general, **self.least}

    @property
    def trained(self) -> list[str]:
        """The inputs that have gradients."""
        return [name for name in self.arrays if name not in ("mask", *_WHOLE)]

    def small(self) -> "Case":
        """The same with a small batch, length and image: what is odd stays so, and the window."""
        most = {"B": 2} if self.mode == "step" else _SMALL
        sizes = {axis: min(n, most.get(axis, n) + n % 2) for axis, n in self.sizes.items()}
        for axis in "HW":  # a window must fit
            if axis.lower() in sizes:
                sizes[axis] = min(self.sizes[axis], max(sizes[axis], sizes[axis.lower()] + 1))
        return dataclasses.replace(self, sizes=sizes)

    def checked(self) -> "Case":
        """The case of a part of every array that has nothing to do with the rest of it.

        Some examples, unless a gradient is summed over them, some heads, or some groups of
        channels: so few that a dense form in float64 takes seconds.
        """
        if self.operator == "conv":
            groups = self.options.get("groups", 1)
            few = min(groups, max(1, CHANNELS // self.sizes["I"]))
            sizes = {axis: self.sizes[axis] * few // groups for axis in "CO"}
            options = {**self.options, "groups": few}
            return dataclasses.replace(self, sizes={**self.sizes, **sizes}, options=options)
        most = {"N": HEADS, "G": HEADS} | ({} if "bias" in self.arrays else {"B": EXAMPLES})
        sizes = {axis: min(n, most.get(axis, n)) for axis, n in self.sizes.items()}
        return dataclasses.replace(self, sizes=sizes)

    def part(self, name: str, array: np.ndarray) -> np.ndarray:
        """That of one of the arrays, or of the result `y`, which `checked` has."""
        sizes = self.checked().sizes
        return array[
            tuple(slice(1 if axis == "1" else sizes[axis]) for axis in self._letters(name))
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """That of one of the arrays, or of attention's or a convolution's result `y`."""
        return tuple(1 if axis == "1" else self.sizes[axis] for axis in self._letters(name))

    def _letters(self, name: str) -> str:
        if name != "y":
            return self.arrays[name]
        return self.arrays["query"] if "query" in self.arrays else self.arrays["x"][:-1] + "O"

    def inputs(self) -> dict[str, np.ndarray]:
        """The same random arrays in every process, in the case's dtype."""
        rng = np.random.default_rng(0)
        made: dict[str, np.ndarray] = {}
        for name in self.arrays:
            shape = self.shape(name)
            if name == "mask":
                made[name] = rng.random(shape) < 0.8
                made[name][..., 0] = True  # PyTorch has no number for a query without a key
            elif name == "key_value_seq_lengths":
                made[name] = rng.integers(
                    self.sizes["S"] // 4, self.sizes["S"] + 1, shape, np.int32
                )
            elif name == "labels":
                made[name] = rng.integers(10, size=shape, dtype=np.int32)
            else:
                made[name] = normal(rng, shape, self.dtype)
                if self.operator == "multi_head" and name != "x":
                    made[name] *= self.sizes["D"] ** -0.5  # keeps the scores in a softmax's range
        return made
