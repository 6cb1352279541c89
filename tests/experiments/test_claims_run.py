"""The entrypoint of the claims: what it lists, refuses, passes over, keeps and writes."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import attnconv
from attnconv import claims
from attnconv.claims import store
from attnconv.claims.claim import Evidence, Figure, Measured, Part, Series
from attnconv.errors import UsageError
from experiments import claims as entrypoint

ROOT = Path(__file__).parents[2]


def start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.claims", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class Fake:
    """A claim that takes no time and counts how often it is tested."""

    def __init__(self, name, needs=()):
        self.settings = []
        self.claim = claims.Claim(
            name, f"{name} is so.", "Nobody 1999", "Above 1.", self.test, needs
        )

    def test(self, setting):
        self.settings.append(setting)
        value = 2.0 + setting.seed
        return Evidence(
            [Part("number", Measured(value, value - 0.5, value + 0.5, seeds=3), above=1.0)],
            ["what", "number"],
            [["it", f"{value:g}"]],
            Figure("x", "y", [Series("it", (1, 2), (value, value))]),
            "Nothing is trained.",
        )


@pytest.fixture
def fakes(monkeypatch):
    found = [Fake("first"), Fake("second"), Fake("third", needs=("tiny/set",))]
    monkeypatch.setattr(claims, "CLAIMS", {fake.claim.name: fake.claim for fake in found})
    return found


@pytest.fixture
def run(tmp_path):
    """Runs main with these flags in this process, and gives what is in its folder then."""
    out = tmp_path / "out"

    def run(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS(["claims", f"--out={out}", *arguments])
            entrypoint.main()
        path = out / "claims.json"
        return json.loads(path.read_text()) if path.exists() else None

    run.out = out
    return run


def times_tested(fakes):
    return [len(fake.settings) for fake in fakes]


# --- as a person starts it ---


def test_list_shows_every_claim_and_what_it_needs():
    done = start("--list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(claims.CLAIMS)
    for line, claim in zip(lines, claims.CLAIMS.values(), strict=True):
        assert claim.statement in line
        assert all(name in line for name in claim.needs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=permutatoin"], "unknown claim 'permutatoin'; did you mean 'permutation'?"),
        pytest.param(["--only=permutation,"], "unknown claim ''", marks=pytest.mark.slow),
        pytest.param(
            ["--data_dir=nowhere"],
            "data_dir='nowhere': there is no such folder",
            marks=pytest.mark.slow,
        ),
        (["--seed=-1"], "seed=-1: expected a number from 0 to"),
        (["--steps=10"], "Unknown command line flag 'steps'"),
        pytest.param(["--sed=1"], "Unknown command line flag 'sed'", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, message, tmp_path):
    done = start(*arguments, f"--out={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_help_names_its_flags():
    done = start("--help")
    for flag in ("--only", "--[no]resume", "--[no]docs", "--data_dir", "--out", "--seed"):
        assert flag in done.stdout, flag


# --- in this process, with claims that take no time ---


def test_it_writes_its_files_and_prints_the_verdicts(fakes, run, capsys):
    stored = run("--seed=3")
    assert times_tested(fakes) == [1, 1, 0]
    assert fakes[0].settings == [claims.Setting(seed=3, data_dir=None)]
    assert list(stored) == ["first", "second"]
    found = stored["first"]
    assert found["verdict"] == "holds" and found["parts"][0]["verdict"] == "holds"
    assert (found["seed"], found["version"]) == (3, attnconv.__version__)
    assert found["seconds"] >= 0
    assert found["figure"]["series"][0]["y"] == [5.0, 5.0]
    names = {path.name for path in run.out.iterdir()}
    assert names == {
        *("claims.json", "claims.html", "claims.md"),
        *("claims-first.svg", "claims-second.svg"),
    }
    printed = capsys.readouterr().out
    assert "first                first is so." in printed
    assert re.search(r"holds \(\d+ s\)", printed)
    assert "number: 5 [4.5, 5.5]" in printed
    assert "| it | 5 |" in (run.out / "claims.md").read_text()


def test_a_claim_that_lacks_its_data_is_passed_over(fakes, run, capsys, tmp_path):
    stored = run(f"--data_dir={tmp_path}")
    assert list(stored) == ["first", "second"]
    assert times_tested(fakes) == [1, 1, 0]
    assert "third                not run: needs tiny/set in --data_dir" in capsys.readouterr().out


def test_a_claim_that_lacks_its_data_is_refused_where_it_is_asked_for(fakes, run):
    with pytest.raises(UsageError, match="claim third: expected tiny/set in --data_dir"):
        run("--only=first,third")
    assert times_tested(fakes) == [0, 0, 0], "before anything is measured"
    assert not run.out.exists()


def test_a_claim_whose_data_are_there_is_tested(fakes, run, tmp_path):
    folder = tmp_path / "sets" / "tiny" / "set" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    stored = run("--only=third", f"--data_dir={tmp_path / 'sets'}")
    assert list(stored) == ["third"]
    assert fakes[2].settings[0].data_dir == tmp_path / "sets"


def test_what_is_there_is_kept_and_never_mixed_with_other_seeds(fakes, run, monkeypatch, capsys):
    first = run("--only=first")
    capsys.readouterr()
    assert run("--only=first") == first
    assert times_tested(fakes) == [1, 0, 0]
    assert "number: 2 [1.5, 2.5]" in capsys.readouterr().out, "it is shown again"
    both = run()
    assert times_tested(fakes) == [1, 1, 0]
    assert both["first"] == first["first"]
    run("--noresume", "--only=first")
    assert times_tested(fakes) == [2, 1, 0]
    refused = "holds claims of seed 0 and version .*, not 1 and .*: expected another --out, or --no"
    with pytest.raises(UsageError, match=refused):
        run("--only=first", "--seed=1")
    again = run("--only=first", "--seed=1", "--noresume")
    assert list(again) == ["first"] and again["first"]["parts"][0]["estimate"] == 3.0
    assert "with seeds from 1 on" in (run.out / "claims.md").read_text()
    assert times_tested(fakes) == [3, 1, 0]
    monkeypatch.setattr(attnconv, "__version__", "0.0.0")
    with pytest.raises(UsageError, match=r"of seed 1 and version .*, not 1 and 0\.0\.0"):
        run("--only=first", "--seed=1")
    assert times_tested(fakes) == [3, 1, 0]


def test_the_verdict_of_a_claim_that_has_changed_is_dropped(fakes, run, monkeypatch, capsys):
    first = run()["first"]
    told = dataclasses.replace(fakes[0].claim, criterion="Above 7.")
    monkeypatch.setitem(claims.CLAIMS, "first", told)
    assert list(run("--only=second")) == ["second"]
    assert times_tested(fakes) == [1, 1, 0], "nothing was measured"
    assert "first is so" not in (run.out / "claims.md").read_text()
    assert "first                has changed since it was tested" in capsys.readouterr().out
    assert run()["first"]["criterion"] == "Above 7."
    assert times_tested(fakes) == [2, 1, 0]
    # So is that of one whose experiment is another.
    monkeypatch.setattr(store.inspect, "getsource", lambda module: "another experiment")
    again = run()
    assert times_tested(fakes) == [3, 2, 0]
    assert again["first"]["parts"] == first["parts"]
    monkeypatch.delitem(claims.CLAIMS, "first")
    run()
    assert "first is so" not in (run.out / "claims.md").read_text()


def test_the_page_tells_every_machine_that_measured(fakes, run, monkeypatch):
    run("--only=first")
    other = {"device": "gpu: another", "jax": "9.9"}
    monkeypatch.setattr(store.environment, "describe", lambda: other)
    stored = run("--only=second")
    here = stored["first"]["environment"]
    assert stored["second"]["environment"] == other
    written = (run.out / "claims.md").read_text().replace("\\", "")
    assert f"{here['device']}, JAX {here['jax']} and gpu: another, JAX 9.9, with" in written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON object in claims.json"),
        ("[1]", "expected a JSON object in claims.json"),
        (
            '{"first": {"seed": 0}}',
            "claims.json: expected code, criterion, environment, .*, first lacks some",
        ),
    ],
)
def test_a_broken_file_of_verdicts(fakes, run, content, message):
    run.out.mkdir()
    (run.out / "claims.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        run()
    assert times_tested(fakes) == [0, 0, 0]
    if "seed" in content:
        assert list(run("--noresume")) == ["first", "second"]


def test_a_folder_that_cannot_be_made(fakes, run):
    run.out.write_text("a file")
    with pytest.raises(UsageError, match="expected a folder that can be made and written"):
        run()


def test_what_was_measured_before_one_fails_is_kept(fakes, run, monkeypatch):
    def fail(setting):
        raise UsageError("learning_rate=1: expected a finite loss, got nan")

    second = claims.Claim("second", "It is so.", "Nobody", "Never.", fail)
    monkeypatch.setitem(claims.CLAIMS, "second", second)
    with pytest.raises(UsageError, match="finite loss"):
        run()
    assert list(json.loads((run.out / "claims.json").read_text())) == ["first"]
    monkeypatch.setitem(claims.CLAIMS, "second", fakes[1].claim)
    assert list(run()) == ["first", "second"]
    assert times_tested(fakes) == [1, 1, 0]


def test_the_page_has_the_claims_in_their_order_whichever_was_tested_first(fakes, run):
    run("--only=second")
    run("--only=first")
    written = (run.out / "claims.md").read_text()
    assert written.index("## first") < written.index("## second")


def test_where_nothing_could_be_tested_nothing_is_written(fakes, run, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", {"third": fakes[2].claim})
    assert run() is None
    assert list(run.out.iterdir()) == []


def test_docs_are_written_where_they_are_asked_for(fakes, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    run("--only=first")
    assert list((tmp_path / "docs").iterdir()) == []
    with pytest.raises(UsageError, match="docs: expected all claims, second is not there"):
        run("--only=first", "--docs")
    with pytest.raises(UsageError, match="docs: expected all claims, third is not there"):
        run("--docs")
    folder = tmp_path / "sets" / "tiny" / "set" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    run(f"--data_dir={tmp_path / 'sets'}")
    before = times_tested(fakes)
    run("--docs")
    assert times_tested(fakes) == before, "what is there needs no data"
    names = {path.name for path in (tmp_path / "docs").iterdir()}
    assert names == {"claims.md", *(f"claims-{name}.svg" for name in ("first", "second", "third"))}
