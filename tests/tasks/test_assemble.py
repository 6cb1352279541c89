"""Texts, frames and graphs as tasks: splits, numbers, filling, and what a load may ask for."""

import json
import re

import networkx
import numpy as np
import pytest

from attnconv import tasks
from attnconv.errors import UsageError
from attnconv.spec import END, PAD, UNKNOWN, Graph
from attnconv.tasks.raw import Raw, as_sequences, objects
from attnconv.tasks.task import assemble

SPLITS = ("train", "validation", "test")
PLACES = 7
ONE, ZERO = 2, 3  # the tokens of these words, in the order of the alphabet


def coded(number):
    """A number in words, so that an example is known again by its tokens."""
    return ["one" if number >> place & 1 else "zero" for place in range(PLACES)]


def read(tokens):
    """The numbers of rows of such tokens, in a task of nothing but them."""
    assert np.isin(tokens, (ONE, ZERO)).all()
    return ((tokens == ONE) << np.arange(tokens.shape[1])).sum(1)


def frames_of(lengths, features=3, seed=0):
    rng = np.random.default_rng(seed)
    scale, shift = np.array([1.0, 30.0, 0.1])[:features], np.array([0.0, 100.0, 4.0])[:features]
    return objects(rng.normal(size=(n, features)) * scale + shift for n in lengths)


def raw_of(kind, n=100, offset=0):
    """As many examples, which differ; what they are is told by their number."""
    numbers = range(offset, offset + n)
    classes, output = ("a", "b", "c"), "label"
    labels = np.array(numbers) % 3
    graph = None
    if kind == "frames":
        inputs = objects(np.full((1 + i % 5, 2), float(i)) for i in numbers)
    elif kind == "graph":
        ring = networkx.to_numpy_array(networkx.cycle_graph(offset + n)) > 0
        graph = Graph(np.eye(offset + n, 4, dtype=np.float32), ring)
        inputs = np.array(numbers)
    else:
        inputs = objects(" ".join(coded(i)) for i in numbers)
    if kind == "labels":
        inputs = objects(tuple(coded(i)) for i in numbers)
        output = "labels"
        labels = objects(np.arange(i, i + PLACES) % 3 for i in numbers)
    elif kind == "sequence":
        output, classes = "sequence", ()
        labels = objects(("x",) * (i % 4) for i in numbers)
    return Raw(kind, "made here", classes, {"train": (inputs, labels)}, output, graph=graph)


def numbers_of(kind, split):
    """The numbers of the examples in a split of `raw_of`, and what their labels must be."""
    if kind == "graph":
        numbers = split.inputs
    elif kind == "frames":
        order = np.argsort(np.argsort(split.inputs[:, 0, 0]))
        return order, None
    else:
        numbers = read(split.inputs)
    if kind == "labels":
        return numbers, (numbers[:, None] + np.arange(PLACES)) % 3
    if kind == "sequence":
        length = (numbers % 4)[:, None]
        return numbers, np.where(np.arange(4) < length, 1, np.where(np.arange(4) == length, 0, -1))
    return numbers, numbers % 3


@pytest.mark.parametrize("kind", ["text", "labels", "sequence", "graph"])
def test_splits_are_disjoint_and_complete_and_labels_stay_with_their_examples(kind):
    task, again, other = (assemble(raw_of(kind), seed=seed) for seed in (0, 0, 1))
    found = {}
    for split in SPLITS:
        of = getattr(task, split)
        assert of.inputs.dtype == of.labels.dtype == np.int32
        found[split], labels = numbers_of(kind, of)
        np.testing.assert_array_equal(of.labels, labels)
        np.testing.assert_array_equal(getattr(again, split).inputs, of.inputs)
    assert [len(found[split]) for split in SPLITS] == [65, 15, 20]
    assert sorted(np.concatenate(list(found.values()))) == list(range(100))
    others, _ = numbers_of(kind, other.test)
    assert len(set(found["test"]) & set(others)) < 15


def test_splits_of_frames_are_disjoint_and_complete():
    task = assemble(raw_of("frames"), seed=0)
    every = np.concatenate([getattr(task, split).inputs for split in SPLITS])
    labels = np.concatenate([getattr(task, split).labels for split in SPLITS])
    numbers = np.argsort(np.argsort(every[:, 0, 0]))
    assert len(np.unique(every[:, 0, 0])) == 100
    np.testing.assert_array_equal(labels, numbers % 3)
    np.testing.assert_array_equal((~np.isnan(every[..., 0])).sum(1), 1 + numbers % 5)


