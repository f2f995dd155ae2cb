"""Declining by parts: whom the rows hold, what a reward may move, what is counted, how the record is told."""

import random
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


def test_rows_beside_the_reward_and_people_told_of_once_hold_nobody_of_the_test():
    world, rng = hw.World.make(0, TINY.known_entities, TINY.unknown_entities), random.Random(0)
    tested = {q.name for q in world.test(0, 24)}
    fact = h.replayed(world)
    replayed = [fact(rng) for _ in range(500)]
    assert {q.kind for q in replayed} == {"known"} and not tested & {q.name for q in replayed}
    assert {q.name for q in replayed} == {q.name for q in world.pick("known", asked=True)}
    once = [world.told_once(rng) for _ in range(500)]
    assert not world.names & {q.name for q in once} and len({(q.name, q.relation) for q in once}) > 480
    assert len({q.answer for q in once}) > 200, "answers of all kinds: none can be learnt"


@pytest.mark.parametrize("learns", h.LEARNS)
def test_the_reward_moves_the_head_alone_or_all_of_it(learns):
    torch.set_num_threads(1)
    model, world = h.build(TINY), hw.World.make(0, TINY.known_entities, TINY.unknown_entities)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    h.reinforce(model, world, replace(TINY, learns=learns), lambda row: None)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "lm_head.weight" in moved and (moved == {"lm_head.weight"}) == (learns == "head")
    assert all(p.requires_grad for p in model.parameters()), "it can be trained further"
    with pytest.raises(InputError, match="did you mean 'head'"):
        h.reinforce(model, world, replace(TINY, learns="heed"), lambda row: None)


def test_the_size_of_the_logits_is_held_near_that_of_log_probs(monkeypatch):
    """Against the sum written out: the mean of −log p plus weight · (log Σ exp)², over the tokens of the answers."""
    monkeypatch.setattr(hw, "PROMPTS", ("plain",))
    model, world = h.build(TINY), hw.World.make(0, TINY.known_entities, TINY.unknown_entities)
    questions = world.pick("known")[:2]
    squares = []
    for q in questions:
        tokens = hw.prompt_tokens(q) + hw.answer_tokens(q.answer)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]]), mode="dense").logits[0, 7:].double()
        squares += [float(torch.log(torch.exp(row).sum())) ** 2 for row in logits]
    loss = {}
    for weight in (0.0, 0.5):
        drawn = iter(questions)
        loss[weight] = h.supervised_loss(
            model, lambda rng, drawn=drawn: next(drawn), 2, random.Random(0), weight
        ).item()
    assert len(squares) == 6 and loss[0.5] - loss[0.0] == pytest.approx(0.5 * sum(squares) / 6, rel=1e-3)


def test_a_threshold_is_chosen_on_people_who_are_asked_and_earns_the_most_there(monkeypatch):
    world, seen = hw.World.make(0, TINY.known_entities, TINY.unknown_entities), []

    def ask(model, questions):
        """Right and 0.7 sure of what was taught; sure by 0.1 to 0.6 of what is made up."""
        seen.extend(questions)
        made_up = [(hw.FIRST[0], "…")] * len(questions)
        said = [q.answer if q.kind == "known" else m for q, m in zip(questions, made_up, strict=True)]
        sure = [0.7 if q.kind == "known" else 0.1 + 0.5 * (i % 11) / 10 for i, q in enumerate(questions)]
        return h.Answers(questions, said, sure)

    monkeypatch.setattr(h, "ask", ask)
    assert control.best_threshold(h.build(TINY), world, TINY) == 0.61
    assert seen and all(q.asked for q in seen)


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
    found = {(r["way"], r["questions"]): r for r in rows}
    for start, withheld in ((way + end for way in control.WAYS[:2]) for end in ("", control.WITHOUT)):
        for kind in hw.KINDS:
            plain, less = found[start, kind], found[withheld, kind]
            assert less["right"] <= plain["right"] and less["declined"] >= plain["declined"]
            assert less["answered"] == plain["answered"]


def test_the_report_has_a_line_for_each_way_and_kind_with_a_figure_for_each_seed():
    rows = [
        {"seed": seed, "way": "start", "questions": kind, "right": right, "declined": 0.25, "answered": 1.0}
        for kind in ("known", "unknown_fact")
        for seed, right in enumerate((0.5, 0.75))
    ]
    lines = measure.report("abstention", rows)
    assert len(lines) == 4 and "0, 1" in lines[0] and lines[1] == "start"
    assert lines[2].split() == ["known", "50%", "75%", "|", "25%", "25%", "|", "100%", "100%"]
