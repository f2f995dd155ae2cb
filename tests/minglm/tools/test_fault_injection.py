"""Some faults of the forty (`make drills` does them all), and that a failed trial is told as failed."""

import signal

import pytest

pytest.importorskip("torch")
from minglm.tools import fault_injection
from minglm.tools.drills.processes import Failed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]


def test_three_faults_end_well(tmp_path):
    rows = fault_injection.run(3, tmp_path / "out", seed=5, kinds=("trainer", "disk_full", "rl_run"))
    assert [r["ok"] for r in rows] == [True] * 3, [r["what"] for r in rows]
    assert (tmp_path / "out" / "fault_injection.csv").read_text(encoding="utf-8").count("\n") == 4


@pytest.mark.xdist_group("ray")
def test_a_killed_ray_actor_costs_nothing_that_was_finished(tmp_path):
    pytest.importorskip("ray")
    (row,) = fault_injection.run(1, tmp_path / "out", seed=2, kinds=("ray_worker",))
    assert row["ok"], row["what"]
    assert "killed at update" in row["what"] and "6 of 6 updates" in row["what"]


@pytest.mark.parametrize("kind", ["network_disk", "mapped_reader", "two_writers"])
def test_writers_beside_each_other_and_readers_beside_writers(tmp_path, kind):
    (row,) = fault_injection.run(1, tmp_path / "out", seed=7, kinds=(kind,))
    assert row["ok"], row["what"]


def test_the_recorded_forty_all_ended_well():
    rows = fault_injection.read()
    assert (
        len(rows) == fault_injection.COUNT
        and all(r["ok"] == "True" for r in rows)
        and {r["kind"] for r in rows} == set(fault_injection.KINDS)
    )
    assert sum(r["well"] for r in fault_injection.by_kind(rows)) == fault_injection.COUNT


def test_a_trial_that_fails_says_so(tmp_path, monkeypatch):
    def broken(shared, folder):
        raise Failed("the losses differ")

    monkeypatch.setitem(fault_injection.DRILLS, "trainer", broken)
    rows = fault_injection.run(1, tmp_path / "out", kinds=("trainer",))
    assert rows[0]["ok"] is False and rows[0]["what"] == "the losses differ"
