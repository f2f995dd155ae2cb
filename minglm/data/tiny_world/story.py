"""Stories: people in a room take, give and put down things, and go on together; now and then somebody asks a question.

The state is who is there, in which room, of which colour each thing is and who has it. Every sentence agrees with it,
so a sampled story can be checked sentence by sentence. What a sentence may say follows from what stands before it by
looking back, never by a comparison or by leaving out: all are in one room; a story has one person and one thing of
each of three groups; a colour stands behind its thing; anybody may take anything, also from another; and what is given
on or put down is what was taken last. So a model has the circuits for it within minutes, and who has what is still to
be remembered where a question asks for it.
"""

from __future__ import annotations

from minglm.data.tiny_world.grammar import ANSWER, Rules, Slot, State, Template, Values, template
from minglm.data.tiny_world.lexicon import (
    CAST,
    CASTS,
    COLOURS,
    DAYPARTS,
    MOODS,
    PROP_GROUPS,
    PROPS,
    ROOMS,
    TOWNS,
    WEATHER,
)
from minglm.data.tiny_world.names import PRONOUN

LONGEST = 40  # sentences of action
_END = 1 / 12  # chance that a story ends after a sentence of action
_NOBODY = "Nobody"


def start() -> State:
    """Nobody and nothing yet. `opened`: sentences of the opening that are over; `moved`: (person, thing) of the taking
    or giving that the story is still about; `last`: who acted, as long as "he" or "she" is understood."""
    return {"told": 0, "opened": 0, "people": [], "room": None, "colour": {}, "has": {}, "moved": None, "last": None}


# ---------------------------------------------------------------------- what may be said of a state


def _slot(name: str, values, anything, kind: str = "context") -> Slot:
    return Slot(name, values, anything, kind)


def _same(name: str, of: str, anything) -> Slot:
    """The value of an earlier slot once more."""
    return _slot(name, lambda s, b: (b[of],), anything)


def _somebody(name: str, group: int) -> Slot:
    return Slot(name, lambda s, b: CASTS[group], CAST)


def _next_things(state: State, bound: Values) -> tuple[str, ...]:
    return PROP_GROUPS[state["opened"] - OPENING.index(_OBJECT)]


def _takeable(state: State, bound: Values) -> list[str]:
    return [thing for thing in state["colour"] if state["has"].get(thing) != bound["who"]]


def _takers(state: State, bound: Values) -> list[str]:
    return [p for p in state["people"] if _takeable(state, {"who": p})]


def _others(state: State, bound: Values) -> list[str]:
    return [p for p in state["people"] if p != bound["who"]]


_WHO = _slot("who", lambda s, b: s["people"], CAST)
_TAKER = _slot("who", _takers, CAST)
_MOVER = _slot("who", lambda s, b: s["moved"][:1], CAST)
_GETTER = _slot("b", _others, CAST)
_TAKEN = _slot("thing", _takeable, PROPS)
_MOVED = _slot("thing", lambda s, b: s["moved"][1:], PROPS)
_THING = _slot("thing", lambda s, b: list(s["colour"]), PROPS)
_HOLDER = _slot("who", lambda s, b: (s["has"].get(b["thing"], _NOBODY),), (*CAST, _NOBODY))
_PRONOUN = Slot("pronoun", lambda s, b: (PRONOUN[s["last"]],), ("She", "He"), "world")
_THING_AGAIN, _WHO_AGAIN = _same("thing2", "thing", PROPS), _same("who2", "who", CAST)
_ANY_ROOM = _slot("room", lambda s, b: ROOMS, ROOMS, "grammar")
_NEW_ROOM = _slot("room", lambda s, b: tuple(r for r in ROOMS if r != s["room"]), ROOMS, "grammar")
_ROOM = _slot("room", lambda s, b: (s["room"],) if s["room"] else (), ROOMS)
_ITS_COLOUR = _slot("colour", lambda s, b: (s["colour"][b["thing"]],), COLOURS)


# ---------------------------------------------------------------------- what a sentence changes


def _told(state: State, bound: Values) -> None:
    state["told"] += 1


def _opened(state: State, sentences: int) -> None:
    """A model's own opening may lack a sentence or say one twice: that one is wrong and not the rest of the story."""
    state["opened"] = max(state["opened"] + 1, sentences)
    state["told"] += 1


def _arrive(state: State, bound: Values) -> None:
    state["people"] += [bound[name] for name in ("a", "b") if name in bound and bound[name] not in state["people"]]
    state["room"] = state["room"] or bound["room"]
    _opened(state, 1 if "b" in bound else 2)


def _place(state: State, bound: Values) -> None:
    state["colour"].setdefault(bound["thing"], bound["colour"])
    _opened(state, 3 + next(n for n, group in enumerate(PROP_GROUPS) if bound["thing"] in group))


def _go_on(state: State, bound: Values) -> None:
    _opened(state, len(OPENING))


def _rest(state: State, bound: Values) -> None:
    """A question, or a way: what went on is over."""
    state["moved"] = state["last"] = None
    _go_on(state, bound)


