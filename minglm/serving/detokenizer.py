"""Tokens into text as they come: characters are whole, stop texts never leak, nothing sent is taken back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class Decoder(Protocol):
    """The part of `minglm.data.tokenizer.Tokenizer` that is needed here."""

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of the tokens `ids`."""


class StreamDetokenizer:
    """Text of one growing answer.

    Args:
        tokenizer: what decodes.
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, tokenizer: Decoder, stops: list[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens: list[int] = []
        self.sent, self.stopped = "", False

    def add(self, tokens: list[int], last: bool = False) -> str:
        """The text that is now safe to send; with `last`, all of it.

        Afterwards `stopped` says whether a stop text came.
        """
        if self.stopped:
            return ""
        self.tokens += tokens
        text = self.tokenizer.decode(self.tokens)
        cut = min((start for s in self.stops if (start := text.find(s)) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            text = text[:cut]
        elif not last:
            text = text[: len(text) - self._unsafe(text)]
        new = text[len(self.sent) :]
        self.sent += new
        return new

    def _unsafe(self, text: str) -> int:
        """Characters at the end that may still change: a broken one, or the beginning of a stop text."""
        broken = len(text) - len(text.rstrip(_BROKEN))
        begun = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return max(broken, begun)
