"""Folders with a folder for each class, and those of the splits around them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from attnconv.errors import UsageError
from attnconv.tasks.raw import Examples, Raw, only_official


def roots(path: Path) -> dict[str, Path]:
    """The folder of each split; the whole folder is train if it is not cut into splits."""
    folders = {folder.name: folder for folder in _visible(path)}
    # A class may be called train: it holds files, a split holds the folders of its classes.
    if "train" not in folders or not _visible(folders["train"]):
        return {"train": path}
    splits = only_official(folders, path=path, what="split")
    return {split: folders[name] for split, name in splits.items()}


def files_of_classes(root: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """Every file with one of the suffixes in the folders of the classes; `what` they are."""
    files = []
    for folder in _visible(root):
        found = sorted(file for file in entries(folder) if _is_one(file, suffixes))
        if not found:
            raise UsageError(
                f"{folder}: expected {what} of a class ({' '.join(suffixes)}), found none"
            )
        files += found
    if not files:
        raise UsageError(f"{root}: expected a folder of {what} for each class, found no folder")
    return files


def _is_one(file: Path, suffixes: Sequence[str]) -> bool:
    return file.suffix.lower() in suffixes and not file.name.startswith(".")


def _visible(path: Path) -> list[Path]:
    visible = (entry for entry in entries(path) if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.is_dir())


def entries(path: Path) -> list[Path]:
    """What lies in a folder."""
    try:
        return list(path.iterdir())
    except OSError as error:
        raise UsageError(f"{path}: expected a folder to read, got {error.strerror}") from None


def by_folder(
    path: Path, source: str, inputs: Mapping[str, np.ndarray], files: Mapping[str, Sequence[Path]]
) -> Raw:
    """The examples of these files, labelled by their folders and called as the files are."""
    labels = {split: [file.parent.name for file in of] for split, of in files.items()}
    names = {split: [file.name for file in of] for split, of in files.items()}
    return dataclasses.replace(labelled(path.name, source, inputs, labels), names=names)


def labelled(
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
