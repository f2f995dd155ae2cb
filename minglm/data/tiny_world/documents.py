"""The kinds of document of the tiny world and how often each comes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from minglm.data.tiny_world import exercises, recall, residents, story
from minglm.data.tiny_world.grammar import Rules, Written, write
from minglm.errors import InputError, nearest

DOCUMENT_KINDS: dict[str, Rules] = {
    "story": story.STORY,
    "portrait": residents.PORTRAIT,
    "questions": residents.QUESTIONS,
    "codes": recall.CODES,
    "passage": recall.PASSAGE,
    "chronicle": recall.CHRONICLE,
    "chat": exercises.CHAT,
    "copy": exercises.COPY,
    "reverse": exercises.REVERSE,
    "sums": exercises.SUMS,
    "columns": exercises.COLUMNS,
    "compare": exercises.COMPARE,
    "lists": exercises.COUNT,
    "code": exercises.CODE,
    "cards": exercises.CARDS,
}
# Shares of the documents; a story is eight times as long as a page of words.
MIXTURE = {
    "story": 0.25,
    "portrait": 0.09,
    "questions": 0.14,
    "codes": 0.16,
    "passage": 0.05,
    "chronicle": 0.01,
    "chat": 0.05,
    "copy": 0.03,
    "reverse": 0.04,
    "sums": 0.06,
    "columns": 0.1,
    "compare": 0.03,
    "lists": 0.01,
    "code": 0.02,
    "cards": 0.03,
}


def check_mixture(mixture: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to one.

    Raises:
        InputError: an unknown kind, a share that is no positive number, or none at all.
    """
    for kind, share in mixture.items():
        if kind not in DOCUMENT_KINDS:
            raise InputError(
                f"tiny world: kind of document {kind!r}: not one of {', '.join(DOCUMENT_KINDS)}"
                f"{nearest(kind, DOCUMENT_KINDS)}"
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < math.inf:
            raise InputError(f"tiny world: share of {kind} = {share!r}: must be a number of at least 0; give 0.1")
    total = sum(mixture.values())
    if total <= 0:
        raise InputError("tiny world: no kind of document has a share; give one, such as {story: 1}")
    return {kind: share / total for kind, share in mixture.items() if share}


def draw(
    rng: random.Random, mixture: Mapping[str, float] = MIXTURE, held_out: bool | None = False
) -> tuple[str, Written]:
    """A document of a kind drawn by its share; `held_out` as in `minglm.data.tiny_world.grammar.write`."""
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    return kind, write(DOCUMENT_KINDS[kind], rng, held_out)
