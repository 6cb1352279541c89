"""Which implementation a call would take, and why."""

from collections.abc import Callable
from typing import Any

import jax

from attnconv.lowering.choice import Choice, listen


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Choice, ...]:
    """The form that each operator takes in `function(*args, **kwargs)`, and the rule that decided.

    The function is traced, not run: an operator, or anything that calls operators, such as a model.
    Operators that have one form on every platform are not listed. What was traced before inside a
    function under `jit` is not traced again; ask of the function itself.

    Args:
      function: called with tracers in place of the arrays among its arguments.
      args: arrays, or `jax.ShapeDtypeStruct`s, and what else the function takes.
      kwargs: handed on as they are.

    >>> from attnconv import functional as F
    >>> x, kernel = jax.numpy.ones((8, 32, 32, 64)), jax.numpy.ones((3, 3, 1, 64))
    >>> for choice in explain(F.conv, x, kernel, groups=64):
    ...     print(choice.platform, choice.form, choice.reason, sep=": ")
    cpu: shifts: one kernel of 9 <= 64 offsets for each channel
    cuda: xla: there is no kernel for a call without a CUDA device
    other: xla: XLA's own is fast there
    """
    with listen() as choices:
        jax.eval_shape(lambda *arrays: function(*arrays, **kwargs), *args)
    return tuple(choices)
