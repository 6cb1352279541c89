"""Arrays in, arrays out: the operators as pure functions, for any JAX, Flax, Equinox or Haiku code.

>>> import jax.numpy as jnp
>>> from attnconv import functional as F
>>> F.conv(jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 16)), stride=2).shape
(4, 4, 16)
"""

from attnconv.functional import audio, masks, positions
from attnconv.functional.additive import additive_attention
from attnconv.functional.attention import attention_weights, dot_product_attention
from attnconv.functional.conv import conv, conv_general_dilated, conv_transpose
from attnconv.functional.dense import dot_general, gelu
from attnconv.functional.explain import explain
from attnconv.functional.gated import gated_positional_attention
from attnconv.functional.local import local_kernel_shape, locally_connected
from attnconv.functional.neighborhood import neighborhood_attention, neighborhood_bias
from attnconv.functional.norm import group_norm, layer_norm, rms_norm
from attnconv.functional.pool import avg_pool, max_pool

__all__ = [
    "additive_attention",
    "attention_weights",
    "audio",
    "avg_pool",
    "conv",
    "conv_general_dilated",
    "conv_transpose",
    "dot_general",
    "dot_product_attention",
    "explain",
    "gated_positional_attention",
    "gelu",
    "group_norm",
    "layer_norm",
    "local_kernel_shape",
    "locally_connected",
    "masks",
    "max_pool",
    "neighborhood_attention",
    "neighborhood_bias",
    "positions",
    "rms_norm",
]
