"""Which features of a prepared TFDS set can serve as what: one is the input, one the label."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow_datasets import features

from attnconv.errors import UsageError, unknown
from attnconv.spec import Output

NUMBERS = ("image", "vectors", "audio")
TEXTS = ("text", "tokens")
OUTPUTS: dict[str | None, Output] = {
    "label": "label",
    "labels": "labels",
    "text": "sequence",
    "tokens": "sequence",
}
# Two texts are an input and an output sequence where they are called so.
PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("inputs", "targets"),
    ("commands", "actions"),
    ("question", "answer"),
    ("text", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
)


@dataclasses.dataclass(frozen=True)
class Field:
    """One feature of a set.

    Attributes:
      name: what the set calls it.
      kind: what it serves as: image, vectors, audio, text, tokens, label, labels; None if nothing.
      type: what an error calls it.
      connector: TFDS's feature, None where it cannot be constructed.
      rate: of audio, in samples a second.
    """

    name: str
    kind: str | None
    type: str
    connector: Any = None
    rate: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"

    @property
    def is_name(self) -> bool:
        """Whether it is what an example is called, not what is in it."""
        return self.kind == "text" and (
            self.name.endswith("filename") or self.name in ("id", "idx")
        )


def fields(content: Any) -> list[Field]:
    """The features of a set, from what its `features.json` holds.

    TFDS cannot construct some features without TensorFlow. Audio is one of them, but its samples
    are stored as integers, so it is read as a tensor; the others serve as nothing.

    Raises:
      ValueError: if it holds no dictionary of features.
    """
    if not isinstance(content, dict):
        raise ValueError(f"features.json holds a {type(content).__name__}")
    if "featuresDict" in content:
        nodes = content["featuresDict"]["features"]
        return [_field(name, node) for name, node in sorted(nodes.items())]
    connector = features.FeatureConnector.from_json(content)
    if not isinstance(connector, features.FeaturesDict):
        raise ValueError(f"features of the type {type(connector).__name__}")
    return [_of(name, connector[name]) for name in sorted(connector)]


def _field(name: str, node: Mapping[str, Any]) -> Field:
    kind = node["pythonClassName"].rpartition(".")[2]
    if kind == "Audio" and "audio" in node:
        return _audio(name, node["audio"])
    try:
        return _of(name, features.FeatureConnector.from_json(node))
    except ModuleNotFoundError as error:
        return Field(name, None, f"{kind}, which needs {error.name}")
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a class that is no more, or other
        return Field(name, None, kind)


def _audio(name: str, audio: Mapping[str, Any]) -> Field:
    if audio.get("lazyDecode") or audio.get("encoding", "NONE") != "NONE":
        return Field(name, None, "Audio, encoded")
    sizes = [int(size) for size in audio["shape"]["dimensions"]]
    shape = [None if size < 0 else size for size in sizes]
    connector = features.Tensor(shape=shape, dtype=np.dtype(audio["dtype"]))
    return Field(name, "audio", "Audio", connector, int(audio.get("sampleRate", 0)))


def _of(name: str, connector: Any) -> Field:
    called = type(connector).__name__
    if type(connector) is features.Sequence:
        inner = connector.feature
        called = f"Sequence of {type(inner).__name__}"
        if isinstance(inner, features.ClassLabel):
            return Field(name, "labels", called, connector)
        if type(inner) not in (features.Tensor, features.Text):
            return Field(name, None, called, connector)
    elif isinstance(connector, features.ClassLabel):
        return Field(name, "label", called, connector)
    elif isinstance(connector, features.Image):
        return Field(name, "image", called, connector)
    elif not isinstance(connector, features.Tensor):
        return Field(name, None, called, connector)
    dtype, rank = np.dtype(connector.np_dtype), len(connector.shape)
    if dtype.kind not in "buif":
        return Field(name, {0: "text", 1: "tokens"}.get(rank), called, connector)
    sizes = ", ".join("any" if size is None else str(size) for size in connector.shape)
    kind = {2: "image" if dtype == np.uint8 else "vectors", 3: "image"}.get(rank)
    return Field(name, kind, f"{called} [{sizes}] of {dtype}", connector)


def choose(
    name: str,
    found: Sequence[Field],
    *,
    supervised: Sequence[str] = (),
    named: Sequence[str] | None = None,
) -> tuple[Field, Field]:
    """The input and the label.

    They are, in this order: those that are named; the supervised keys of the set, if they can
    serve; the one that holds class labels, with the one image, tensor of numbers or audio, or, if
    there is none, with the one text, or the one that is called tokens; two texts that are called as
    in `PAIRS`, if no feature holds class labels. What an example is called (`id`, `idx`,
    `filename`) is no input unless it is named.

    Args:
      name: what errors call the set.
      found: its features.
      supervised: its supervised keys, if it has any.
      named: the names of the input and of the label.

    Raises:
      UsageError: if that leaves none or several, or those that are named cannot serve.
    """
    by_name = {field.name: field for field in found}
    if named is not None:
        return _named(f"{name}: --fields={','.join(named)}", by_name, named)
    keys = [by_name[key] for key in supervised[:2] if key in by_name]
    if len(keys) == 2 and _fit(keys[0], keys[1]):
        return keys[0], keys[1]
    by_rule = _by_rule(found)
    if by_rule is not None:
        return by_rule
    could = [(x, y) for y in found for x in found if _fit(x, y) and not (x.is_name or y.is_name)]
    expected = (
        "expected an image, a tensor of rank 2 or 3, audio, a text or tokens, and class labels or "
        f"a second text, found {_list(found)}"
    )
    if not could:
        raise UsageError(f"{name}: {expected}")
    x, y = min(could, key=lambda pair: (pair[1].kind in TEXTS, pair[0].kind in TEXTS))
    raise UsageError(f"{name}: {expected}; say which: --fields=INPUT,LABEL, as {x.name},{y.name}")


def _named(called: str, by_name: Mapping[str, Field], named: Sequence[str]) -> tuple[Field, Field]:
    if len(named) != 2:
        raise UsageError(f"{called}: expected two features, INPUT,LABEL")
    for key in named:
        if key not in by_name:
            raise UsageError(f"{called}: {unknown('feature', key, by_name)}")
    x, y = by_name[named[0]], by_name[named[1]]
    if not _fit(x, y):
        raise UsageError(
            f"{called}: {x} cannot be the input for {y}; found {_list(by_name.values())}"
        )
    return x, y


def _by_rule(found: Sequence[Field]) -> tuple[Field, Field] | None:
    labels = [field for field in found if field.kind in ("label", "labels")]
    contents = [field for field in found if not field.is_name]
    if len(labels) == 1:
        for kinds in (NUMBERS, TEXTS):
            inputs = [x for x in contents if x.kind in kinds and _fit(x, labels[0])]
            if len(inputs) > 1 and kinds is TEXTS:
                inputs = [x for x in inputs if x.name == "tokens"]
            if inputs:
                return (inputs[0], labels[0]) if len(inputs) == 1 else None
    texts = {field.name: field for field in contents if field.kind == "text"}
    pairs = [pair for pair in PAIRS if set(pair) == set(texts)]
    return (texts[pairs[0][0]], texts[pairs[0][1]]) if pairs and not labels else None


def _fit(x: Field, y: Field) -> bool:
    """Whether the one can be the input for the other as label."""
    if y.kind == "label":
        return x.kind in (*NUMBERS, *TEXTS)
    if y.kind == "labels":
        return x.kind in ("vectors", "tokens")
    return y.kind in TEXTS and x.kind in ("vectors", "audio", *TEXTS) and x.name != y.name


def _list(found: Iterable[Field]) -> str:
    return ", ".join(map(str, found)) or "nothing"
