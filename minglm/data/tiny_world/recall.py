"""Recall by key: several people, each with a code name, then a question about each; the answer repeats the name.

    We call Mira Tolen amber falcon. We call Odo silver otter. What do we call Odo? We call Odo silver otter.

The code stands right behind the key, so looking one token back is enough to find it.

A key has one to three tokens ("Mira", "Mira Tolen", "Mira Luna Tolen"), a value two ("amber falcon"); a fifth of the
full names and of the codes never occurs in training. Two harder forms: a person with several codes, and a person whose
friend has one. Some questions are about a name that has no code: then one does not know. `CODES` is facts and questions
alone, `PASSAGE` hides the facts in a story, `CHRONICLE` in a long one.
"""

from __future__ import annotations

from collections.abc import Callable

from minglm.data.synthetic_facts import ADJECTIVES, ANIMALS
from minglm.data.tiny_world import story
from minglm.data.tiny_world.grammar import ANSWER, Rules, Slot, State, Template, Values, template
from minglm.data.tiny_world.lexicon import FAMILY, GIVEN
from minglm.data.tiny_world.names import adjective, animal, given

MOST_FACTS = 8
KEY_LENGTHS = (1, 2, 3)
_ONE_MORE = 0.8  # chance of another fact
_ABSENT = 0.15  # weight of a question about nobody in the text, beside 1 for those that have an answer
_WEIGHTS = {"plain": 0.7, "several": 0.15, "hop": 0.15}
_TITLES = {"plain": "Codes", "several": "Several", "hop": "Friends"}


def _words(length: int) -> tuple[str, tuple[Slot, ...]]:
    """A key of `length` words as text of a template and its slots."""
    if length == 1:
        return "{a}", (Slot("a", _unused_given, GIVEN),)
    if length == 2:
        return "{a} {f}", (given("a"), _family(2))
    return "{a} {m} {f}", (given("a"), given("m"), _family(3))


def _unused_given(state: State, bound: Values) -> tuple[str, ...]:
    return tuple(g for g in GIVEN if g not in state["keys"] and g not in state["friends"])


def _family(length: int) -> Slot:
    """The last word of a key, such that no two keys are the same."""

    def values(state: State, bound: Values) -> tuple[str, ...]:
        before = _before(bound, length)
        used = (*state["keys"], *state["friends"])
        taken = {key.split(" ")[-1] for key in used if " " in key and key.rsplit(" ", 1)[0] == before}
        return tuple(f for f in FAMILY if f not in taken) if taken else FAMILY

    return Slot("f", values, FAMILY, combination=lambda s, b, v: f"name:{_before(b, length)} {v}")


def _before(bound: Values, length: int) -> str:
    return bound["a"] if length == 2 else f"{bound['a']} {bound['m']}"


def key_of(bound: Values) -> str:
    """The key that the slots of a fact spell."""
    return bound["key"] if "key" in bound else " ".join(bound[n] for n in ("a", "m", "f") if n in bound)


# ---------------------------------------------------------------------- facts


def _note(state: State, bound: Values) -> None:
    key, code = key_of(bound), f"{bound['adj']} {bound['ani']}"
    state["keys"].setdefault(key, []).append(code)


def _link(state: State, bound: Values) -> None:
    state["friends"][key_of(bound)] = bound["of"]


def _code_slots() -> tuple[Slot, Slot]:
    return adjective("adj"), animal("ani", "adj")


def _fact(length: int) -> Template:
    text, slots = _words(length)
    return template(f"We call {text} {{adj}} {{ani}} .", *slots, *_code_slots(), effect=_note)


def _friend(length: int) -> Template:
    """Somebody new whose friend is somebody known."""
    text, slots = _words(length)
    of = Slot("of", lambda s, b: tuple(s["keys"]), tuple(GIVEN), "context")
    return template(f"The friend of {text} is {{of}} .", *slots, of, effect=_link)


PLAIN = {n: _fact(n) for n in KEY_LENGTHS}
_MORE = template(
    "We call {key} {adj} {ani} .",
    Slot("key", lambda s, b: tuple(k for k, v in s["keys"].items() if len(v) < 3), GIVEN, "context"),
    *_code_slots(),
    effect=_note,
)
FRIEND = {n: _friend(n) for n in (1, 2)}

# ---------------------------------------------------------------------- questions


def _open_keys(state: State, bound: Values) -> tuple[str, ...]:
    return tuple(k for k in state["keys"] if k not in state["asked"])


def _open_friends(state: State, bound: Values) -> tuple[str, ...]:
    return tuple(k for k in state["friends"] if k not in state["asked"])


def _asked(state: State, bound: Values) -> None:
    state["asked"].add(bound["key"])


def _repeat(name: str, of: str) -> Slot:
    return Slot(name, lambda s, b: (b[of],), GIVEN, "context")


def _value(name: str, which: int, key: str = "key", word: int = 0) -> Slot:
    """Word `word` of the code number `which` of the key in slot `key`."""
    words = (ADJECTIVES, ANIMALS)[word]
    return Slot(name, lambda s, b: (s["keys"][b[key]][which].split(" ")[word],), words, "context")


def _codes(count: int, key: str = "key") -> tuple[str, tuple[Slot, ...]]:
    """The codes of a key in the order of the text, as `x y`, `x y and x y` or `x y , x y and x y`."""
    names = [(f"x{i}", f"y{i}") for i in range(count)]
    parts = [f"{{{x}}} {{{y}}}" for x, y in names]
    text = parts[0] if count == 1 else " , ".join(parts[:-1]) + " and " + parts[-1]
    return text, tuple(_value(n, i, key, w) for i, pair in enumerate(names) for w, n in enumerate(pair))


