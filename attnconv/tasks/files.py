"""The user's own files: a folder of images, or arrays in a `.npz`."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from attnconv.errors import UsageError, unknown
from attnconv.tasks.raw import SPLIT_NAMES, Examples, Raw, as_inputs, official

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # 16- and 32-bit modes begin so; PIL would clip them to 8 bits
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
_ARRAYS = {
    "train": ("x", "y"),
    "validation": ("x_validation", "y_validation"),
    "test": ("x_test", "y_test"),
}


def read(path: Path) -> Raw:
    """The examples of a folder of images or of a `.npz` file.

    A folder holds `CLASS/*.png|jpg|jpeg`, or `train/CLASS/` with `test/CLASS/`,
    `validation/CLASS/` or both. All images have one size; they are grey if every one of them is,
    else RGB.

    A `.npz` holds `x` and `y`, and for official splits `x_test`, `y_test`, `x_validation` and
    `y_validation`. `x` is images `[n, H, W, C]`, grey images `[n, H, W]` of uint8, or sequences
    of vectors `[n, T, D]` of any other dtype; `y` is `[n]`, integers or strings.

    Raises:
      UsageError: if it is neither, cannot be read, or its parts do not fit together.
    """
    path = Path(os.path.abspath(path))  # so that "." has a name too
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz":
        return _npz(path)
    raise UsageError(f"task {str(path)!r}: expected a folder of images or a .npz file")


def _folder(path: Path) -> Raw:
    files = {split: _files(root) for split, root in _roots(path).items()}
    with ThreadPoolExecutor() as pool:  # PIL decodes without the interpreter's lock
        images = {split: list(pool.map(_decode, of)) for split, of in files.items()}
    first_file, first = files["train"][0], images["train"][0]
    for split in files:
        for file, image in zip(files[split], images[split], strict=True):
            if image.shape[:2] != first.shape[:2]:
                raise UsageError(
                    f"{file}: expected {_size(first)} pixels, as {first_file} has, "
                    f"found {_size(image)}"
                )
    channels = 1 if all(image.ndim == 2 for of in images.values() for image in of) else 3
    inputs = {
        split: np.stack([_expand(image, channels) for image in of]) for split, of in images.items()
    }
    labels = {split: [file.parent.name for file in of] for split, of in files.items()}
    return _raw(path.name, f"images in {path}", inputs, labels)


def _roots(path: Path) -> dict[str, Path]:
    """The folder of each split; the whole folder is train if it is not cut into splits."""
    folders = {folder.name: folder for folder in _folders(path)}
    # A class may be called train: it holds images, a split holds the folders of its classes.
    if "train" not in folders or not _folders(folders["train"]):
        return {"train": path}
    splits = official(folders)
    others = sorted(set(folders) - set(splits.values()))
    if others:
        known = [name for names in SPLIT_NAMES.values() for name in names]
        raise UsageError(f"{path}: {unknown('split', others[0], known)}, one name for each split")
    return {split: folders[name] for split, name in splits.items()}


def _files(root: Path) -> list[Path]:
    """Every image in the folders of the classes."""
    files = []
    for folder in _folders(root):
        images = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not images:
            suffixes = " ".join(_SUFFIXES)
            raise UsageError(f"{folder}: expected images of a class ({suffixes}), found none")
        files += images
    if not files:
        raise UsageError(f"{root}: expected a folder of images for each class, found no folder")
    return files


def _folders(path: Path) -> list[Path]:
    visible = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.is_dir())


def _decode(file: Path) -> np.ndarray:
    """`[H, W]` if the image is grey, else `[H, W, 3]`, uint8; transparency is dropped."""
    try:
        image: Image.Image
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file}: cannot be read as an image ({error})") from error
    if image.mode.startswith(_DEEP):
        raise UsageError(f"{file}: expected 8 bits per channel, found mode {image.mode}")
    if image.mode == "P":  # a palette with transparency warns unless it goes through RGBA
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))


def _expand(image: np.ndarray, channels: int) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], channels, axis=-1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _npz(path: Path) -> Raw:
    stored = _stored(path)
    inputs, labels = {}, {}
    for split, (x, y) in _ARRAYS.items():
        if x in stored:
            inputs[split] = as_inputs(stored[x], called=f"{path}: {x}")
            labels[split] = _labels(stored[y], len(stored[x]), called=f"{path}: {y}", of=x)
    return _raw(path.stem, f"arrays in {path}", inputs, labels)


def _stored(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the task, x and y of each split together; others are left alone."""
    known = [name for pair in _ARRAYS.values() for name in pair]
    stored: dict[str, np.ndarray] = {}
    reading = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            for name in known:
                if name in names:
                    reading = f"{path}: {name}"
                    with archive.open(f"{name}.npy") as file:
                        stored[name] = np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        why = " ".join(str(error).split())
        why = "pickled objects are refused" if "pickle" in why else why
        raise UsageError(f"{reading}: cannot be read ({why})") from error
    for name in names:
        if name not in known and name.startswith(("x_", "y_")):  # a misspelt split, most likely
            raise UsageError(f"{path}: {unknown('array', name, known)}")
    for split, pair in _ARRAYS.items():
        lacking = [name for name in pair if name not in stored]
        if lacking and (split == "train" or len(lacking) == 1):
            found = ", ".join(map(repr, sorted(names))) or "nothing"
            raise UsageError(f"{path}: expected an array {lacking[0]!r}, found {found}")
    return stored


def _labels(y: np.ndarray, n: int, *, called: str, of: str) -> list[int] | list[str]:
    if y.shape != (n,):
        raise UsageError(f"{called}: expected shape ({n},), a label for each {of}, got {y.shape}")
    if y.dtype.kind not in "biuU":
        raise UsageError(f"{called}: expected integers or strings, got dtype {y.dtype}")
    return y.tolist()


def _raw(
    name: str,
    source: str,
    inputs: Mapping[str, np.ndarray],
    labels: Mapping[str, list[int] | list[str]],
) -> Raw:
    """Numbers the labels in sorted order."""
    values = {value for of in labels.values() for value in of}
    types = sorted({type(value).__name__ for value in values})
    if len(types) > 1:
        raise UsageError(f"{name}: expected labels of one type, got {' and '.join(types)}")
    index = {value: i for i, value in enumerate(sorted(values))}
    splits: dict[str, Examples] = {
        split: (inputs[split], np.array([index[value] for value in of], np.int64))
        for split, of in labels.items()
    }
    return Raw(name, source, tuple(str(value) for value in index), splits)
