"""Short exercises: words said again and backwards, sums, comparisons, lists that are counted, lines of code, cards.

Each kind is a page of several exercises. What is asked follows a hash (`minglm.data.tiny_world.held_out`), so a fifth
of the word lists, sums, comparisons and coloured things never occurs in training.

A sum is worked column by column, units first, as at school: "What is 27+35? 7+5+0=12, 2+3+1=06: 62." What is added
last is carried into the column; of the two digits behind the sign the first is carried on, the second stays. Both
columns have one form, so that there is one table to learn, and pages of single columns teach it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from minglm.data.tiny_world.grammar import ANSWER, Rules, Slot, State, Template, Values, template
from minglm.data.tiny_world.lexicon import COLOURS, DIGITS, FOODS, GIVEN, OBJECTS, PETS, ROOMS
from minglm.data.tiny_world.names import digit

GAP = "_"  # a space of its own, before a number that follows a word
JOIN = "\u2060"  # says that the next word follows without a space
WORDS = OBJECTS + COLOURS + FOODS + PETS + GIVEN[::4]
LONGEST_LIST = 6
_GO_ON = 0.85


def _page(title: str, exercises: Sequence[tuple[float, Template]]) -> Rules:
    """A title, then exercises until the page ends."""
    heading = template(f"{title} \\n", effect=lambda s, b: s.update(done=1))
    end = template("Done .", effect=lambda s, b: s.update(done=-1))
    total = sum(w for w, _ in exercises)
    first = [(w / total, t) for w, t in exercises]
    later = [*((w * _GO_ON, t) for w, t in first), (1 - _GO_ON, end)]

    def moves(state: State) -> list[tuple[float, Template]]:
        if state["done"] < 0:
            return []
        return [[(1.0, heading)], first, later][min(state["done"], 2)]

    return Rules(title, lambda: {"done": 0}, moves, (heading, *(t for _, t in exercises), end))


def _count(state: State, bound: Values) -> None:
    state["done"] = 2


# ---------------------------------------------------------------------- words again, and backwards


@lru_cache(maxsize=1 << 15)
def _others(taken: tuple[str, ...], of: tuple[str, ...] = WORDS) -> tuple[str, ...]:
    return tuple(w for w in of if w not in taken)


def _list_slots(length: int, task: str, of: tuple[str, ...] = WORDS) -> tuple[Slot, ...]:
    """`length` words, different ones but to copy; all of them together are one combination."""
    repeats = task in ("repeat", "backwards")

    def slot(i: int) -> Slot:
        def values(state: State, bound: Values) -> tuple[str, ...]:
            return of if repeats else _others(tuple(bound[f"w{j}"] for j in range(i)), of)

        def combination(state: State, bound: Values, value: str) -> str:
            return f"{task}:{' '.join([*(bound[f'w{j}'] for j in range(i)), value])}"

        return Slot(f"w{i}", values, of, combination=combination if i == length - 1 else None)

    return tuple(slot(i) for i in range(length))


def _again(i: int, kind: str = "context", of: tuple[str, ...] = WORDS) -> Slot:
    return Slot(f"v{i}", lambda s, b: (b[f"w{i}"],), of, kind)


def _copying(length: int, backwards: bool) -> Template:
    asked = " ".join(f"{{w{i}}}" for i in range(length))
    order = range(length - 1, -1, -1) if backwards else range(length)
    said = " ".join(f"{{v{i}}}" for i in order)
    return template(
        f"{'Backwards' if backwards else 'Repeat'} : {asked} . {ANSWER} {said} .",
        *_list_slots(length, "backwards" if backwards else "repeat"),
        *(_again(i) for i in range(length)),
        effect=_count,
    )


COPIES = {n: _copying(n, False) for n in range(1, LONGEST_LIST + 1)}
REVERSALS = {n: _copying(n, True) for n in range(1, LONGEST_LIST + 1)}
COPY = _page("Words", [(1.0, t) for t in COPIES.values()])
REVERSE = _page("Mirror", [(1.0, t) for t in REVERSALS.values()])

# ---------------------------------------------------------------------- numbers


def _copied(name: str, of: str) -> Slot:
    return Slot(name, lambda s, b: (b[of],), DIGITS, "context")


def _worked(name: str, value: Callable[[Values], int], largest: int, digits: int = 1) -> Slot:
    """A number of at least `digits` digits that follows from those before it, digit by digit."""
    return Slot(
        name,
        lambda s, b: (" ".join(f"{value(b):0{digits}}"),),
        [" ".join(f"{n:0{digits}}") for n in range(largest + 1)],
        "arithmetic",
    )


def number(bound: Values, tens: str, units: str) -> int:
    """The two-digit number that two slots spell."""
    return int(bound[tens]) * 10 + int(bound[units])


def _units(b: Values) -> int:
    return int(b["b"]) + int(b["d"])


def _tens(b: Values) -> int:
    return int(b["a"]) + int(b["c"]) + _units(b) // 10


def _sum_key(state: State, bound: Values, value: str) -> str:
    return f"sum:{bound['a']}{bound['b']} {bound['c']}{value}"


SUM = template(
    f"What is {GAP} {{a}} {{b}} + {{c}} {{d}} ? {ANSWER} {GAP} {{b2}} + {{d2}} + 0 = {{units}} , "
    f"{GAP} {{a2}} + {{c2}} + {{carry}} = {{tens}} : {GAP} {{sum}} .",
    digit("a", 1),
    digit("b"),
    digit("c", 1),
    Slot("d", lambda s, b: DIGITS, DIGITS, combination=_sum_key),
    *(_copied(f"{n}2", n) for n in "abcd"),
    _worked("units", _units, 18, digits=2),
    Slot("carry", lambda s, b: (str(_units(b) // 10),), ("0", "1"), "arithmetic"),
    _worked("tens", _tens, 19, digits=2),
    _worked("sum", lambda b: number(b, "a", "b") + number(b, "c", "d"), 198),
    effect=_count,
)
SMALL_SUM = template(
    f"What is {GAP} {{b}} + {{d}} ? {ANSWER} {GAP} {{b2}} + {{d2}} + 0 = {{units}} : {GAP} {{sum}} .",
    digit("b"),
    digit("d"),
    *(_copied(f"{n}2", n) for n in "bd"),
    _worked("units", _units, 18, digits=2),
    _worked("sum", _units, 18),
    effect=_count,
)
COLUMN = template(
    f"{GAP} {{b}} + {{d}} + {{c}} = {{column}} .",
    digit("b"),
    digit("d"),
    Slot("c", lambda s, b: ("0", "1"), ("0", "1")),
    _worked("column", lambda b: _units(b) + int(b["c"]), 19, digits=2),
    effect=_count,
)
SUMS = _page("Sums", [(0.9, SUM), (0.1, SMALL_SUM)])
COLUMNS = _page("Columns", [(1.0, COLUMN)])


def _compared(word: str, best: Callable[[int, int], int]) -> Template:
    def winner(b: Values) -> int:
        return best(number(b, "a", "b"), number(b, "c", "d"))

    def combination(state: State, bound: Values, value: str) -> str:
        return f"compare:{bound['a']}{bound['b']} {bound['c']}{value}"

    def last(state: State, bound: Values) -> tuple[str, ...]:
        same_tens = bound["a"] == bound["c"]  # two different numbers
        return tuple(d for d in DIGITS if not (same_tens and d == bound["b"]))

    return template(
        f"Which is {word} , {GAP} {{a}} {{b}} or {GAP} {{c}} {{d}} ? {ANSWER} {GAP} {{best}} .",
        digit("a", 1),
        digit("b"),
        digit("c", 1),
        Slot("d", last, DIGITS, combination=combination),
        _worked("best", winner, 99),
        effect=_count,
    )


LARGER, SMALLER = _compared("larger", max), _compared("smaller", min)
COMPARE = _page("Numbers", [(1.0, LARGER), (1.0, SMALLER)])

# ---------------------------------------------------------------------- lists, code, cards


def _listed(length: int) -> Template:
    words = [f"{{w{i}}}" for i in range(length)]
    return template(
        f"On the table : {' , '.join(words[:-1])} and {words[-1]} . How many things ? {ANSWER} {GAP} {length} .",
        *_list_slots(length, "table", OBJECTS),
        effect=_count,
    )


LISTS = {n: _listed(n) for n in range(2, LONGEST_LIST + 1)}
COUNT = _page("Lists", [(1.0, t) for t in LISTS.values()])


def _snippet(length: int) -> Template:
    lines = " ".join(f"{{w{i}}} _= {GAP} {{n{i}}} \\n" for i in range(length))
    names = tuple(f"w{i}" for i in range(length))

    def value(state: State, bound: Values) -> tuple[str]:
        return (next(bound[f"n{i}"] for i in range(length) if bound[f"w{i}"] == bound["name"]),)

    return template(
        f"{lines} print ( {JOIN} {{name}} ) \\n {ANSWER} {GAP} {{value}} \\n",
        *_list_slots(length, "code", OBJECTS),
        *(digit(f"n{i}") for i in range(length)),
        Slot("name", lambda s, b: tuple(b[n] for n in names), OBJECTS, "context"),
        Slot("value", value, DIGITS, "context"),
        effect=_count,
    )


SNIPPETS = {n: _snippet(n) for n in (1, 2, 3)}
CODE = _page("Code", [(1.0, t) for t in SNIPPETS.values()])


def _field(name: str, of: str, anything: tuple[str, ...]) -> Slot:
    return Slot(name, lambda s, b: (b[of],), anything, "context")


CARD = template(
    "Write as a card : the {colour} {thing} of {who} is in the {room} . "
    + f'{ANSWER} _{{" '
    + ' ",_" '.join(
        f'{JOIN} {key} ":_" {JOIN} {{{slot}}}'
        for key, slot in (("thing", "thing2"), ("colour", "colour2"), ("owner", "who2"), ("room", "room2"))
    )
    + ' "}',
    Slot("colour", lambda s, b: COLOURS, COLOURS),
    Slot("thing", lambda s, b: OBJECTS, OBJECTS, combination=lambda s, b, v: f"colour:{b['colour']} {v}"),
    Slot("who", lambda s, b: GIVEN, GIVEN),
    Slot("room", lambda s, b: ROOMS, ROOMS),
    _field("thing2", "thing", OBJECTS),
    _field("colour2", "colour", COLOURS),
    _field("who2", "who", GIVEN),
    _field("room2", "room", ROOMS),
    effect=_count,
)
CARDS = _page("Cards", [(1.0, CARD)])

# ---------------------------------------------------------------------- who gets what, in turns


def _take_turns(length: int) -> Template:
    """Who gets what; then a question, and a second one that leaves out what is understood.

    The thing stands right behind the person, as a code behind its name (`minglm.data.tiny_world.recall`).
    """
    things, people = tuple(f"w{i}" for i in range(length)), tuple(f"p{i}" for i in range(length))

    def person(i: int) -> Slot:
        return Slot(f"p{i}", lambda s, b: _others(tuple(b[f"p{j}"] for j in range(i)), GIVEN), GIVEN)

    def gift(state: State, bound: Values) -> tuple[str]:
        return (next(bound[w] for w, p in zip(things, people, strict=True) if bound[p] == bound["q"]),)

    def remember(state: State, bound: Values) -> None:
        state.update(done=2, gets={bound[p]: bound[w] for w, p in zip(things, people, strict=True)}, asked=bound["q"])

    return template(
        " ".join(f"We give {{p{i}}} {{w{i}}} ." for i in range(length))
        + f" What do we give {{q}} ? {ANSWER} We give {{q2}} {{a}} .",
        *(person(i) for i in range(length)),
        *_list_slots(length, "turns", FOODS),
        Slot("q", lambda s, b: tuple(b[p] for p in people), GIVEN, "context"),
        Slot("q2", lambda s, b: (b["q"],), GIVEN, "context"),
        Slot("a", gift, FOODS, "context"),
        effect=remember,
    )


TURNS = {n: _take_turns(n) for n in (2, 3, 4)}
AND = template(
    f"And {{q}} ? {ANSWER} We give {{q2}} {{a}} .",
    Slot("q", lambda s, b: tuple(p for p in s["gets"] if p != s["asked"]), GIVEN, "context"),
    Slot("q2", lambda s, b: (b["q"],), GIVEN, "context"),
    Slot("a", lambda s, b: (s["gets"][b["q"]],), FOODS, "context"),
    effect=lambda s, b: s.update(gets=None),
)
_CHAT_TITLE = template("Chat \\n", effect=lambda s, b: s.update(done=1))
_CHAT_END = template("Done .", effect=lambda s, b: s.update(done=-1))


def _chat_moves(state: State) -> list[tuple[float, Template]]:
    if state["done"] < 0:
        return []
    if state["done"] == 0:
        return [(1.0, _CHAT_TITLE)]
    if state["gets"]:
        return [(1.0, AND)]
    again = [(1 / len(TURNS), t) for t in TURNS.values()]
    return again if state["done"] == 1 else [*((w * _GO_ON, t) for w, t in again), (1 - _GO_ON, _CHAT_END)]


CHAT = Rules("Chat", lambda: {"done": 0, "gets": None}, _chat_moves, (_CHAT_TITLE, *TURNS.values(), AND, _CHAT_END))
