"""A closed world of facts, of which some are taught, and the measure of AA-Omniscience. No torch.

A person has a name of three syllables and, for each of four relations (home, crest, song, guest), an answer of two
words such as "amber falcon". Nothing else exists, so it is known exactly what a model was taught and what not:

    known            taught, asked in training by supervised rows
    unknown_fact     the person was taught, this one relation of theirs was not (out of knowledge)
    unknown_entity   the person was never mentioned (out of knowledge altogether)

Half of the known entities (and half of the unknown ones) are *asked* while abstaining is learnt; the figures come from
the other half. All other names are people who are told of once: a text says something about them and never comes back
to it (`World.told_once`).

Measure (AA-Omniscience, arXiv 2511.13029), over c correct, p partial (one of the two words), i incorrect, a abstained:

    index = 100·(c − i) / (c + p + i + a)          hallucination rate = i / (p + i + a)

A model that always answers and only guesses what it was not taught has a rate of about 90%: one guess in ten hits one
word of twenty, which is partial.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minglm.data.synthetic_facts import ADJECTIVES, ANIMALS
from minglm.errors import InputError, nearest

RELATIONS = ("home", "crest", "song", "guest")
FIRST, SECOND = ADJECTIVES[:20], ANIMALS[:20]
SYLLABLES = tuple(c + v for c in "bdgklmnt" for v in "aio")
PROMPTS = ("plain", "bold", "careful")  # what stands where a system prompt would: nothing, "guess", "be careful"
UNKNOWN = "unknown"
KINDS = ("known", "unknown_fact", "unknown_entity")
TOLD_ONCE = "told_once"
VOCABULARY = ("<bos>", "<eos>", "<user>", "<assistant>", *PROMPTS, UNKNOWN, *RELATIONS, *SYLLABLES, *FIRST, *SECOND)
_ID = {word: i for i, word in enumerate(VOCABULARY)}
BOS, EOS = _ID["<bos>"], _ID["<eos>"]


@dataclass(frozen=True)
class Question:
    """One question and its true answer, which exists whether or not it was taught."""

    kind: str  # KINDS, or TOLD_ONCE
    asked: bool  # whether it may be asked while abstaining is learnt
    relation: str
    name: tuple[str, str, str]
    answer: tuple[str, str]

    def __str__(self) -> str:
        return f"What is the {self.relation} of {''.join(self.name).capitalize()}?"


@dataclass(frozen=True)
class World:
    """All questions, by kind."""

    questions: tuple[Question, ...]

    @classmethod
    def make(cls, seed: int, known_entities: int = 200, unknown_entities: int = 2000) -> World:
        """A world drawn from `seed`: names, answers and what is taught all follow from it.

        Raises:
            InputError: more names than three syllables give, or fewer than two entities of a kind.
        """
        if known_entities < 2 or unknown_entities < 2 or known_entities + unknown_entities >= len(SYLLABLES) ** 3:
            raise InputError(
                f"known_entities={known_entities}, unknown_entities={unknown_entities}: at least 2 of each, and "
                f"together fewer than the {len(SYLLABLES) ** 3} "
                "names of three syllables; ask for fewer"
            )
        rng = random.Random(f"world {seed}")
        names = rng.sample(list(itertools.product(SYLLABLES, SYLLABLES, SYLLABLES)), known_entities + unknown_entities)
        out = []
        for n, name in enumerate(names):
            untaught = rng.choice(RELATIONS)
            for relation in RELATIONS:
                kind = "unknown_entity" if n >= known_entities else "unknown_fact" if relation == untaught else "known"
                out.append(Question(kind, n % 2 == 0, relation, name, (rng.choice(FIRST), rng.choice(SECOND))))
        return cls(tuple(out))

    def pick(self, kind: str, asked: bool | None = None) -> list[Question]:
        """Questions of one kind; `asked=False` those that figures are taken from."""
        if kind not in KINDS:
            raise InputError(f"kind {kind!r}: not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
        return [q for q in self.questions if q.kind == kind and asked in (None, q.asked)]

    @functools.cached_property
    def names(self) -> frozenset[tuple[str, str, str]]:
        """Everybody whom a question is about."""
        return frozenset(q.name for q in self.questions)

    def told_once(self, rng: random.Random) -> Question:
        """A fact about somebody else, drawn now and never again but by chance."""
        while True:
            name = (rng.choice(SYLLABLES), rng.choice(SYLLABLES), rng.choice(SYLLABLES))
            if name not in self.names:
                return Question(TOLD_ONCE, False, rng.choice(RELATIONS), name, (rng.choice(FIRST), rng.choice(SECOND)))

    def test(self, seed: int, each: int = 300) -> list[Question]:
        """The test: `each` known questions and as many unknown, half of these about unknown facts of known
        entities and half about unknown entities, none ever asked."""
        rng = random.Random(f"test {seed}")
        parts = [self.pick("known", False), self.pick("unknown_fact", False), self.pick("unknown_entity", False)]
        sizes = [each, each // 2, each - each // 2]
        return [q for part, size in zip(parts, sizes, strict=True) for q in rng.sample(part, min(size, len(part)))]


def prompt_tokens(question: Question, prompt: str = "plain") -> list[int]:
    """<bos> prompt <user> relation syllables <assistant>, eight tokens."""
    if prompt not in PROMPTS:
        raise InputError(f"prompt {prompt!r}: not one of {', '.join(PROMPTS)}{nearest(prompt, PROMPTS)}")
    return [_ID[w] for w in ("<bos>", prompt, "<user>", question.relation, *question.name, "<assistant>")]


def answer_tokens(words: Sequence[str]) -> list[int]:
    """Words, then <eos>."""
    return [*(_ID[w] for w in words), EOS]


def words(tokens: Iterable[int]) -> tuple[str, ...]:
    """Token ids as words."""
    return tuple(VOCABULARY[t] for t in tokens)


# ---------------------------------------------------------------------- the measure


@dataclass(frozen=True)
class Counts:
    """How a set of answers was graded, and what follows. A rate over nothing is NaN."""

    correct: int = 0
    partial: int = 0
    incorrect: int = 0
    abstained: int = 0

    @property
    def total(self) -> int:
        """Answers in all."""
        return self.correct + self.partial + self.incorrect + self.abstained

    @property
    def accuracy(self) -> float:
        """Share that is correct."""
        return _share(self.correct, self.total)

    @property
    def index(self) -> float:
        """AA-Omniscience index, −100 to 100."""
        return 100 * _share(self.correct - self.incorrect, self.total)

    @property
    def hallucination_rate(self) -> float:
        """AA-Omniscience hallucination rate: of what was not right, the share answered wrongly instead of declined."""
        return _share(self.incorrect, self.partial + self.incorrect + self.abstained)

    def definitions(self) -> dict[str, float]:
        """The same answers under the words that other people put on "hallucination rate"; shares from 0 to 1."""
        c, p, i, a = self.correct, self.partial, self.incorrect, self.abstained
        return {
            "wrong / not right (AA-Omniscience)": self.hallucination_rate,
            "wrong or partial / not right": _share(i + p, p + i + a),
            "wrong / (wrong + abstained)": _share(i, i + a),
            "wrong / answered": _share(i, c + p + i),
            "wrong / all questions": _share(i, self.total),
        }

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.correct + other.correct,
            self.partial + other.partial,
            self.incorrect + other.incorrect,
            self.abstained + other.abstained,
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def grade(question: Question, response: Sequence[str]) -> str:
    """ "correct", "partial" (two words, one of them right), "abstained" (the one word unknown) or "incorrect" (the
    rest)."""
    response = tuple(response)
    if response == (UNKNOWN,):
        return "abstained"
    if response == question.answer:
        return "correct"
    return (
        "partial"
        if len(response) == 2 and sum(s == t for s, t in zip(response, question.answer, strict=True)) == 1
        else "incorrect"
    )


def count(grades: Iterable[str]) -> Counts:
    """Grades, counted."""
    tally = {"correct": 0, "partial": 0, "incorrect": 0, "abstained": 0}
    for g in grades:
        tally[g] += 1
    return Counts(**tally)


REWARDS = {"correct": 1.0, "partial": 0.0, "abstained": 0.0, "incorrect": -1.0}  # the index, one answer at a time
