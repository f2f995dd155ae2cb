"""Are sampled texts sentences of the language, and do they agree with what was said before?

A sentence is *grammatical* when some template reads it with any word of each class in its places, and *consistent* when
the grammar could write it in the state that the text has reached. A sentence that is grammatical but not consistent
still changes the state where it can, as it would for a person who reads on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minglm.data.tiny_world.grammar import Reader, Rules, Sentence, begins, fits


@dataclass(frozen=True)
class Checked:
    """Sentences of a text: all, those of the grammar, and of these the ones that agree with the state."""

    sentences: int
    grammatical: int
    consistent: int


def check(rules: Rules, tokens: Sequence[str], ended: bool = True) -> Checked:
    """Judge a text of a kind, its title included, sentence by sentence.

    Args:
        ended: whether its writer ended it here. Then a sentence without an end, or a question without its answer, is
            wrong; in a text that was cut at a length, what has rightly begun at its end is not judged.

    >>> from minglm.data.tiny_world.story import STORY
    >>> check(STORY, ["Story", "\\n", *"It is a calm morning . It is a hot night in Ambry .".split(" ")])
    Checked(sentences=3, grammatical=2, consistent=2)
    """
    reader = Reader(rules)
    sentences = grammatical = consistent = start = 0
    while start < len(tokens):
        sentence = fits(rules.templates, tokens[start:])
        if sentence is None:
            if not ended and begins(rules.templates, tokens[start:]):
                break
            end = next((i for i in range(start, len(tokens)) if tokens[i] in (".", "?", "\n")), len(tokens))
            sentences, start = sentences + 1, end + 1
            continue
        sentences, grammatical = sentences + 1, grammatical + 1
        consistent += _agrees(reader, sentence, tokens[start : start + sentence.length])
        start += sentence.length
    return Checked(sentences, grammatical, consistent)


def _agrees(reader: Reader, sentence: Sentence, tokens: Sequence[str]) -> bool:
    """Whether the grammar could write a sentence here; the state has moved on afterwards, either way."""
    if all(reader.step(token) > 0 for token in tokens):
        return True
    if sentence.template.effect:
        try:
            sentence.template.effect(reader.state, sentence.values)
        except (KeyError, TypeError):  # it is about something that the state does not have
            pass
    reader.restart()
    return False
