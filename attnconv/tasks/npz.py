"""Arrays of a `.npz` by name, without pickled objects."""

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from attnconv.errors import UsageError

_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the arrays that are there, and the names of all that are.

    Raises:
      UsageError: naming the array that cannot be read.
    """
    stored: dict[str, np.ndarray] = {}
    reading = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            for name in wanted:
                if name in names:
                    reading = f"{path}: {name}"
                    with archive.open(f"{name}.npy") as file:
                        stored[name] = np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        why = " ".join(str(error).split())
        why = "pickled objects are refused" if "pickle" in why else why
        raise UsageError(f"{reading}: cannot be read ({why})") from error
    return stored, names