@pytest.mark.parametrize("kind", ["text", "frames", "graph"])
def test_each_class_is_in_proportion(kind):
    task = assemble(raw_of(kind), seed=0)
    for split, size in zip(SPLITS, (65, 15, 20), strict=True):
        counts = np.bincount(getattr(task, split).labels)
        assert counts.sum() == size and np.ptp(counts) <= 2


@pytest.mark.parametrize("kind", ["text", "labels", "sequence"])
@pytest.mark.parametrize(
    ("n", "official", "sizes"),
    [
        (4999, (), [3249, 750, 1000]),
        (5000, (), [4000, 500, 500]),
        (5001, (), [3999, 501, 501]),
        (5000, ("test",), [4250, 750, 10]),
        (5000, ("validation",), [4500, 10, 500]),
    ],
)
def test_a_tenth_is_enough_of_many(kind, n, official, sizes):
    # The numbers do not fit into the words any more, so examples repeat.
    raw = raw_of(kind, n)
    few = raw_of(kind, 10).splits["train"]
    raw.splits.update(dict.fromkeys(official, few))
    task = assemble(raw, seed=0)
    assert [len(getattr(task, split).labels) for split in SPLITS] == sizes


def test_at_most_5000_are_taken_where_the_test_split_is_official():
    raw = raw_of("text", 40_000)
    raw.splits["test"] = raw_of("text", 10).splits["train"]
    task = assemble(raw, seed=0)
    assert [len(getattr(task, split).labels) for split in SPLITS] == [35_000, 5_000, 10]


def test_the_vocabulary_is_that_of_the_training_split():
    """Each text has a character of its own: only those of training have numbers."""
    texts = objects(f"{chr(0x4E00 + i)}ab" for i in range(40))
    raw = Raw("signs", "here", ("a", "b"), {"train": (texts, np.arange(40) % 2)})
    task = assemble(raw, seed=0, cut="characters")
    assert task.spec.vocabulary == 2 + 2 + len(task.train.labels) == 30
    assert (task.train.inputs != UNKNOWN).all()
    assert len(np.unique(task.train.inputs[:, 0])) == 26
    for split in (task.validation, task.test):
        assert (split.inputs[:, 0] == UNKNOWN).all()
        np.testing.assert_array_equal(split.inputs[:, 1:], [[2, 3]] * len(split.labels))


def test_texts_of_different_lengths_are_filled_up():
    train = objects(["b a", "a", "a b b a", "b"])
    test = objects(["a b a b b c", "c"])
    labels = np.array([0, 1, 1, 0])
    raw = Raw("ab", "here", ("x", "y"), dict.fromkeys(SPLITS, (train, labels)))
    raw.splits["test"] = test, labels[:2]
    task = assemble(raw, seed=0)
    expected = [[3, 2, 0, 0, 0, 0], [2] + [0] * 5, [2, 3, 3, 2, 0, 0], [3] + [0] * 5]
    assert task.train.inputs.tolist() == task.validation.inputs.tolist() == expected
    assert task.test.inputs.tolist() == [[2, 3, 2, 3, 3, UNKNOWN], [UNKNOWN] + [PAD] * 5]
    spec = task.spec
    assert (spec.shape, spec.vocabulary, spec.padded, spec.output) == ((6,), 4, True, "label")
    assert (spec.classes, spec.steps, spec.one_hot, spec.graph) == (2, 0, False, None)
    same = Raw("ab", "here", ("x", "y"), {s: (train[[1, 3]], labels[:2]) for s in SPLITS})
    assert not assemble(same, seed=0).spec.padded


def test_tokens_have_a_label_each_and_minus_one_after_the_last():
    inputs = objects([("a", "b"), ("a",), ("b", "b", "a")])
    labels = objects([np.array([0, 1]), np.array([-1]), np.array([2, -1, 0])])
    task = assemble(
        Raw("tags", "here", ("x", "y", "z"), dict.fromkeys(SPLITS, (inputs, labels)), "labels"),
        seed=0,
    )
    for split in SPLITS:
        assert getattr(task, split).inputs.tolist() == [[2, 3, 0], [2, 0, 0], [3, 3, 2]]
        assert getattr(task, split).labels.tolist() == [[0, 1, -1], [-1, -1, -1], [2, -1, 0]]
    assert (task.spec.output, task.spec.classes, task.spec.padded) == ("labels", 3, True)
    assert task.class_names == ("x", "y", "z")


