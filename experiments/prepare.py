"""Downloads a set of TensorFlow Datasets and prepares it, to be read without TensorFlow.

    python -m experiments.prepare --dataset=mnist --data_dir=DIR
    python -m experiments.prepare --dataset=scan/simple --data_dir=DIR --manual_dir=DOWNLOADS
    python -m experiments.prepare --dataset=cifar10_3k --data_dir=DIR

This is the one step that needs TensorFlow: pip install -e '.[prepare]'. It is done once, in the
format array_record; a set that is there already is left alone. Afterwards --task=mnist
--data_dir=DIR serves it. What is stopped on the way leaves no set, and is done again by the same
command, from what was downloaded.
"""

import difflib
import importlib.util
import os
from pathlib import Path
from typing import Any

from absl import flags

from attnconv.errors import UsageError
from experiments import common

flags.DEFINE_string(
    "dataset", None, "A TFDS set: name, name/config or name/config:version; or cifar10_3k."
)
flags.DEFINE_string(
    "manual_dir", None, "Folder with files that are downloaded already, for TFDS to find."
)
flags.declare_key_flag("data_dir")
FLAGS = flags.FLAGS

FORMAT = "array_record"
NEEDED = ("tensorflow", "importlib_resources")  # TFDS imports the second, and does not declare it
_LONGEST = 500  # characters of another's error


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> Path:
    """Downloads and prepares a set, and returns the folder it is in.

    Args:
      name: as TFDS calls it, with its configuration and version where wanted, or `cifar10_3k`.
      data_dir: where the prepared sets are.
      manual_dir: where files are that are downloaded already.

    Raises:
      UsageError: TensorFlow is missing, there is no such set, or TFDS could not prepare it.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise UsageError(f"manual_dir={str(manual_dir)!r}: there is no such folder")
    lacking = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if lacking:
        raise UsageError(
            f"preparing a set needs {' and '.join(lacking)}: pip install -e '.[prepare]'"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow tells of its build
    import tensorflow_datasets as tfds

    import attnconv.tasks.cifar10_3k  # noqa: F401, so that TFDS finds it

    download = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        # A set that is there in another format is not overwritten.
        builder.download_and_prepare(download_config=download, file_format=FORMAT)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name, error, tfds) from None
    except Exception as error:  # a builder may raise anything
        raise UsageError(f"{name}: TFDS did not prepare it: {_one_line(error)}") from error
    found = builder.info.file_format.value
    if found != FORMAT:
        raise UsageError(
            f"{name}: expected the format {FORMAT}, found {found} in {builder.data_dir}, which was "
            "there before; remove it or name another data_dir"
        )
    return Path(builder.data_dir)


def _unknown(name: str, error: Exception, tfds: Any) -> UsageError:
    try:
        known = tfds.list_builders(with_community_datasets=False)
    except Exception:  # it reads the metadata of every set, in whatever state they are
        return UsageError(f"unknown TFDS set {name!r}: {_one_line(error)}")
    near = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], known, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UsageError(f"unknown TFDS set {name!r}{hint or f', none of {len(known)} is like it'}")


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def main() -> None:
    if not FLAGS.dataset:
        raise UsageError("dataset: expected the name of a TFDS set, as in --dataset=mnist")
    if not FLAGS.data_dir:
        raise UsageError("data_dir: expected the folder to put the set in, as in --data_dir=data")
    data_dir = Path(FLAGS.data_dir).expanduser()
    manual_dir = None if FLAGS.manual_dir is None else Path(FLAGS.manual_dir).expanduser()
    folder = prepare(FLAGS.dataset, data_dir, manual_dir)
    task = Path(os.path.relpath(folder.parent, data_dir)).as_posix()
    print(f"{folder} is prepared: --task={task} --data_dir={FLAGS.data_dir}")


if __name__ == "__main__":
    common.launch(main)
