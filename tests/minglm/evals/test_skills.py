"""Skills: problems that training never shows, answers against an independent solver, rules that need no skill."""

import json
import re

import pytest

from minglm.data.tiny_world import vocabulary
from minglm.data.tiny_world.held_out import is_held_out
from minglm.data.tiny_world.residents import residents
from minglm.errors import InputError
from minglm.evals import skills
from minglm.inference.generate import Generated

TOKENIZER = vocabulary.tokenizer()


def solve(question):
    """The right answer, worked out from the question's text alone (and from the residents)."""
    if m := re.fullmatch(r"(Repeat|Backwards): (.+)\.", question):
        words = m[2].split()
        return " ".join(words if m[1] == "Repeat" else words[::-1]) + "."
    if m := re.fullmatch(r"What is (\d+)\+(\d+)\?", question):
        return f"{int(m[1]) + int(m[2])}."
    if m := re.fullmatch(r"Which is (larger|smaller), (\d+) or (\d+)\?", question):
        return f"{(max if m[1] == 'larger' else min)(int(m[2]), int(m[3]))}."
    if m := re.fullmatch(r"Write as a card: the (\w+) (\w+) of (\w+) is in the (\w+)\.", question):
        return json.dumps({"thing": m[2], "colour": m[1], "owner": m[3], "room": m[4]})
    if gifts := dict(re.findall(r"We give (\w+) (\w+)\.", question)):
        asked = re.findall(r"(?:What do we give|And) (\w+)\?", question)[-1]
        return f"We give {asked} {gifts[asked]}."
    first, family = re.findall(r"([A-Z][a-z]+) ([A-Z][a-z]+)", question)[-1]
    known = residents().get(first)
    if not known or known["family"] != family:
        return f"I do not know {first} {family}."
    fact = next(f for words, f in FACTS.items() if re.search(words, question))
    text = {
        "job": "is a {}.",
        "town": "lives in {}.",
        "pet": "keeps a {}.",
        "food": "likes {}.",
        "colour": "likes the colour {} best.",
    }[fact]
    return f"{first} {family} {text.format(known[fact])}"


FACTS = {"job|work as": "job", "live|home": "town", "pet": "pet", "eat|food": "food", "colour": "colour"}


def answer_all(monkeypatch, says):
    seen = []

    def generate(model, prompts, *args, **kwargs):
        texts = [TOKENIZER.decode(p, special=True) for p in prompts]
        seen.extend(texts)
        turns = [re.split(r"<\|\w+\|>", t) for t in texts]
        users = [[p.strip() for p in parts[2::3] if p.strip()] for parts in turns]
        return Generated(tokens=[TOKENIZER.encode(says(" ".join(u))) for u in users])

    monkeypatch.setattr(skills, "generate", generate)
    return seen


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_a_solver_is_right_and_an_answer_off_by_a_word_is_wrong(monkeypatch, skill):
    problems = skills.problems(skill, 24)
    assert len({p.messages for p in problems}) == len(problems) >= 20
    answer_all(monkeypatch, solve)
    assert all(skills.ask(None, TOKENIZER, skill, problems))
    answer_all(monkeypatch, lambda q: "the " + solve(q))
    assert not any(skills.ask(None, TOKENIZER, skill, problems))


def test_problems_are_those_that_training_never_shows():
    for kind in ("sums, no carry", "sums, carry"):
        for p in skills.problems(kind, 40):
            a, b = re.findall(r"\d+", p.messages[0][1])
            assert is_held_out(f"sum:{a} {b}") and len(a) == len(b) == 2
            assert (int(a) % 10 + int(b) % 10 >= 10) == (kind == "sums, carry")
    for p in skills.problems("refusal", 20):
        assert is_held_out("name:" + " ".join(re.findall(r"[A-Z][a-z]+", p.messages[1][1])[-2:]))
    for p in skills.problems("copy", 20):
        assert is_held_out("repeat:" + p.messages[1][1].rstrip("."))


def test_rules_reach_what_they_must():
    share = {
        (skill, rule): sum(skills.by_rule(skill, rule, p) for p in problems) / len(problems)
        for skill in skills.SKILLS
        for problems in [skills.problems(skill, 60)]
        for rule in skills.SKILLS[skill].rules
    }
    assert share["refusal", "always refuse"] == 1 and share["refusal", "never refuse"] == 0
    assert abs(share["compare", "the first number"] + share["compare", "the last number"] - 1) < 1e-9
    assert share["sums, carry", "adding without a carry"] == 0
    assert share["sums, no carry", "adding without a carry"] == 1
    assert share["copy", "the words backwards"] < 0.05 and share["cards", "the commonest card"] < 0.05
    assert 0.02 < share["facts", "the commonest answer"] < 0.5
    assert share["dialogue", "the first thing"] < 0.05  # both turns ask for different people


def test_an_unknown_skill_is_refused():
    with pytest.raises(InputError, match="did you mean 'copy'"):
        skills.problems("copi", 3)
