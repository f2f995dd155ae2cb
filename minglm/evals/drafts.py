"""What the prediction module's drafts are worth beside drafts that need no module: copying from the text.

Both draft one token a pass for the very same greedy texts. A draft counts when it is the model's own next choice; one
that is right saves a pass. The copy is what followed the longest suffix (up to `SUFFIX` tokens) that the text had
before.
"""

from __future__ import annotations

from collections.abc import Sequence

from minglm.inference.generate import generate
from minglm.model.model import Model

SUFFIX = 3  # tokens of context that a copy looks for at most


def by_module(model: Model, prompts: Sequence[Sequence[int]], length: int, stop: Sequence[int], mode: str) -> float:
    """Share of the module's drafts that were kept."""
    return generate(model, prompts, length, stop=stop, mode=mode, speculate=1).acceptance or 0.0


def by_copy(prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> float:
    """Share of copied drafts that were right on greedy texts, their stop tokens included; no draft is a wrong one."""
    right = passes = 0
    for prompt, text in zip(prompts, texts, strict=True):
        tokens, at = [*prompt, *text], len(prompt) + 1  # the first pass reads the prompt and has no draft
        while at < len(tokens):
            passes += 1
            if copied(tokens[:at]) == tokens[at]:
                right, at = right + 1, at + 1
            at += 1
    return right / passes if passes else 0.0


def copied(tokens: Sequence[int]) -> int | None:
    """What followed the last earlier occurrence of the longest suffix; None where even its last token is new.

    >>> copied([1, 2, 3, 9, 2, 3]), copied([1, 2, 3, 9, 3]), copied([1, 2])
    (9, 9, None)
    """
    for length in range(min(SUFFIX, len(tokens) - 1), 0, -1):
        suffix = list(tokens[-length:])
        for end in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[end - length : end]) == suffix:
                return tokens[end]
    return None
