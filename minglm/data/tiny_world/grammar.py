"""One table of sentences that writes texts, says how probable each token was, and judges texts of others.

A document is a chain of `Template`s: `Rules.moves(state)` gives those that may come next with their weights, a
template gives its tokens in order, and its `effect` changes the state (who is where, who has what). An item of a
template is a literal token or a `Slot`, whose values are equally likely given the state. Nothing hidden is drawn ahead
of the text, so the probability of a token given the text before it is known exactly, even where several sentences begin
alike.

    write    draws a document
    Reader   follows tokens: probability of each, exact; what the sentence was
    fits     the sentence that tokens begin with, whatever the state says
    begins   whether a sentence begins with tokens, whatever the state says
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from minglm.data.tiny_world.held_out import is_held_out

State = dict[str, Any]
Values = dict[str, str]  # slot name → the value it took in this sentence
# What a token needs: the language alone, facts of the world, the text before, or arithmetic. The first token of a
# sentence also says which sentence comes; it counts as grammar.
KINDS = ("grammar", "world", "context", "arithmetic")
ANSWER = "<answer>"  # marks in a template where a question ends; no token
_TRIES = 200


class NoValueError(Exception):
    """The draw has met a place where every value is kept from training (or none is); begin again."""


@dataclass(frozen=True)
class Slot:
    """A place in a sentence. `values(state, bound)` are equally likely; one of several words is several tokens.

    `anything` is every value that the grammar allows here in some state. `combination` names what a value makes with
    those before it, for `minglm.data.tiny_world.held_out`.
    """

    name: str
    values: Callable[[State, Values], Sequence[str]]
    anything: Sequence[str]
    kind: str = "grammar"
    combination: Callable[[State, Values, str], str] | None = None


@dataclass(frozen=True)
class Template:
    """A sentence, or a question with its answer (from item `answer_at` on)."""

    items: tuple[str | Slot, ...]
    effect: Callable[[State, Values], None] | None = None
    answer_at: int | None = None


def template(text: str, *slots: Slot, effect: Callable[[State, Values], None] | None = None) -> Template:
    """A template from its text: tokens apart by spaces, a slot as `{name}`, `\\n` a line's end."""
    named = {s.name: s for s in slots}
    words = [w.replace("\\n", "\n") for w in text.split(" ")]
    split = words.index(ANSWER) if ANSWER in words else None
    items = tuple(named[w[1:-1]] if w[:1] == "{" and w[-1:] == "}" and len(w) > 2 else w for w in words if w != ANSWER)
    return Template(items, effect, split)


@dataclass(frozen=True)
class Rules:
    """A kind of document: the state it begins in, what may come next, and every template it can use."""

    title: str
    start: Callable[[], State]
    moves: Callable[[State], Sequence[tuple[float, Template]]]  # empty: the document ends
    templates: tuple[Template, ...]


@dataclass
class Written:
    """Tokens of a document with the kind of each, and where its answers stand: (first, one past the last)."""

    tokens: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # first token of each sentence
    values: list[Values] = field(default_factory=list)  # what its slots took, for each sentence


@lru_cache(maxsize=1 << 16)
def _split(value: str) -> tuple[str, ...]:
    return tuple(value.split(" "))


# ---------------------------------------------------------------------- writing


def write(rules: Rules, rng: random.Random, held_out: bool | None = False) -> Written:
    """Draw a document.

    Args:
        held_out: False draws no held-out combination (training), True draws nothing else where a sentence has a
            combination at all (tests), None draws from the language itself (validation).
    """
    while True:
        try:
            return _write(rules, rng, held_out)
        except NoValueError:
            continue


def _write(rules: Rules, rng: random.Random, held_out: bool | None) -> Written:
    state, out = rules.start(), Written()
    while moves := rules.moves(state):
        chosen = moves[0][1] if len(moves) == 1 else _choose(moves, rng)
        bound: Values = {}
        out.starts.append(len(out.tokens))
        for index, item in enumerate(chosen.items):
            if index == chosen.answer_at:
                first = len(out.tokens)
            if isinstance(item, str):
                out.tokens.append(item)
                out.kinds.append("grammar")
                continue
            value = bound[item.name] = _draw(item, state, bound, rng, held_out)
            tokens = _split(value)
            out.tokens += tokens
            out.kinds += [item.kind if index else "grammar"] * len(tokens)
        if chosen.answer_at is not None:
            out.answers.append((first, len(out.tokens)))
        out.values.append(bound)
        if chosen.effect:
            chosen.effect(state, bound)
    return out


def _choose(moves: Sequence[tuple[float, Template]], rng: random.Random) -> Template:
    left = rng.random() * sum(w for w, _ in moves)
    for weight, one in moves:
        left -= weight
        if left < 0:
            return one
    return moves[-1][1]


