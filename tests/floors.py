"""What each kind of task must reach, on real data where there is a set: `make floors`, hours.

Three seeds at the learning rate of a single run. Not among the tests, which take minutes.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from attnconv import study, tasks

DATA = Path(__file__).parents[2] / "shared" / "data"


class Floor(NamedTuple):
    """The mean test score that a family must reach, and the seconds that a run may take."""

    task: str
    model: str
    least: float
    seconds: float


FLOORS = [
    Floor("universal_dependencies/en_ewt", "cnn", 0.91, 600),
    Floor(str(DATA / "text" / "rt_polarity.jsonl"), "cnn", 0.75, 300),
    Floor("spoken_digit", "cnn", 0.97, 300),
    Floor("scan/simple", "attention", 0.99, 1200),
    Floor("number_words", "attention", 0.995, 300),
    Floor("python_tokens", "cnn:129", 0.97, 600),
    Floor("dtmf", "cnn", 0.99, 120),
    Floor("dtmf", "attention", 0.99, 120),
    Floor("karate", "graph_attention", 30 / 32, 60),
]


@pytest.mark.parametrize("floor", FLOORS, ids=lambda f: f"{Path(f.task).name}-{f.model}")
def test_floor(floor, tmp_path):
    if floor.task not in tasks.names() and not DATA.exists():
        pytest.skip(f"there is no {DATA}")
    data_dir = None if floor.task in tasks.names() else str(DATA / "tfds")
    config = study.Config(floor.task, (floor.model,), data_dir=data_dir, seeds=3)
    (cell,) = study.run(config, tmp_path, tune=False)["cells"]
    print(floor.task, floor.model, cell["test"], cell["seconds"])
    assert cell["test"]["estimate"] >= floor.least
    assert cell["seconds"] <= floor.seconds
