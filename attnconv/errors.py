"""One kind of error for a request that cannot be served, and the near matches of a name."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be served.

    Its message is one line for a person: which argument, what was expected, what came. The
    entrypoints print it and exit with code 2.
    """


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not among the known ones, with its near matches.

    >>> print(unknown("model", "atention", ["mlp", "attention"]))
    unknown model 'atention'; did you mean 'attention'? Known: attention, mlp
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UsageError(f"unknown {what} {name!r}{hint} Known: {', '.join(known)}")
