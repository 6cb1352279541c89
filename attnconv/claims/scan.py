"""A sequence-to-sequence net does as it was shown; does it do what follows from that?"""

import concurrent.futures
import functools
from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Shaped

from attnconv import batching, compiled, models, runs, tasks, train
from attnconv.claims.claim import (
    Claim,
    Evidence,
    Figure,
    Part,
    Series,
    Setting,
    accuracy,
)
from attnconv.claims.training import splits
from attnconv.train import Data

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
    data, lengths = runs.place(data), batching.lengths(data.inputs, data.labels)

    # Compile before the threads start, or each would.
    first = trained(programs, data, lengths, seed=0, steps=1)
    compiled.evaluate(programs, first, Data(validation.inputs[:1], validation.labels[:1]))

    def of(seed: int) -> list[np.ndarray]:
        params = trained(programs, data, lengths, seed=seed, steps=STEPS)
        return [
            compiled.right(compiled.judged(programs, params, on)[0], on.labels, writes=True)[0]
            for on in (validation, test)
        ]

    with concurrent.futures.ThreadPoolExecutor(runs.cores()) as pool:
        found = list(pool.map(of, seeds))
    return [np.stack(right) for right in zip(*found, strict=True)]


def trained(
    programs: compiled.Programs, data: Data, lengths: np.ndarray, *, seed: int, steps: int
) -> chex.ArrayTree:
    """The parameters after the last step.

    Not by `runs.train_all`, which has every training sequence written too: a third of the time.
    """
    examples, batch = np.arange(len(lengths)), programs.recipe.batch
    order = batching.order(examples, steps=steps, batch=batch, seed=seed, lengths=lengths)
    run, state = runs.Run(RATE, seed, order), programs.init(RATE, steps, seed)
    for part in runs.course(programs.advance, state, data, order):
        state = part.state
        runs.check_loss(float(part.loss), run, part.end)
    return state.params


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
