"""The user's own folder of images."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from attnconv.errors import UsageError
from attnconv.tasks.folders import by_folder, files_of_classes, roots
from attnconv.tasks.raw import Raw

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY = ("1", "L", "LA")
_DEPTH_AT = 24  # the byte of a PNG that holds its bits for each channel: of 16 PIL drops 8


def read(path: Path) -> Raw:
    """`CLASS/*.png|jpg|jpeg`, or `train/CLASS/` with `test/CLASS/`, `validation/CLASS/` or both.

    All images have one size; they are grey if every one of them is, else RGB. Names are those of
    the files.

    Raises:
      UsageError: naming the file that cannot be read or has another size, or the folder.
    """
    files = {
        split: files_of_classes(root, _SUFFIXES, "images") for split, root in roots(path).items()
    }
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
    return by_folder(path, f"images in {path}", inputs, files)


def _decode(file: Path) -> np.ndarray:
    """`[H, W]` if the image is grey, else `[H, W, 3]`, uint8; transparency is dropped."""
    try:
        image: Image.Image
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            image.load()
        with file.open("rb") as header:
            deep = image.format == "PNG" and header.read(_DEPTH_AT + 1)[_DEPTH_AT] > 8
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file}: cannot be read as an image ({error})") from error
    if deep:
        raise UsageError(f"{file}: expected 8 bits per channel, found 16")
    if image.mode == "P":  # a palette with transparency warns unless it goes through RGBA
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))


def _expand(image: np.ndarray, channels: int) -> np.ndarray:
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], channels, axis=-1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
