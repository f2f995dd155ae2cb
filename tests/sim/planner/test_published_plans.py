"""`clustersim validate --plans`: the plan found beside the people's, and the table of it that is kept."""

import csv
import json

import pytest

from minglm import datafiles
from sim.cli.main import main
from sim.planner import published

LOG = datafiles.data("reference", "plans.csv")


@pytest.fixture(scope="module")
def log():
    with LOG.open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_kept_comparison_has_a_slower_plan(log):
    known = {name for name, _ in published.runs()}
    assert len(log) >= 150 and {row["name"] for row in log} <= known
    compared = [row for row in log if not row["reason"]]
    assert len(compared) >= 0.9 * len(log)
    assert min(float(row["faster"]) for row in compared) >= -published.SLOWER
    for row in compared:
        told = float(row["their_step_s"]) / float(row["best_step_s"]) - 1
        assert float(row["faster"]) == pytest.approx(told, abs=2e-4)


@pytest.mark.parametrize("name", ["foundry-a100-125m-2048-8", "nemo-24.07-llama3-8b", "recompute2022-22b-selective"])
def test_the_kept_table_is_what_the_command_prints(name, log, tmp_path, capsys):
    """Among them a run whose micro-batch of 32 no power of two up to 16 reaches."""
    made = tmp_path / "plans.csv"
    assert main(["validate", "--plans", "--only", name, "--out", str(made), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    with made.open(newline="") as file:
        assert list(csv.DictReader(file)) == [row for row in log if name in row["name"]]
    assert [row["name"] for row in said] == [name] and not said[0]["slower"] and said[0]["gain"] >= 0


def test_a_slower_plan_is_an_exit_code(monkeypatch, capsys):
    slow = published.Compared("made up", "TP1", 1.0, "TP2", 1.1)
    monkeypatch.setattr(published, "compare_all", lambda *_: [slow])
    assert main(["validate", "--plans"]) == 1
    assert "SLOWER" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--only", "x"], ["--out", "x.csv"], ["--plans", "--only", "no such run"]])
def test_flags_that_ask_for_nothing_are_one_line(argv, capsys):
    assert main(["validate", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1
