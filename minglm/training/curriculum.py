"""The first lessons of a training: rows of keys and values that grow when they have been learnt.

Looking back (induction) forms within a few hundred steps on short rows of few words, and not within thousands when the
model meets all words and long rows at once. What has formed carries over: with more words or longer rows the loss
falls within tens of steps. So a curriculum goes on by the loss, not by a count of steps.

    curriculum: [{words: 64, seq_len: 32, pairs: [2, 4], until: 0.4}, {words: 256, seq_len: 64, pairs: [3, 8]}]

After the last lesson the run's own batches begin, from the first one on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minglm.data.key_value import KeyValueRows
from minglm.data.shards import IGNORE, Batch
from minglm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minglm.errors import InputError, nearest

MEAN_OVER = 3  # steps whose mean loss has to be below `until`


@dataclass(frozen=True)
class Lesson:
    """One lesson. Raises ValueError for a value that breaks a rule."""

    words: int  # how many words of the vocabulary the rows use
    seq_len: int = 32
    batch_size: int = 32
    pairs: tuple[int, int] = (2, 4)  # fewest and most pairs of key and value in a row
    key_tokens: tuple[int, int] = (1, 1)  # fewest and most tokens of a key
    value_tokens: int = 1
    gap: bool = False  # half of the rows have one same word between every key and its value
    until: float = 0.4  # nats on values of keys seen before: below it the lesson is learnt
    steps: int = 300  # at most, learnt or not

    def __post_init__(self) -> None:
        for name in ("pairs", "key_tokens"):
            bounds = getattr(self, name)
            if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(_is_whole(v) for v in bounds):
                raise ValueError(f"must have {name} of two whole numbers, fewest and most, such as [2, 4]")
            object.__setattr__(self, name, tuple(bounds))
        for name in ("words", "seq_len", "batch_size", "value_tokens", "steps"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"must have {name} of at least 1, a whole number")
        if not isinstance(self.gap, bool):
            raise ValueError("must have gap of true or false")
        if isinstance(self.until, bool) or not isinstance(self.until, (int, float)) or not self.until > 0:
            raise ValueError("must have until above 0, in nats, such as 0.4")
        try:
            self.rows(seed=0)
        except InputError as err:
            raise ValueError(f"must have rows that are possible: {err}") from None

    def rows(self, seed: int) -> KeyValueRows:
        """The rows of this lesson, in words 1 … `words`."""
        return KeyValueRows(
            self.batch_size,
            self.seq_len,
            self.words,
            self.pairs,
            seed,
            key_tokens=self.key_tokens,
            value_tokens=self.value_tokens,
            gap=self.gap,
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_lessons(value: object) -> list[dict[str, Any]]:
    """A check of the recipe's key: a list of mappings with the keys of `Lesson`; None is none.

    >>> check_lessons([{"words": 64, "until": 0.5}])
    [{'words': 64, 'until': 0.5}]
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError("must be a list of lessons, such as [{words: 64}, {words: 256, seq_len: 64, pairs: [3, 8]}]")
    known = {f.name for f in dataclasses.fields(Lesson)}
    for lesson in value:
        for key in lesson:
            if key not in known:
                raise ValueError(f"must have lessons with keys {', '.join(sorted(known))}{nearest(str(key), known)}")
        if "words" not in lesson:
            raise ValueError("must say how many words each lesson uses, such as {words: 64}")
        Lesson(**lesson)
    return [dict(lesson) for lesson in value]


@dataclass
class Curriculum:
    """Where a run stands in its lessons.

    Args:
        lessons: in order. word_ids: token ids that rows may use; a lesson of n words uses the first n.
        begin: the token that a row begins with.
    """

    lessons: list[Lesson]
    word_ids: Sequence[int]
    begin: int
    seed: int
    at: int = 0  # the lesson at hand
    tokens: int = 0  # of all lessons' batches so far
    ends: list[int] = field(default_factory=list)  # the step after which each lesson ended
    recent: list[float] = field(default_factory=list)  # losses of the last steps

    def __post_init__(self) -> None:
        for lesson in self.lessons:
            if lesson.words > len(self.word_ids):
                raise InputError(
                    f"curriculum: words={lesson.words}: the tokenizer has {len(self.word_ids)} words; use at most that"
                )
        self._rows = [lesson.rows(self.seed) for lesson in self.lessons]

    @property
    def over(self) -> bool:
        """Whether the run's own batches have begun."""
        return self.at >= len(self.lessons)

    @property
    def steps(self) -> int:
        """Steps that ended lessons took."""
        return self.ends[-1] if self.ends else 0

    def batch(self, step: int) -> Batch:
        """The rows of step `step` of the run, in the lesson at hand."""
        import torch

        batch = self._rows[self.at].batch(step)
        ids = torch.tensor([self.begin, *self.word_ids[: self.lessons[self.at].words]])
        targets = torch.where(batch.targets == IGNORE, IGNORE, ids[batch.targets.clamp(min=0)])
        return Batch(ids[batch.tokens], targets, batch.doc_start)

    def learnt(self, step: int, loss: float, tokens: int) -> None:
        """Take note of a finished step: its number from 1, its loss, its tokens; goes on to the next lesson when this
        one is learnt or has had its steps."""
        lesson = self.lessons[self.at]
        self.tokens += tokens
        self.recent = [*self.recent, loss][-MEAN_OVER:]
        low = len(self.recent) == MEAN_OVER and sum(self.recent) < MEAN_OVER * lesson.until
        if low or step - self.steps >= lesson.steps:
            self.at, self.recent = self.at + 1, []
            self.ends.append(step)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; `load_state_dict` reads it back."""
        return {"at": self.at, "tokens": self.tokens, "ends": self.ends, "recent": self.recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave; {} is a run without lessons."""
        if state:
            self.at, self.tokens = state["at"], state["tokens"]
            self.ends, self.recent = list(state["ends"]), list(state["recent"])


def of(lessons: list[dict[str, Any]], tokenizer: Tokenizer, seed: int) -> Curriculum:
    """The curriculum of a recipe's `lessons`: words are ordinary tokens in an order that the seed draws."""
    import numpy as np

    ordinary = np.arange(len(SPECIAL_TOKENS), tokenizer.vocab_size)
    order = np.random.default_rng([seed, 11]).permutation(ordinary).tolist()
    return Curriculum([Lesson(**lesson) for lesson in lessons], order, tokenizer.bos, seed)
