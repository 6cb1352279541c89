"""Where the windows of neighborhood attention lie: tiles of queries, and the keys around them.

Along each axis the positions fall into `dilation` groups, of every dilation-th position. A tile is
a run of queries of one group, and its keys are the run that holds the windows of all of them. What
a tile's queries may see is one of few patterns: most tiles lie inside, and are alike.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """The windows along one axis.

    Attributes:
      size: number of positions.
      window: positions that a query sees.
      dilation: steps between two of these.
      is_causal: none of them after the query.
      shift: the window moves inside at the border; else it is clipped. Not of a causal one.
    """

    size: int
    window: int
    dilation: int
    is_causal: bool
    shift: bool

    @property
    def length(self) -> int:
        """Positions of a group, the longest."""
        return -(-self.size // self.dilation)

    def group(self, residue: int) -> int:
        """Positions of one group."""
        return -(-(self.size - residue) // self.dilation)

    @property
    def before(self) -> int:
        """Positions of the window before the query; even windows as the source of either border."""
        if self.is_causal:
            return self.window - 1
        return self.window // 2 if self.shift else (self.window - 1) // 2

    def entries(
        self, residue: int, query: np.ndarray, key: np.ndarray, *, by_place: bool
    ) -> np.ndarray:
        """The entry of the bias for each query and key of a group, -1 where it is not seen.

        Entries count the places in the window, or else the offsets from the query.
        """
        length, query = self.group(residue), query[:, None]
        first = query - self.before
        if self.shift:
            first = np.clip(first, 0, length - self.window)
        place, offset = key - first, key - query + self.window - 1
        seen = (place >= 0) & (place < self.window) & (query < length) & (key < length)
        return np.where(seen, place if by_place else offset, -1)

    def pairs(self, *, by_place: bool) -> np.ndarray:
        """The entries for all pairs of positions."""
        index = np.full((self.size, self.size), -1)
        for residue in range(self.dilation):
            at = np.arange(self.group(residue))
            index[residue :: self.dilation, residue :: self.dilation] = self.entries(
                residue, at, at, by_place=by_place
            )
        return index


class Tiling(NamedTuple):
    """Tiles along one axis.

    Attributes:
      axis: what is cut.
      rows: queries of a tile.
      tiles: how many a group has.
    """

    axis: Axis
    rows: int
    tiles: int

    @property
    def columns(self) -> int:
        """Keys of a tile."""
        return min(self.rows + self.axis.window - 1, self.axis.length)

    @property
    def key_starts(self) -> np.ndarray:
        """The first key of each tile, in its group."""
        start = np.arange(self.tiles) * self.rows - self.axis.before
        return np.clip(start, 0, self.axis.length - self.columns)


class Patterns(NamedTuple):
    """The different tiles of an axis, and which each is.

    Attributes:
      places: entries of `Axis.entries` by place, `[P, rows, columns]`.
      offsets: the same by offset.
      which: the pattern of each `[group, tile]`.
    """

    places: np.ndarray
    offsets: np.ndarray
    which: np.ndarray


@functools.cache
def patterns(tiling: Tiling) -> Patterns:
    """Tiles are alike where places and offsets are."""
    found: dict[bytes, int] = {}
    different: list[np.ndarray] = []
    which = np.zeros((tiling.axis.dilation, tiling.tiles), int)
    for residue, tile in np.ndindex(which.shape):
        query = tile * tiling.rows + np.arange(tiling.rows)
        key = tiling.key_starts[tile] + np.arange(tiling.columns)
        both = [tiling.axis.entries(residue, query, key, by_place=b) for b in (True, False)]
        entries = np.stack(both)
        which[residue, tile] = found.setdefault(entries.tobytes(), len(found))
        if len(found) > len(different):
            different.append(entries)
    places, offsets = np.stack(different, axis=1)
    return Patterns(places, offsets, which)


@functools.cache
def tile(axes: tuple[Axis, ...]) -> tuple[Tiling, ...]:
    """The tiles that are the least work: scores to compute, queries and keys to move."""

    def options(axis: Axis) -> list[Tiling]:
        most = min(axis.length, max(MOST, axis.window))
        counts = {-(-axis.length // rows) for rows in range(1, most + 1)}
        rows = {-(-axis.length // count) for count in counts}
        return [Tiling(axis, r, -(-axis.length // r)) for r in rows]

    def work(tiling: tuple[Tiling, ...]) -> int:
        rows, columns = (math.prod(getattr(t, n) for t in tiling) for n in ("rows", "columns"))
        count = math.prod(t.tiles for t in tiling)
        return count * (rows * columns + VECTOR * (rows + columns) + TILE)

    return min(itertools.product(*map(options, axes)), key=work)


MOST = 32  # rows of a tile along an axis, or those of its window
VECTOR = 32  # scores that take as long as to move a vector
TILE = 4096  # scores that take as long as to begin a tile
