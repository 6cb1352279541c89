"""What is compared: what was asked, the defaults of what was not, and the cells of the grid."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from attnconv import models, tasks
from attnconv.errors import UsageError
from attnconv.spec import Spec

SEEDS = 2**31  # from 0 on: they are 32-bit integers on the device


class Defaults(NamedTuple):
    """What holds where nothing is asked for, by the kind of task.

    Attributes:
      params: of every family.
      learning_rates: the grid of every family.
      steps: of a run, for each root of the number of training examples.
    """

    params: int
    learning_rates: tuple[float, ...]
    steps: int


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared: with the data themselves, all that a result depends on."""

    task: str
    models: tuple[str, ...] = ()  # none are all that can do the task
    data_dir: str | None = None
    train_sizes: tuple[int | None, ...] = (None,)  # None is all
    seeds: int = 5
    learning_rates: tuple[float, ...] = ()  # none are the default ones
    match: Literal["params", "flops", "none"] = "params"
    budget: int | None = None
    steps: int | None = None
    seed: int = 0
    tokens: Literal["words", "characters", "bpe"] | None = None
    vectors: Literal["rows", "pixels", "patches", "one_hot"] | None = None
    pooling: Literal["mean", "max", "attention", "token"] = "mean"
    fields: tuple[str, ...] | None = None
    hold_out: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for field in ("models", "train_sizes", "learning_rates"):
            values = getattr(self, field)
            if (not values and field == "train_sizes") or len(set(values)) != len(values):
                raise UsageError(f"{field}={values}: expected one or more, each once")
        for field in ("seeds", "steps", "budget"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UsageError(f"{field}={value}: expected a positive number")
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise UsageError(f"learning_rates={rate}: expected positive finite numbers")
        if not 0 <= self.seed <= SEEDS - self.seeds:
            raise UsageError(
                f"seed={self.seed}, seeds={self.seeds}: expected seeds from 0 to {SEEDS - 1}"
            )
        if self.match == "none" and self.budget is not None:
            raise UsageError(f"match=none, budget={self.budget}: expected no budget")
        if self.match == "flops" and self.budget is None:
            raise UsageError("match=flops: expected a budget, how many")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model at one train size: all its seeds and learning rates are trained together."""

    model: str
    train_size: int
    size: models.Size
    params: int
    flops: int
    steps: int


def plan(config: Config, task: tasks.Task) -> list[Cell]:
    """Every cell of the grid, smallest train size first; what cannot be built is refused here."""
    cells = []
    built = {}
    for name in config.models:
        match = "params" if config.match == "none" else config.match
        size = models.size_for(name, task.spec, budget=config.budget, match=match)
        model = models.shapes(name, task.spec, size)
        built[name] = size, models.parameters(model), models.flops(model, task.spec)
    _check_windows(config.models, task.spec)
    sizes = {len(task.subset(size, seed=config.seed)) for size in config.train_sizes}
    for train_size in sorted(sizes):
        steps = config.steps
        if steps is None:
            steps = round(defaults(task.spec).steps * train_size**0.5)
        cells += [Cell(name, train_size, *built[name], steps) for name in config.models]
    return cells


def defaults(spec: Spec) -> Defaults:
    """Parameters, learning rates and steps where none are asked for; chosen on validation splits.

    A text of one label is soon learned by heart: at 30, 11 steps for each root the cnn scored 75.2,
    77.0 % on the validation split of the sentences of Pang and Lee 2005.
    """
    if spec.output == "sequence":
        return Defaults(400_000, (0.0003, 0.001, 0.003), 60)
    if spec.output == "labels":
        return Defaults(100_000, (0.001, 0.003, 0.01), 30)
    if spec.vocabulary is not None or spec.graph is not None:
        return Defaults(30_000, (0.001, 0.003, 0.01), 10 if spec.graph is None else 30)
    return Defaults(30_000, (0.003, 0.01, 0.03), 30)


def completed(config: Config, spec: Spec, *, tune: bool = True) -> Config:
    """With the default of what is not asked for, but the steps, which depend on the train size.

    Without a search of learning rates the default is the middle of their grid.
    """
    default = defaults(spec)
    names = config.models or tuple(models.fitting(spec))
    budget = config.budget
    if config.match == "params" and budget is None:
        budget = common_budget(names, spec, default.params)
    rates = config.learning_rates or default.learning_rates[slice(None) if tune else slice(1, 2)]
    return dataclasses.replace(config, models=names, learning_rates=rates, budget=budget)


def _check_windows(names: Sequence[str], spec: Spec) -> None:
    """Refuses a family twice with the same window, one of them by its default."""
    seen: dict[tuple[str, int | None], str] = {}
    for name in names:
        same = seen.setdefault((name.partition(":")[0], models.window(name, spec)), name)
        if same != name:
            raise UsageError(f"models={same},{name}: expected each once, these are the same")


def of_lengths(spec: Spec) -> bool:
    """Whether examples have different lengths."""
    return spec.padded or spec.output == "sequence"


def common_budget(names: Sequence[str], spec: Spec, params: int) -> int:
    """The number of parameters, doubled until every family can have it, at most 8 times as large.

    A fully connected layer on a long input is large at a width of one.
    """
    for budget in (params, 2 * params, 4 * params):
        try:
            for name in names:
                models.size_for(name, spec, budget=budget)
        except UsageError:
            continue
        return budget
    return 8 * params


def load(config: Config) -> tasks.Task:
    """The task, in the form that is asked for."""
    task = tasks.load(
        config.task,
        data_dir=config.data_dir,
        seed=config.seed,
        tokens=config.tokens,
        vectors=config.vectors,
        fields=config.fields,
        hold_out=config.hold_out,
    )
    spec = dataclasses.replace(task.spec, pooling=config.pooling)
    return dataclasses.replace(task, spec=spec)
