"""Prepared TFDS sets: MNIST against its idx files, a cut of CIFAR-10, and tiny ones made here."""

import gzip
import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as official_tfds
from PIL import Image
from prepared_sets import DATA, PREPARED, needs_data, prepare, records

from attnconv import tasks
from attnconv.errors import UsageError
from attnconv.tasks import tfds
from attnconv.tasks.task import assemble


def idx(name):
    """An array of LeCun's idx format: magic (dtype 8, rank), sizes, bytes."""
    with gzip.open(DATA / "raw" / "mnist" / f"{name}-ubyte.gz") as file:
        _, _, kind, rank = struct.unpack(">4B", file.read(4))
        assert kind == 8
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def unordered(images, labels):
    """Each image with its label, as bytes, sorted: TFDS shuffles what it prepares."""
    return sorted(
        bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
    )


@needs_data
@pytest.mark.slow
def test_mnist_is_lecuns():
    raw = tfds.read("mnist", tfds.find("mnist", PREPARED))
    assert raw.class_names == tuple("0123456789") and set(raw.splits) == {"train", "test"}
    for split, part in (("train", "train"), ("test", "t10k")):
        images, labels = raw.splits[split]
        theirs, their_labels = idx(f"{part}-images-idx3"), idx(f"{part}-labels-idx1")
        assert images.shape == (*theirs.shape, 1) and images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(their_labels))
        assert unordered(images, labels) == unordered(theirs, their_labels)
    task = assemble(raw, seed=0)
    assert [len(s.labels) for s in (task.train, task.validation, task.test)] == [55000, 5000, 10000]
    np.testing.assert_array_equal(task.test.labels, raw.splits["test"][1])
    # 0.1307 and 0.3081, as everybody knows them, are of all 60,000.
    black, white = float(task.train.inputs.min()), float(task.train.inputs.max())
    assert abs(1 / (white - black) - 0.3081) < 2e-4
    assert abs(-black / (white - black) - 0.1307) < 2e-4


@needs_data
def test_cifar10_3k_is_the_beginning_of_cifar10():
    folder = tfds.find("cifar10_3k:1.0.0", PREPARED)
    raw = tfds.read("cifar10_3k", folder)
    assert raw.class_names[3:6] == ("cat", "deer", "dog")
    assert raw.source == "TensorFlow Datasets, cifar10_3k 1.0.0"
    counts = {
        "train": [202, 191, 203, 195, 214, 183, 207, 199, 203, 203],
        "test": [103, 89, 100, 103, 90, 86, 112, 102, 106, 109],
    }
    for split, expected in counts.items():
        images, labels = raw.splits[split]
        assert np.bincount(labels).tolist() == expected
        pngs = [record[record.index(b"\x89PNG") :] for record in records(folder, split)]
        theirs = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
        np.testing.assert_array_equal(images, theirs)
    assert raw.splits["train"][0].sum() == 742506465


@needs_data
def test_channels_of_cifar10_3k_are_standardised():
    task = tasks.load("cifar10_3k", data_dir=str(PREPARED), train_size=200)
    assert (task.spec.shape, task.spec.classes) == ((32, 32, 3), 10)
    assert [len(s.labels) for s in (task.train, task.validation, task.test)] == [200, 300, 1000]
    assert np.bincount(task.train.labels).tolist() == [20] * 10
    wide = tasks.load("cifar10_3k", data_dir=PREPARED).train.inputs.astype(np.float64)
    np.testing.assert_allclose(wide.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(wide.std((0, 1, 2)), 1, atol=1e-6)


def refusal(name, data_dir):
    with pytest.raises(UsageError) as error:
        tasks.load(name, data_dir=data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


@needs_data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scan", "task 'scan': name one of its parts: scan/addprim_jump, scan/length, scan/simple"),
        ("mnist:2.0.0", "task 'mnist:2.0.0': data_dir holds version 3.0.1 of it"),
    ],
)
def test_what_is_there_in_other_parts_or_versions(name, message):
    assert refusal(name, PREPARED) == message


