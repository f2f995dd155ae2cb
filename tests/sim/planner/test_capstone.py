"""The capstone's grade: a design comes to what `clustersim run` says, and what keeps it from passing is named."""

import dataclasses

import pytest

from minglm.errors import InputError
from minglm.evals import scaling_law
from sim.planner import capstone
from sim.scenario.training import resolve
from sim.study import projection

SMALL = {
    "model": "llama3_8b",
    "cluster": "dgx_h100",
    "chips": 64,
    "plan": {"tp": 1, "pp": 1, "dp": 64},
    "micro_batch": 1,
    "global_batch": 64,
    "seq": 4096,
    "precision": "bf16",
    "recompute": "full",
    "options": {"zero": 2},
    "tokens": "20B",
}


@pytest.fixture(scope="module")
def graded():
    return capstone.grade(SMALL, "small", capstone.Task(1e6, 30, 64))


def test_figures_are_those_of_the_simulator_and_the_law(graded):
    result = projection.project(resolve({"version": 1, **SMALL}, "small"), what_ifs=False)
    assert graded.days == tuple(result["days"][k] for k in ("value", "low", "high"))
    assert graded.rent_usd[0] == result["cost"]["rent"]["value"] and graded.faults == ()
    ours = scaling_law.law(capstone.LAW)
    n, d = graded.weights, 20e9
    assert graded.loss == pytest.approx(ours.E + ours.A * n**-ours.alpha + ours.B * d**-ours.beta)
    assert 7.4e9 < n < 8.1e9  # Llama 3 8B, with or without its embedding


def test_what_keeps_a_design_from_passing_is_named(graded):
    days, rent = graded.days[2], graded.rent_usd[2]
    assert capstone.held_against(capstone.Task(rent, days, 64), 64, days, rent) == ()  # the limits themselves pass
    for task, fault in (
        (capstone.Task(rent * 0.99, days, 64), "$"),
        (capstone.Task(rent, days * 0.99, 64), "days"),
        (capstone.Task(rent, days, 63), "64 chips: at most 63"),
    ):
        [found] = capstone.held_against(task, 64, days, rent)
        assert fault in found


def test_the_board_ranks_by_loss_and_puts_what_fails_last(graded):
    better, out = (
        dataclasses.replace(graded, name=n, losses={k: v - 0.1 for k, v in graded.losses.items()}, faults=f)
        for n, f in (("better", ()), ("out", ("late",)))
    )
    board = capstone.table([graded, out, better])
    names = [line.split("|")[1].strip() for line in board.splitlines()[2:]]
    assert names == ["better", "small", "out"] and "late" in board


def test_the_courses_own_designs_and_their_control():
    documents = [capstone.read(path) for path in capstone.designs()]
    assert len(documents) == 3 and all(set(d) == {"name", "why", "cluster", "toy"} for d in documents)
    control = capstone.grade(documents[-1]["cluster"], "control")
    assert control.days[0] < capstone.TASK.deadline_days < control.days[2] and control.faults
    assert control.memory < 1


@pytest.mark.slow
def test_a_plan_may_be_left_to_the_planner():
    found = capstone.grade({**SMALL, "plan": {"auto": True}}, "auto")
    assert found.days[0] > 0 and found.memory <= 1


def test_bad_designs_are_refused_in_one_line(tmp_path):
    path = tmp_path / "d.yaml"
    for text, message in (
        ("clustr: {}\n", "did you mean 'cluster'"),
        ("name: x\n", "--template prints a design"),
        ("cluster: 3\n", "--template prints a design"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            capstone.read(path)
    with pytest.raises(InputError, match="llama3_8b"):
        capstone.grade({**SMALL, "model": "llama3_8"})
    assert capstone.main(["--template"]) == 0
