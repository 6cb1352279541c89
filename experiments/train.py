"""Trains one model on one task, and says how good it is on the test split.

    python -m experiments.train --task=mnist --model=cnn --data_dir=DIR
    python -m experiments.train --task=digits --model=attention --learning_rate=0.01 --seed=3

In --out: the same files that experiments.compare writes, for this one run; metrics.jsonl, with the
loss and the validation accuracy along the way; checkpoints. A run that was stopped goes on from its
newest checkpoint.
"""

import functools
from pathlib import Path
from typing import Any

from absl import flags

from attnconv import checkpoint, compiled, models, runs, study, train
from attnconv.errors import UsageError
from experiments import common, studies

flags.DEFINE_string(
    "model", "cnn", f"The family, as large as it comes: {', '.join(models.FAMILIES)}."
)
flags.DEFINE_string("train_size", "all", "How many training examples, or all.")
flags.DEFINE_float(
    "learning_rate",
    None,
    "Peak of the schedule. Default: 0.01, 0.003 for text, for graphs and where each vector has a "
    "label, 0.001 to write sequences.",
)
flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Steps between two checkpoints, and two lines of metrics.jsonl. Default: a twentieth of them.",
)
flags.DEFINE_boolean(
    "resume",
    True,
    "Go on from what is in --out; --noresume removes the run there and starts again.",
)
flags.adopt_module_key_flags(studies)
FLAGS = flags.FLAGS


def train_runs(
    programs: compiled.Programs,
    data: train.Data,
    grid: list[runs.Run],
    *,
    out: Path,
    every: int | None,
    **hooks: Any,
) -> list[runs.Trained]:
    """The one run of this entrypoint, saved along the way."""
    (run,) = grid
    if every is None:
        every = -(-len(run.order) // 20)
    return [checkpoint.train_saved(programs, data, run, out=out, every=every, **hooks)]


def main() -> None:
    every = FLAGS.checkpoint_every
    if every is not None and every < 1:
        raise UsageError(f"checkpoint_every={every}: expected a positive number")
    rate = FLAGS.learning_rate
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"learning_rate={rate}: expected a positive finite number")
    config = study.Config(
        task=FLAGS.task,
        data_dir=FLAGS.data_dir,
        models=(FLAGS.model,),
        train_sizes=studies.train_sizes("train_size", [FLAGS.train_size]),
        seeds=1,
        learning_rates=() if rate is None else (rate,),
        match="none",
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        dtype=FLAGS.dtype,
        **studies.task_options(),
    )
    out = studies.out_folder("train")
    trainer = functools.partial(train_runs, out=out, every=every)
    studies.run_study(config, out, keep=FLAGS.resume, tune=False, train_runs=trainer)


if __name__ == "__main__":
    common.launch(main, listing=studies.show_list)