_KEY, _KEY_AGAIN = Slot("key", _open_keys, GIVEN, "context"), _repeat("key2", "key")
ASK = template(
    f"What do we call {{key}} ? {ANSWER} We call {{key2}} {_codes(1)[0]} .",
    _KEY,
    _KEY_AGAIN,
    *_codes(1)[1],
    effect=_asked,
)


def _ask_several(count: int) -> Template:
    text, slots = _codes(count)
    key = Slot("key", lambda s, b: tuple(k for k in _open_keys(s, b) if len(s["keys"][k]) == count), GIVEN, "context")
    return template(
        f"Name all that we call {{key}} . {ANSWER} We call {{key2}} {text} .",
        key,
        _KEY_AGAIN,
        *slots,
        effect=_asked,
    )


ASK_SEVERAL = {n: _ask_several(n) for n in (1, 2, 3)}
ASK_ABSENT = template(
    f"What do we call {{a}} {{f}} ? {ANSWER} I do not know {{a2}} {{f2}} .",
    given("a"),
    _family(2),
    _repeat("a2", "a"),
    _repeat("f2", "f"),
    effect=lambda s, b: None,
)
_OF = Slot("of", lambda s, b: (s["friends"][b["key"]],), GIVEN, "context")
ASK_FRIEND = template(
    "What do we call the friend of {key} ? "
    + ANSWER
    + " The friend of {key2} is {of} . We call {of2} "
    + _codes(1, "of")[0]
    + " .",
    Slot("key", _open_friends, GIVEN, "context"),
    _KEY_AGAIN,
    _OF,
    _repeat("of2", "of"),
    *_codes(1, "of")[1],
    effect=_asked,
)

# ---------------------------------------------------------------------- documents


def start() -> State:
    """No facts yet."""
    return {**story.start(), "form": None, "keys": {}, "friends": {}, "asked": set(), "asking": False}


def _open(form: str):
    def effect(state: State, bound: Values) -> None:
        state["form"] = form

    return effect


_OPEN = {form: template(f"{title} \\n", effect=_open(form)) for form, title in _TITLES.items()}
_PASSAGE_TITLE = template("Passage \\n", effect=_open("passage"))
_CHRONICLE_TITLE = template("Chronicle \\n", effect=_open("passage"))
_NOW = template("Now tell me .", effect=lambda s, b: s.update(asking=True))


def _new_facts(state: State) -> list[tuple[float, Template]]:
    """Another fact of the form at hand, with weights that sum to one."""
    plain = [(1 / len(PLAIN), t) for t in PLAIN.values()]
    if not state["keys"]:
        return plain
    if state["form"] == "several" and any(len(v) < 3 for v in state["keys"].values()):
        return [(0.5 * w, t) for w, t in plain] + [(0.5, _MORE)]
    if state["form"] == "hop":
        return [(0.5 * w, t) for w, t in plain] + [(0.25, t) for t in FRIEND.values()]
    return plain


def _questions(state: State) -> list[tuple[float, Template]]:
    if state["form"] == "several":
        counts = [len(state["keys"][k]) for k in _open_keys(state, {})]
        return [(counts.count(n) / len(counts), ASK_SEVERAL[n]) for n in sorted(set(counts))]
    moves = [(1.0, ASK)] if _open_keys(state, {}) else []
    if state["form"] == "hop" and _open_friends(state, {}):
        moves.append((1.0, ASK_FRIEND))
    return [*moves, (_ABSENT, ASK_ABSENT)] if moves else []


def _facts_told(state: State) -> int:
    return sum(map(len, state["keys"].values())) + len(state["friends"])


def _codes_moves(state: State) -> list[tuple[float, Template]]:
    if state["form"] is None:
        return [(_WEIGHTS[form], t) for form, t in _OPEN.items()]
    if state["asking"]:
        return _questions(state)
    told = _facts_told(state)
    if told == 0:
        return _new_facts(state)
    if told >= MOST_FACTS:
        return [(1.0, _NOW)]
    return [(_ONE_MORE * w, t) for w, t in _new_facts(state)] + [(1 - _ONE_MORE, _NOW)]


def _hidden(title: Template, fact: float, end: float) -> Callable[[State], list[tuple[float, Template]]]:
    """A story in which a sentence is a fact with chance `fact` and the last before the questions with chance `end`."""

    def moves(state: State) -> list[tuple[float, Template]]:
        if state["form"] is None:
            return [(1.0, title)]
        if state["asking"]:
            return _questions(state)
        told = _facts_told(state)
        scene = [(1.0, needed)] if (needed := story.opening(state)) else story.actions(state)
        new, over = fact * (told < MOST_FACTS), end * (told > 0)
        return [
            *((w * (1 - new - over), t) for w, t in scene),
            *((w * new, t) for w, t in _new_facts(state) if new),
            *([(over, _NOW)] if over else []),
        ]

    return moves


_ASKED = (ASK, *ASK_SEVERAL.values(), ASK_FRIEND, ASK_ABSENT)
_FACTS = (*PLAIN.values(), _MORE, *FRIEND.values())
CODES = Rules("Codes", start, _codes_moves, (*_OPEN.values(), *_FACTS, _NOW, *_ASKED))
_IN_STORIES = (*story.TEMPLATES, *_FACTS, _NOW, *_ASKED)
PASSAGE = Rules("Passage", start, _hidden(_PASSAGE_TITLE, 0.3, 0.06), (_PASSAGE_TITLE, *_IN_STORIES))
CHRONICLE = Rules("Chronicle", start, _hidden(_CHRONICLE_TITLE, 0.06, 0.012), (_CHRONICLE_TITLE, *_IN_STORIES))