def test_frames_have_a_label_each_too():
    inputs = frames_of([2, 4, 3])
    labels = objects(np.arange(n) % 2 for n in (2, 4, 3))
    raw = Raw("steps", "here", ("x", "y"), dict.fromkeys(SPLITS, (inputs, labels)), "labels")
    task = assemble(raw, seed=0)
    assert task.train.labels.tolist() == [[0, 1, -1, -1], [0, 1, 0, 1], [0, 1, 0, -1]]
    np.testing.assert_array_equal(task.train.labels < 0, np.isnan(task.train.inputs[..., 0]))


def test_sequences_end_and_are_filled_up():
    sources = objects([("go",), ("go", "back"), ("go", "on", "on")])
    targets = {
        "train": [("R", "L"), (), ("L",)],
        "validation": [("L", "L"), ("R",), ()],
        "test": [("Z",), ("L", "R", "L"), ("A", "L")],
    }
    splits = {split: (sources, objects(of)) for split, of in targets.items()}
    task = assemble(Raw("moves", "here", (), splits, "sequence"), seed=0)
    # The symbols of all splits have numbers: what a model cannot write, it gets wrong.
    assert task.class_names == ("<end>", "A", "L", "R", "Z") and END == 0
    assert (task.spec.classes, task.spec.steps, task.spec.output) == (5, 4, "sequence")
    assert task.train.labels.tolist() == [[3, 2, 0, -1], [0, -1, -1, -1], [2, 0, -1, -1]]
    assert task.validation.labels.tolist() == [[2, 2, 0, -1], [3, 0, -1, -1], [0, -1, -1, -1]]
    assert task.test.labels.tolist() == [[4, 0, -1, -1], [2, 3, 2, 0], [1, 2, 0, -1]]
    # "back" is seen once, and no other word is of its kind.
    assert task.train.inputs.tolist() == [[2, 0, 0], [2, UNKNOWN, 0], [2, 3, 3]]


@pytest.mark.parametrize("one_scale", [False, True])
def test_frames_are_standardised_by_all_vectors_of_training(one_scale):
    train, test = frames_of([3, 1, 5, 2] * 10), frames_of([2, 7, 1], seed=1)
    labels = np.arange(40) % 2
    splits = {
        "train": (train, labels),
        "validation": (test, labels[:3]),
        "test": (test, labels[:3]),
    }
    task = assemble(Raw("steps", "here", ("a", "b"), splits, one_scale=one_scale), seed=0)
    every = np.concatenate(list(train))
    assert every.shape == (110, 3)
    axes = (0, 1) if one_scale else 0
    mean, deviation = every.mean(axes), every.std(axes)
    assert task.spec.shape == (7, 3) and task.spec.padded and task.spec.vocabulary is None
    for of, sequences in ((task.train, train), (task.validation, test), (task.test, test)):
        assert of.inputs.dtype == np.float32
        for row, sequence in zip(of.inputs, sequences, strict=True):
            expected = np.full((7, 3), np.nan)
            expected[: len(sequence)] = (sequence - mean) / deviation
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_frames_of_bytes_and_of_one_length():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (30, 4, 2)).astype(np.uint8)
    labels = np.arange(30) % 2
    ragged, array = (
        assemble(Raw("b", "here", ("x", "y"), {"train": (x, labels)}), seed=0)
        for x in (objects(frames), frames)
    )
    np.testing.assert_array_equal(ragged.train.inputs, array.train.inputs)
    assert ragged.spec == array.spec and not ragged.spec.padded
    measured = ragged.train.inputs.astype(np.float64).reshape(-1, 2)
    np.testing.assert_allclose([measured.mean(0), measured.std(0)], [[0, 0], [1, 1]], atol=1e-6)


def test_frames_too_large_are_refused():
    frames = objects(np.array([[1e200 * (-1) ** i]] * (1 + i % 2)) for i in range(20))
    with pytest.raises(UsageError, match=r"^big: the values are too large to standardise$"):
        assemble(Raw("big", "here", ("a", "b"), {"train": (frames, np.arange(20) % 2)}), seed=0)


