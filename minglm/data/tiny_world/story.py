"""Stories: people in a room take, give and put down things, and go on together; now and then somebody asks a question.

The state is where they are, who holds what, what lies there and of which colour each thing is. Every sentence agrees
with it, so a sampled story can be checked sentence by sentence. All are in one room, so that what a sentence may say
follows from one thing said before and not from a comparison of two places; and all stories are about the same eight
people and sixteen things, which come often enough to be told apart from all other words within minutes.
"""

from __future__ import annotations

from functools import lru_cache

from minglm.data.tiny_world.grammar import ANSWER, Rules, Slot, State, Template, Values, template
from minglm.data.tiny_world.lexicon import CAST, COLOURS, DAYPARTS, MOODS, PROPS, ROOMS, TOWNS, WEATHER
from minglm.data.tiny_world.names import PRONOUN

PEOPLE, THINGS = 3, 3
LONGEST = 40  # sentences of action
_END = 1 / 12  # chance that a story ends after a sentence of action


def start() -> State:
    """Nobody and nothing yet."""
    return {"told": 0, "at": {}, "lies": {}, "held": {}, "colour": {}, "last": None}


# ---------------------------------------------------------------------- what may be said of a state


def _people(state: State, bound: Values) -> list[str]:
    return list(state["at"])


def _others(state: State, bound: Values) -> list[str]:
    return [p for p in state["at"] if p != bound["who"] and state["at"][p] == state["at"][bound["who"]]]


def _strangers(state: State, bound: Values) -> tuple[str, ...]:
    return _without(CAST, (*state["at"], *(bound[k] for k in ("a",) if k in bound)))


