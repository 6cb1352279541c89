"""A sequence in, a sequence out whose length the model decides: an encoder and a decoder.

`S` vectors of the source, `U` symbols of the output. Both families are stacks of branches that add
to their input; they differ in the branch that relates the positions of one sequence, which is
self-attention or convolution. What a decoder says of a symbol depends on the symbols before it, so
it is run in two ways with the same numbers: over a whole output that is known, to train, and symbol
by symbol with a cache, to write one (`attnconv.decoding`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnconv import functional as F
from attnconv.decoding import beam, greedy
from attnconv.errors import UsageError
from attnconv.models.branches import (
    MLP,
    CausalAttention,
    CausalGatedConv,
    CrossAttention,
    GatedConv,
    Memory,
    Residual,
    SelfAttention,
)
from attnconv.models.inputs import Inputs, embedded
from attnconv.models.size import Size
from attnconv.nn import Linear, PositionEmbedding
from attnconv.spec import END, Spec

LAYERS = 2  # of the encoder, and as many of the decoder
HEADS = 4


class Seq2Seq(nnx.Module):
    """What both families share: embeddings, positions, the order of things, and the scores.

    Args:
      spec: `output` is "sequence"; the source has one axis, and any length up to `spec.grid`.
      width: features of every vector between.
      encoder: branches, called with the mask of the source.
      decoder: branches, called with the `Memory`; `start` and `step` are theirs too.

    Raises:
      UsageError: another kind of output or source.
    """

    any_length = True

    def __init__(
        self,
        spec: Spec,
        width: int,
        encoder: Sequence[Any],
        decoder: Sequence[Any],
        *,
        rngs: nnx.Rngs,
    ):
        _check(spec)
        self.inputs = Inputs(spec, rngs=rngs)
        self.embed = Linear(spec.channels, width, rngs=rngs)
        self.source_position = PositionEmbedding(spec.grid[0], width, rngs=rngs)
        self.encoder = nnx.List(Residual(branch, width, rngs=rngs) for branch in encoder)
        self.encoder_norm = nnx.LayerNorm(width, rngs=rngs)
        self.start_symbol, self.steps = spec.classes, spec.steps
        self.symbols = nnx.Embed(
            spec.classes + 1, width, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )
        self.symbols.dtype = None  # that of its table, not the one that the table was made in
        self.position = PositionEmbedding(spec.steps, width, rngs=rngs)
        self.decoder = nnx.List(Residual(branch, width, rngs=rngs) for branch in decoder)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = Linear(width, spec.classes, rngs=rngs)

    def __call__(
        self,
        x: Int[Array, "B S"] | Float[Array, "B S C"],
        labels: Int[Array, "B U"],
        *,
        rng: Array | None = None,
    ) -> Float[Array, "B U classes"]:
        """Scores of each symbol, given the source and the symbols of `labels` before it.

        Args:
          x: the source, with `PAD` or NaN after the last vector of an example.
          labels: at most `spec.steps` symbols, -1 after the last.
          rng: for dropout; none where None.

        Source: Williams and Zipser 1989 (teacher forcing).
        """
        encoder_rng, decoder_rng = _split(rng, 2)
        memory = self.encode(x, rng=encoder_rng)
        known = jnp.where(labels < 0, 0, labels)[:, :-1]
        before = jnp.pad(known, ((0, 0), (1, 0)), constant_values=self.start_symbol)
        y = _through(
            self.decoder,
            self.position(embedded(self.symbols.embedding[...], before)),
            memory,
            decoder_rng,
        )
        return self.head(self.norm(y))

    def encode(
        self, x: Int[Array, "B S"] | Float[Array, "B S C"], *, rng: Array | None = None
    ) -> Memory:
        """The source as vectors that know of their surroundings."""
        inputs_rng, layers_rng = _split(rng, 2)
        vectors, mask = self.inputs(x, dtype=self.embed.kernel.dtype, rng=inputs_rng)
        y = self.source_position(self.embed(vectors))
        return Memory(self.encoder_norm(_through(self.encoder, y, mask, layers_rng)), mask)

    def start(self, memory: Memory) -> tuple[Any, ...]:
        """The cache before the first symbol: arrays with B as their first axis."""
        return tuple(layer.branch.start(memory, self.steps) for layer in self.decoder)

    def step(
        self, cache: tuple[Any, ...], symbols: Int[Array, "B"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "B classes"], tuple[Any, ...]]:
        """Scores of the symbol at `position`, given the one before it, and the cache after it.

        The symbol before the first is `start_symbol`.
        """
        at = F.positions.learned(self.position.embedding[...], position)
        y, after = (self.symbols(symbols) + at)[:, None], []
        for layer, layer_cache in zip(self.decoder, cache, strict=True):
            y, layer_cache = layer.step(y, layer_cache, position)
            after.append(layer_cache)
        return self.head(self.norm(y))[:, 0], tuple(after)

    def predict(self, x: Int[Array, "B S"] | Float[Array, "B S C"]) -> Int[Array, "B {self.steps}"]:
        """The sequence that `decoding.greedy` writes for each source: `END`, then -1."""
        cache, first = self.start(self.encode(x)), self.start_symbol
        return greedy(cache, self.step, batch=len(x), steps=self.steps, first=first, end=END)

    def search(
        self, x: Array, *, beams: int, length_penalty: float = 0.0
    ) -> tuple[Int[Array, "B {beams} {self.steps}"], Float[Array, "B {beams}"]]:
        """The best sequences that `decoding.beam` finds for each source, and their values."""
        return beam(
            self.start(self.encode(x)),
            self.step,
            batch=len(x),
            steps=self.steps,
            first=self.start_symbol,
            end=END,
            beams=beams,
            length_penalty=length_penalty,
        )


class AttentionSeq2Seq(Seq2Seq):
    """Self-attention in the encoder, causal self-attention in the decoder.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3, with learned positions and
    the norm at the start of each branch (Xiong et al. 2020).

    >>> spec = Spec((7,), 5, output="sequence", vocabulary=9, padded=True, steps=4)
    >>> model = AttentionSeq2Seq(spec, Size(width=8, hidden=8), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 7), int), jnp.array([[1, 2, 0, -1], [3, 0, -1, -1]])).shape
    (2, 4, 5)
    """

    default = Size(width=64, hidden=128)
    width_multiple = HEADS

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        D, hidden = size.width, size.hidden
        encoder: list[Any] = []
        decoder: list[Any] = []
        for _ in range(LAYERS):
            encoder += [SelfAttention(D, HEADS, rngs=rngs), MLP(D, hidden, rngs=rngs)]
            decoder += [CausalAttention(D, HEADS, rngs=rngs), CrossAttention(D, HEADS, rngs=rngs)]
            decoder += [MLP(D, hidden, rngs=rngs)]
        super().__init__(spec, D, encoder, decoder, rngs=rngs)


class ConvSeq2Seq(Seq2Seq):
    """Gated convolutions in the encoder, causal ones in the decoder, attention between them.

    Source: Gehring et al. 2017, Convolutional Sequence to Sequence Learning, section 3, with the
    norm at the start of each branch in place of normalised weights.
    """

    default = Size(width=64, hidden=64)

    def __init__(self, spec: Spec, size: Size, *, rngs: nnx.Rngs):
        D, hidden = size.width, size.hidden
        encoder: list[Any] = []
        decoder: list[Any] = []
        for _ in range(LAYERS):
            encoder += [GatedConv(D, hidden, rngs=rngs)]
            decoder += [CausalGatedConv(D, hidden, rngs=rngs), CrossAttention(D, 1, rngs=rngs)]
        super().__init__(spec, D, encoder, decoder, rngs=rngs)


def _split(rng: Array | None, count: int) -> Sequence[Array | None]:
    return [None] * count if rng is None else list(jax.random.split(rng, count))


def _through(layers: Sequence[Residual], x: Array, context: Any, rng: Array | None) -> Array:
    for layer, layer_rng in zip(layers, _split(rng, len(layers)), strict=True):
        x = layer(x, context, layer_rng)
    return x


def _check(spec: Spec) -> None:
    if spec.output != "sequence" or spec.steps < 1:
        raise UsageError(
            f"output={spec.output}, steps={spec.steps}: expected sequences of at least one symbol"
        )
    if spec.graph is not None or len(spec.grid) != 1:
        raise UsageError(f"shape={spec.shape}: expected a source that is a sequence")
