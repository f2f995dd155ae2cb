"""Declining apart from what supervised rows hold: which facts they hold, what is counted, how the record is told."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
import torch

from minglm.errors import InputError
from minglm.rl import abstention as h
from minglm.rl import abstention_control as control
from minglm.rl import abstention_world as hw
from minglm.rl import measure

TINY = replace(h.Settings().smoke(), sft_steps=3, rl_steps=2, rl_prompts=2, samples=2, test_each=8)


def test_rows_of_the_asked_people_hold_no_fact_of_the_test():
    world = hw.World.make(0, TINY.known_entities, TINY.unknown_entities)
    asked = {q.name for q in world.test(0, 24) if q.kind == "known"}
    apart = h.replayed(world, replace(TINY, replay_of="asked"))
    everything = h.replayed(world, TINY)
    assert apart and set(apart) < set(everything) and {q.kind for q in everything} == {"known"}
    assert not asked & {q.name for q in apart} and asked <= {q.name for q in everything}
    with pytest.raises(InputError, match="use taught"):
        h.replayed(world, replace(TINY, replay_of="all"))


def test_a_forced_answer_is_the_greedy_one_wherever_that_declines_nothing():
    torch.set_num_threads(1)
    model, world = h.build(TINY), hw.World.make(0, TINY.known_entities, TINY.unknown_entities)
    h.supervise(model, world, replace(TINY, sft_steps=12), lambda text: None)
    questions = world.test(0, 12)
    said, forced = h.ask(model, questions).responses, control.forced(model, questions)
    assert all(len(words) == 2 and hw.UNKNOWN not in words for words in forced)
    same = [a == b for a, b in zip(said, forced, strict=True) if len(a) == 2 and hw.UNKNOWN not in a]
    assert same and all(same)


def test_every_way_is_asked_every_kind_of_question_and_a_threshold_only_takes_back():
    torch.set_num_threads(1)
    rows = control.rows(TINY)
    assert [(r["way"], r["questions"]) for r in rows] == [(w, k) for w in control.WAYS for k in hw.KINDS]
    assert all(0 <= r[what] <= 1 for r in rows for what in ("right", "declined", "answered"))
    for plain, withheld in zip(rows[:3], rows[3:6], strict=True):
        assert withheld["right"] <= plain["right"] and withheld["declined"] >= plain["declined"]
        assert withheld["answered"] == plain["answered"]


def test_the_report_has_a_line_for_each_way_and_kind_with_a_figure_for_each_seed():
    rows = [
        {"seed": seed, "way": "start", "questions": kind, "right": right, "declined": 0.25, "answered": 1.0}
        for kind in ("known", "unknown_fact")
        for seed, right in enumerate((0.5, 0.75))
    ]
    lines = measure.report("abstention", rows)
    assert len(lines) == 4 and "0, 1" in lines[0] and lines[1] == "start"
    assert lines[2].split() == ["known", "50%", "75%", "|", "25%", "25%", "|", "100%", "100%"]
