"""The part of OpenAI's API that is served: requests checked by pydantic, answers as plain dictionaries, errors in its shape.

Source: OpenAI API reference, "Chat completions" and "Completions". What is not supported is refused by name, never ignored.
"""

from __future__ import annotations

import time
import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Refusal(Exception):
    """An answer with an error in it: HTTP status, message, and the parameter at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers or {}

    def body(self) -> dict:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict | None = None
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None  # taken and not used
    # Known, and served at their neutral value only.
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _stops(cls, value):
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 4 or any(not t for t in texts):
            raise ValueError("at most 4 stop texts, none of them empty")
        return texts

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _neutral(cls, value):
        return int(value) if value == 0 else value

    @property
    def wants_usage(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ChatAsked(_Asked):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None

    @model_validator(mode="after")
    def _last_is_user(self):
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must be the user's or the system's: the answer is what comes next")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def prompts(self, tokenizer) -> list[list[int]]:
        """<|bos|> and a marker before each turn; an assistant's turn ends with <|eos|>, as in training (`minglm.data.chat`)."""
        ids = [tokenizer.bos]
        for m in self.messages:
            ids += [
                {"system": tokenizer.system, "user": tokenizer.user, "assistant": tokenizer.assistant}[m.role],
                *tokenizer.encode(m.text),
            ]
            ids += [tokenizer.eos] if m.role == "assistant" else []
        return [[*ids, tokenizer.assistant]]


class TextAsked(_Asked):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    echo: Literal[False] = False
    logprobs: Literal[0, 1] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    def prompts(self, tokenizer) -> list[list[int]]:
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise Refusal(400, "prompt is empty: give a text or at least one", "prompt")
        if len(given) * self.n > 64:
            raise Refusal(
                400, f"{len(given)} prompts, {self.n} answers each: at most 64 answers in a request", "prompt"
            )
        return [[tokenizer.bos, *tokenizer.encode(p)] if isinstance(p, str) else list(p) for p in given]


class Answer:
    """Makes the dictionaries of one response, whole or in chunks; `chat` or plain text."""

    def __init__(self, chat: bool, model: str):
        self.chat, self.model, self.created = chat, model, int(time.time())
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex[:24]}"

    def _frame(self, kind: str, choices: list[dict], usage: dict | None = None) -> dict:
        out = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return {**out, "usage": usage} if usage is not None else out

    def whole(self, choices: list[tuple[str, str, list | None]], usage: dict) -> dict:
        """choices: (text, finish_reason, log-probabilities) of each."""
        made = []
        for i, (text, reason, logs) in enumerate(choices):
            body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            made.append({"index": i, **body, "logprobs": self._logs(logs), "finish_reason": reason})
        return self._frame("chat.completion" if self.chat else "text_completion", made, usage)

    def chunk(
        self, index: int, text: str, reason: str | None = None, first: bool = False, logs: list | None = None
    ) -> dict:
        if self.chat:
            delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
            body: dict = {"delta": delta}
        else:
            body = {"text": text}
        return self._frame(
            "chat.completion.chunk" if self.chat else "text_completion",
            [{"index": index, **body, "logprobs": self._logs(logs), "finish_reason": reason}],
        )

    def last(self, usage: dict) -> dict:
        """The chunk after the last choice, which holds the usage."""
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", [], usage)

    def _logs(self, logs: list | None) -> dict | None:
        """logs: (token text, log-probability) of each token."""
        if logs is None:
            return None
        if self.chat:
            return {
                "content": [{"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []} for t, p in logs],
                "refusal": None,
            }
        return {
            "tokens": [t for t, _ in logs],
            "token_logprobs": [p for _, p in logs],
            "top_logprobs": None,
            "text_offset": [],
        }


def usage(prompt: int, answer: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
