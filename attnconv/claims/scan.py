"""A sequence-to-sequence net does as it was shown; does it do what follows from that?"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from attnconv import batching, compiled, devices, models, runs, search, tasks, train
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    accuracy,
)
from attnconv.claims.training import first, splits

MODEL = "attention"
SEEDS, STEPS, PARAMS, RATE = 3, 5000, 50_000, 0.003
SIMPLE = "scan/simple"
# The best net of Lake and Baroni for each set: exact match in percent.
PUBLISHED = {SIMPLE: 99.8, "scan/length": 20.8, "scan/addprim_jump": 1.2}
SOLVED, FAILED = 95.0, 50.0  # percent


def test(setting: Setting) -> Evidence:
    seeds = range(setting.seed, setting.seed + SEEDS)
    parts, rows, found = [], [], []
    for name, published in PUBLISHED.items():
        task = tasks.load(name, data_dir=setting.data_dir, seed=setting.seed)
        alike, other = (accuracy(right) for right in exact_match(task, seeds))
        found.append(other)
        if name == SIMPLE:
            parts.append(Part(f"{name}: exact match, %", other, above=SOLVED))
        else:
            parts.append(Part(f"{name}: exact match, %", other, below=FAILED))
            what = f"{name}: exact match of commands like those of training, %"
            parts.append(Part(what, alike, above=SOLVED))
        splits = task.train, task.test
        sizes = [f"{len(split.labels):,}" for split in splits]
        longest = [str(int((split.labels >= 0).sum(axis=1).max()) - 1) for split in splits]
        rows.append([name, *sizes, *longest, alike.text(), other.text(), f"{published:g}"])
    names = list(PUBLISHED)
    header = ["set", "training commands", "test commands", "longest output, training"]
    header += ["longest output, test", "like training, %", "test, %", "Lake and Baroni 2018, %"]
    return Evidence(
        parts,
        header,
        rows,
        Figure(
            "",
            "exact match, %",
            [
                Series.of(f"{MODEL}, here", names, found),
                Series("best of Lake and Baroni 2018", names, list(PUBLISHED.values())),
            ],
        ),
        f"SCAN: a command in words, the actions that it asks for; a test example counts where all "
        f"of them are right. Encoder and decoder of self-attention with learned positions, about "
        f"{PARAMS:,} parameters; {STEPS} steps of {train.Recipe().batch} commands, {SEEDS} seeds, "
        f"learning rate {RATE:g}, the same for each set, chosen on the validation split of "
        f"{SIMPLE}. Like training: a validation split, drawn from the training commands and not "
        "trained on.",
    )


def exact_match(task: tasks.Task, seeds: Sequence[int]) -> list[Shaped[np.ndarray, "R E"]]:
    """Which sequences a net of each seed writes whole: of the validation split, and of the test."""
    size = models.size_for(MODEL, task.spec, budget=PARAMS)
    make = functools.partial(models.make, MODEL, task.spec, size)
    programs = compiled.Programs(make, train.Recipe(), padded=True)
    data, validation, test = splits(task)
    examples, lengths = np.arange(len(data.labels)), batching.lengths(data.inputs, data.labels)
    batch = programs.recipe.batch

    def run(seed: int) -> runs.Run:
        order = batching.order(examples, steps=STEPS, batch=batch, seed=seed, lengths=lengths)
        return runs.Run(RATE, seed, order)

    # The one rate needs no score; whole sequences take long to write.
    trained = search.train_all(
        programs, data, list(map(run, seeds)), validation=first(validation, 1), train_score=False
    )
    _, kept = search.best_rate(trained, [RATE])

    def written(of: runs.Trained) -> list[np.ndarray]:
        return [
            compiled.right(compiled.judged(programs, of.params, on)[0], on.labels, writes=True)[0]
            for on in (validation, test)
        ]

    found = devices.on_each_core(written, kept)
    return [np.stack(right) for right in zip(*found, strict=True)]


CLAIM = Claim(
    "scan",
    "A sequence-to-sequence net that solves a task on commands like those it was trained on fails "
    "where outputs are longer, and where a word was seen alone only.",
    "Lake and Baroni 2018, Generalization without Systematicity: exact match 99.8 % (random "
    "split), at best 20.8 % (longer outputs, experiment 2) and 1.2 % (jump, experiment 3).",
    f"Exact match above {SOLVED:g} % on the test split of scan/simple, below {FAILED:g} % on those "
    f"of scan/length and scan/addprim_jump, while the same nets do more than {SOLVED:g} % of "
    "commands like those they were trained on.",
    test,
    needs=tuple(PUBLISHED),
)
