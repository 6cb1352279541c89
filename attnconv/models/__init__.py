"""The families of models, from the one with the least bias to the ones with learned bias."""

from typing import Any, Literal

from flax import nnx

from attnconv.errors import UsageError, unknown
from attnconv.models import cnn, neighborhood
from attnconv.models.attention import Attention
from attnconv.models.cnn import CNN
from attnconv.models.cost import flops, parameters
from attnconv.models.gated import Gated
from attnconv.models.graph import GraphAttention, GraphConv
from attnconv.models.hybrid import Hybrid
from attnconv.models.inputs import POOLINGS, pooled
from attnconv.models.local import Local
from attnconv.models.mlp import MLP
from attnconv.models.neighborhood import Neighborhood
from attnconv.models.seq2seq import AttentionSeq2Seq, ConvSeq2Seq
from attnconv.models.size import Size, fit
from attnconv.spec import Spec

FAMILIES: dict[str, Any] = {
    "mlp": MLP,
    "local": Local,
    "cnn": CNN,
    "neighborhood": Neighborhood,
    "gated": Gated,
    "attention": Attention,
    "hybrid": Hybrid,
    "graph_conv": GraphConv,
    "graph_attention": GraphAttention,
}
WINDOWED = ("cnn", "neighborhood", "attention")
SEQUENCES: dict[str, Any] = {"cnn": ConvSeq2Seq, "attention": AttentionSeq2Seq}

__all__ = [
    "FAMILIES",
    "POOLINGS",
    "Size",
    "Spec",
    "build",
    "fitting",
    "flops",
    "make",
    "parameters",
    "refusal",
    "shapes",
    "size_for",
    "window",
]


def family(name: str, spec: Spec) -> Any:
    """The class of a family for a task, or the error that names the near matches or the reason."""
    base = name.partition(":")[0]
    if base not in FAMILIES:
        raise unknown("model", base, FAMILIES)
    reason = refusal(name, spec)
    if reason is not None:
        raise UsageError(f"model {name}: {reason}")
    return (SEQUENCES if spec.output == "sequence" else FAMILIES)[base]


def refusal(name: str, spec: Spec) -> str | None:
    """Why a family cannot do a task; None where it can.

    >>> refusal("mlp", Spec((9,), 5, "sequence", vocabulary=7))
    'it writes no sequence; cnn and attention do'
    """
    base, colon, window = name.partition(":")
    if spec.pooling not in POOLINGS:
        return f"expected pooling by {', '.join(POOLINGS)}, got {spec.pooling!r}"
    if spec.pooling == "token" and pooled(spec) and base not in ("attention", "hybrid"):
        return "it has no vector that looks at all others, for pooling=token"
    if spec.output == "sequence":
        if base not in SEQUENCES:
            return f"it writes no sequence; {' and '.join(SEQUENCES)} do"
    elif spec.graph is not None:
        if base in ("local", "cnn", "neighborhood", "gated", "hybrid"):
            return "a graph has no grid for a window to slide along"
    elif base in ("graph_conv", "graph_attention"):
        return "it needs the edges of a graph"
    elif base == "local" and spec.output == "labels":
        return "weights of its own for each position need a grid that is halved, and one label"
    if colon:
        if not window.isdecimal():
            return f"expected a number of positions after the colon, got {window!r}"
        if base not in WINDOWED or spec.output != "labels" or spec.graph is not None:
            return f"a window is chosen for {', '.join(WINDOWED)} where each vector has a label"
    return None


def window(name: str, spec: Spec) -> int | None:
    """Positions that an output sees through a window, where each vector has a label.

    None where there is no such window: all are seen, or itself alone (mlp), or what edges join.

    >>> tags = Spec((40,), 3, "labels", vocabulary=99)
    >>> [window(name, tags) for name in ("cnn", "cnn:33", "attention")]
    [17, 33, None]
    """
    base, _, asked = name.partition(":")
    if asked:
        return int(asked)
    whole = {"cnn": cnn.WINDOW, "neighborhood": neighborhood.WINDOW}
    return whole.get(base) if spec.output == "labels" else None


def fitting(spec: Spec) -> list[str]:
    """The families that can do a task.

    >>> fitting(Spec((8, 8, 1), 10))
    ['mlp', 'local', 'cnn', 'neighborhood', 'gated', 'attention', 'hybrid']
    """
    return [name for name in FAMILIES if refusal(name, spec) is None]


def make(name: str, spec: Spec, size: Size, *, rngs: nnx.Rngs) -> Any:
    """A model of that size; "cnn:33" is the family cnn where a vector sees 33 positions."""
    cls, window = family(name, spec), name.partition(":")[2]
    return cls(spec, size, rngs=rngs, **({"window": int(window)} if window else {}))


def shapes(name: str, spec: Spec, size: Size) -> nnx.Module:
    """A model of that size with the shapes of its parameters in place of their values."""
    return nnx.eval_shape(lambda: make(name, spec, size, rngs=nnx.Rngs(0)))


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
    cls = family(name, spec)
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
    """A model of the family for inputs as `spec` tells; it returns scores `[B, *vectors, classes]`.

    Args:
      name: one of `FAMILIES`; `cnn:33` and `attention:33` see a window of 33 positions.
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
    return make(name, spec, size, rngs=rngs)
