"""Tokens into text as they come: characters are whole, stop texts never leak, nothing said is taken back."""

from __future__ import annotations

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class Words:
    """Text of one growing answer.

    Args:
        tokenizer: `minglm.data.tokenizer.Tokenizer`.
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, tokenizer, stops: list[str]):
        self.tokenizer, self.stops, self.tokens = tokenizer, stops, []
        self.said, self.stopped = "", False

    def add(self, tokens: list[int], last: bool = False) -> str:
        """The text that is now safe to send. With `last` everything is; afterwards `stopped` says whether a stop text came."""
        if self.stopped:
            return ""
        self.tokens += tokens
        text = self.tokenizer.decode(self.tokens)
        cut = min((at for s in self.stops if (at := text.find(s)) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            text = text[:cut]
        elif not last:
            text = text[: len(text) - self._held(text)]
        new = text[len(self.said) :]
        self.said += new
        return new

    def _held(self, text: str) -> int:
        """Characters at the end that may still change: a broken one, or the beginning of a stop text."""
        broken = len(text) - len(text.rstrip(_BROKEN))
        begun = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return max(broken, begun)