def _draw(slot: Slot, state: State, bound: Values, rng: random.Random, held_out: bool | None) -> str:
    values = slot.values(state, bound)
    if len(values) == 1:
        return values[0]
    value = values[int(rng.random() * len(values))]
    if slot.combination is None or held_out is None:
        return value
    for _ in range(_TRIES):
        if is_held_out(slot.combination(state, bound, value)) == held_out:
            return value
        value = values[int(rng.random() * len(values))]
    raise NoValueError


# ---------------------------------------------------------------------- reading


@dataclass
class _Guess:
    """One way in which the sentence so far can be read."""

    weight: float
    template: Template
    index: int = 0  # of the item that comes next
    bound: Values = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    begun: Sequence[tuple[str, ...]] | None = None  # values of the slot at `index` that fit its first tokens
    offset: int = 0  # of the next token in them

    def follow(self, token: str, state: State, loose: bool) -> list[_Guess]:
        """What this guess becomes when `token` comes: none, one, or two where a value may end or go on."""
        item = self.template.items[self.index]
        if isinstance(item, str):
            if item != token:
                return []
            return [_Guess(self.weight, self.template, self.index + 1, self.bound, (*self.kinds, "grammar"))]
        if self.begun is None:
            values = [_split(v) for v in (item.anything if loose else item.values(state, self.bound))]
        else:
            values = list(self.begun)
        fits = [v for v in values if len(v) > self.offset and v[self.offset] == token]
        ended = [v for v in fits if len(v) == self.offset + 1]
        more = [v for v in fits if len(v) > self.offset + 1]
        kinds, out = (*self.kinds, item.kind if self.index else "grammar"), []
        if ended:
            bound = {**self.bound, item.name: " ".join(ended[0])}
            weight = self.weight * len(ended) / len(values)
            out.append(_Guess(weight, self.template, self.index + 1, bound, kinds))
        if more:
            weight = self.weight * len(more) / len(values)
            out.append(_Guess(weight, self.template, self.index, self.bound, kinds, more, self.offset + 1))
        return out


class Reader:
    """Follows a document of known rules, token by token.

    `step` gives the probability of each token given all before it; 0 where the language cannot go on like that, and
    then the reader stays where it was. `kinds` are those of the sentences that have ended.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules, self.state = rules, rules.start()
        self.kinds: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget what has been read of the sentence at hand; also after the state was changed from outside."""
        moves = self.rules.moves(self.state)
        total = sum(w for w, _ in moves)
        self.guesses = [_Guess(w / total, t) for w, t in moves]

    def open_kinds(self) -> tuple[str, ...]:
        """Kinds of the tokens of the sentence that has begun, by its likeliest reading."""
        return max(self.guesses, key=lambda g: g.weight).kinds if self.guesses else ()

    @property
    def may_end(self) -> bool:
        """Whether the document is over."""
        return not self.guesses

    def step(self, token: str) -> float:
        """The probability of `token` here."""
        followed = [n for g in self.guesses for n in g.follow(token, self.state, loose=False)]
        total = sum(g.weight for g in followed)
        if not followed:
            return 0.0
        for g in followed:
            g.weight /= total
        self.guesses = followed
        whole = next((g for g in followed if g.index == len(g.template.items)), None)
        if whole:
            self._end(whole)
        return total

    def _end(self, whole: _Guess) -> None:
        if len(self.guesses) > 1:
            raise AssertionError(f"two readings of one sentence: {whole.template.items}")
        self.kinds += whole.kinds
        if whole.template.effect:
            whole.template.effect(self.state, whole.bound)
        self.restart()


@dataclass(frozen=True)
class Sentence:
    """A sentence as the grammar reads it, any value of a slot's class allowed: its template, values, and tokens."""

    template: Template
    values: Values
    length: int


def fits(templates: Iterable[Template], tokens: Sequence[str]) -> Sentence | None:
    """The sentence that `tokens` begin with, by the grammar alone; None where no template reads like that."""
    guesses = _all(templates)
    for n, token in enumerate(tokens, 1):
        guesses = _follow(guesses, token)
        whole = next((g for g in guesses if g.index == len(g.template.items)), None)
        if whole:
            return Sentence(whole.template, whole.bound, n)
    return None


def begins(templates: Iterable[Template], tokens: Sequence[str]) -> bool:
    """Whether a sentence begins with all of `tokens`, by the grammar alone."""
    guesses = _all(templates)
    for token in tokens:
        guesses = _follow(guesses, token)
    return bool(guesses)


def _all(templates: Iterable[Template]) -> list[_Guess]:
    return [_Guess(1.0, t) for t in templates]


def _follow(guesses: list[_Guess], token: str) -> list[_Guess]:
    """Readings that go on with `token`, with any value of each class."""
    return [f for g in guesses if g.index < len(g.template.items) for f in g.follow(token, {}, loose=True)]
