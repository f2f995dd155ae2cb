"""What is always true in the tiny world: thirty-two residents, each with a job, a town, a pet, a food and a colour.

Portraits state the facts; questions ask for them in two wordings. A fifth of the (resident, fact, wording) combinations
is never asked in training, though the fact itself is stated. A stranger is a full name that no resident has; about them
the right answer is that one does not know them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from minglm.data.tiny_world.grammar import ANSWER, Rules, Slot, State, Template, Values, template
from minglm.data.tiny_world.lexicon import COLOURS, FAMILY, FOODS, GIVEN, JOBS, MEN, PETS, TOWNS, WOMEN, WORKPLACES
from minglm.data.tiny_world.names import PRONOUN, given

COUNT = 32
FACTS = {"job": JOBS, "town": TOWNS, "pet": PETS, "food": FOODS, "colour": COLOURS}
_STRANGERS = 0.25  # of the questions


@cache
def residents() -> dict[str, dict[str, str]]:
    """First name → family name and facts; always the same ones."""
    rng = random.Random("residents of the tiny world")
    first = [*rng.sample(WOMEN, COUNT // 2), *rng.sample(MEN, COUNT // 2)]
    last = rng.sample(FAMILY, COUNT)
    return {
        name: {"family": family, **{fact: rng.choice(values) for fact, values in FACTS.items()}}
        for name, family in zip(sorted(first), last, strict=True)
    }


def _first(fact: str, wording: int) -> Slot:
    """A resident's first name, at the end of what a wording asks."""
    names = tuple(residents())
    return Slot("a", lambda s, b: names, names, combination=lambda s, b, v: f"question:{v} {fact} {wording}")


_NAMES = tuple(residents())
_RESIDENT = Slot("a", lambda s, b: _NAMES, _NAMES)
_FAMILY = Slot("f", lambda s, b: (residents()[b["a"]]["family"],), FAMILY, "world")
_FIRST_AGAIN = Slot("a2", lambda s, b: (b["a"],), GIVEN, "context")
_FAMILY_AGAIN = Slot("f2", lambda s, b: (b["f"],), FAMILY, "context")
_STRANGE_FAMILY = Slot(
    "f",
    lambda s, b: tuple(f for f in FAMILY if b["a"] not in residents() or residents()[b["a"]]["family"] != f),
    FAMILY,
    combination=lambda s, b, v: f"name:{b['a']} {v}",
)


def _fact(fact: str, who: Callable[[State, Values], str] = lambda s, b: b["a"]) -> Slot:
    return Slot(fact, lambda s, b: (residents()[who(s, b)][fact],), FACTS[fact], "world")


_SUBJECT = (
    Slot("a", lambda s, b: (s["who"],), GIVEN, "context"),
    Slot("f", lambda s, b: (residents()[s["who"]]["family"],), FAMILY, "context"),
)
_PRONOUN = Slot("pronoun", lambda s, b: (PRONOUN[s["who"]],), ("She", "He"), "world")
_WORKPLACE = Slot(
    "workplace", lambda s, b: (WORKPLACES[residents()[s["who"]]["job"]],), tuple(WORKPLACES.values()), "world"
)

# ---------------------------------------------------------------------- portraits

_STATEMENTS = {
    "job": ("is a {job} and works in the {workplace} .",),
    "town": ("lives in {town} .", "comes from {town} ."),
    "pet": ("keeps a {pet} .",),
    "food": ("likes {food} .", "often eats {food} ."),
    "colour": ("likes the colour {colour} best .",),
}


def _stated(fact: str) -> Callable[[State, Values], None]:
    def effect(state: State, bound: Values) -> None:
        state["left"] = tuple(f for f in state["left"] if f != fact)

    return effect


def _meet(state: State, bound: Values) -> None:
    state["who"] = bound["a"]


_PORTRAIT_TITLE = template("Portrait \\n This is {a} {f} .", _RESIDENT, _FAMILY, effect=_meet)
_TOLD = {
    fact: tuple(
        template(
            f"{subject} {text}",
            *_SUBJECT,
            _PRONOUN,
            _fact(fact, lambda s, b: s["who"]),
            _WORKPLACE,
            effect=_stated(fact),
        )
        for text in texts
        for subject in ("{a} {f}", "{pronoun}")
    )
    for fact, texts in _STATEMENTS.items()
}


def _portrait(state: State) -> list[tuple[float, Template]]:
    if state["who"] is None:
        return [(1.0, _PORTRAIT_TITLE)]
    return [(1 / len(_TOLD[f]), t) for f in state["left"] for t in _TOLD[f]]


PORTRAIT = Rules(
    "Portrait",
    lambda: {"who": None, "left": tuple(FACTS)},
    _portrait,
    (_PORTRAIT_TITLE, *(t for ts in _TOLD.values() for t in ts)),
)

# ---------------------------------------------------------------------- questions

_QUESTIONS = {
    "job": (("What is the job of {a} {f} ?", "What does {a} {f} work as ?"), "{a2} {f2} is a {job} ."),
    "town": (("Where does {a} {f} live ?", "Which town is the home of {a} {f} ?"), "{a2} {f2} lives in {town} ."),
    "pet": (("Which pet does {a} {f} keep ?", "What is the pet of {a} {f} ?"), "{a2} {f2} keeps a {pet} ."),
    "food": (("What does {a} {f} like to eat ?", "Which food does {a} {f} like ?"), "{a2} {f2} likes {food} ."),
    "colour": (
        ("Which colour does {a} {f} like best ?", "What is the favourite colour of {a} {f} ?"),
        "{a2} {f2} likes the colour {colour} best .",
    ),
}
_UNKNOWN = "I do not know {a2} {f2} ."


def _asked(state: State, bound: Values) -> None:
    state["asked"] += 1


_ASKED = tuple(
    template(
        f"{question} {ANSWER} {answer}",
        _first(fact, n),
        _FAMILY,
        _FIRST_AGAIN,
        _FAMILY_AGAIN,
        _fact(fact),
        effect=_asked,
    )
    for fact, (questions, answer) in _QUESTIONS.items()
    for n, question in enumerate(questions)
)
_ASKED_OF_STRANGERS = tuple(
    template(f"{question} {ANSWER} {_UNKNOWN}", given("a"), _STRANGE_FAMILY, _FIRST_AGAIN, _FAMILY_AGAIN, effect=_asked)
    for questions, _ in _QUESTIONS.values()
    for question in questions
)
_QUESTIONS_TITLE = template("Questions \\n", effect=_asked)
_BREAK = template("Good bye .", effect=lambda s, b: s.update(asked=-1))
ABOUT_RESIDENTS = [(1 / len(_ASKED), t) for t in _ASKED]
ABOUT_STRANGERS = [(1 / len(_ASKED_OF_STRANGERS), t) for t in _ASKED_OF_STRANGERS]


def _conversation(state: State) -> list[tuple[float, Template]]:
    if state["asked"] <= 0:
        return [] if state["asked"] < 0 else [(1.0, _QUESTIONS_TITLE)]
    going_on = [((1 - _STRANGERS) * w, t) for w, t in ABOUT_RESIDENTS] + [
        (_STRANGERS * w, t) for w, t in ABOUT_STRANGERS
    ]
    return going_on if state["asked"] == 1 else [(0.8 * w, t) for w, t in going_on] + [(0.2, _BREAK)]


QUESTIONS = Rules(
    "Questions",
    lambda: {"asked": 0},
    _conversation,
    (_QUESTIONS_TITLE, *_ASKED, *_ASKED_OF_STRANGERS, _BREAK),
)