@needs_data
def test_nothing_is_said_and_nothing_connects():
    """In a fresh process: no advice, no warning, no TensorFlow, no connection."""
    program = f"""
import socket, sys
def refuse(*_): raise AssertionError("the network was touched")
socket.socket.connect = socket.getaddrinfo = refuse
from attnconv import tasks
assert "tensorflow_datasets" not in sys.modules
tasks.load("cifar10_3k", data_dir={str(PREPARED)!r})
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
from pathlib import Path
from attnconv.tasks import tfds
for name in ("spoken_digit", "universal_dependencies/en_ewt", "scan/simple"):
    tfds.read(name, tfds.find(name, Path({str(PREPARED)!r})))
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def examples(n, *, height=4):
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, [n, height, 5], np.uint8)
    return [{"image": png(image), "label": i % 2} for i, image in enumerate(pixels)], pixels


FEATURES = {
    "image": official_tfds.features.Image(shape=(None, None, 1)),
    "label": official_tfds.features.ClassLabel(names=["ant", "bee"]),
}


def test_the_newest_version_is_taken(tmp_path):
    for version, n in (("1.9.0", 12), ("1.10.0", 14), ("1.2.0", 16)):
        prepare(tmp_path / "tiny" / version, FEATURES, train=examples(n)[0])
    (tmp_path / "tiny" / "2.0.0.incomplete").mkdir()
    assert tfds.find("tiny", tmp_path).name == "1.10.0"
    newest = tfds.read("tiny", tfds.find("tiny", tmp_path))
    np.testing.assert_array_equal(newest.splits["train"][0][..., 0], examples(14)[1])
    assert tfds.find("tiny:1.2.0", tmp_path).name == "1.2.0"
    assert refusal("tiny:1.1.0", tmp_path) == (
        "task 'tiny:1.1.0': data_dir holds version 1.2.0, 1.9.0, 1.10.0 of it"
    )


def test_official_splits_and_configurations(tmp_path, monkeypatch):
    parts = {"train": 10, "dev": 6, "test": 4, "extra": 3}
    made = {split: examples(n)[0] for split, n in parts.items()}
    prepare(tmp_path / "sets" / "tiny" / "small" / "1.0.0", FEATURES, **made)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("tiny/small", "tiny/small:1.0.0"):
        task = tasks.load(name, data_dir="~/sets")
        sizes = [len(split.labels) for split in (task.train, task.validation, task.test)]
        assert (task.name, task.class_names, sizes) == (name, ("ant", "bee"), [10, 6, 4])
    pixels = examples(10)[1] / 255.0
    expected = (examples(6)[1] / 255.0 - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(task.validation.inputs[..., 0], expected, rtol=1e-5, atol=1e-6)
    assert refusal("tiny", tmp_path / "sets") == "task 'tiny': name one of its parts: tiny/small"


def test_a_tensor_serves_as_input(tmp_path):
    rng = np.random.default_rng(0)
    series = rng.normal(size=[9, 6, 2]).astype(np.float32)
    features = {
        "series": official_tfds.features.Tensor(shape=(6, 2), dtype=np.float32),
        "label": official_tfds.features.ClassLabel(num_classes=3),
        "note": official_tfds.features.Text(),
    }
    rows = [{"series": x, "label": i % 3, "note": "-"} for i, x in enumerate(series)]
    prepare(tmp_path / "tiny" / "1.0.0", features, everything=rows)
    raw = tfds.read("tiny", tfds.find("tiny", tmp_path))
    np.testing.assert_array_equal(raw.splits["train"][0], series)
    assert raw.class_names == ("0", "1", "2") and set(raw.splits) == {"train"}
    features["other"] = features["series"]
    rows = [row | {"other": -row["series"]} for row in rows]
    prepare(tmp_path / "two" / "1.0.0", features, train=rows)
    found = (
        "label (ClassLabel), note (Text), other (Tensor [6, 2] of float32), series (Tensor [6, 2] "
        "of float32)"
    )
    assert refusal("two", tmp_path) == (
        "two: expected an image, a tensor of rank 2 or 3, audio, a text or tokens, and class "
        f"labels or a second text, found {found}; say which: --fields=INPUT,LABEL, as other,label"
    )
    two = tfds.find("two", tmp_path)
    chosen = tfds.read("two", two, ("other", "label"))
    np.testing.assert_array_equal(chosen.splits["train"][0], -series)
    assert chosen.source == "TensorFlow Datasets, two 1.0.0, other to label"
    for fields, message in {
        ("sries", "label"): "unknown feature 'sries'; did you mean 'series'? Known: label, note, "
        "other, series",
        ("label", "series"): "label (ClassLabel) cannot be the input for series (Tensor [6, 2] of "
        f"float32); found {found}",
        ("series",): "expected two features, INPUT,LABEL",
    }.items():
        with pytest.raises(UsageError) as error:
            tfds.read("two", two, fields)
        assert str(error.value) == f"two: --fields={','.join(fields)}: {message}"


def test_sets_that_do_not_fit(tmp_path):
    uneven = examples(9)[0] + examples(1, height=7)[0]
    prepare(tmp_path / "uneven" / "1.0.0", FEATURES, train=uneven)
    assert refusal("uneven", tmp_path) == (
        "uneven (train): expected images of one shape, got (4, 5, 1) and, for example 9, (7, 5, 1)"
    )
    some = examples(9)[0]
    prepare(tmp_path / "splits" / "1.0.0", FEATURES, a=some, b=some)
    assert refusal("splits", tmp_path) == "splits: expected a split named train, found a, b"
    prepare(tmp_path / "blind" / "1.0.0", FEATURES, train=unlabelled(some), test=some)
    assert refusal("blind", tmp_path) == (
        "blind (train): expected records with image and label, found none"
    )


def unlabelled(examples):
    return [example | {"label": -1} for example in examples]


def test_records_without_a_label_are_left_out(tmp_path):
    some, pixels = examples(12)
    splits = {"validation": unlabelled(some[:1]) + some[:6], "test": unlabelled(some)}
    prepare(tmp_path / "blind" / "1.0.0", FEATURES, train=some, **splits)
    raw = tfds.read("blind", tfds.find("blind", tmp_path))
    assert {split: len(y) for split, (_, y) in raw.splits.items()} == {"train": 12, "validation": 6}
    np.testing.assert_array_equal(raw.splits["validation"][0][..., 0], pixels[:6])
    assert raw.source == (
        "TensorFlow Datasets, blind 1.0.0, left out for want of image or label: "
        "1 of 7 in validation, 12 of 12 in test"
    )
    task = tasks.load("blind", data_dir=tmp_path)  # a test split is cut where there is no other
    assert [len(split.labels) for split in (task.train, task.validation, task.test)] == [9, 6, 3]


def test_an_empty_split_is_none(tmp_path):
    prepare(tmp_path / "hollow" / "1.0.0", FEATURES, train=examples(9)[0], test=[])
    raw = tfds.read("hollow", tfds.find("hollow", tmp_path))
    assert set(raw.splits) == {"train"} and raw.source == "TensorFlow Datasets, hollow 1.0.0"


def test_files_that_cannot_be_read(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    prepare(folder, FEATURES, train=examples(9)[0])
    (record,) = folder.glob("*array_record*")
    record.rename(tmp_path / "elsewhere")
    assert refusal("tiny", tmp_path).startswith("tiny (train): cannot be read: ")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert refusal("tiny", tmp_path) == (
        "tiny: expected files in the format array_record, found tfrecord; prepare it again, "
        "see BUILD.md"
    )


def test_unknown_names(tmp_path):
    prepare(tmp_path / "tiny" / "1.0.0", FEATURES, train=examples(9)[0])
    known = ", ".join(sorted(tasks.names()))
    advice = "and no such file or folder; a TFDS set must be prepared first, see BUILD.md"
    assert refusal("tinny", tmp_path) == (
        f"unknown task 'tinny'; did you mean 'tiny'? Known: {known}, tiny. There is "
        f"no TFDS set of that name in data_dir={str(tmp_path)!r}, {advice}"
    )
    assert refusal("digit", None) == (
        "unknown task 'digit'; did you mean 'digits' or 'digits_rows'? Known: "
        f"{known}. No data_dir was given to look for a TFDS set of that name, {advice}"
    )
    assert refusal("", tmp_path).startswith("unknown task ''")
    nowhere = tmp_path / "nowhere"
    assert refusal("mnist", nowhere) == f"data_dir={str(nowhere)!r}: there is no such folder"
    assert refusal("digits", nowhere) == f"data_dir={str(nowhere)!r}: there is no such folder"
    close = tmp_path / "tinyy"
    assert refusal("mnist", close).endswith(
        f"no such folder; did you mean {str(tmp_path / 'tiny')!r}?"
    )


def test_a_prepared_set_is_preferred_to_a_folder(tmp_path, monkeypatch):
    prepare(tmp_path / "tiny" / "1.0.0", FEATURES, train=examples(9)[0])
    monkeypatch.chdir(tmp_path)
    assert tasks.load("tiny", data_dir=".").class_names == ("ant", "bee")
