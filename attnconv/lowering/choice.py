"""Which form each operator takes, told to who asks while a function is traced."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Choice(NamedTuple):
    """The form that one call takes.

    Attributes:
      operator: the function of `attnconv.functional`.
      platform: "cpu", "cuda", "other" for every other one, or "any".
      form: its name.
      reason: the rule that decided, with the numbers that it saw.
    """

    operator: str
    platform: str
    form: str
    reason: str


_listening: ContextVar[list[Choice] | None] = ContextVar("listening", default=None)


def note(operator: str, platform: str, form: str, reason: str) -> None:
    """Tells who listens, if anyone does, of a choice."""
    choices = _listening.get()
    if choices is not None:
        choices.append(Choice(operator, platform, form, reason))


@contextlib.contextmanager
def listen() -> Iterator[list[Choice]]:
    """Collects the choices that are made inside."""
    choices: list[Choice] = []
    token = _listening.set(choices)
    try:
        yield choices
    finally:
        _listening.reset(token)
