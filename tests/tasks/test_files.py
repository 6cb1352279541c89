"""Folders of images and .npz files, made here: what is read, and every refusal."""

import pathlib
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from attnconv import tasks
from attnconv.errors import UsageError
from attnconv.tasks import files

RNG = np.random.default_rng(0)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def grey(height=5, width=4):
    return RNG.integers(0, 256, [height, width], np.uint8)


def folder(root, classes=("cat", "dog"), each=4):
    """Writes grey images, and returns them by file."""
    made = {}
    for name in classes:
        for index in range(each):
            made[root / name / f"{index}.png"] = grey()
    for file, pixels in made.items():
        save(file, pixels)
    return made


def refusal(path, **arguments):
    """The one line with which a path is refused, the path itself cut out."""
    with pytest.raises(UsageError) as error:
        tasks.load(str(path), **arguments)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(path), "PATH")


def test_a_folder_of_classes(tmp_path):
    made = folder(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "pets" / ".hidden").mkdir()
    raw = files.read(tmp_path / "pets")
    x, y = raw.splits["train"]
    assert (raw.name, raw.class_names, set(raw.splits)) == ("pets", ("cat", "dog"), {"train"})
    np.testing.assert_array_equal(x, np.stack(list(made.values()))[..., np.newaxis])
    assert (x.dtype, y.tolist()) == (np.uint8, [0] * 4 + [1] * 4)
    task = tasks.load(str(tmp_path / "pets"))
    assert task.spec.shape == (5, 4, 1) and task.spec.classes == 2
    assert [len(split.labels) for split in (task.train, task.validation, task.test)] == [4, 2, 2]


def test_official_folders(tmp_path):
    parts = {split: folder(tmp_path / split, each=3) for split in ("train", "valid", "test")}
    raw = files.read(tmp_path)
    assert list(raw.splits) == ["train", "validation", "test"]
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        np.testing.assert_array_equal(raw.splits[split][0][..., 0], list(parts[name].values()))


def test_a_class_may_be_called_train(tmp_path):
    folder(tmp_path, classes=("bus", "train"))
    raw = files.read(tmp_path)
    assert raw.class_names == ("bus", "train") and set(raw.splits) == {"train"}


def test_colour_in_one_image_makes_all_of_them_rgb(tmp_path):
    made = folder(tmp_path)
    colour = RNG.integers(0, 256, [5, 4, 3], np.uint8)
    save(tmp_path / "dog" / "9.PNG", colour)
    x, _ = files.read(tmp_path).splits["train"]
    assert x.shape == (9, 5, 4, 3)
    np.testing.assert_array_equal(x[-1], colour)
    for channel in range(3):
        np.testing.assert_array_equal(x[:-1, ..., channel], list(made.values()))


def test_transparency_and_palettes(tmp_path):
    folder(tmp_path)
    opaque = RNG.integers(0, 256, [5, 4, 4], np.uint8)
    save(tmp_path / "dog" / "8.png", opaque)
    indices = np.arange(20, dtype=np.uint8).reshape(5, 4) % 3
    colours = RNG.integers(0, 256, [3, 3], np.uint8)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "dog" / "9.png", transparency=b"\x00\x10\x20")
    x, _ = files.read(tmp_path).splits["train"]
    np.testing.assert_array_equal(x[-2], opaque[..., :3])
    np.testing.assert_array_equal(x[-1], colours[indices])


def test_jpeg(tmp_path):
    for name, level in (("dark", 40), ("light", 200)):
        for index in range(3):
            flat = np.full([8, 8], level, np.uint8)
            save(tmp_path / name / f"{index}.{('jpg', 'jpeg', 'JPG')[index]}", flat)
    x, y = files.read(tmp_path).splits["train"]
    assert (x == np.where(y == 0, 40, 200)[:, None, None, None]).all() and x.shape == (6, 8, 8, 1)


def test_images_of_other_sizes(tmp_path):
    folder(tmp_path)
    save(tmp_path / "dog" / "2.png", grey(6, 4))
    assert refusal(tmp_path) == (
        "PATH/dog/2.png: expected 4 x 5 pixels, as PATH/cat/0.png has, found 4 x 6"
    )


