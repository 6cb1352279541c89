"""How large a model is: two numbers, and the fit of them to a budget."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence

from attnconv.errors import UsageError

TOLERANCE = 0.02
MOST_STAGES = 3
STRETCH = 8  # how far the proportions may be from the usual ones


@dataclasses.dataclass(frozen=True)
class Size:
    """`width` sets the features of the trunk, `hidden` those of the layers between.

    `hidden` is the fine adjustment: a family's cost is affine in it and grows in small steps.
    """

    width: int
    hidden: int


def stage_count(grid: Sequence[int]) -> int:
    """Stages of a pyramid over the grid: halved while its shorter side is 8 or more.

    >>> stage_count((8, 8)), stage_count((28, 28)), stage_count((224, 224)), stage_count((5,))
    (2, 3, 3, 1)
    """
    stages, side = 1, min(grid)
    while side >= 8 and stages < MOST_STAGES:
        stages, side = stages + 1, -(-side // 2)
    return stages


def fit(
    cost: Callable[[Size], int], default: Size, *, multiple: int, budget: int, what: str
) -> Size:
    """The size whose cost lies within 2 % of the budget, in proportions nearest to the default's.

    Args:
      cost: parameters or FLOPs of a size; grows with the width, affine in `hidden`.
      default: its ratio of `hidden` to `width` is the one aimed at.
      multiple: the width is a multiple of it.
      budget: the cost asked for.
      what: names the model and the unit in the error.

    Raises:
      UsageError: no width reaches the budget.

    >>> fit(lambda s: 9 * s.width**2 + s.width * s.hidden, Size(16, 64), multiple=4, budget=5000,
    ...     what="parameters")
    Size(width=20, hidden=70)
    """

    def nominal(width: int) -> Size:
        return Size(width, max(1, round(width * default.hidden / default.width)))

    # A model is built for each cost: guesses that take it for a square save most of them.
    cost = functools.cache(cost)
    low, high, guess = 0, sys.maxsize, max(1, default.width // multiple)
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        found = cost(nominal(guess * multiple))
        if found <= budget:
            low = guess
        else:
            high = guess
        guess = round(guess * math.sqrt(budget / found))

    fits = []
    for width in {max(low, 1) * multiple, high * multiple}:
        usual = nominal(width)
        other = max(2, usual.hidden)
        at_one, at_other = cost(Size(width, 1)), cost(Size(width, other))
        hidden = max(1, round(1 + (budget - at_one) * (other - 1) / (at_other - at_one)))
        stretch = max(hidden / usual.hidden, usual.hidden / hidden)
        if stretch <= STRETCH and abs(cost(Size(width, hidden)) - budget) <= TOLERANCE * budget:
            fits.append((stretch, Size(width, hidden)))
    if not fits:
        near = sorted({cost(nominal(max(low, 1) * multiple)), cost(nominal(high * multiple))})
        raise UsageError(
            f"budget={budget}: expected a number of {what} that some width reaches within 2 %, "
            f"such as {' or '.join(map(str, near))}"
        )
    return min(fits, key=lambda f: (f[0], f[1].width))[1]
