"""Facts hidden in stories at chosen depths, and one question: the problems of the needle test (`minglm.evals.needle`).

Rows that train it are made by the same function from names and codes that training may show. The forms follow RULER
(arXiv 2404.06654): one key among several, several values of one key, a fact that leads to another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from minglm.data.synthetic_facts import ADJECTIVES, ANIMALS
from minglm.data.tiny_world import story
from minglm.data.tiny_world.grammar import write
from minglm.data.tiny_world.held_out import is_held_out
from minglm.data.tiny_world.lexicon import FAMILY, GIVEN
from minglm.data.tiny_world.vocabulary import text_of, tokenizer
from minglm.errors import InputError

FORMS = {
    "plain": "one of several names",
    "several": "one of several names, which has two codes",
    "hop": "the friend of a name; the friend has the code",
    "absent": "a name that the passage does not have",
}
SENTENCE = "We call {name} {code}."
_ASK = "Now tell me ."
_TRIES = 1000


@dataclass(frozen=True)
class Needles:
    """One question about facts hidden in a passage.

    `told` are the facts in the order of the passage, as (name, code); `expected` is the whole answer.
    """

    passage: str
    question: str
    expected: str
    name: str  # that is asked for
    told: tuple[tuple[str, str], ...]
    form: str
    depth: float
    length_tokens: int  # of the prompt, at most what was asked for

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as a chat, up to and with the marker that the answer follows."""
        t = tokenizer()
        return [t.bos, t.user, *t.encode(f"{self.passage} {self.question}"), t.assistant]

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """Question and right answer as a conversation."""
        return ("user", f"{self.passage} {self.question}"), ("assistant", self.expected)


def statement(name: str, code: str) -> str:
    """The sentence of a fact, which is also the right answer to a plain question.

    >>> statement("Mira Tolen", "amber falcon")
    'We call Mira Tolen amber falcon.'
    """
    return SENTENCE.format(name=name, code=code)


def draw_name(rng: random.Random, held_out: bool, words: int = 2) -> str:
    """A name of one to three words, from those that training shows or from the others; single words are all shown."""
    while True:
        parts = [rng.choice(GIVEN) for _ in range(max(1, words - 1))]
        name = " ".join([*parts, rng.choice(FAMILY)] if words > 1 else parts)
        if words == 1 or is_held_out(f"name:{name}") == held_out:
            return name


def draw_code(rng: random.Random, held_out: bool) -> str:
    """A code of two words, from those that training shows or from the others."""
    while True:
        code = f"{rng.choice(ADJECTIVES)} {rng.choice(ANIMALS)}"
        if is_held_out(f"code:{code}") == held_out:
            return code


def needles(
    rng: random.Random,
    length_tokens: int,
    facts: int = 4,
    depth: float = 0.5,
    form: str = "plain",
    held_out: bool = True,
    context: bool = True,
) -> Needles:
    """A passage with `facts` facts and a question about one of them.

    Args:
        length_tokens: of the whole prompt, at most; the passage is filled with whole sentences of stories.
        facts: names that have a code (with `hop` one of them has a friend besides, with `several` one has two codes).
        depth: where the fact that is asked for stands, 0 the beginning and 1 the end; the others stand anywhere.
        held_out: names of two or three words and codes that training never shows; else of one to three that it may.
        context: False leaves the facts that answer the question out: the control that shows what guessing reaches.

    Raises:
        InputError: an unknown form, no fact, a depth outside 0..1, or a length without room for facts and question.
    """
    if form not in FORMS:
        raise InputError(f"form {form!r}: not one of {', '.join(FORMS)}; use plain")
    if facts < 1 or not 0 <= depth <= 1:
        raise InputError(f"facts={facts}, depth={depth}: at least one fact, depth in 0..1; use 4 and 0.5")
    names = _names(rng, facts + 2, held_out)
    codes: list[str] = []
    while len(codes) < facts + 1:
        code = draw_code(rng, held_out)
        codes += [code] * (code not in codes)
    name, friend = names[0], names[-1]
    others = list(zip(names[1:facts], codes[1:facts], strict=True))
    asked = [statement(name, codes[0])]
    question, expected, shown = f"What do we call {name}?", statement(name, codes[0]), name
    if form == "several":
        asked.append(statement(name, codes[facts]))
        question = f"Name all that we call {name}."
    elif form == "hop":
        asked.append(f"The friend of {friend} is {name}.")
        question = f"What do we call the friend of {friend}?"
        expected, shown = f"The friend of {friend} is {name}. {expected}", friend
    elif form == "absent":
        stranger = draw_name(rng, held_out)
        while stranger in names:
            stranger = draw_name(rng, held_out)
        question, expected, shown = f"What do we call {stranger}?", f"I do not know {stranger}.", stranger
    others_text = [statement(n, c) for n, c in others]
    room = length_tokens - 3 - _tokens(" ".join([*asked, *others_text, _spoken(_ASK), question]))
    if room < 0:
        raise InputError(
            f"length_tokens={length_tokens}: {facts} facts and the question alone need {length_tokens - room} tokens; "
            "ask for a longer passage or fewer facts"
        )
    sentences = _filler(rng, room)
    passage = _weave(rng, sentences, asked if context else [], others_text, depth)
    told = _told(passage, {(name, codes[0]), *([(name, codes[facts])] if form == "several" else []), *others})
    if form == "several":
        both = [c for n, c in told if n == name] or [codes[0], codes[facts]]
        expected = f"We call {name} {both[0]} and {both[1]}."
    text = " ".join([*passage, _spoken(_ASK)])
    length = _tokens(f"{text} {question}") + 3
    return Needles(text, question, expected, shown, told, form, depth, length)


def _names(rng: random.Random, count: int, held_out: bool) -> list[str]:
    """Different names, so that no two share their first words."""
    out: list[str] = []
    for _ in range(_TRIES):
        name = draw_name(rng, held_out, rng.choice((2, 3) if held_out else (1, 2, 3)))
        if name not in out:
            out.append(name)
        if len(out) == count:
            return out
    raise InputError(f"{count} facts: more than there are names for; ask for fewer")


def _spoken(text: str) -> str:
    return text.replace(" .", ".")


def _tokens(text: str) -> int:
    return len(tokenizer().encode(text))


def _filler(rng: random.Random, room: int) -> list[str]:
    """Whole sentences of stories, `room` tokens together at most."""
    out: list[str] = []
    while True:
        written = write(story.STORY, rng)
        bounds = [*written.starts, len(written.tokens)]
        for first, end in zip(bounds[1:-1], bounds[2:], strict=True):  # after the title
            room -= end - first
            if room < 0:
                return out
            out.append(text_of(written.tokens[first:end]))


def _weave(rng: random.Random, filler: list[str], asked: list[str], others: list[str], depth: float) -> list[str]:
    """Sentences of the passage: what is asked for at `depth`, the rest of the facts anywhere."""
    cut = round(depth * len(filler))
    places = [(cut, 0.5 + 0.1 * i, text) for i, text in enumerate(asked[:1])]
    places += [(rng.randint(0, len(filler)), rng.random(), text) for text in [*asked[1:], *others]]
    out: list[str] = []
    start = 0
    for place, _, text in sorted(places):
        out += [*filler[start:place], text]
        start = place
    return out + filler[start:]


def _told(passage: list[str], facts: set[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    by_text = {statement(*f): f for f in facts}
    return tuple(by_text[s] for s in passage if s in by_text)
