"""Tokens into text as they come: characters are whole, stop texts never leak, nothing sent is taken back."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from minglm.serving.responses import TokenLogprob

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class Decoder(Protocol):
    """The part of `minglm.data.tokenizer.Tokenizer` that text needs."""

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of the tokens `ids`."""


class TokenNames(Protocol):
    """The part of `minglm.data.tokenizer.Tokenizer` that log-probabilities need."""

    def token(self, index: int) -> str:
        """The text of one token, special tokens by name."""

    def token_bytes(self, index: int) -> bytes:
        """The bytes that one token adds to the text; none for a special token."""


class StreamDetokenizer:
    """Text of one growing answer.

    Args:
        tokenizer: what decodes.
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, tokenizer: Decoder, stops: list[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens: list[int] = []  # up to the one that completes a stop text, whatever comes after it
        self.sent, self.stopped = "", False

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that is now safe to send; with `last`, all of it.

        Afterwards `stopped` says whether a stop text came. Tokens that come together end where they would one by one.
        """
        if not self.stops:
            return self._add(tokens, last)
        together = [self._add([t], last and i == len(tokens) - 1) for i, t in enumerate(tokens)]
        return "".join(together) if tokens else self._add([], last)

    def _add(self, tokens: Sequence[int], last: bool) -> str:
        if self.stopped:
            return ""
        self.tokens += tokens
        text = self.tokenizer.decode(self.tokens)
        # what has been sent holds no beginning of a stop text
        cut = min((start for s in self.stops if (start := text.find(s, len(self.sent))) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            text = text[:cut]
        elif not last:
            text = self._safe(text)
        new = text[len(self.sent) :]
        self.sent += new
        return new

    def _safe(self, text: str) -> str:
        """`text` without what may still change at its end: a broken character, and before it the beginning of a stop
        text, which that character may go on with."""
        whole = text.rstrip(_BROKEN)
        begun = max((n for s in self.stops for n in range(1, len(s)) if whole.endswith(s[:n])), default=0)
        return whole[: len(whole) - begun]


class _Held(NamedTuple):
    token: int
    logprob: float
    data: bytes
    places: list[int]  # for each byte, the index of its character in the text
    start: int


class LogprobAligner:
    """Log-probabilities that leave with the text of their tokens, so that they tell nothing that the text holds back.

    Joined, the `data` of all that leave is the text in UTF-8, but for bytes that are no character. A token that a stop
    text cuts into leaves with the part before it; those behind stay. A special token has no bytes.
    """

    def __init__(self, tokenizer: TokenNames):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: deque[_Held] = deque()
        self._chars = 0  # whole characters so far

    def add(self, tokens: Iterable[int], logprobs: Iterable[float]) -> None:
        """Take the next tokens of the answer."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            places, data = [], self.tokenizer.token_bytes(token)
            for i in range(len(data)):
                self._chars += len(self._decoder.decode(data[i : i + 1]))
                places.append(self._chars if self._decoder.getstate()[0] else self._chars - 1)
            self._held.append(_Held(token, logprob, data, places, places[0] if places else self._chars))

    def leave(self, sent: int, ended: bool = False, stopped: bool = False) -> list[TokenLogprob]:
        """Those whose text is now sent, in order; `sent` counts its characters.

        Args:
            ended: no more text will be sent.
            stopped: because a stop text came: what begins behind `sent` does not leave at all.
        """
        out = []
        while self._held and (ended or max(self._held[0].places, default=-1) < sent):
            token, logprob, data, places, start = self._held.popleft()
            if stopped and start >= sent:
                continue
            if stopped:
                data = data[: sum(place < sent for place in places)]
            name = data.decode("utf-8", "replace") if places else self.tokenizer.token(token)
            out.append(TokenLogprob(name, logprob, data, start))
        return out
