"""The user's own files, by what they are: a folder, a `.npz`, a `.jsonl`."""

import os
from pathlib import Path

from attnconv.errors import UsageError
from attnconv.tasks import arrays, audio, graphs, images, jsonl
from attnconv.tasks.raw import Raw


def read(path: Path) -> Raw:
    """The examples of a folder of images, waves or `.jsonl` files, a `.npz` or a `.jsonl`.

    Raises:
      UsageError: if it is none of these, cannot be read, or its parts do not fit together.
    """
    path = Path(os.path.abspath(path))  # so that "." has a name too
    if path.is_dir():
        if any(path.glob("*.jsonl")):
            return jsonl.read(path)
        return audio.folder(path) if any(path.rglob("*.[wW][aA][vV]")) else images.read(path)
    if path.suffix == ".jsonl":
        return jsonl.read(path)
    if path.suffix == ".npz":
        return graphs.read(path) if graphs.holds_graph(path) else arrays.read(path)
    raise UsageError(f"task {str(path)!r}: expected a folder of images or .wav, a .npz or a .jsonl")