def _go(state: State, bound: Values) -> None:
    state["room"] = bound["room"]
    _rest(state, bound)


def _act(state: State, bound: Values) -> None:
    """Raises KeyError for a thing or person that the story does not have, which a model's own may be about."""
    _go_on(state, bound)
    if bound["thing"] not in state["colour"] or not {bound["who"], bound.get("b", bound["who"])} <= {*state["people"]}:
        raise KeyError(bound["thing"])
    state["last"] = bound["who"]


def _take(state: State, bound: Values) -> None:
    _act(state, bound)
    state["has"][bound["thing"]] = bound["who"]
    state["moved"] = (bound["who"], bound["thing"])


def _give(state: State, bound: Values) -> None:
    _act(state, bound)
    state["has"][bound["thing"]] = bound["b"]
    state["moved"] = (bound["b"], bound["thing"])


def _put(state: State, bound: Values) -> None:
    _act(state, bound)
    state["has"].pop(bound["thing"], None)
    state["moved"] = None


def _see(state: State, bound: Values) -> None:
    state["moved"] = None
    _act(state, bound)


def _finish(state: State, bound: Values) -> None:
    state["told"] = -1


# ---------------------------------------------------------------------- the sentences

_TITLE = template("Story \\n", effect=_told)
_SETTING = template(
    "It is a {weather} {daypart} in {town} .",
    Slot("weather", lambda s, b: WEATHER, WEATHER),
    Slot("daypart", lambda s, b: DAYPARTS, DAYPARTS),
    Slot("town", lambda s, b: TOWNS, TOWNS),
    effect=_told,
)
_PAIR = template("{a} and {b} are in the {room} .", _somebody("a", 0), _somebody("b", 1), _ANY_ROOM, effect=_arrive)
_THIRD = template("{a} is in the {room} .", _somebody("a", 2), _ROOM, effect=_arrive)


_OBJECT = template(
    "The {thing} is {colour} and lies in the {room} .",
    Slot("thing", _next_things, PROPS),
    Slot("colour", lambda s, b: COLOURS, COLOURS, combination=lambda s, b, v: f"colour:{v} {b['thing']}"),
    _ROOM,
    effect=_place,
)
OPENING = (_PAIR, _THIRD, _OBJECT, _OBJECT, _OBJECT)
_GO = template("They carry everything to the {room} .", _NEW_ROOM, effect=_go)
_TAKE = template("{who} takes the {thing} .", _TAKER, _TAKEN, effect=_take)
_PUT = template("{who} puts the {thing} down .", _MOVER, _MOVED, effect=_put)
_GIVE = template("{who} gives the {thing} to {b} .", _MOVER, _MOVED, _GETTER, effect=_give)
_SEE = template("{who} sees that the {thing} is {colour} .", _WHO, _THING, _ITS_COLOUR, effect=_see)
_MOOD = template("{pronoun} is {mood} .", _PRONOUN, Slot("mood", lambda s, b: MOODS, MOODS), effect=_go_on)
WHERE_LIES = template(
    f"Where is the {{thing}} ? {ANSWER} The {{thing2}} is in the {{room}} .", _THING, _THING_AGAIN, _ROOM, effect=_rest
)
WHO_HAS = template(
    f"Who has the {{thing}} ? {ANSWER} {{who}} has the {{thing2}} .", _THING, _HOLDER, _THING_AGAIN, effect=_rest
)
WHERE_IS = template(f"Where is {{who}} ? {ANSWER} {{who2}} is in the {{room}} .", _WHO, _WHO_AGAIN, _ROOM, effect=_rest)
WHICH_COLOUR = template(
    f"Which colour has the {{thing}} ? {ANSWER} The {{thing2}} is {{colour}} .",
    _THING,
    _THING_AGAIN,
    _ITS_COLOUR,
    effect=_rest,
)
_END_LINE = template("The end .", effect=_finish)
QUESTIONS = (WHERE_LIES, WHO_HAS, WHERE_IS, WHICH_COLOUR)
TEMPLATES = (_TITLE, _SETTING, _PAIR, _THIRD, _OBJECT, _GO, _TAKE, _PUT, _GIVE, _SEE, _MOOD, *QUESTIONS, _END_LINE)
_ALWAYS = (
    (1.0, _GO),
    (2.5, _TAKE),
    (1.0, _SEE),
    (0.8, WHERE_LIES),
    (1.0, WHO_HAS),
    (0.6, WHERE_IS),
    (1.0, WHICH_COLOUR),
)


def opening(state: State) -> Template | None:
    """The sentence that the opening of a story needs next: people first, then things; None where it is over."""
    return OPENING[state["opened"]] if state["opened"] < len(OPENING) else None


def actions(state: State) -> list[tuple[float, Template]]:
    """What may happen or be asked in a state, with weights that sum to one."""
    moves = list(_ALWAYS)
    if state["moved"]:
        moves += [(2.0, _PUT), (3.0, _GIVE)]
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
