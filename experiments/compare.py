"""Compares model families on one task: same data, budget, tuning and seeds, with intervals.

    python -m experiments.compare --task=digits --train_sizes=100,400,all
    python -m experiments.compare --task=mnist --data_dir=DIR --models=mlp,cnn --train_sizes=1000

Every family is trained at every train size with every learning rate and seed. The learning rate
is chosen on the validation split; the test split is read once, by the chosen runs. In --out:
summary.md, report.html and figures to read, results.jsonl and summary.json to compute with. What
is already there is kept: the same command goes on where it stopped.
"""

from absl import flags

from attnconv import study
from experiments import common, studies

flags.DEFINE_list(
    "models",
    [],
    "The families to compare. Default: all that can do the task. Where each vector has a label, "
    "cnn:33, neighborhood:33 and attention:33 see a window of 33 positions; without a number cnn "
    "and neighborhood see 17, attention and hybrid all.",
)
flags.DEFINE_list("train_sizes", ["all"], "Numbers of training examples, or all.")
flags.DEFINE_integer("seeds", 5, "How many seeds: initial weights, training subset, batch order.")
flags.DEFINE_list(
    "learning_rates",
    [],
    "The search of every family. Default: 0.003,0.01,0.03; for text, for graphs and where each "
    "vector has a label 0.001,0.003,0.01; to write sequences 0.0003,0.001,0.003.",
)
flags.DEFINE_enum(
    "match", "params", ["params", "flops", "none"], "What the families have the same number of."
)
flags.DEFINE_integer(
    "budget",
    None,
    "How many: parameters, or FLOPs of a forward pass of the longest example. Default: 30,000 "
    "parameters, 100,000 where each vector has a label, 400,000 to write sequences; twice as many "
    "and so on where a family cannot be that small. --match=flops needs one.",
)
flags.adopt_module_key_flags(studies)
FLAGS = flags.FLAGS


def main() -> None:
    config = study.Config(
        task=FLAGS.task,
        data_dir=FLAGS.data_dir,
        models=tuple(FLAGS.models),
        train_sizes=studies.train_sizes("train_sizes", FLAGS.train_sizes),
        seeds=FLAGS.seeds,
        learning_rates=studies.numbers("learning_rates", FLAGS.learning_rates, float),
        match=FLAGS.match,
        budget=FLAGS.budget,
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        dtype=FLAGS.dtype,
        **studies.task_options(),
    )
    studies.run_study(config, studies.out_folder("compare"))


if __name__ == "__main__":
    common.launch(main, listing=studies.show_list)
