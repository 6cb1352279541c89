"""Preparing a TFDS set: what is missing, what TFDS says, and the genuine step where it can run."""

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar

from attnconv.errors import UsageError
from attnconv.tasks.cifar10_3k import Cifar10_3k
from attnconv.tasks.tfds import read
from experiments import prepare

ROOT = Path(__file__).parents[2]
ORIGINALS = ROOT / ".." / "shared" / "data" / "raw" / "mnist"


def start(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def has_tensorflow():
    return all(importlib.util.find_spec(module) is not None for module in prepare.NEEDED)


@pytest.fixture
def pretended(monkeypatch):
    """As if TensorFlow were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())


def refusal(*args):
    with pytest.raises(UsageError) as error:
        prepare.prepare(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            [],
            "error: dataset: expected the name of a TFDS set, as in --dataset=mnist",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--dataset=mnist"],
            "error: data_dir: expected the folder to put the set in, as in ",
            marks=pytest.mark.slow,
        ),
        (["--dataset=mnist", "--data_dir={}", "--manual_dir={}/no"], "error: manual_dir='"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(tmp_path, flags, message):
    done = start(*(flag.format(tmp_path / "sets") for flag in flags))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "sets").exists()


@pytest.mark.skipif(has_tensorflow(), reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(tmp_path):
    done = start("--dataset=mnist", f"--data_dir={tmp_path / 'sets'}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: preparing a set needs tensorflow")
    assert line.endswith(": pip install -e '.[prepare]'")
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("lacking", [["importlib_resources"], list(prepare.NEEDED)])
def test_what_is_missing_is_named(monkeypatch, tmp_path, lacking):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module in lacking else object()
    )
    monkeypatch.setattr(tfds, "builder", None)  # which would fail if it were called
    assert refusal("mnist", tmp_path) == (
        f"preparing a set needs {' and '.join(lacking)}: pip install -e '.[prepare]'"
    )


def builder(folder, *, file_format="array_record", error=None):
    """A builder that notes how it was asked."""
    asked = {}

    def download_and_prepare(**options):
        asked.update(options)
        if error is not None:
            raise error

    info = types.SimpleNamespace(file_format=types.SimpleNamespace(value=file_format))
    return asked, types.SimpleNamespace(
        data_dir=str(folder), info=info, download_and_prepare=download_and_prepare
    )


def test_tfds_is_asked_for_array_record(pretended, monkeypatch, tmp_path):
    folder = tmp_path / "tiny" / "small" / "1.0.0"
    asked, made = builder(folder)
    called = []
    monkeypatch.setattr(tfds, "builder", lambda name, **how: called.append((name, how)) or made)
    assert prepare.prepare("tiny/small", tmp_path, tmp_path) == folder
    assert called == [("tiny/small", {"data_dir": tmp_path})]
    assert asked["file_format"] == "array_record"
    assert asked["download_config"].manual_dir == tmp_path


def test_a_set_that_is_there_in_another_format(pretended, monkeypatch, tmp_path):
    _, made = builder(tmp_path / "tiny" / "1.0.0", file_format="tfrecord")
    monkeypatch.setattr(tfds, "builder", lambda name, **how: made)
    assert refusal("tiny", tmp_path) == (
        f"tiny: expected the format array_record, found tfrecord in {tmp_path}/tiny/1.0.0, which "
        "was there before; remove it or name another data_dir"
    )


def test_whatever_a_builder_raises_is_one_line(pretended, monkeypatch, tmp_path):
    _, made = builder(tmp_path, error=AssertionError(f"first\n  second {'x' * 999}"))
    monkeypatch.setattr(tfds, "builder", lambda name, **how: made)
    said = refusal("tiny", tmp_path)
    assert said.startswith("tiny: TFDS did not prepare it: AssertionError: first second xxx")
    assert said.endswith("xxx...") and len(said) < 600


def test_unknown_names(pretended, monkeypatch, tmp_path):
    def unknown(name, **how):
        raise tfds.core.DatasetNotFoundError(f"Dataset {name} not found.\nAvailable: 1,000 names")

    monkeypatch.setattr(tfds, "builder", unknown)
    monkeypatch.setattr(tfds, "list_builders", lambda **how: ["mnist", "emnist", "scan"])
    assert refusal("mnits", tmp_path) == (
        "unknown TFDS set 'mnits'; did you mean 'mnist' or 'emnist'?"
    )
    assert refusal("scam/simple:1.1.1", tmp_path) == (
        "unknown TFDS set 'scam/simple:1.1.1'; did you mean 'scan'?"
    )
    assert refusal("qqq", tmp_path) == "unknown TFDS set 'qqq', none of 3 is like it"

    def broken(**how):
        raise ImportError("no module")

    monkeypatch.setattr(tfds, "list_builders", broken)
    assert refusal("mnits", tmp_path) == (
        "unknown TFDS set 'mnits': DatasetNotFoundError: Dataset mnits not found. Available: 1,000 "
        "names"
    )


@pytest.mark.skipif(
    not (has_tensorflow() and ORIGINALS.is_dir()),
    reason="TensorFlow is not installed, or the originals are not beside the project",
)
def test_mnist_is_prepared_from_its_originals(tmp_path):
    done = start("--dataset=mnist", f"--data_dir={tmp_path}", f"--manual_dir={ORIGINALS}")
    assert done.returncode == 0, done.stderr
    said = f"{tmp_path}/mnist/3.0.1 is prepared: --task=mnist --data_dir={tmp_path}"
    assert done.stdout.splitlines()[-1] == said
    again = start("--dataset=mnist", f"--data_dir={tmp_path}")
    assert again.stdout.splitlines()[-1] == said


def test_cifar10_3k_is_the_first_of_cifar10(monkeypatch):
    def numbered(path, labels_number):
        return ((np.array([i % 10]), np.full((32, 32, 3), i % 256)) for i in range(10_000))

    monkeypatch.setattr(cifar, "_load_data", numbered)
    monkeypatch.setattr(cifar.Cifar10, "_cifar_info", types.SimpleNamespace(label_keys=["label"]))
    builder = object.__new__(Cifar10_3k)
    for split, count in {"train_": 2000, "test_": 1000}.items():
        found = list(builder._generate_examples(split, ["first", "second"]))
        assert [index for index, _ in found] == list(range(count))
        for index, example in found:
            assert set(example) == {"image", "label"}
            assert example["label"] == index % 10 and (example["image"] == index % 256).all()


@pytest.mark.skipif(not has_tensorflow(), reason="TensorFlow is not installed")
def test_cifar10_3k_is_prepared_from_an_archive(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    records = random.integers(0, 10, (2010, 1 + 3072)).astype(np.uint8)
    names = [f"class {i}" for i in range(10)]
    files = {f"data_batch_{i}.bin": records.tobytes() for i in range(1, 6)}
    files |= {"test_batch.bin": records.tobytes(), "batches.meta.txt": "\n".join(names).encode()}
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (url,) = {url for url in cifar.Cifar10.url_infos if url.endswith(archive.name)}
    info = tfds.core.download.checksums.UrlInfo(
        size=tfds.core.utils.Size(archive.stat().st_size),
        checksum=hashlib.sha256(archive.read_bytes()).hexdigest(),
        filename=archive.name,
    )
    monkeypatch.setattr(Cifar10_3k, "url_infos", {url: info})
    folder = prepare.prepare("cifar10_3k", tmp_path / "sets", tmp_path)
    assert folder == tmp_path / "sets" / "cifar10_3k" / "1.0.0"
    raw = read("cifar10_3k", folder)
    assert raw.class_names == tuple(names)
    for split, count in {"train": 2000, "test": 1000}.items():
        images, labels = raw.splits[split]
        planes = np.moveaxis(images, -1, 1).reshape(count, -1)
        found = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
        assert sorted(map(bytes, found)) == sorted(map(bytes, records[:count]))