def test_the_features_of_a_graph_are_standardised_over_all_nodes():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(30, 3)) * [1, 20, 0] + [5, 0, 7]).astype(np.float32)
    ring = networkx.to_numpy_array(networkx.cycle_graph(30)) > 0
    nodes = np.arange(2, 26)
    raw = Raw("g", "here", ("a", "b"), {"train": (nodes, nodes % 2)}, graph=Graph(features, ring))
    task = assemble(raw, seed=0)
    wide = features.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.where(wide.std(0) == 0, 1, wide.std(0))
    np.testing.assert_allclose(task.spec.graph.features, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(task.spec.graph.adjacency, ring)
    assert (task.spec.shape, task.spec.output, task.spec.padded) == ((30, 3), "label", False)
    assert task.train.inputs.ndim == 1
    for binary in (np.eye(30), np.eye(30, dtype=bool), np.zeros((30, 2))):
        graph = Graph(binary.astype(np.float32), ring)
        found = assemble(Raw("g", "here", ("a", "b"), raw.splits, graph=graph), seed=0)
        np.testing.assert_array_equal(found.spec.graph.features, binary)


def named(n=40, **official):
    """Texts whose names tell who spoke them."""
    raw = raw_of("text", n)
    speakers = ["ann", "bob", "anna", "eve"]
    names = {"train": [f"{i}_{speakers[i % 4]}_{i % 3}.wav" for i in range(n)]}
    for split, of in official.items():
        raw.splits[split] = raw_of("text", len(of), offset=n).splits["train"]
        names[split] = of
    return Raw("voices", "here", raw.class_names, raw.splits, names=names)


def test_what_is_held_out_by_name_is_the_test_split():
    task = assemble(named(), seed=0, hold_out="_bob_")
    found = {split: read(getattr(task, split).inputs) for split in SPLITS}
    assert found["test"].tolist() == list(range(1, 40, 4))
    assert len(found["validation"]) == 5  # 15 % of the 30 that are left, rounded up
    rest = sorted([*found["train"], *found["validation"]])
    assert rest == [i for i in range(40) if i % 4 != 1]
    # A part of a name is enough; others of an official test split are for training, and those of an
    # official validation split stay there.
    validation = ["40_ann_1.wav", "41_x", "42_x", "43_x", "44_x"]
    task = assemble(named(validation=validation, test=["z", "y"]), seed=0, hold_out="ann")
    expected = [i for i in range(40) if i % 4 in (0, 2)] + [40]
    assert sorted(read(task.test.inputs).tolist()) == expected
    assert len(task.validation.labels) == 4
    assert len(task.train.labels) == 22
    # A validation split of which all is held out is drawn anew.
    task = assemble(named(validation=["40_ann", "41_ann"]), seed=0, hold_out="ann")
    assert len(task.test.labels) == 22
    assert len(task.validation.labels) + len(task.train.labels) == 20


@pytest.mark.parametrize(
    ("raw", "part", "message"),
    [
        (raw_of("text"), "ann", "hold_out='ann': the examples of text have no names"),
        (
            named(),
            "zoe",
            "hold_out='zoe': expected a part of the names of some examples, it is in 0 of 40; the "
            "first is '0_ann_0.wav'",
        ),
        (
            named(),
            ".wav",
            "hold_out='.wav': expected a part of the names of some examples, it is in 40 of 40; "
            "the first is '0_ann_0.wav'",
        ),
        (named(), "_0.wav", "voices: class 'a' is in the test split and not in the training split"),
        (
            named(),
            "39_eve",
            "voices: expected at least 2 examples in the test split, got 1",
        ),
    ],
)
def test_what_cannot_be_held_out(raw, part, message):
    with pytest.raises(UsageError) as error:
        assemble(raw, seed=0, hold_out=part)
    assert str(error.value) == message


def labelled(n, **official):
    """Tokens with a label each; those of an official split of that size have none."""
    inputs = objects(("a", "b") for _ in range(n))
    splits = {"train": (inputs, objects(np.array([0, 1]) for _ in range(n)))}
    for split, size in official.items():
        splits[split] = inputs[:size], objects(np.array([-1, -1]) for _ in range(size))
    return Raw("tags", "made here", ("x", "y"), splits, "labels")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (labelled(9, test=4), "expected a label in the test split, got none in 4 examples"),
        (labelled(9, validation=3), "expected a label in the validation split, got none in 3 exam"),
        (labelled(2), "expected at least 2 examples in the train split, got 0, cut from 2"),
        (labelled(5), "expected at least 2 examples in the test split, got 1, cut from 5"),
    ],
)
def test_splits_that_cannot_be_scored(raw, message):
    with pytest.raises(UsageError, match=f"^tags: {message}"):
        assemble(raw, seed=0)


