"""The part of OpenAI's API that is served: requests checked by pydantic, errors in its shape.

Source: OpenAI API reference, "Chat completions" and "Completions". What is not supported is refused by
name, never ignored. What the server sends back is built in `minglm.serving.responses`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from minglm.data.tokenizer import Tokenizer

MAX_CHOICES = 64  # sequences that one request may ask for


class APIError(Exception):
    """An answer with an error in it: HTTP status, message, and the parameter at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


class GenerationRequest(BaseModel):
    """What chat and text completions have in common: sampling, length, number of choices, streaming."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None  # taken and not used
    # Known, and served at their neutral value only.
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _stop_list(cls, value: str | list[str] | None) -> list[str]:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 4 or any(not t for t in texts):
            raise ValueError("at most 4 stop texts, none of them empty")
        return texts

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _neutral(cls, value: Any) -> Any:
        return int(value) if value == 0 else value

    @property
    def stops(self) -> list[str]:
        """Stop texts; `stop` is always a list after validation."""
        return self.stop if isinstance(self.stop, list) else []

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    @abstractmethod
    def wants_logprobs(self) -> bool:
        """Whether the answer holds log-probabilities."""

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens of an answer at most; None: as many as the server gives."""
        return self.max_tokens

    @abstractmethod
    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Tokens of each prompt."""


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The whole content."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None

    @model_validator(mode="after")
    def _last_is_not_the_assistant(self) -> ChatCompletionRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must be the user's or the system's: the answer is what comes next")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """As the request says."""
        return self.logprobs

    @property
    def max_new_tokens(self) -> int | None:
        """The newer name wins over the older one."""
        return self.max_completion_tokens or self.max_tokens

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """One prompt, written as in training (`minglm.data.chat`).

        <|bos|>, then a marker before each turn; an assistant's turn ends with <|eos|>.
        """
        marker = {"system": tokenizer.system, "user": tokenizer.user, "assistant": tokenizer.assistant}
        ids = [tokenizer.bos]
        for m in self.messages:
            ids += [marker[m.role], *tokenizer.encode(m.text)]
            ids += [tokenizer.eos] if m.role == "assistant" else []
        return [[*ids, tokenizer.assistant]]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. A prompt is a text or tokens; several of either may be given."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    echo: Literal[False] = False
    logprobs: Literal[0, 1] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def wants_logprobs(self) -> bool:
        """0 and 1 both ask for those of the tokens themselves."""
        return self.logprobs is not None

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Tokens of each prompt; a text gets <|bos|> before it.

        Raises:
            APIError: no prompt, or more choices than MAX_CHOICES.
        """
        one: list[int] = []
        several: list[str | list[int]] = []
        if isinstance(self.prompt, str):
            several.append(self.prompt)
        else:
            for item in self.prompt:  # pydantic has checked that they are all of one kind
                if isinstance(item, int):
                    one.append(item)
                else:
                    several.append(item)
        if one:
            several.append(one)
        if not several:
            raise APIError(400, "prompt is empty: give a text or at least one", "prompt")
        if len(several) * self.n > MAX_CHOICES:
            raise APIError(
                400,
                f"{len(several)} prompts, {self.n} answers each: at most {MAX_CHOICES} answers in a request",
                "prompt",
            )
        return [[tokenizer.bos, *tokenizer.encode(p)] if isinstance(p, str) else list(p) for p in several]
