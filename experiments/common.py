"""What every entrypoint shares: how it starts, errors as one line, and some flags."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from attnconv import allocator
from attnconv.errors import UsageError

# An entrypoint has those that it declares as its own.
flags.DEFINE_boolean("list", False, "Show what there is to choose from.")
flags.DEFINE_string("data_dir", None, "Folder with prepared TFDS sets.")
flags.DEFINE_string("out", None, "Folder for the results. Default: one in runs/.")
flags.DEFINE_integer("seed", 0, "Fixes the splits and is the first of the runs' seeds.")
FLAGS = flags.FLAGS


def launch(main: Callable[[], None], *, listing: Callable[[], None] | None = None) -> None:
    """Parses the flags and calls main; what a person got wrong is one line and exit code 2.

    `listing` is what --list shows, of an entrypoint that has this flag.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = FLAGS(list(argv))
        except flags.Error as error:
            fail(error)
        own = {flag.name for flag in FLAGS.get_key_flags_for_module(argv[0])}
        for flag in FLAGS.flags_by_module_dict()[__name__]:
            if flag.present and flag.name not in own:
                fail(f"Unknown command line flag {flag.name!r}")
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}: every option is a flag, as in --task=digits")
        return rest

    def guarded(argv: Sequence[str]) -> None:
        try:
            if FLAGS.list and listing is not None:
                listing()
            else:
                main()
        except UsageError as error:
            fail(error)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    keep_compiled()
    allocator.keep_freed()
    logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it did not find
    app.run(guarded, flags_parser=parse)


def keep_compiled() -> None:
    """What took long to compile stays on disk for the next command, in a folder of our own."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder / "attnconv" / "jax"))


def fail(error: object) -> Any:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
