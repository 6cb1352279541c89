"""What a model must know of a task, and no more: models and tasks never import each other.

Inputs are one array. Images are `[B, H, W, C]`, sequences of vectors `[B, T, D]` with NaN after
the last vector of an example, tokens `[B, T]` of int32 with `PAD` after the last, nodes of a graph
`[B]`, indices into it.

Outputs are of three kinds. "label" is one for each example, `[B]`; "labels" is one for each vector,
`[B, T]`, and -1 where there is none; "sequence" is as many symbols as the model decides, `[B, U]`,
`END` after the last of them and -1 after that.
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

Output = Literal["label", "labels", "sequence"]

PAD = 0  # the token that stands for none
UNKNOWN = 1  # the token that stands for those that are not in the vocabulary
END = 0  # the symbol that ends an output sequence
EMBEDDING = 64  # features of an embedded token, the same in every family


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """One graph: what is known of each node, and which pairs are joined.

    Attributes:
      features: a vector for each node, `[V, D]`, float32.
      adjacency: True where an edge joins two nodes, `[V, V]`, symmetric, nodes not with themselves.
    """

    features: np.ndarray
    adjacency: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spec:
    """The form of the inputs and of the outputs.

    Attributes:
      shape: of one example: `(H, W, C)`, `(T, D)`, `(T,)` of tokens; `(V, D)` of a graph.
      classes: number of labels, or of symbols with `END` among them.
      output: which kind.
      vocabulary: number of tokens, with `PAD` and `UNKNOWN`; None where inputs are no tokens.
      one_hot: whether a token is a vector of zeros with a single one, or an embedding.
      padded: whether examples of a sequence have different lengths.
      steps: symbols of the longest output sequence, with `END`.
      graph: of which the examples are nodes.
      pooling: how the vectors of an example become one: mean, max, attention, token.
    """

    shape: tuple[int, ...]
    classes: int
    output: Output = "label"
    vocabulary: int | None = None
    one_hot: bool = False
    padded: bool = False
    steps: int = 0
    graph: Graph | None = None
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.output not in get_args(Output):
            raise ValueError(f"output: expected {', '.join(get_args(Output))}, got {self.output!r}")

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes that a window slides along: `(H, W)` of an image, `(T,)` of a sequence."""
        return self.shape if self.vocabulary is not None else self.shape[:-1]

    @property
    def channels(self) -> int:
        """Numbers in the vector at one position."""
        if self.vocabulary is None:
            return self.shape[-1]
        return self.vocabulary if self.one_hot else EMBEDDING

    @property
    def values(self) -> int:
        """How many numbers one example is."""
        return math.prod(self.grid) * self.channels

    def describe(self) -> str:
        """One example in a few words.

        >>> Spec((8, 8, 1), 10).describe(), Spec((40,), 3, "labels", vocabulary=99).describe()
        ('image 8 x 8 x 1: one of 10', '40 tokens of 99: each of 3')
        """
        many = "up to " if self.padded else ""
        size = " x ".join(map(str, self.shape))
        if self.graph is not None:
            what = f"a node of {self.shape[0]}"
        elif self.vocabulary is not None:
            what = f"{many}{size} tokens of {self.vocabulary}"
        else:
            what = f"image {size}" if len(self.shape) == 3 else f"{many}{size} vectors"
        if self.output == "sequence":
            return f"{what}: up to {self.steps} of {self.classes}"
        return f"{what}: {'each' if self.output == 'labels' else 'one'} of {self.classes}"