def test_the_least_that_can_be_cut():
    task = assemble(labelled(6), seed=0)
    assert [len(split.labels) for split in (task.train, task.validation, task.test)] == [3, 1, 2]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def texts(tmp_path):
    rows = [
        {"text": " ".join(coded(i)), "label": "pos" if i % 2 else "neg", "id": f"{i:03}.txt"}
        for i in range(60)
    ]
    return write(tmp_path / "texts.jsonl", rows)


@pytest.fixture
def tagged(tmp_path):
    rows = [
        {"tokens": coded(i)[: 3 + i % 5], "labels": [w[0] for w in coded(i)[: 3 + i % 5]]}
        for i in range(60)
    ]
    return write(tmp_path / "tagged.jsonl", rows)


@pytest.fixture
def turned(tmp_path):
    rows = [{"source": coded(i), "target": coded(i)[: i % 5][::-1]} for i in range(60)]
    return write(tmp_path / "turned.jsonl", rows)


def test_a_text_is_cut_as_asked_for(texts):
    words, characters = (tasks.load(texts, tokens=cut) for cut in (None, "characters"))
    assert words.spec.vocabulary == 4 and words.spec.shape == (PLACES,)
    assert not words.spec.padded
    alphabet = sorted(set("one zero"))
    assert characters.spec.vocabulary == 2 + len(alphabet)
    assert characters.spec.padded
    # The same examples are in the same splits, whatever they are cut into.
    for split in SPLITS:
        spelled = [
            "".join(alphabet[token - 2] for token in row if token != PAD)
            for row in getattr(characters, split).inputs
        ]
        expected = [" ".join(coded(i)) for i in read(getattr(words, split).inputs)]
        assert spelled == expected
    np.testing.assert_array_equal(tasks.load(texts, tokens="words").test.inputs, words.test.inputs)


def test_byte_pairs_of_a_text(texts):
    pytest.importorskip("tokenizers")
    task = tasks.load(texts, tokens="bpe")
    assert task.spec.shape == (PLACES,)  # each word became one piece, with and without a space
    splits = (task.train, task.validation, task.test)
    found = np.unique(np.concatenate([split.inputs.ravel() for split in splits]))
    assert set(found) - {PAD} <= set(range(2, task.spec.vocabulary))
    assert len(set(found) - {PAD}) == len({"one", "zero", " one", " zero"})
    assert task.spec.vocabulary >= 2 + 256  # every byte


def test_one_hot_changes_what_tokens_are_and_not_which(texts):
    plain, one_hot = tasks.load(texts), tasks.load(texts, vectors="one_hot")
    np.testing.assert_array_equal(plain.train.inputs, one_hot.train.inputs)
    assert one_hot.spec.one_hot and not plain.spec.one_hot
    assert (one_hot.spec.channels, plain.spec.channels) == (4, 64)


def test_files_of_texts_are_held_out_by_name(texts):
    task = tasks.load(texts, hold_out="5.txt")
    assert read(task.test.inputs).tolist() == [5, 15, 25, 35, 45, 55]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "digits", "tokens": "words"},
            "tokens=words: expected whole text to cut, digits has none",
        ),
        (
            {"name": "number_words", "tokens": "characters"},
            "tokens=characters: expected whole text to cut, number_words has none",
        ),
        (
            {"name": "karate", "tokens": "bpe"},
            "tokens=bpe: expected whole text to cut, karate has none",
        ),
        (
            {"name": "digits", "vectors": "one_hot"},
            "digits: expected tokens where vectors are one-hot, found numbers",
        ),
        (
            {"name": "karate", "vectors": "one_hot"},
            "karate: expected tokens where vectors are one-hot, found numbers",
        ),
        (
            {"name": "karate", "vectors": "rows"},
            "vectors=rows: expected images to cut, karate has none",
        ),
        (
            {"name": "digits_rows", "vectors": "pixels"},
            "vectors=pixels: expected images to cut, digits_rows has none",
        ),
        (
            {"name": "number_words", "vectors": "patches"},
            "vectors=patches: expected images to cut, number_words has none",
        ),
        (
            {"name": "digits", "vectors": "row"},
            "unknown vectors 'row'; did you mean 'rows'? Known: one_hot, patches, pixels, rows",
        ),
        ({"name": "digits", "hold_out": "a"}, "hold_out='a': the examples of digits have no names"),
    ],
)
def test_what_a_task_has_not_is_refused(options, message):
    with pytest.raises(UsageError) as error:
        tasks.load(**options)
    assert str(error.value) == message