@lru_cache(maxsize=1 << 14)
def _without(words: tuple[str, ...], left_out: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(w for w in words if w not in left_out)


def _elsewhere(state: State, bound: Values) -> tuple[str, ...]:
    return _without(ROOMS, tuple(set(state["at"].values())))


def _here(state: State, bound: Values) -> list[str]:
    return sorted(set(state["at"].values()))


def _new_colours(state: State, bound: Values) -> tuple[str, ...]:
    return _without(COLOURS, tuple(state["colour"].values()))


def _within_reach(state: State, who: str) -> list[str]:
    return [thing for thing, room in state["lies"].items() if room == state["at"][who]]


def _holders(state: State) -> list[str]:
    return [p for p in state["at"] if p in state["held"].values()]


def _in_hand(state: State, bound: Values) -> list[str]:
    return [thing for thing, who in state["held"].items() if who == bound["who"]]


def _slot(name: str, values, anything, kind: str = "context") -> Slot:
    return Slot(name, values, anything, kind)


_WHO = _slot("who", _people, CAST)
_TAKER = _slot("who", lambda s, b: [p for p in s["at"] if _within_reach(s, p)], CAST)
_HOLDER = _slot("who", lambda s, b: _holders(s), CAST)
_GIVER = _slot("who", lambda s, b: [p for p in _holders(s) if _others(s, {"who": p})], CAST)
_GETTER = _slot("b", _others, CAST)
_REACHED = _slot("thing", lambda s, b: _within_reach(s, b["who"]), PROPS)
_HELD = _slot("thing", _in_hand, PROPS)
_LYING = _slot("thing", lambda s, b: list(s["lies"]), PROPS)
_CARRIED = _slot("thing", lambda s, b: list(s["held"]), PROPS)
_KNOWN = _slot("thing", lambda s, b: list(s["colour"]), PROPS)
_PRONOUN = Slot("pronoun", lambda s, b: (PRONOUN[s["last"]],), ("She", "He"), "world")


def _same(name: str, of: str, anything, kind: str = "context") -> Slot:
    """The value of an earlier slot once more."""
    return Slot(name, lambda s, b: (b[of],), anything, kind)


_THING_AGAIN, _WHO_AGAIN = _same("thing2", "thing", PROPS), _same("who2", "who", CAST)
_ITS_ROOM = _slot("room", lambda s, b: (s["lies"][b["thing"]],), ROOMS)
_THEIR_ROOM = _slot("room", lambda s, b: (s["at"][b["who"]],), ROOMS)
_ITS_COLOUR = _slot("colour", lambda s, b: (s["colour"][b["thing"]],), COLOURS)
_ITS_HOLDER = _slot("who", lambda s, b: (s["held"][b["thing"]],), CAST)


# ---------------------------------------------------------------------- what a sentence changes


def _told(state: State, bound: Values) -> None:
    state["told"] += 1


def _arrive(state: State, bound: Values) -> None:
    for name in ("a", "b"):
        if name in bound:
            state["at"][bound[name]] = bound["room"]
    state["told"] += 1


def _place(state: State, bound: Values) -> None:
    state["lies"][bound["thing"]] = bound["room"]
    state["colour"][bound["thing"]] = bound["colour"]
    state["told"] += 1


def _go(state: State, bound: Values) -> None:
    for kind in ("at", "lies"):
        state[kind] = dict.fromkeys(state[kind], bound["room"])
    state["last"] = None
    state["told"] += 1


def _must_know(state: State, thing: str, *people: str) -> None:
    """A sentence of a model's own may be about what its story does not have: KeyError, before anything is changed."""
    for known, name in ((state["colour"], thing), *((state["at"], person) for person in people)):
        if name not in known:
            raise KeyError(name)


def _take(state: State, bound: Values) -> None:
    _must_know(state, bound["thing"], bound["who"])
    state["lies"].pop(bound["thing"], None)
    state["held"][bound["thing"]] = bound["who"]
    _act(state, bound)


def _put(state: State, bound: Values) -> None:
    _must_know(state, bound["thing"], bound["who"])
    state["held"].pop(bound["thing"], None)
    state["lies"][bound["thing"]] = state["at"][bound["who"]]
    _act(state, bound)


def _give(state: State, bound: Values) -> None:
    _must_know(state, bound["thing"], bound["who"], bound["b"])
    state["held"][bound["thing"]] = bound["b"]
    _act(state, bound)


def _act(state: State, bound: Values) -> None:
    state["last"] = bound["who"]
    state["told"] += 1


def _finish(state: State, bound: Values) -> None:
    state["told"] = -1


# ---------------------------------------------------------------------- the sentences

_ANY_ROOM = _slot("room", lambda s, b: ROOMS, ROOMS, "grammar")
_TITLE = template("Story \\n", effect=_told)
_SETTING = template(
    "It is a {weather} {daypart} in {town} .",
    Slot("weather", lambda s, b: WEATHER, WEATHER),
    Slot("daypart", lambda s, b: DAYPARTS, DAYPARTS),
    Slot("town", lambda s, b: TOWNS, TOWNS),
    effect=_told,
)
_PAIR = template(
    "{a} and {b} are in the {room} .",
    Slot("a", _strangers, CAST),
    Slot("b", _strangers, CAST),
    _ANY_ROOM,
    effect=_arrive,
)
_THIRD = template("{a} is in the {room} .", Slot("a", _strangers, CAST), _slot("room", _here, ROOMS), effect=_arrive)
_OBJECT = template(
    "The {colour} {thing} is in the {room} .",
    Slot("colour", _new_colours, COLOURS),
    Slot(
        "thing",
        lambda s, b: _without(PROPS, tuple(s["colour"])),
        PROPS,
        combination=lambda s, b, v: f"colour:{b['colour']} {v}",
    ),
    _slot("room", _here, ROOMS),
    effect=_place,
)
_GO = template("They carry everything to the {room} .", _slot("room", _elsewhere, ROOMS, "grammar"), effect=_go)
_TAKE = template("{who} takes the {thing} .", _TAKER, _REACHED, effect=_take)
_PUT = template("{who} puts the {thing} down .", _HOLDER, _HELD, effect=_put)
_GIVE = template("{who} gives the {thing} to {b} .", _GIVER, _HELD, _GETTER, effect=_give)
_LOOK = template(
    "{who} looks at the {colour} {thing2} .",
    _TAKER,
    Slot("colour", lambda s, b: [s["colour"][t] for t in _within_reach(s, b["who"])], COLOURS, "context"),
    Slot(
        "thing2",
        lambda s, b: [t for t in _within_reach(s, b["who"]) if s["colour"][t] == b["colour"]],
        PROPS,
        "context",
    ),
    effect=_act,
)
_MOOD = template("{pronoun} is {mood} .", _PRONOUN, Slot("mood", lambda s, b: MOODS, MOODS), effect=_told)
WHERE_LIES = template(
    f"Where is the {{thing}} ? {ANSWER} The {{thing2}} is in the {{room}} .",
    _LYING,
    _THING_AGAIN,
    _ITS_ROOM,
    effect=_told,
)
WHO_HAS = template(
    f"Who has the {{thing}} ? {ANSWER} {{who}} has the {{thing2}} .", _CARRIED, _ITS_HOLDER, _THING_AGAIN, effect=_told
)
WHERE_IS = template(
    f"Where is {{who}} ? {ANSWER} {{who2}} is in the {{room}} .", _WHO, _WHO_AGAIN, _THEIR_ROOM, effect=_told
)
WHICH_COLOUR = template(
    f"Which colour has the {{thing}} ? {ANSWER} The {{thing2}} is {{colour}} .",
    _KNOWN,
    _THING_AGAIN,
    _ITS_COLOUR,
    effect=_told,
)
_END_LINE = template("The end .", effect=_finish)
QUESTIONS = (WHERE_LIES, WHO_HAS, WHERE_IS, WHICH_COLOUR)
TEMPLATES = (_TITLE, _SETTING, _PAIR, _THIRD, _OBJECT, _GO, _TAKE, _PUT, _GIVE, _LOOK, _MOOD, *QUESTIONS, _END_LINE)


def opening(state: State) -> Template | None:
    """The sentence that the opening of a story needs next: people first, then things; None where all are there."""
    if len(state["at"]) < 2:
        return _PAIR
    if len(state["at"]) < PEOPLE:
        return _THIRD
    return _OBJECT if len(state["colour"]) < THINGS else None


def actions(state: State) -> list[tuple[float, Template]]:
    """What may happen or be asked in a state, with weights that sum to one."""
    moves = [(1.0, _GO), (0.6, WHERE_IS), (0.6, WHICH_COLOUR)]
    if any(_within_reach(state, p) for p in state["at"]):
        moves += [(4.0, _TAKE), (0.7, _LOOK)]
    if state["held"]:
        moves += [(1.5, _PUT), (1.2, WHO_HAS)]
        if any(_others(state, {"who": p}) for p in _holders(state)):
            moves.append((2.0, _GIVE))
    if state["lies"]:
        moves.append((1.2, WHERE_LIES))
    if state["last"]:
        moves.append((0.8, _MOOD))
    total = sum(w for w, _ in moves)
    return [(w / total, t) for w, t in moves]


def moves(state: State) -> list[tuple[float, Template]]:
    """What may come next in a story."""
    if state["told"] < 0:
        return []
    if state["told"] == 0:
        return [(1.0, _TITLE)]
    if state["told"] == 1:
        return [(1.0, _SETTING)]
    if needed := opening(state):
        return [(1.0, needed)]
    if state["told"] >= LONGEST:
        return [(1.0, _END_LINE)]
    return [((1 - _END) * w, t) for w, t in actions(state)] + [(_END, _END_LINE)]


STORY = Rules("Story", start, moves, TEMPLATES)
