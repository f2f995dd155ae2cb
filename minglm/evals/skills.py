"""Skills that can be checked: questions of the tiny world that training never showed, beside trivial rules.

    copy, reverse     three words
    sums              two-digit numbers, worked digit by digit: those that carry nothing, and those that carry
    compare           the larger or smaller of two numbers
    facts             a resident's job, town, pet, food or colour, in a wording that training never used for it
    refusal           a full name that training never showed: one does not know them
    dialogue          who gets what, and a second question that leaves out what is understood; both right
    cards             a sentence as JSON

An answer is right when all of it is. A rule sees the question too, but does something that needs no skill.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from minglm.data.chat import encode_chat
from minglm.data.conversations import Example
from minglm.data.tiny_world.conversations import conversation
from minglm.errors import InputError, nearest
from minglm.inference.generate import generate

ANSWER_TOKENS = 48
BATCH = 64
_DRAWS = 200  # for each problem wanted, before we say that there are no more
UNKNOWN = "I do not know"


@dataclass(frozen=True)
class Skill:
    """Where its problems come from, which of them count, and the rules beside it."""

    kind: str  # of conversation
    rules: Mapping[str, Callable[[str], str]]  # name → answer to a question
    wanted: Callable[[Example], bool] = lambda example: True
    turns: int = 1


def _words(question: str) -> list[str]:
    return question.split(":")[1].strip(" .").split()


def _numbers(question: str) -> list[str]:
    return re.findall(r"\d+", question)


def _no_carry(question: str) -> str:
    a, b = _numbers(question)
    units, tens = (int(a[-1]) + int(b[-1])) % 10, int(a[0]) + int(b[0])
    return f"{tens}{units}."


def _two_digits(example: Example) -> bool:
    return len(_numbers(example.messages[0][1])[0]) == 2


def _carries(example: Example) -> bool:
    """Whether the units of a sum of two-digit numbers carry into the tens."""
    a, b = _numbers(example.messages[0][1])
    return int(a[-1]) + int(b[-1]) > 9


_SUM_RULES = {"adding without a carry": _no_carry}


@cache
def commonest(kind: str) -> str:
    """The answer that training gives most often to this kind of question."""
    rng = random.Random(f"commonest/{kind}")
    return Counter(conversation(kind, rng, False, 1).messages[1][1] for _ in range(2000)).most_common(1)[0][0]


def _gifts(question: str) -> list[str]:
    return re.findall(r"We give \w+ (\w+)\.", question)


def _asked_person(question: str) -> str:
    return re.findall(r"(\w+)\?", question)[-1]


def _resident(question: str) -> str:
    return re.findall(_FULL_NAME, question)[-1]


_FULL_NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"


@cache
def _usual_facts() -> dict[str, str]:
    """Wording of a question → the answer that training gives most often, both without the name."""
    rng = random.Random("usual facts")
    answers: dict[str, Counter[str]] = {}
    for _ in range(4000):
        (_, asked), (_, told) = conversation("questions", rng, False, 1).messages
        if not told.startswith(UNKNOWN):
            answers.setdefault(re.sub(_FULL_NAME, "", asked), Counter())[re.sub(_FULL_NAME, "", told)] += 1
    return {question: counted.most_common(1)[0][0] for question, counted in answers.items()}


def _usual_fact(question: str) -> str:
    """The commonest answer to such a question, with the name that was asked put in."""
    return _resident(question) + _usual_facts()[re.sub(_FULL_NAME, "", question)]


SKILLS: dict[str, Skill] = {
    "copy": Skill(
        "copy",
        {"the words backwards": lambda q: " ".join(reversed(_words(q))) + "."},
        lambda e: len(_words(e.messages[0][1])) == 3,
    ),
    "reverse": Skill(
        "reverse",
        {"the words as they stand": lambda q: " ".join(_words(q)) + "."},
        lambda e: len(_words(e.messages[0][1])) == 3,
    ),
    "sums, no carry": Skill("sums", _SUM_RULES, lambda e: _two_digits(e) and not _carries(e)),
    "sums, carry": Skill("sums", _SUM_RULES, lambda e: _two_digits(e) and _carries(e)),
    "compare": Skill(
        "compare",
        {
            "the first number": lambda q: f"{_numbers(q)[0]}.",
            "the last number": lambda q: f"{_numbers(q)[1]}.",
        },
    ),
    "facts": Skill(
        "questions",
        {"the commonest answer": _usual_fact},
        lambda e: not e.messages[1][1].startswith(UNKNOWN),
    ),
    "refusal": Skill(
        "questions",
        {"never refuse": _usual_fact, "always refuse": lambda q: f"{UNKNOWN} {_resident(q)}."},
        lambda e: e.messages[1][1].startswith(UNKNOWN),
    ),
    "dialogue": Skill(
        "chat",
        {
            "the first thing": lambda q: f"We give {_asked_person(q)} {_gifts(q)[0]}.",
            "the last thing": lambda q: f"We give {_asked_person(q)} {_gifts(q)[-1]}.",
        },
        lambda e: len(e.messages) == 4,
        turns=2,
    ),
    "cards": Skill("cards", {"the commonest card": lambda q: commonest("cards")}),
}


def problems(skill: str, count: int, seed: int = 1) -> list[Example]:
    """Different problems of a skill that training never shows, `count` of them or as many as there are.

    Raises:
        InputError: an unknown skill.
    """
    if skill not in SKILLS:
        raise InputError(f"skill {skill!r}: not one of {', '.join(SKILLS)}{nearest(skill, SKILLS)}")
    entry, rng = SKILLS[skill], random.Random(f"skill/{skill}/{seed}")
    out: dict[tuple, Example] = {}
    for _ in range(_DRAWS * count):
        example = conversation(entry.kind, rng, True, entry.turns)
        if entry.wanted(example):
            out.setdefault(example.messages, Example(skill, example.messages))
        if len(out) == count:
            break
    return list(out.values())


def final(skill: str, answer: str) -> str:
    """The part of an answer that is judged: a sum's result behind its working, else all of it."""
    return answer.rsplit(":", 1)[-1].strip() if SKILLS[skill].kind == "sums" else answer.strip()


