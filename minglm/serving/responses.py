"""What the server sends back: the dictionaries of one response, whole or in chunks, in OpenAI's shape."""

from __future__ import annotations

import time
import uuid
from typing import Any, NamedTuple


class TokenLogprob(NamedTuple):
    """One token of an answer. Bytes that are no whole character show as U+FFFD in `token`; `data` has them as they are.

    offset: index of the token's first character in the answer's text.
    """

    token: str
    logprob: float
    data: bytes
    offset: int


class Choice(NamedTuple):
    """One whole answer. `logprobs` is None where the request asked for none."""

    text: str
    finish_reason: str
    logprobs: list[TokenLogprob] | None


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of the prompts and of the answers, and their sum."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class ResponseBuilder:
    """Builds the dictionaries of one response, whole or in chunks; `chat` or plain text."""

    def __init__(self, chat: bool, model: str):
        self.chat, self.model, self.created = chat, model, int(time.time())
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex[:24]}"

    def whole(self, choices: list[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The response to a request that does not stream."""
        built = []
        for i, (text, reason, logprobs) in enumerate(choices):
            body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            built.append({"index": i, **body, "logprobs": self._logprobs(logprobs), "finish_reason": reason})
        return self._frame("chat.completion" if self.chat else "text_completion", built, usage)

    def chunk(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        first: bool = False,
        logprobs: list[TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        """A piece of choice `index`; the `first` one of a chat names the role."""
        body: dict[str, Any] = {"text": text}
        if self.chat:
            role, content = {"role": "assistant"} if first else {}, {"content": text} if text or first else {}
            body = {"delta": {**role, **content}}
        choice = {"index": index, **body, "logprobs": self._logprobs(logprobs), "finish_reason": reason}
        return self._frame(self._chunk_object, [choice])

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk after the last choice, which holds the usage."""
        return self._frame(self._chunk_object, [], usage)

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _frame(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        out = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return {**out, "usage": usage} if usage is not None else out

    def _logprobs(self, logprobs: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        if self.chat:
            return {
                "content": [
                    {"token": t.token, "logprob": t.logprob, "bytes": list(t.data), "top_logprobs": []}
                    for t in logprobs
                ],
                "refusal": None,
            }
        return {
            "tokens": [t.token for t in logprobs],
            "token_logprobs": [t.logprob for t in logprobs],
            "top_logprobs": None,
            "text_offset": [t.offset for t in logprobs],
        }
