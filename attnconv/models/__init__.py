"""The families of models, from the one with the least bias to the ones with learned bias."""

from typing import Any, Literal

from flax import nnx

from attnconv.errors import UsageError, unknown
from attnconv.models.attention import Attention
from attnconv.models.cnn import CNN
from attnconv.models.cost import flops, parameters
from attnconv.models.hybrid import Hybrid
from attnconv.models.local import Local
from attnconv.models.mlp import MLP
from attnconv.models.size import Size, fit
from attnconv.spec import Spec

FAMILIES: dict[str, Any] = {
    "mlp": MLP,
    "local": Local,
    "cnn": CNN,
    "attention": Attention,
    "hybrid": Hybrid,
}

__all__ = ["FAMILIES", "Size", "Spec", "build", "flops", "parameters", "shapes", "size_for"]


def family(name: str) -> Any:
    """The class of a family, or the error that names the near matches."""
    if name not in FAMILIES:
        raise unknown("model", name, FAMILIES)
    return FAMILIES[name]


def shapes(name: str, spec: Spec, size: Size) -> nnx.Module:
    """A model of that size with the shapes of its parameters in place of their values."""
    return nnx.eval_shape(lambda: family(name)(spec, size, rngs=nnx.Rngs(0)))


def size_for(
    name: str,
    spec: Spec,
    *,
    width: int | None = None,
    budget: int | None = None,
    match: Literal["params", "flops"] = "params",
) -> Size:
    """The size of a family: its default, one of a given width, or the one that fits a budget.

    Raises:
      UsageError: an unknown name, both `width` and `budget`, a budget that no width reaches.

    >>> size_for("mlp", Spec((8, 8, 1), 10), budget=20_000)
    Size(width=108, hidden=109)
    """
    cls = family(name)
    if width is not None and budget is not None:
        raise UsageError(f"width={width}, budget={budget}: expected one of the two, got both")
    if width is not None:
        if width < 1:
            raise UsageError(f"width={width}: expected a positive number")
        return Size(width, max(1, round(width * cls.default.hidden / cls.default.width)))
    if budget is None:
        return cls.default
    if budget < 1:
        raise UsageError(f"budget={budget}: expected a positive number")

    def cost(size: Size) -> int:
        model = shapes(name, spec, size)
        return parameters(model) if match == "params" else flops(model, spec)

    multiple = getattr(cls, "width_multiple", 1)
    unit = "parameters" if match == "params" else "FLOPs"
    what = f"{unit} of {name} on inputs of {spec.shape}"
    return fit(cost, cls.default, multiple=multiple, budget=budget, what=what)


def build(
    name: str,
    spec: Spec,
    *,
    width: int | None = None,
    budget: int | None = None,
    match: Literal["params", "flops"] = "params",
    rngs: nnx.Rngs,
) -> Any:
    """A model of the family for inputs `[B, *spec.shape]`; it returns scores `[B, classes]`.

    Args:
      name: `mlp`, `local`, `cnn`, `attention` or `hybrid`.
      spec: what it must know of the task.
      width: features of the trunk; without it and without a budget the family's default.
      budget: parameters, or FLOPs of a forward pass, that the width is fitted to within 2 %.
      match: what the budget counts, `params` or `flops`.
      rngs: its `params` stream initialises the weights.

    Raises:
      UsageError: an unknown name, both `width` and `budget`, a budget that no width reaches.

    >>> model = build("cnn", Spec((8, 8, 1), classes=10), budget=20_000, rngs=nnx.Rngs(0))
    >>> abs(parameters(model) / 20_000 - 1) < 0.02
    True
    """
    size = size_for(name, spec, width=width, budget=budget, match=match)
    return family(name)(spec, size, rngs=rngs)