def test_unreadable_images(tmp_path):
    folder(tmp_path)
    broken = tmp_path / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert refusal(tmp_path).startswith("PATH/dog/2.png: cannot be read as an image (")


GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6


@pytest.mark.parametrize(("colours", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
def test_deep_images_are_refused_and_not_cut_off(tmp_path, colours, channels):
    folder(tmp_path)
    (tmp_path / "dog" / "2.png").write_bytes(png_of_16_bits(colours, channels))
    assert refusal(tmp_path) == "PATH/dog/2.png: expected 8 bits per channel, found 16"


def png_of_16_bits(colours, channels, height=5, width=4):
    """By the specification: PIL writes 16 bits of grey only."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    rows = zlib.compress(height * bytes(1 + 2 * width * channels))
    parts = (b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_images_are_called_as_their_files_are(tmp_path):
    folder(tmp_path)
    task = tasks.load(str(tmp_path), hold_out="3")
    np.testing.assert_array_equal(task.test.labels, [0, 1])
    assert len(task.train.labels) + len(task.validation.labels) == 6


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    folder(tmp_path)
    seen = pathlib.Path.iterdir

    def iterdir(path):
        if path == tmp_path / "dog":
            raise PermissionError(13, "Permission denied")
        return seen(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", iterdir)
    assert refusal(tmp_path) == "PATH/dog: expected a folder to read, got Permission denied"


def test_folders_that_are_no_set(tmp_path):
    empty = "PATH: expected a folder of images for each class, found no folder"
    assert refusal(tmp_path) == empty
    save(tmp_path / "0.png", grey())
    assert refusal(tmp_path) == empty
    folder(tmp_path, classes=("cat",))
    assert refusal(tmp_path) == f"{tmp_path.name}: expected at least 2 classes, found 1"
    (tmp_path / "cow").mkdir()
    expected = "PATH/cow: expected images of a class (.png .jpg .jpeg), found none"
    assert refusal(tmp_path) == expected


def test_split_folders_that_do_not_fit(tmp_path):
    for split in ("train", "test"):
        folder(tmp_path / split)
    folder(tmp_path / "tets")
    assert refusal(tmp_path).startswith("PATH: unknown split 'tets'; did you mean 'test'")
    (tmp_path / "tets").rename(tmp_path / "val")
    folder(tmp_path / "valid")
    assert refusal(tmp_path) == (
        "PATH: expected one name for the validation split, found valid and val"
    )
    (tmp_path / "valid").rename(tmp_path / ".valid")
    folder(tmp_path / "test", classes=("wolf",))
    assert refusal(tmp_path).endswith(
        "class 'wolf' is in the test split and not in the training split"
    )


def test_paths(tmp_path, monkeypatch):
    folder(tmp_path / "my.pets")
    folder(tmp_path / "digits")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    expected = tasks.load(str(tmp_path / "my.pets"))
    for name in ("~/my.pets", "my.pets", "./my.pets", "my.pets/"):
        task = tasks.load(name)
        assert task.name == "my.pets"
        np.testing.assert_array_equal(task.test.inputs, expected.test.inputs)
    assert tasks.load("digits").spec.classes == 10  # an embedded name is not a path ...
    assert tasks.load("./digits").spec.classes == 2  # ... and a path is not an embedded name
    monkeypatch.chdir(tmp_path / "digits")
    assert tasks.load(".").name == "digits"
    (tmp_path / "table.csv").write_text("1,2")
    assert refusal(tmp_path / "table.csv") == (
        "task 'PATH': expected a folder of images or .wav, a .npz or a .jsonl"
    )
    assert refusal("./nothing") == "task 'PATH': there is no such file or folder"
    assert refusal("nothing.npz") == "task 'PATH': there is no such file or folder"


def arrays(n=12, shape=(6, 3)):
    return {"x": RNG.normal(size=[n, *shape]), "y": np.arange(n) % 3}


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((7, 5), np.uint8, (7, 5, 1)),  # grey images
        ((7, 5), np.float64, (7, 5)),  # sequences of vectors
        ((7, 5), np.int64, (7, 5)),
        ((7, 5, 3), np.uint8, (7, 5, 3)),
        ((7, 5, 2), np.float32, (7, 5, 2)),
    ],
)
def test_rank_and_dtype_say_what_x_is(tmp_path, shape, dtype, expected):
    x = RNG.integers(0, 100, [12, *shape]).astype(dtype)
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(12) % 3)
    assert tasks.load(str(tmp_path / "set.npz")).spec.shape == expected


def test_npz_splits_and_labels(tmp_path):
    x = RNG.normal(size=[30, 6, 2])
    y = np.array(["owl", "ant", "bee"] * 10)
    path = tmp_path / "bugs.npz"
    np.savez_compressed(
        path, x=x, y=y, x_test=x[:6], y_test=y[:6], x_validation=x[6:9], y_validation=y[6:9], note=1
    )
    task = tasks.load(str(path))
    assert (task.name, task.class_names) == ("bugs", ("ant", "bee", "owl"))
    assert task.train.labels.tolist() == [2, 0, 1] * 10
    assert task.validation.labels.tolist() == [2, 0, 1] and task.test.labels.size == 6
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    np.testing.assert_allclose(task.test.inputs, (x[:6] - mean) / deviation, rtol=1e-5, atol=1e-6)
    np.savez(path, x=x, y=np.arange(30) % 3 * 10 - 5)
    assert tasks.load(str(path)).class_names == ("-5", "5", "15")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "PATH: expected an array 'x', found 'y'"),
        ({"y": None}, "PATH: expected an array 'y', found 'x'"),
        ({"x": None, "y": None}, "PATH: expected an array 'x', found nothing"),
        (
            {"x_test": np.zeros([2, 6, 3])},
            "PATH: expected an array 'y_test', found 'x', 'x_test', 'y'",
        ),
        (
            {"x": np.zeros([12, 6])},
            "PATH: x: expected images [n, H, W, C], grey images [n, H, W] of uint8 or sequences "
            "[n, T, D], got shape (12, 6)",
        ),
        (
            {"x": np.zeros([12, 0, 3])},
            "PATH: x: expected no size to be zero, got shape (12, 0, 3)",
        ),
        (
            {"x": np.full([12, 6, 3], "a")},
            "PATH: x: expected numbers, got dtype <U1",
        ),
        (
            {"x": np.where(np.arange(216).reshape(12, 6, 3) > 200, np.nan, 1)},
            "PATH: x: 15 values are not finite, the first at (11, 1, 0)",
        ),
        (
            {"x_test": np.full([2, 6, 3], np.inf), "y_test": np.arange(2)},
            "PATH: x_test: 36 values are not finite, the first at (0, 0, 0)",
        ),
        ({"y": np.arange(11)}, "PATH: y: expected shape (12,), a label for each x, got (11,)"),
        ({"y": np.eye(12)}, "PATH: y: expected shape (12,), a label for each x, got (12, 12)"),
        ({"y": np.zeros(12)}, "PATH: y: expected integers or strings, got dtype float64"),
        (
            {"x_test": np.zeros([2, 6, 3]), "y_test": np.array(["0", "1"])},
            "set: expected labels of one type, got int and str",
        ),
        (
            {"x_test": np.zeros([2, 6, 3]), "y_test": np.array([0, 7])},
            "set: class '7' is in the test split and not in the training split",
        ),
        (
            {"y": np.array(["a", "b", "c"] * 4, object)},
            "PATH: y: cannot be read (pickled objects are refused)",
        ),
        (
            {"x_val": np.zeros([2, 6, 3])},
            "PATH: unknown array 'x_val'; did you mean 'x_validation'? Known: x, x_test, "
            "x_validation, y, y_test, y_validation",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, message):
    stored = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "set.npz", **stored)
    assert refusal(tmp_path / "set.npz") == message


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"not a zip file")
    assert refusal(path) == "PATH: cannot be read (File is not a zip file)"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(path).startswith("PATH: cannot be read (")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no header")
        archive.writestr("y.npy", b"")
    assert refusal(path).startswith("PATH: x: cannot be read (")
