"""Puts what the field says of convolution and self-attention to the test.

    python -m experiments.claims --data_dir=DIR
    python -m experiments.claims --only=permutation,translation
    python -m experiments.claims --list

Each claim has a source, a criterion and the smallest experiment that could contradict it; the
verdict is "holds", "does not hold here" or "not decided". In --out: claims.html and claims.md to
read, a figure for each claim, claims.json. What is there already, of the same seed, is kept, but
for claims whose text or experiment has changed.
"""

import time
from pathlib import Path

from absl import flags

from attnconv import claims
from attnconv.claims import store
from attnconv.config import SEEDS
from attnconv.errors import UsageError, unknown
from attnconv.report import claims as report
from experiments import common

flags.DEFINE_list("only", [], "The claims to test. Default: all.")
flags.DEFINE_boolean(
    "resume",
    True,
    "Keep the verdicts that are in --out; --noresume: test again, and remove those of other seeds.",
)
flags.DEFINE_boolean("docs", False, "Write docs/claims.md and its figures too.")
for name in ("data_dir", "list", "out", "seed"):
    flags.declare_key_flag(name)
FLAGS = flags.FLAGS

MOST_RUNS = 1000  # of a claim, each with a seed of its own


def main() -> None:
    for name in FLAGS.only:
        if name not in claims.CLAIMS:
            raise unknown("claim", name, claims.CLAIMS)
    if not 0 <= FLAGS.seed <= SEEDS - MOST_RUNS:
        most = SEEDS - MOST_RUNS
        raise UsageError(f"seed={FLAGS.seed}: expected a number from 0 to {most}")
    data_dir = None if FLAGS.data_dir is None else Path(FLAGS.data_dir).expanduser()
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"data_dir={str(data_dir)!r}: there is no such folder")
    setting = claims.Setting(seed=FLAGS.seed, data_dir=data_dir)
    chosen = [claims.CLAIMS[name] for name in FLAGS.only] or list(claims.CLAIMS.values())
    lacking = {c.name: missing for c in chosen if (missing := claims.missing(c, setting))}
    if FLAGS.only and lacking:
        name, sets = next(iter(lacking.items()))
        raise UsageError(f"claim {name}: expected {', '.join(sets)} in --data_dir")

    out = Path(FLAGS.out or "runs/claims").expanduser()
    stored, outdated = store.load(out, claims.CLAIMS, seed=FLAGS.seed, keep=FLAGS.resume)
    shown = {*stored, *(claim.name for claim in chosen if claim.name not in lacking)}
    if FLAGS.docs and (absent := set(claims.CLAIMS) - shown):
        raise UsageError(f"docs: expected all claims, {min(absent)} is not there")
    for name in outdated:
        print(f"{name:<20} has changed since it was tested, or is gone: its verdict is dropped")
    if outdated:
        store.save(out, stored)
    for claim in chosen:
        kept = FLAGS.resume and claim.name in stored
        if claim.name in lacking and not kept:
            print(f"{claim.name:<20} not run: needs {', '.join(lacking[claim.name])} in --data_dir")
            continue
        if not kept:
            began = time.perf_counter()
            print(f"{claim.name:<20} {claim.statement}", flush=True)
            evidence = claim.test(setting)
            seconds = time.perf_counter() - began
            stored[claim.name] = store.record(claim, evidence, seconds=seconds, seed=FLAGS.seed)
            store.save(out, stored)
        found = stored[claim.name]
        print(f"{'':<20} {found['verdict']} ({found['seconds']:.0f} s)")
        for part in found["parts"]:
            print(f"{'':<22} {part['what']}: {report.values_of(part)}")
    verdicts = [stored[name] for name in claims.CLAIMS if name in stored]
    if not verdicts:
        return
    report.write(verdicts, out)
    report.write_page(verdicts, out)
    print(f"\nIn {out}: claims.html, claims.md, figures (.svg), claims.json")
    if FLAGS.docs:
        report.write(verdicts, Path("docs"))


def show_list() -> None:
    for claim in claims.CLAIMS.values():
        needs = f" (needs {', '.join(claim.needs)})" if claim.needs else ""
        print(f"{claim.name:<20} {claim.statement}{needs}")


if __name__ == "__main__":
    common.launch(main, listing=show_list)
