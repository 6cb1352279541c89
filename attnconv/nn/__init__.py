"""NNX modules: parameters around the functions of `attnconv.functional`.

`Conv`, `Linear` and `MultiHeadAttention` are Flax's modules with the operator exchanged: the
constructor's arguments, the names and the shapes of the parameters are Flax's, so a parameter tree
moves between the two unchanged. The others have no twin in Flax.
"""

from attnconv.nn.attention import (
    GatedAttention,
    MultiHeadAttention,
    NeighborhoodAttention,
    attention_fn,
)
from attnconv.nn.block import EncoderBlock
from attnconv.nn.conv import Conv, LocallyConnected
from attnconv.nn.dense import Linear, PositionEmbedding, he_normal

__all__ = [
    "Conv",
    "EncoderBlock",
    "GatedAttention",
    "Linear",
    "LocallyConnected",
    "MultiHeadAttention",
    "NeighborhoodAttention",
    "PositionEmbedding",
    "attention_fn",
    "he_normal",
]
