"""Which query may attend to which key: boolean arrays, True = attend.

Every mask broadcasts to `[B, N, T, S]`, so masks compose with `&` and `|` and go as `mask` into
any attention of this package.

>>> lengths = jnp.array([3, 2])
>>> (causal(3) & padding(lengths, 3))[1, 0].astype(int)
Array([[1, 0, 0],
       [1, 1, 0],
       [1, 1, 0]], dtype=int32)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from attnconv.functional._scores import check_lengths
from attnconv.functional.positions import grid


def causal(T: int, S: int | None = None) -> Bool[Array, "1 1 T S"]:
    """A query attends to the keys at its own position and before: `j <= i`.

    Query 0 is aligned with key 0, also where S differs from T (as `is_causal` of `jax.nn`).

    Args:
      T: number of queries.
      S: number of keys; T where None.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.3.

    >>> causal(2, 3)[0, 0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0]], dtype=int32)
    """
    return _offsets(T, T if S is None else S) <= 0


def padding(lengths: Int[Array, "B"], S: int) -> Bool[Array, "B 1 1 S"]:
    """Keys from `lengths[b]` on are padding that no query attends to: `j < lengths[b]`.

    Args:
      lengths: `[B]`, how many keys of each example are real.
      S: number of keys.

    Raises:
      ValueError: `lengths` are not integers `[B]`.

    >>> padding(jnp.array([1, 3]), 3)[:, 0, 0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 1]], dtype=int32)
    """
    if np.ndim(lengths) != 1:
        raise ValueError(f"lengths: expected shape [B], got {list(np.shape(lengths))}")
    lengths = check_lengths("lengths", lengths, len(lengths), S)
    return jnp.arange(S)[None, None, None] < lengths[:, None, None, None]


def window(T: int, S: int, left: int, right: int) -> Bool[Array, "1 1 T S"]:
    """A query attends from `left` keys before it to `right` keys after it: `-left <= j-i <= right`.

    Both ends are inside, as in `local_window_size` of `jax.nn.dot_product_attention`.

    Raises:
      ValueError: `left` or `right` is negative.

    Source: Beltagy et al. 2020, Longformer, section 3.1 (sliding window).

    >>> window(3, 3, left=1, right=0)[0, 0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]], dtype=int32)
    """
    if left < 0 or right < 0:
        raise ValueError(f"left, right: expected two integers >= 0, got {left}, {right}")
    offsets = _offsets(T, S)
    return (offsets >= -left) & (offsets <= right)


def grid_window(shape: Sequence[int], radius: int | Sequence[int]) -> Bool[Array, "1 1 V V"]:
    """The window of a convolution on a grid whose positions are flattened in row-major order.

    Position i attends to j where they differ by at most `radius` along every axis; at the border
    the window is cut off, as zero padding does.

    Args:
      shape: the grid, such as `(H, W)`; V is its number of positions.
      radius: one for all axes, or one for each.

    Raises:
      ValueError: `radius` is negative, or has not one entry for each axis.

    Source: Parmar et al. 2018, Image Transformer, section 3.2 (local attention on images).

    >>> grid_window((2, 2), radius=(0, 1))[0, 0].astype(int)
    Array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [0, 0, 1, 1],
           [0, 0, 1, 1]], dtype=int32)
    """
    radii = (radius,) * len(shape) if isinstance(radius, int | np.integer) else tuple(radius)
    if len(radii) != len(shape) or min(radii, default=0) < 0:
        raise ValueError(
            f"radius: expected an integer >= 0, or one for each axis of {tuple(shape)}, "
            f"got {radius}"
        )
    at = grid(shape)
    distance = jnp.abs(at[:, None] - at[None, :])
    return (distance <= jnp.array(radii)[None, None]).all(axis=-1)[None, None]


def graph(
    edges: Int[Array | np.ndarray, "2 E"],
    nodes: int,
    *,
    self_loops: bool = True,
    directed: bool = False,
) -> Bool[Array, "1 1 V V"]:
    """A node attends to its neighbours in a graph, and to itself.

    Args:
      edges: `[2, E]`, from node `edges[0, e]` to node `edges[1, e]`.
      nodes: number of nodes V.
      self_loops: every node attends to itself too; otherwise only where `edges` says so.
      directed: only the target of an edge attends to its source; otherwise both ways.

    Raises:
      ValueError: `edges` is not `[2, E]`, or names a node outside `0 .. nodes - 1`. While JAX
        traces, the values are unknown, and such an edge is left out instead.

    Source: Veličković et al. 2018, Graph Attention Networks, section 2.1.

    >>> graph(jnp.array([[0], [2]]), 3)[0, 0].astype(int)
    Array([[1, 0, 1],
           [0, 1, 0],
           [1, 0, 1]], dtype=int32)
    """
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(f"edges: expected shape [2, E], got {list(edges.shape)}")
    _check_nodes(edges, nodes)
    source, target = edges if edges.size else jnp.zeros((2, 0), int)  # no edge: of any dtype
    mask = jnp.eye(nodes, dtype=bool) if self_loops else jnp.zeros((nodes, nodes), bool)
    # Indices as they are: -1, the usual filler of edge lists, must not mean the last node.
    mask = mask.at[target, source].set(True, mode="drop", wrap_negative_indices=False)
    if not directed:
        mask = mask.at[source, target].set(True, mode="drop", wrap_negative_indices=False)
    return mask[None, None]


def _offsets(T: int, S: int) -> Int[Array, "1 1 T S"]:
    """Position of the key minus position of the query."""
    return (jnp.arange(S)[None, :] - jnp.arange(T)[:, None])[None, None]


def _check_nodes(edges: Int[Array | np.ndarray, "2 E"], nodes: int) -> None:
    """Refuse an edge to a node that does not exist, where the values are known."""
    try:
        known = np.asarray(edges)
    except jax.errors.TracerArrayConversionError:
        return
    wrong = (known < 0) | (known >= nodes)
    if wrong.any():
        edge = int(wrong.any(axis=0).argmax())
        raise ValueError(
            f"edges: expected nodes 0 .. {nodes - 1}, got {known[wrong][0]} "
            f"(edge {edge}: {known[0, edge]} -> {known[1, edge]})"
        )