def test_images_as_rows_pixels_and_patches():
    whole = tasks.load("digits")
    images = whole.test.inputs[..., 0]
    found = {v: tasks.load("digits", vectors=v) for v in ("rows", "pixels", "patches")}
    shapes = {vectors: task.spec.shape for vectors, task in found.items()}
    assert shapes == {"rows": (8, 8), "pixels": (64, 1), "patches": (4, 16)}
    expected = {
        "rows": images,
        "pixels": np.array([[[pixel] for row in image for pixel in row] for image in images]),
        "patches": np.array(
            [
                [image[y : y + 4, x : x + 4].ravel() for y in (0, 4) for x in (0, 4)]
                for image in images
            ]
        ),
    }
    for vectors, task in found.items():
        np.testing.assert_allclose(task.test.inputs, expected[vectors], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(task.test.labels, whole.test.labels)
        assert not task.spec.padded and task.source == f"{whole.source}, as {vectors}"
    rows = tasks.load("digits_rows")
    np.testing.assert_array_equal(found["rows"].train.inputs, rows.train.inputs)


def test_patches_beyond_the_border_are_black():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (3, 6, 9, 2)).astype(np.uint8)
    raw = Raw("x", "here", ("a", "b", "c"), {"train": (images, np.arange(3))})
    found, _ = as_sequences(raw, "patches").splits["train"]
    assert found.shape == (3, 2 * 3, 4 * 4 * 2) and found.dtype == np.uint8
    for i, y, x in np.ndindex(3, 2, 3):
        patch = np.zeros((4, 4, 2), np.uint8)
        part = images[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        patch[: part.shape[0], : part.shape[1]] = part
        np.testing.assert_array_equal(found[i, 3 * y + x], patch.ravel())
    for vectors, shape in (("rows", (3, 6, 18)), ("pixels", (3, 54, 2))):
        cut, _ = as_sequences(raw, vectors).splits["train"]
        np.testing.assert_array_equal(cut, images.reshape(shape))


@pytest.mark.parametrize("kind", ["texts", "tagged", "turned"])
def test_a_part_of_the_training_split_is_a_subset_of_it(kind, request):
    name = request.getfixturevalue(kind)
    whole, few = tasks.load(name), tasks.load(name, train_size=9)
    chosen = whole.subset(9, seed=0)
    assert len(set(chosen.tolist())) == 9
    np.testing.assert_array_equal(few.train.inputs, whole.train.inputs[chosen])
    np.testing.assert_array_equal(few.train.labels, whole.train.labels[chosen])
    np.testing.assert_array_equal(few.test.inputs, whole.test.inputs)
    assert few.spec.vocabulary == whole.spec.vocabulary
    assert np.array_equal(whole.subset(20, seed=0)[:9], chosen)
    assert not np.array_equal(whole.subset(9, seed=1), chosen)
    if kind == "texts":
        assert np.ptp(np.bincount(few.train.labels)) <= 1
    size = len(whole.train.labels)
    with pytest.raises(UsageError, match=rf"^train_size={size + 1}: .* has {size} training examp"):
        whole.subset(size + 1, seed=0)


@pytest.mark.parametrize("kind", ["frames", "graph"])
def test_a_part_of_frames_or_nodes_is_balanced(kind):
    task = assemble(raw_of(kind), seed=0)
    chosen = task.subset(12, seed=0)
    assert len(set(chosen.tolist())) == 12
    assert np.bincount(task.train.labels[chosen]).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[0, 1], [-2]],
            "tags: expected labels from 0 to 1, got -2 for example 1 of the train split",
        ),
        (
            [[0, 2], [1]],
            "tags: expected labels from 0 to 1, got 2 for example 0 of the train split",
        ),
        ([[0, 0], [-1]], "tags: expected at least 2 classes, found 1"),
    ],
)
def test_labels_of_tokens_that_are_no_classes(labels, message):
    inputs = objects([("a", "b"), ("a",)])
    splits = {"train": (inputs, objects(map(np.array, labels)))}
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        assemble(Raw("tags", "here", ("x", "y"), splits, "labels"), seed=0)
