"""The needle test: what counts as right, and what rules without a question reach, against independent reading."""

import random
import re

import pytest

from minglm.data.tiny_world import needles as tiny_world
from minglm.data.tiny_world import vocabulary
from minglm.data.tiny_world.held_out import is_held_out
from minglm.errors import InputError
from minglm.evals import needle
from minglm.inference.generate import Generated

TOKENIZER = vocabulary.tokenizer()
FORMS = tuple(tiny_world.FORMS)


def reader(text):
    """Answers by regular expressions, from the passage alone."""
    codes = re.findall(r"We call ([\w ]+) (\w+ \w+)\.", text)
    friends = dict(re.findall(r"The friend of ([\w ]+) is ([\w ]+)\.", text))
    if m := re.search(r"Name all that we call ([\w ]+)\.", text):
        return f"We call {m[1]} {' and '.join(c for n, c in codes if n == m[1])}."
    if m := re.search(r"What do we call the friend of ([\w ]+)\?", text):
        friend = friends.get(m[1])
        return f"The friend of {m[1]} is {friend}. We call {friend} {dict(codes).get(friend)}."
    name = re.search(r"What do we call ([\w ]+)\?", text)[1]
    return f"We call {name} {dict(codes)[name]}." if name in dict(codes) else f"I do not know {name}."


def pretend(monkeypatch, says):
    def generate(model, prompts, *args, **kwargs):
        texts = [TOKENIZER.decode(p) for p in prompts]
        return Generated(tokens=[TOKENIZER.encode(says(t)) for t in texts])

    monkeypatch.setattr(needle, "generate", generate)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("facts", [1, 4, 8])
def test_a_reader_of_the_passage_is_right_and_needs_the_passage(monkeypatch, form, facts):
    pretend(monkeypatch, reader)
    result = needle.needle_test(None, TOKENIZER, (220, 300), (0.0, 0.5, 1.0), 2, facts=facts, form=form, progress=False)
    assert result["with_context"] == result["name_right"] == 1 and result["questions"] == 12
    assert result["without_context"] == (1.0 if form == "absent" else 0.0)


def test_the_right_code_behind_another_name_is_wrong(monkeypatch):
    pretend(monkeypatch, lambda text: re.sub(r"call [\w ]+ (\w+ \w+)\.", r"call Mira \1.", reader(text)))
    result = needle.needle_test(None, TOKENIZER, (200,), (0.5,), 8, facts=4, progress=False)
    assert result["with_context"] == 0 and result["code_right"] == 1 and result["name_right"] == 0


def test_several_codes_count_in_any_order_and_only_all_of_them():
    for p in needle.problems(TOKENIZER, 10, 220, 4, form="several"):
        first, second = p.expected.removeprefix(f"We call {p.name} ").removesuffix(".").split(" and ")
        assert p.is_right(f"We call {p.name} {second} and {first}.") and p.is_right(p.expected)
        for wrong in (f"{first}", f"{first} and {first}", f"{first} and {second} and {first}"):
            assert not p.is_right(f"We call {p.name} {wrong}.")
        assert not p.is_right(f"We call Mira {first} and {second}.") and not p.is_right(f"{first} and {second}")


def test_rules_reach_what_chance_says():
    asked = [p for n in (1, 2, 4, 8) for p in needle.problems(TOKENIZER, 150, 256, n, depth=None)]
    for n in (1, 2, 4, 8):
        part = [p for p in asked if len(p.told) == n]
        for rule in needle.RULES:
            hits = sum(p.is_right(p.by_rule(rule, random.Random(i))) for i, p in enumerate(part))
            assert len(part) == 150 and abs(hits - 150 / n) < 5 * (150 / n * (1 - 1 / n)) ** 0.5 + 1e-9, (n, rule)


def test_the_first_and_the_last_fact_follow_the_depth():
    first = needle.problems(TOKENIZER, 20, 400, 4, depth=0.0)
    last = needle.problems(TOKENIZER, 20, 400, 4, depth=1.0)
    rng = random.Random(0)
    assert sum(p.is_right(p.by_rule("first fact", rng)) for p in first) >= 15
    assert sum(p.is_right(p.by_rule("last fact", rng)) for p in last) >= 15


@pytest.mark.parametrize("form", FORMS)
def test_names_and_codes_of_the_test_are_never_those_of_training(form):
    for seed in range(30):
        shown = tiny_world.needles(random.Random(f"{seed}"), 256, 4, 0.5, form, held_out=False)
        tested = tiny_world.needles(random.Random(f"{seed}"), 256, 4, 0.5, form, held_out=True)
        assert shown.length_tokens == len(shown.prompt_ids) <= 256 and tested.length_tokens > 256 - 20
        for n, c in shown.told:
            assert not is_held_out(f"code:{c}") and (" " not in n or not is_held_out(f"name:{n}"))
        assert all(is_held_out(f"name:{n}") and is_held_out(f"code:{c}") for n, c in tested.told)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"length_tokens": 20}, "longer passage"),
        ({"facts": 0}, "at least one"),
        ({"depth": 1.5}, "0..1"),
        ({"form": "plane"}, "plain"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(arguments, says):
    with pytest.raises(InputError, match=says):
        tiny_world.needles(random.Random(0), **{"length_tokens": 256, **arguments})
