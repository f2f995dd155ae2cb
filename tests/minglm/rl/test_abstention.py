"""The hallucination experiment: the world is closed, the measure is AA-Omniscience's, the small run learns, the record
holds."""

import json
import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm import datafiles
from minglm.errors import InputError
from minglm.rl import abstention as h
from minglm.rl import abstention_summary as figures_of
from minglm.rl import abstention_world as hw
from minglm.rl.abstention_world import Counts, World

RECORD = datafiles.data("reference", "hallucination.csv")


# ---------------------------------------------------------------------- the world


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 60), st.integers(2, 100))
def test_the_world_is_closed_and_its_parts_are_apart(seed, people, strangers):
    world = World.make(seed, people, strangers)
    assert world == World.make(seed, people, strangers)
    assert len(world.questions) == 4 * (people + strangers)
    assert len({(q.name, q.relation) for q in world.questions}) == len(world.questions), "one question, one answer"
    names = {kind: {q.name for q in world.pick(kind)} for kind in hw.KINDS}
    assert names["known"] == names["unknown_fact"] and not names["known"] & names["unknown_entity"]
    assert len(world.pick("known")) == 3 * people and len(world.pick("unknown_fact")) == people
    assert not {q.name for q in world.questions if q.asked} & {q.name for q in world.questions if not q.asked}
    test = world.test(0, each=10)
    assert all(not q.asked for q in test), "figures come from questions that reinforcement never asked"
    q = test[0]
    tokens = hw.prompt_tokens(q) + hw.answer_tokens(q.answer)
    assert len(hw.prompt_tokens(q)) == 8 and hw.words(tokens[8:10]) == q.answer and tokens[-1] == hw.EOS
    assert str(q).startswith(f"What is the {q.relation} of ")


def test_grades():
    q = World.make(0, 2, 2).questions[0]
    a, b = q.answer
    other_a = next(w for w in hw.FIRST if w != a)
    other_b = next(w for w in hw.SECOND if w != b)
    cases = {
        (a, b): "correct",
        (a, other_b): "partial",
        (other_a, b): "partial",
        (other_a, other_b): "incorrect",
        (b, a): "incorrect",
        (a,): "incorrect",
        (): "incorrect",
        (a, b, b): "incorrect",
        ("unknown",): "abstained",
        ("unknown", b): "partial",
        ("unknown", other_b): "incorrect",
        (a, b, "…"): "incorrect",
    }
    assert {said: hw.grade(q, said) for said in cases} == cases


counts = st.builds(Counts, *[st.integers(0, 500)] * 4)


@given(counts)
def test_the_measure_is_the_formula_and_index_is_the_mean_reward(c):
    n = c.correct + c.partial + c.incorrect + c.abstained
    if n == 0:
        assert math.isnan(c.index) and math.isnan(c.hallucination_rate)
        return
    assert c.index == pytest.approx(100 * (c.correct - c.incorrect) / n) and -100 <= c.index <= 100
    grades = [g for g in ("correct", "partial", "incorrect", "abstained") for _ in range(getattr(c, g))]
    assert c.index == pytest.approx(100 * sum(hw.REWARDS[g] for g in grades) / n) and hw.count(grades) == c
    missed = n - c.correct
    if missed == 0:
        assert math.isnan(c.hallucination_rate), "nothing missed: a rate over nothing"
    else:
        assert c.hallucination_rate == pytest.approx(c.incorrect / missed)
        assert next(iter(c.definitions().values())) == c.hallucination_rate


def test_a_model_that_always_guesses_is_at_ninety_percent():
    rng, world = random.Random(0), World.make(1)
    guesses = hw.count(hw.grade(q, (rng.choice(hw.FIRST), rng.choice(hw.SECOND))) for q in world.pick("unknown_entity"))
    assert guesses.abstained == 0 and guesses.hallucination_rate == pytest.approx(0.903, abs=0.015)


# ---------------------------------------------------------------------- the training


def test_log_probs_are_those_of_the_answer_tokens():
    model = h.build(h.Settings())
    q = World.make(0, 2, 2).questions[0]
    prompts, answers = [hw.prompt_tokens(q)] * 2, [hw.answer_tokens(q.answer), hw.answer_tokens(["unknown"])]
    logps, mask = h.answer_logps(model, prompts, answers)
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    for row, answer in enumerate(answers):
        for t, token in enumerate(answer):
            logits = model(torch.tensor([prompts[row] + answer[:t]]), mode="dense").logits[0, -1]
            assert float(logps[row, t].detach()) == pytest.approx(
                float(logits.log_softmax(-1)[token].detach()), abs=1e-4
            )


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    return h.run_seed(h.Settings().smoke(), say=lambda text: None)


