"""Nodes of a graph as examples: the user's own, and one that comes with NetworkX."""

import difflib
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.errors import UsageError, unknown
from attnconv.spec import Graph
from attnconv.tasks.npz import read_arrays
from attnconv.tasks.raw import SPLIT_NAMES, Examples, Raw, only_official

MOST = 20_000  # nodes: the adjacency is dense
ARRAYS = ("features", "edges", "labels")
MASKS = tuple(name for names in SPLIT_NAMES.values() for name in names)


def holds_graph(path: Path) -> bool:
    """Whether a `.npz` is meant to be a graph: it has edges or features, and no `x`.

    >>> holds_graph(Path("no such file.npz"))
    False
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return "x.npy" not in names and ("edges.npy" in names or "features.npy" in names)


def read(path: Path) -> Raw:
    """The graph of a `.npz` file, as `from_arrays` takes it.

    Raises:
      UsageError: if it cannot be read or its arrays do not fit together.
    """
    stored, names = read_arrays(path, (*ARRAYS, *MASKS))
    _check_names(names, path)
    return from_arrays(stored, path)


def from_arrays(stored: Mapping[str, np.ndarray], path: Path) -> Raw:
    """The labelled nodes of one graph.

    Edges are taken both ways; edges from a node to itself are left out. A node is labelled if its
    label is no negative integer.

    Args:
      stored: `features [V, D]`, numbers; `edges [2, E]`, from which node to which; `labels [V]`,
        integers or strings; and, where the splits are official, `train`, `validation` (or `valid`,
        `val`, `dev`) and `test`, each `[V]`, boolean. Without `train` that is all labelled nodes
        which are in no other split.
      path: of the file, for errors and for the name.

    Raises:
      UsageError: naming the file, the array and the node or edge.

    >>> stored = {"features": np.eye(3), "edges": np.array([[0, 1], [1, 2]])}
    >>> raw = from_arrays(stored | {"labels": np.array(["a", "b", "a"])}, Path("three.npz"))
    >>> nodes, labels = raw.splits["train"]
    >>> nodes.tolist(), labels.tolist(), raw.graph.adjacency[1].tolist()
    ([0, 1, 2], [0, 1, 0], [True, False, True])
    """
    _check_names(stored, path)
    features = _features(stored["features"], f"{path}: features")
    adjacency = _adjacency(stored["edges"], len(features), f"{path}: edges")
    labels = _labels(stored["labels"], len(features), f"{path}: labels")
    masks = _masks(stored, labels, path)
    values = sorted({labels[node] for mask in masks.values() for node in np.flatnonzero(mask)})
    index = {value: i for i, value in enumerate(values)}
    splits: dict[str, Examples] = {}
    for split, mask in masks.items():
        nodes = np.flatnonzero(mask).astype(np.int32)
        splits[split] = nodes, np.array([index[labels[node]] for node in nodes], np.int64)
    return Raw(
        name=path.stem,
        source=f"the graph in {path}",
        class_names=tuple(map(str, values)),
        splits=splits,
        graph=Graph(features, adjacency),
    )


def karate() -> Raw:
    """34 members of a karate club, two of them labelled: with whom did the others go?

    Nodes have no features but which one they are. The instructor and the president, nodes 0 and
    33, are the training split, as each class has one labelled node in Kipf and Welling 2017,
    Semi-Supervised Classification with Graph Convolutional Networks, appendix A.

    Source: Zachary 1977, An Information Flow Model for Conflict and Fission in Small Groups, as
    NetworkX carries it.

    >>> raw = karate()
    >>> raw.graph.adjacency.sum() // 2, raw.splits["train"][0].tolist(), raw.class_names
    (np.int64(78), [0, 33], ('Mr. Hi', 'Officer'))
    """
    import networkx  # slow to import, and other tasks do without it

    club = networkx.karate_club_graph()
    nodes = sorted(club)
    names = [club.nodes[node]["club"] for node in nodes]
    classes = tuple(sorted(set(names)))
    labels = np.array([classes.index(name) for name in names], np.int64)
    leaders = np.array([nodes[0], nodes[-1]], np.int32)
    others = np.array(nodes[1:-1], np.int32)
    adjacency = networkx.to_numpy_array(club, nodelist=nodes, weight=None) > 0
    known = leaders, labels[leaders]
    return Raw(
        name="karate",
        source="NetworkX's karate_club_graph (Zachary 1977); the two nodes that are labelled serve "
        "as the training and as the validation split",
        class_names=classes,
        splits={"train": known, "validation": known, "test": (others, labels[others])},
        graph=Graph(np.eye(len(nodes), dtype=np.float32), adjacency),
    )


def _check_names(found: Collection[str], path: Path) -> None:
    for name in sorted(found):
        split, _, rest = name.partition("_")  # train_mask, or a misspelt split
        wrong = rest if split in MASKS else difflib.get_close_matches(name, MASKS, cutoff=0.75)
        if wrong and name not in MASKS:
            raise UsageError(f"{path}: {unknown('array', name, (*ARRAYS, *MASKS))}")
    for name in ARRAYS:
        if name not in found:
            names = ", ".join(map(repr, sorted(found))) or "nothing"
            raise UsageError(f"{path}: expected an array {name!r}, found {names}")


def _features(features: np.ndarray, called: str) -> np.ndarray:
    if features.ndim != 2 or features.dtype.kind not in "buif" or 0 in features.shape:
        raise UsageError(
            f"{called}: expected numbers [V, D], got {features.dtype} of shape {features.shape}"
        )
    if len(features) > MOST:
        raise UsageError(f"{called}: expected at most {MOST} nodes, got {len(features)}")
    with np.errstate(over="ignore"):  # what overflows is refused with what is not finite
        numbers = features.astype(np.float32)
    bad = np.argwhere(~np.isfinite(numbers))
    if bad.size:
        node, column = bad[0]
        raise UsageError(
            f"{called}: expected finite numbers, got {features[node, column]} at node {node}, "
            f"feature {column}"
        )
    return numbers


def _adjacency(edges: np.ndarray, nodes: int, called: str) -> np.ndarray:
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise UsageError(
            f"{called}: expected integers [2, E], got {edges.dtype} of shape {edges.shape}"
        )
    for end, edge in np.argwhere((edges < 0) | (edges >= nodes))[:1]:
        raise UsageError(
            f"{called}: expected nodes from 0 to {nodes - 1}, got {edges[end, edge]} at "
            f"[{end}, {edge}]: edge {edge} is {edges[0, edge]} to {edges[1, edge]}"
        )
    adjacency = np.zeros((nodes, nodes), np.bool_)
    adjacency[edges[0], edges[1]] = True
    adjacency[edges[1], edges[0]] = True
    np.fill_diagonal(adjacency, False)
    return adjacency


def _labels(labels: np.ndarray, nodes: int, called: str) -> list[Any]:
    """The label of each node, None if it has none."""
    if labels.shape != (nodes,):
        raise UsageError(
            f"{called}: expected shape ({nodes},), a label for each row of features, got "
            f"{labels.shape}"
        )
    if labels.dtype.kind not in "biuU":
        raise UsageError(f"{called}: expected integers or strings, got dtype {labels.dtype}")
    return [None if isinstance(label, int) and label < 0 else label for label in labels.tolist()]


def _masks(
    stored: Mapping[str, np.ndarray], labels: list[Any], path: Path
) -> dict[str, np.ndarray]:
    """The nodes of each split, all of them labelled."""
    labelled = np.array([label is not None for label in labels])
    names = only_official(set(stored) & set(MASKS), path=path, what="array")
    masks = {split: stored[name] for split, name in names.items()}
    for split, mask in masks.items():
        called = f"{path}: {names[split]}"
        if mask.shape != labelled.shape or mask.dtype != np.bool_:
            raise UsageError(
                f"{called}: expected booleans of shape {labelled.shape}, got {mask.dtype} of shape "
                f"{mask.shape}"
            )
        for node in np.flatnonzero(mask & ~labelled)[:1]:
            raise UsageError(f"{called}: node {node} has no label")
    taken = np.full(labelled.shape, "", dtype=object)
    for split, mask in masks.items():
        for node in np.flatnonzero(mask & (taken != ""))[:1]:
            raise UsageError(
                f"{path}: expected splits without a common node, got node {node} in {taken[node]} "
                f"and in {names[split]}"
            )
        taken[mask] = names[split]
    return {"train": labelled & (taken == "")} | masks
