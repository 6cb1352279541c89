"""The order of the house: imports run downwards only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may import from the rooms in its line and those below it.
FLOORS = (
    ("experiments",),
    ("bench", "claims"),
    ("report", "study"),
    ("summary",),
    ("checkpoint", "search", "environment", "results", "stats", "config"),
    ("runs",),
    ("compiled",),
    ("train",),
    ("models", "tasks"),
    ("nn", "decoding", "batching", "analysis"),
    ("functional",),
    ("lowering",),
    ("spec", "devices"),
    ("errors", "allocator"),
)
STRANGERS = {
    ("models", "tasks"),
    ("tasks", "models"),
    ("report", "study"),
    ("report", "claims"),
    ("train", "tasks"),
    ("compiled", "tasks"),
}
ONLY_FOR = {"lowering": {"functional", "lowering"}}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "attnconv" and len(parts) > 1 else parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [alias.name for alias in node.names]
            modules = [f"attnconv.{n}" for n in names] if node.module == "attnconv" else []
            found.update(modules or [node.module])
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {room(m) for m in found if m.split(".")[0] in ("attnconv", "experiments")}


def height(name: str) -> int:
    return next(-i for i, floor in enumerate(FLOORS) if name in floor)


FILES = sorted([*ROOT.glob("attnconv/**/*.py"), *ROOT.glob("experiments/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    relative = path.relative_to(ROOT)
    if relative == Path("attnconv/__init__.py"):
        assert imports(path) == set()
        return
    own = room(".".join(relative.with_suffix("").parts))
    for other in imports(path) - {own, "attnconv"}:
        assert height(other) <= height(own), f"{relative} imports {other}"
        assert (own, other) not in STRANGERS, f"{relative} imports {other}"
        assert own in ONLY_FOR.get(other, {own}), f"{relative} imports {other}"
