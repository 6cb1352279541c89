"""The verdicts in a folder, claims.json: of one seed and version, and of the claims as they are."""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attnconv
from attnconv import environment, results
from attnconv.claims.claim import Claim, Evidence
from attnconv.errors import UsageError

Record = dict[str, Any]
FILE = "claims.json"
_ABOUT = ("name", "statement", "source", "criterion")
_EVIDENCE = tuple(field.name for field in dataclasses.fields(Evidence))
_RUN = ("seconds", "seed", "version", "code", "environment")
RECORDED = {*_ABOUT, *_EVIDENCE, *_RUN, "verdict"}


def load(
    out: Path, claims: Mapping[str, Claim], *, seed: int, keep: bool
) -> tuple[dict[str, Record], list[str]]:
    """The verdicts in `out` that new ones can stand beside, and the claims that are outdated there.

    Outdated is the verdict of a claim that is no longer the same, by `code`. Makes the folder.

    Args:
      out: the folder.
      claims: all there are, by name.
      seed: of the new ones.
      keep: whether what cannot stand beside them is an error, or dropped.

    Raises:
      UsageError: the file is broken, or of another seed or version.
    """
    path = out / FILE
    with results.making(out):
        stored = results.read_object(path) if path.exists() else {}
    broken = [k for k, v in stored.items() if not isinstance(v, dict) or not set(v) >= RECORDED]
    if broken and keep:
        raise UsageError(
            f"{path}: expected {', '.join(sorted(RECORDED))} of each, {broken[0]} lacks some: name "
            f"another --out, or --noresume to begin again"
        )
    if broken:
        return {}, []
    mark = {"seed": seed, "version": attnconv.__version__}
    others = [kept for kept in stored.values() if any(kept[key] != mark[key] for key in mark)]
    if others and keep:
        raise UsageError(
            f"{out}: holds claims of seed {others[0]['seed']} and version "
            f"{others[0]['version']}, not {mark['seed']} and {mark['version']}: expected another "
            f"--out, or --noresume to begin again"
        )
    if others:
        return {}, []
    now = {name: code(claim) for name, claim in claims.items()}
    current = {name: kept for name, kept in stored.items() if kept["code"] == now.get(name)}
    return current, sorted(set(stored) - set(current))


def save(out: Path, stored: Mapping[str, Record]) -> None:
    results.write_json(out / FILE, stored)


def record(claim: Claim, evidence: Evidence, *, seconds: float, seed: int) -> Record:
    """A claim with its evidence and verdict, and what they were measured with, as JSON values."""
    parts = [
        {
            "what": part.what,
            **part.measured._asdict(),
            "widened": [wide.measured.low, wide.measured.high],
            "above": part.above,
            "below": part.below,
            "verdict": verdict,
        }
        for part, wide, verdict in zip(
            evidence.parts, evidence.widened, evidence.verdicts, strict=True
        )
    ]
    return {
        **{key: getattr(claim, key) for key in _ABOUT},
        "verdict": evidence.verdict,
        **dataclasses.asdict(evidence),
        "parts": parts,
        "seconds": seconds,
        "seed": seed,
        "version": attnconv.__version__,
        "code": code(claim),
        "environment": environment.describe(),
    }


def code(claim: Claim) -> str:
    """A digest of what the claim says, of the module of its experiment and of those it takes from.

    Of the latter only those of this room: what is measured with is told by the version.
    """
    own = inspect.getmodule(claim.test)
    assert own is not None
    modules = {
        module.__name__: module for module in map(inspect.getmodule, vars(own).values()) if module
    }
    near = sorted(name for name in modules if name.startswith(__package__ or ""))
    sources = [inspect.getsource(own), *(inspect.getsource(modules[name]) for name in near)]
    text = "\n".join([*(getattr(claim, key) for key in _ABOUT), *sources])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
