"""What a model must know of a task, and no more: models and tasks never import each other."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape of one example and the number of labels.

    Attributes:
      shape: `(H, W, C)` for an image, `(T, D)` for a sequence of T vectors.
      classes: number of labels; one label is predicted for each example.
    """

    shape: tuple[int, ...]
    classes: int

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes that a window slides along: `(H, W)` of an image, `(T,)` of a sequence."""
        return self.shape[:-1]

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def values(self) -> int:
        """How many numbers one example is."""
        return math.prod(self.shape)
