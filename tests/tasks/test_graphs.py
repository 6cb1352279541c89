"""Graphs: the user's arrays, what is refused of them, and Zachary's club."""

import networkx
import numpy as np
import pytest

from attnconv.errors import UsageError
from attnconv.tasks import graphs
from attnconv.tasks.raw import validate


def mask(*nodes, size=8):
    chosen = np.zeros(size, bool)
    chosen[list(nodes)] = True
    return chosen


def arrays(**others):
    """Eight nodes in a ring, with one edge twice and one to itself."""
    ring = [[0, 1, 2, 3, 4, 5, 6, 7, 1, 3], [1, 2, 3, 4, 5, 6, 7, 0, 0, 3]]
    return {
        "features": np.arange(16.0).reshape(8, 2),
        "edges": np.array(ring),
        "labels": np.array([5, 3, 5, 3, 5, 3, 5, 3]),
    } | others


def write(folder, **others):
    stored = {name: array for name, array in arrays(**others).items() if array is not None}
    np.savez(folder / "ring.npz", **stored)
    return folder / "ring.npz"


def refusal(path):
    with pytest.raises(UsageError) as error:
        graphs.read(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_a_ring(tmp_path):
    masks = {"train": mask(0, 1, 2), "validation": mask(3, 4), "test": mask(6, 7)}
    path = write(tmp_path, **masks, extra=np.array([{"any": "object"}], object))
    assert graphs.holds_graph(path)
    raw = graphs.read(path)
    validate(raw)
    assert (raw.name, raw.output, raw.class_names) == ("ring", "label", ("3", "5"))
    found = {split: (x.tolist(), y.tolist()) for split, (x, y) in raw.splits.items()}
    assert found == {
        "train": ([0, 1, 2], [1, 0, 1]),
        "validation": ([3, 4], [0, 1]),
        "test": ([6, 7], [1, 0]),
    }
    assert all(x.dtype == np.int32 for x, _ in raw.splits.values())
    assert raw.graph.features.dtype == np.float32
    np.testing.assert_array_equal(raw.graph.features, np.arange(16).reshape(8, 2))
    theirs = networkx.to_numpy_array(networkx.cycle_graph(8)) > 0
    assert raw.graph.adjacency.dtype == np.bool_
    np.testing.assert_array_equal(raw.graph.adjacency, theirs)


def test_training_is_what_is_labelled_and_in_no_other_split(tmp_path):
    labels = np.array([5, 3, 5, 3, -1, 3, -2, 9])
    raw = graphs.read(write(tmp_path, labels=labels, test=mask(0, 3)))
    assert raw.splits["train"][0].tolist() == [1, 2, 5, 7] and set(raw.splits) == {"train", "test"}
    assert raw.splits["train"][1].tolist() == [0, 1, 0, 2]
    assert raw.class_names == ("3", "5", "9")
    raw = graphs.read(write(tmp_path, labels=labels, train=mask(0, 1, 2), val=mask(5, 3)))
    assert raw.class_names == ("3", "5") and set(raw.splits) == {"train", "validation"}
    assert raw.splits["validation"][0].tolist() == [3, 5]


def test_labels_may_be_strings(tmp_path):
    labels = np.array(["b", "a", "b", "a", "b", "a", "b", "c"])
    raw = graphs.read(write(tmp_path, labels=labels))
    assert raw.class_names == ("a", "b", "c")
    assert raw.splits["train"][1].tolist() == [1, 0, 1, 0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"labels": None}, "expected an array 'labels', found 'edges', 'features'"),
        ({"train_mask": mask(0)}, "unknown array 'train_mask'; did you mean 'train'"),
        ({"tset": mask(0)}, "unknown array 'tset'; did you mean 'test'"),
        (
            {"val": mask(0), "dev": mask(1)},
            "expected one name for the validation split, found val and dev",
        ),
        (
            {"edges": np.array([[0, 1, 2], [1, 8, 3]])},
            "edges: expected nodes from 0 to 7, got 8 at [1, 1]: edge 1 is 1 to 8",
        ),
        (
            {"edges": np.array([[0, -1, 2], [1, 8, 3]])},
            "edges: expected nodes from 0 to 7, got -1 at [0, 1]: edge 1 is -1 to 8",
        ),
        (
            {"edges": np.zeros((5, 2), np.int64)},
            "edges: expected integers [2, E], got int64 of shape (5, 2)",
        ),
        (
            {"edges": np.zeros((2, 5))},
            "edges: expected integers [2, E], got float64 of shape (2, 5)",
        ),
        ({"features": np.zeros(8)}, "features: expected numbers [V, D], got float64 of shape (8,)"),
        (
            {"features": np.array([["a"]] * 8)},
            "features: expected numbers [V, D], got <U1 of shape (8, 1)",
        ),
        (
            {"features": np.where(np.arange(16).reshape(8, 2) == 5, np.nan, 1)},
            "features: expected finite numbers, got nan at node 2, feature 1",
        ),
        (
            {"features": np.where(np.arange(16).reshape(8, 2) == 5, 1e300, 1)},
            "features: expected finite numbers, got 1e+300 at node 2, feature 1",
        ),
        (
            {"features": np.zeros((20001, 1), np.uint8)},
            "features: expected at most 20000 nodes, got 20001",
        ),
        (
            {"labels": np.zeros(7, np.int64)},
            "labels: expected shape (8,), a label for each row of features, got (7,)",
        ),
        ({"labels": np.zeros(8)}, "labels: expected integers or strings, got dtype float64"),
        (
            {"test": np.array([6, 7])},
            "test: expected booleans of shape (8,), got int64 of shape (2,)",
        ),
        (
            {"train": mask(0, 1, 2), "test": mask(2, 3)},
            "expected splits without a common node, got node 2 in train and in test",
        ),
        (
            {"labels": np.array([5, 3, -1, 3, 5, 3, 5, 3]), "train": mask(0, 1, 2)},
            "train: node 2 has no label",
        ),
        (
            {"labels": np.array([None] * 8, object)},
            "labels: cannot be read (pickled objects are refused)",
        ),
    ],
)
def test_what_is_refused(tmp_path, others, message):
    assert refusal(write(tmp_path, **others)).startswith(message)