def is_right(skill: str, answer: str, expected: str) -> bool:
    """Whether an answer is the right one; a card is compared as JSON."""
    if skill == "cards":
        try:
            return json.loads(answer) == json.loads(expected)
        except ValueError:
            return False
    return final(skill, answer) == final(skill, expected)


def by_rule(skill: str, rule: str, example: Example) -> bool:
    """Whether a rule answers every turn of a problem rightly."""
    says, context = SKILLS[skill].rules[rule], ""
    for (_, question), (_, expected) in zip(example.messages[::2], example.messages[1::2], strict=True):
        context = f"{context} {question}".strip()
        if not is_right(skill, says(context), expected):
            return False
    return True


def ask(model, tokenizer, skill: str, examples: Sequence[Example], mode: str = "sparse") -> list[bool]:
    """Which problems the model gets right, greedy; the later turns follow its own earlier answers."""
    right = [True] * len(examples)
    said: list[list[tuple[str, str]]] = [[] for _ in examples]
    for turn in range(SKILLS[skill].turns):
        for i, example in enumerate(examples):
            said[i].append(example.messages[2 * turn])
        for start in range(0, len(examples), BATCH):
            part = range(start, min(start + BATCH, len(examples)))
            prompts = [[*encode_chat(tokenizer, tuple(said[i]))[0], tokenizer.assistant] for i in part]
            made = generate(model, prompts, ANSWER_TOKENS, stop=(tokenizer.eos,), mode=mode)
            for i, ids in zip(part, made.tokens, strict=True):
                answer = tokenizer.decode(ids)
                said[i].append(("assistant", answer))
                right[i] &= is_right(skill, answer, examples[i].messages[2 * turn + 1][1])
    return right
