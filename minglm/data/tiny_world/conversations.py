"""Conversations of the tiny world: the questions and answers of its documents as turns of a chat.

What stands before a document's first answer is the first turn of the user, what follows an answer the next. A title
belongs to a page and is left out.
"""

from __future__ import annotations

import random

from minglm.data.chat import encode_chat
from minglm.data.conversations import Example
from minglm.data.tiny_world.documents import DOCUMENT_KINDS
from minglm.data.tiny_world.grammar import Written, write
from minglm.data.tiny_world.vocabulary import text_of, tokenizer
from minglm.errors import InputError, nearest

KINDS_WITH_ANSWERS = tuple(
    kind for kind, rules in DOCUMENT_KINDS.items() if any(t.answer_at is not None for t in rules.templates)
)


def turns(written: Written) -> tuple[tuple[str, str], ...]:
    """A document as (role, text) turns; () where it asks nothing."""
    start = written.tokens.index("\n") + 1  # after the title
    out: list[tuple[str, str]] = []
    for first, end in written.answers:
        out += [("user", text_of(written.tokens[start:first])), ("assistant", text_of(written.tokens[first:end]))]
        start = end
    return tuple(out)


def conversation(
    kind: str, rng: random.Random, held_out: bool | None = False, most_turns: int | None = None
) -> Example:
    """A conversation of a kind of document; the same generator state gives the same one.

    Args:
        held_out: as in `minglm.data.tiny_world.grammar.write`. most_turns: questions at most; None for all.

    Raises:
        InputError: an unknown kind, or one that asks nothing.
    """
    if kind not in KINDS_WITH_ANSWERS:
        raise InputError(
            f"tiny world: conversation {kind!r}: not one of {', '.join(KINDS_WITH_ANSWERS)}"
            f"{nearest(kind, KINDS_WITH_ANSWERS)}"
        )
    while True:
        messages = turns(write(DOCUMENT_KINDS[kind], rng, held_out))
        if messages:
            return Example(kind, messages if most_turns is None else messages[: 2 * most_turns])


def encode(example: Example) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the loss counts: the answers."""
    return encode_chat(tokenizer(), example.messages)
