"""RL's controls: which problems are asked, what a vote decides, and how the recorded rows are told."""

import pytest

pytest.importorskip("torch")
from minglm.rl import control, measure
from minglm.rl.config import load


def test_longer_problems_have_six_to_eight_steps_and_all_are_held_out():
    settings = load("sum")
    short, longer = control.held_out(settings, 60), control.held_out(settings, 60, longer=True)
    assert all(p.held_out for p in short + longer) and len({p.prompt for p in longer}) > 50
    assert {len(p.prompt) for p in longer} == {12, 14, 16} and min(len(p.prompt) for p in short) < 12
    digits = {int(d) for p in control.held_out(load("sum", control.KINDS["hard"]), 60) for d in p.prompt if d.isdigit()}
    assert max(digits) == 7 and max(int(d) for p in short for d in p.prompt if d.isdigit()) == 5


def test_a_vote_takes_the_commonest_result_and_a_share_counts_what_the_checker_does(monkeypatch):
    settings = load("sum")
    problems = control.held_out(settings, 3)
    right = [f"{p.worked}#{p.answer}" for p in problems]
    assert control.share(settings, problems, [right[0], "#1000", right[2]]) == pytest.approx(2 / 3)

    def answers(run, settings, many, seed):
        assert len(many) == 3 * control.VOTES
        of = [right[0]] * 6 + ["#1000"] * 5 + ["#1001"] * 5  # six of sixteen are the largest party
        return of + ["#1000"] * 9 + [right[1]] * 7 + [right[2]] * control.VOTES

    monkeypatch.setattr(control, "answers", answers)
    assert control.voted("run", settings, problems) == pytest.approx((2 / 3, 1))


def test_longer_passages_hold_more_facts_than_those_trained_on():
    settings = load("hop")
    short, longer = control.held_out(settings, 30), control.longer_passages(settings, 30)
    facts = [{p.prompt.count("We call ") for p in problems} for problems in (short, longer)]
    assert facts == [{2, 3, 4}, {6, 8}] and all(p.held_out for p in short + longer)


def test_the_report_has_a_line_for_each_way_with_a_figure_for_each_seed():
    rows = [
        {"kind": "easy", "problems": "longer", "way": way, "seed": seed, "right": right}
        for way, rights in (("start, greedy", (0.85, 0.8)), ("after RL, greedy", (0.74, 0.9)))
        for seed, right in enumerate(rights)
    ]
    lines = measure.report("control", rows)
    assert len(lines) == 3 and "0, 1" in lines[0]
    assert lines[1].split() == ["easy,", "longer", "start,", "greedy", "85.0%", "80.0%"] and "74.0%" in lines[2]


def test_two_facts_in_a_row_are_followed_better_greedily_after_rl_on_every_recorded_seed():
    rows = measure.read("hop")
    right = {(r["seed"], r["problems"], r["way"]): r["right"] for r in rows}
    ways = {way for _, _, way in right}
    assert len(right) == len(rows) == 3 * 2 * len(ways) and {seed for seed, _, _ in right} == {0, 1, 2}
    for seed in (0, 1, 2):
        for how in ("one sample", "greedy"):
            before, form, after = (
                right[seed, "as trained", f"{way}, {how}"] for way in ("start", "after RL for the form", "after RL")
            )
            assert after > before and after > form
        assert right[seed, "as trained", "after RL, greedy"] > right[seed, "as trained", "start, vote of 16 samples"]
    assert len(measure.report("hop", rows)) == 1 + 2 * len(ways)