@pytest.mark.slow
def test_the_small_run_learns_facts_and_then_to_decline(small):
    figures, training, _ = small
    before, after = figures_of.find(figures, "before")[0], figures_of.find(figures, "after")[0]
    assert figures_of.find(figures, "before", questions="known")[0]["accuracy"] > 0.9
    assert after["abstained"] > before["abstained"] + 2
    assert after["hallucination_rate"] < before["hallucination_rate"] - 0.1
    early, late = (
        [
            r["unknown_abstained"] for r in part if not math.isnan(r["unknown_abstained"])
        ]  # NaN: no such question in the batch
        for part in (training[:15], training[-15:])
    )
    assert sum(late) / len(late) > sum(early) / len(early) + 0.1
    assert all(math.isfinite(r["reward"]) for r in training)


@pytest.mark.slow
def test_a_threshold_only_takes_answers_back(small):
    figures, _, model = small
    rows = [figures_of.find(figures, "after", threshold=t)[0] for t in figures_of.THRESHOLDS]
    for a, b in pairwise(rows):
        assert b["abstained"] >= a["abstained"] and b["correct"] <= a["correct"] and b["incorrect"] <= a["incorrect"]
    world = World.make(0, 16, 60)
    answers = h.ask(model, world.test(0, 24))
    assert answers.counts(threshold=1.1).abstained == len(answers.questions) == answers.counts().total
    assert sum((answers.counts(k) for k in hw.KINDS), Counts()) == answers.counts()
    assert all(0 <= c <= 1 for c in answers.confidence)


def test_run_writes_what_it_returns(tmp_path):
    tiny = h.Settings(
        known_entities=4, unknown_entities=8, sft_steps=2, sft_batch=4, rl_steps=2, rl_prompts=2, samples=2, test_each=4
    )
    out = h.run([0, 1], tmp_path, tiny, say=lambda text: None)
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(out)) and [
        s["seed"] for s in out["seeds"]
    ] == [0, 1]
    figures = figures_of.read_csv(tmp_path / "figures.csv")
    assert figures_of.summary(figures)["seeds"][1]["rate_after"] == pytest.approx(
        out["seeds"][1]["rate_after"], abs=1e-4
    )
    assert len(figures_of.read_csv(tmp_path / "training.csv")) == 4
    assert "AA-Omniscience" in figures_of.render(out)
    again = h.run([1], tmp_path / "b", tiny, say=lambda text: None)
    assert again["seeds"][0] == out["seeds"][1], "a seed gives the same figures alone and after another"


# ---------------------------------------------------------------------- the record


def test_the_recorded_run_reaches_the_claim_and_adds_up():
    figures = figures_of.read_csv(RECORD)
    out = figures_of.summary(figures)
    assert len(out["seeds"]) >= 3 and out["reached"]
    for s in out["seeds"]:
        assert 0.8 <= s["rate_before"] <= 0.95 and s["rate_after"] <= figures_of.TARGET_RATE
        assert s["known_before"] - s["known_after"] <= figures_of.ALLOWED_LOSS
    # facts that nothing but their teaching ever held, and people who were never mentioned
    assert all(row["accuracy"] >= 0.9 for row in figures_of.find(figures, "after", questions="known"))
    refused = figures_of.find(figures, "after", questions="unknown_entity")
    assert len(refused) == 3 and all(row["abstained"] >= 0.9 * figures_of.pooled([row]).total for row in refused)
    for row in figures:
        c = figures_of.pooled([row])
        assert (row["accuracy"], row["index"]) == (
            pytest.approx(c.accuracy, abs=1e-5),
            pytest.approx(c.index, abs=1e-4),
        )


def test_bad_input_says_value_rule_and_remedy(tmp_path):
    world = World.make(0, 2, 2)
    for call, words in [
        (lambda: World.make(0, 1, 2), "known_entities=1"),
        (lambda: World.make(0, 20_000, 2), "known_entities=20000"),
        (lambda: world.pick("knwon"), "did you mean 'known'"),
        (lambda: hw.prompt_tokens(world.questions[0], "carefull"), "did you mean 'careful'"),
        (lambda: h.run([], tmp_path), "seeds"),
        (lambda: h.run([1, 1], tmp_path), "each seed once"),
    ]:
        with pytest.raises(InputError, match=words) as err:
            call()
        assert "\n" not in str(err.value)


def test_the_command_refuses_bad_input_in_one_line(capsys):
    from minglm.cli.main import main

    assert main(["hallucination", "--seeds", "0"]) == 2
    assert main(["hallucination", "--objective", "grpoo"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "--seeds: 0" in lines[0] and "did you mean 'grpo'" in lines[1]
