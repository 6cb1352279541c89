"""What the entrypoints that train share: the flags of a study, its report, the progress bar."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from attnconv import models, report, results, study, tasks
from attnconv.errors import UsageError
from experiments import common

flags.DEFINE_string(
    "task",
    "digits",
    "What to learn: an embedded task (digits, number_words), the name of a TFDS set prepared in "
    "--data_dir (mnist), or a path to your own data: a folder of images or of .wav, a .npz, a "
    ".jsonl. --list shows them.",
)
flags.DEFINE_enum(
    "tokens", None, ["words", "characters", "bpe"], "How text is cut. Default: words."
)
flags.DEFINE_enum(
    "vectors",
    None,
    ["rows", "pixels", "patches", "one_hot"],
    "What the vectors are. Images are grids by default; rows, pixels or patches make sequences of "
    "them. Tokens are embedded by default.",
)
flags.DEFINE_enum(
    "pooling",
    "mean",
    list(models.POOLINGS),
    "How the vectors become one, where one has a label; mlp and local have one already.",
)
flags.DEFINE_list("fields", None, "INPUT,LABEL: the features of a TFDS set to take.")
flags.DEFINE_string(
    "hold_out",
    None,
    "The examples with this in their name (of a speaker, say) are the test split; all others are "
    "for training, those of an official test split too.",
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16"],
    "What activations and products are computed in; parameters, their updates, losses and "
    "statistics stay float32.",
)
flags.DEFINE_integer(
    "steps",
    None,
    "Updates of each run. Default: 30 sqrt(training examples), 10 for a text of one label, 60 to "
    "write sequences.",
)
flags.adopt_module_key_flags(common)
FLAGS = flags.FLAGS


def task_options() -> dict[str, Any]:
    """What the flags say of the form that the task takes."""
    fields = None if FLAGS.fields is None else tuple(FLAGS.fields)
    if fields is not None and len(fields) != 2:
        raise UsageError(f"fields={','.join(fields)}: expected two, INPUT,LABEL")
    return {
        "tokens": FLAGS.tokens,
        "vectors": FLAGS.vectors,
        "pooling": FLAGS.pooling,
        "fields": fields,
        "hold_out": FLAGS.hold_out,
    }


def show_list() -> None:
    """The embedded tasks, the prepared sets and the families, and what can do what."""
    print(f"{'task':<15} {'one example':<34} families")
    refused: dict[str, list[str]] = {}
    for name in tasks.names():
        spec = tasks.load(name).spec
        print(f"{name:<15} {spec.describe():<34} {' '.join(models.fitting(spec))}")
        for family in models.FAMILIES:
            reason = models.refusal(family, spec)
            if reason is not None:
                refused.setdefault(f"{family}: {reason}", []).append(name)
    print("\nWhat cannot be done:")
    for reason, where in refused.items():
        print(f"  {reason} ({', '.join(where)})")
    sets = tasks.prepared(FLAGS.data_dir)
    found = ", ".join(sets) if sets else "none; --data_dir names a folder of them"
    print(f"\nTFDS sets that are prepared: {found}")
    print("Your own files: a folder of images or .wav, a .npz of arrays or of a graph, a .jsonl")


def out_folder(entrypoint: str) -> Path:
    if FLAGS.out is not None:
        return Path(FLAGS.out).expanduser()
    return Path("runs") / f"{entrypoint}-{Path(FLAGS.task).resolve().name}"


def numbers(flag: str, values: Sequence[str], kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a list flag, or the error that names the one that is not a number."""
    parsed = []
    for value in values:
        try:
            parsed.append(kind(value))
        except ValueError:
            raise UsageError(f"{flag}={value}: expected a number") from None
    return tuple(parsed)


def train_sizes(flag: str, values: Sequence[str]) -> tuple[int | None, ...]:
    """Numbers of training examples, None for all."""
    return numbers(flag, values, lambda v: None if v == "all" else int(v))


def run_study(config: study.Config, out: Path, **options: Any) -> None:
    """Runs what is not finished, writes the report and prints the table and the findings."""
    with Progress(config.seeds * len(config.learning_rates)) as progress:
        summary = study.run(
            config,
            out,
            on_start=progress.on_start,
            on_steps=progress.on_steps,
            on_finish=progress.on_finish,
            **options,
        )
    summary["findings"] = report.findings(summary)
    results.write_json(out / "summary.json", summary)
    report.write(summary, out)
    print(f"\n{report.table(summary)}\n")
    print("\n".join(summary["findings"]))
    print(f"\nIn {out}: report.html, summary.md, figures (.svg), results.jsonl, summary.json")


class Progress:
    """A bar over the work of a study, in FLOPs, with the cell it is in and the time left."""

    def __init__(self, runs_per_cell: int):
        self.runs_per_cell = runs_per_cell
        self.done = self.cells = 0
        self.bar: Any = None
        self.lock = threading.Lock()  # runs on several cores count their steps here

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_start(self, cells: Sequence[Any], finished: Sequence[Any]) -> None:
        self.cells, self.done = len(cells), len(finished)
        if finished:
            print(f"{len(finished)} of {len(cells)} cells are finished already", flush=True)
        self.bar = tqdm(
            total=sum(c.flops * c.steps * self.runs_per_cell for c in cells),
            initial=sum(c.flops * c.steps * self.runs_per_cell for c in finished),
            bar_format="{percentage:3.0f}% {bar:30} {remaining} left, {desc}",
            disable=None,  # where nobody watches a terminal the finished lines are enough
        )
        self.bar.set_description_str("compiling")

    def on_steps(self, cell: Any, steps: int) -> None:
        with self.lock:
            self.bar.set_description_str(f"{cell.model} at {cell.train_size} examples", False)
            self.bar.update(cell.flops * steps)

    def on_finish(self, cell: Any, rows: Sequence[dict[str, Any]]) -> None:
        self.done += 1
        chosen = [row for row in rows if row["test"] is not None]
        validation = 100 * sum(row["validation"] for row in chosen) / len(chosen)
        line = (
            f"{self.done:3d}/{self.cells}  {cell.model:<15} {cell.train_size:>6} examples  "
            f"validation {validation:5.1f} %  learning rate {chosen[0]['learning_rate']:g}"
        )
        tqdm.write(line)
