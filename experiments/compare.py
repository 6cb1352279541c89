"""Compares model families on one task: same data, budget, tuning and seeds, with intervals.

    python -m experiments.compare --task=digits --train_sizes=100,400,all
    python -m experiments.compare --task=mnist --data_dir=DIR --models=mlp,cnn --train_sizes=1000

Every family is trained at every train size with every learning rate and seed. The learning rate
is chosen on the validation split; the test split is read once, by the chosen runs. In --out:
summary.md, report.html and figures to read, results.jsonl and summary.json to compute with. What
is already there is kept: the same command goes on where it stopped.
"""

from absl import flags

from attnconv import models, study
from experiments import common

flags.DEFINE_list("models", list(models.FAMILIES), "The families to compare.")
flags.DEFINE_list("train_sizes", ["all"], "Numbers of training examples, or all.")
flags.DEFINE_integer("seeds", 5, "How many seeds: initial weights, training subset, batch order.")
flags.DEFINE_list("learning_rates", ["0.003", "0.01", "0.03"], "The search of every family.")
flags.DEFINE_enum(
    "match", "params", ["params", "flops", "none"], "What the families have the same number of."
)
flags.DEFINE_integer(
    "budget",
    None,
    "How many: parameters, or FLOPs of a forward pass of one example. Default: 30,000 parameters; "
    "--match=flops needs one.",
)
flags.adopt_module_key_flags(common)
FLAGS = flags.FLAGS

DEFAULT_PARAMS = 30_000


def main() -> None:
    budget = FLAGS.budget
    if budget is None and FLAGS.match == "params":
        budget = DEFAULT_PARAMS
    config = study.Config(
        task=FLAGS.task,
        data_dir=FLAGS.data_dir,
        models=tuple(FLAGS.models),
        train_sizes=common.train_sizes("train_sizes", FLAGS.train_sizes),
        seeds=FLAGS.seeds,
        learning_rates=common.numbers("learning_rates", FLAGS.learning_rates, float),
        match=FLAGS.match,
        budget=budget,
        steps=FLAGS.steps,
        seed=FLAGS.seed,
    )
    common.run_study(config, common.out_folder("compare"))


if __name__ == "__main__":
    common.launch(main)