def test_files_that_are_no_graph(tmp_path):
    np.savez(tmp_path / "images.npz", x=np.zeros(3), y=np.zeros(3))
    assert not graphs.holds_graph(tmp_path / "images.npz")
    np.savez(tmp_path / "lone.npz", features=np.zeros((3, 2)))
    assert graphs.holds_graph(tmp_path / "lone.npz")
    whole = write(tmp_path).read_bytes()
    broken = tmp_path / "broken.npz"
    broken.write_bytes(whole[: len(whole) // 2])
    assert not graphs.holds_graph(broken)
    assert refusal(broken).startswith("cannot be read (")


def test_the_karate_club_is_zacharys():
    raw = graphs.karate()
    validate(raw)
    club = networkx.karate_club_graph()
    assert raw.class_names == ("Mr. Hi", "Officer") and "validation" in raw.source
    np.testing.assert_array_equal(raw.graph.features, np.eye(34))
    edges = {frozenset(map(int, edge)) for edge in np.argwhere(raw.graph.adjacency)}
    assert edges == {frozenset(edge) for edge in club.edges}
    np.testing.assert_array_equal(raw.graph.adjacency, raw.graph.adjacency.T)
    assert raw.splits["train"][0].tolist() == raw.splits["validation"][0].tolist() == [0, 33]
    nodes = np.concatenate([raw.splits["train"][0], raw.splits["test"][0]])
    assert sorted(nodes.tolist()) == list(range(34)) and nodes.dtype == np.int32
    for x, y in raw.splits.values():
        assert [raw.class_names[label] for label in y] == [club.nodes[int(n)]["club"] for n in x]
