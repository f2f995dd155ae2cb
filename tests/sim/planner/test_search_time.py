"""The search as a person waits for it: a good plan first, a bound on what is missed, an end by Ctrl-C, kept answers."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from sim.planner.explain import missed
from sim.planner.planner import answer, find
from sim.planner.question import question
from sim.planner.search import Outcome

ASKED = dict(seq=4096, batch=32, tokens=20_000_000_000)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGLM_RUNS", str(tmp_path))


def asked():
    return question("llama3_8b", "dgx_h100", 32, **ASKED)


def test_an_interrupt_ends_with_the_best_so_far_and_a_true_bound():
    """Stopped early: the plan is real, no better than the best, and the bound holds for the best."""

    def stop(done: int, of: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    whole = find(asked(), 1)[0].best[0]
    out = find(asked(), 70, stop)[0]  # another length of the list: not read from what was kept
    assert out.stopped and out.best[0].value("tokens") >= whole.value("tokens") * (1 - 1e-9)
    assert 0 < out.floor <= whole.value("tokens") and 0 < out.beyond


def test_an_interrupt_before_the_first_costed_plan_gives_the_one_found_at_once():
    told = []

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    out = find(asked(), 1, stop, lambda plan, step_s: told.append((plan, step_s)))[0]
    assert out.stopped and len(told) == 1 and out.best[0].step_s == pytest.approx(told[0][1])
    with pytest.raises(KeyboardInterrupt):
        find(asked(), 1, stop)


def test_an_answer_is_kept_and_read_again():
    q = asked()
    first = answer(q, 3)
    start = time.perf_counter()
    second = answer(q, 3)
    assert time.perf_counter() - start < 1.0
    assert not first["search"].pop("cached") and second["search"].pop("cached")
    first["search"].pop("cpu_s"), second["search"].pop("cpu_s")
    assert first == second
    other = answer(question("llama3_8b", "dgx_h100", 32, **ASKED, prices={"rent_usd_per_hour": 1.0}), 3)
    assert not other["search"]["cached"]  # another price is another question
    assert other["winner"]["rent_usd"] == pytest.approx(other["winner"]["chip_hours"])


def test_what_may_be_missed_is_said_by_the_bound():
    told = " ".join(missed(2.0, Outcome([], floor=1.6, beyond=2.2, too_high=0.04)))
    assert "less than 10.0% above" in told and "4.0% too high" in told and "at most: 25.0%" in told
    assert "nothing better is missed" in told
    assert "nothing better" not in " ".join(missed(2.0, Outcome([], floor=1.6, beyond=2.02, too_high=0.04)))
    assert missed(2.0, Outcome([])) == []


@pytest.mark.slow
def test_every_list_has_the_winner_with_the_same_days():
    """Phases and failures make the days of all rows, not of the winner alone."""
    terms = dict(cluster="atlas_800t_a2", chips=2048, batch_tokens="16M", phases="glm5")
    pinned = {
        "micro_batch": 1,
        "etp": 1,
        "tp": 8,
        "cp": 1,
        "ep": 64,
        "recompute": "none",
        "schedule": "1f1b",
        "zero": 1,
    }
    a = answer(question("glm5", fixed=pinned, **terms), 5)
    w = a["winner"]
    rows = [
        r for r in (*a["front"], *a["ranked"]) if r["plan"] == w["plan"] and r["step_s"] == pytest.approx(w["step_s"])
    ]
    assert len(rows) >= 2 and all(r["days"] == pytest.approx(w["days"], rel=1e-9) for r in rows)
    for r in a["ranked"]:  # days go with the step and the goodput
        assert r["days"] * r["tokens_per_s"] == pytest.approx(w["days"] * w["tokens_per_s"], rel=0.02)


@pytest.mark.slow
def test_ctrl_c_prints_the_best_so_far(tmp_path):
    """On a terminal: the good plan is said, Ctrl-C ends the search, the answer follows with exit code 0."""
    here, there = pty.openpty()
    command = [sys.executable, "-m", "sim", "plan", "glm5_100k_910b", "--samples", "0"]
    env = {**os.environ, "MINGLM_RUNS": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, text=True, env=env) as run:
        os.close(there)
        said, deadline = "", time.monotonic() + 120
        while "a good plan" not in said and time.monotonic() < deadline:
            if select.select([here], [], [], 1)[0]:
                said += os.read(here, 4096).decode(errors="replace")
        assert "Ctrl-C ends the search" in said
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=240)
    os.close(here)
    assert run.returncode == 0 and "The search was interrupted: this is the best so far." in out
    assert "as events" in out and "days" in out
