"""The part of OpenAI's API that is served: requests checked by pydantic, errors in its shape.

Source: OpenAI API reference, "Chat completions" and "Completions". Three rules for every field:

- null is "not given";
- what is served is taken in its JSON type, without conversions;
- what is not served is taken at the value that asks for nothing (`Unserved`), and refused by name at any other.

What the server sends back is built in `minglm.serving.responses`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from minglm.data.tokenizer import Tokenizer
from minglm.errors import one_line

MAX_CHOICES = 64  # sequences that one request may ask for
MESSAGE_CHARS = 400  # of an error: what the client wrote is repeated in part, on one line


class APIError(Exception):
    """An answer with an error in it: HTTP status, message, the parameter at fault, and OpenAI's word for it.

    Message and parameter may repeat what a client sent: they become one printable line.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        code: str | None = None,
    ):
        self.message = one_line(message, MESSAGE_CHARS)
        self.param = None if param is None else one_line(param, 80)
        super().__init__(self.message)
        self.status, self.headers, self.code = status, headers or {}, code

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def check_model(name: str | None, served: str) -> None:
    """Raises APIError 404 where a request names another model than the one that is here."""
    if name not in (None, served):
        raise APIError(404, f"model {name!r}: this server has {served!r}", "model", code="model_not_found")


class _Object(BaseModel):
    """A JSON object of a request: unknown fields refused, nothing converted, null dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _is_false(value: bool) -> bool:
    if value:
        raise ValueError("Input should be false")
    return value


No = Annotated[bool, AfterValidator(_is_false)]
NoText = Annotated[str, Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
NoList = Annotated[list[Any], Field(max_length=0)]
NoObject = Annotated[dict[str, Any], Field(max_length=0)]


class Unserved:
    """Marks a field that the API has and this server has not. `neutral`: the value that asks for nothing, in JSON."""

    def __init__(self, neutral: str):
        self.neutral = neutral


def unserved(*models: type[BaseModel]) -> dict[str, str]:
    """Field → neutral value, of the fields marked `Unserved`."""
    return {
        name: mark.neutral
        for model in models
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Unserved)
    }


class StreamOptions(_Object):
    """How a stream ends; it is never padded."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers, which a client has to do without


class TextFormat(_Object):
    """Answers are plain text."""

    type: Literal["text"]


class GenerationRequest(_Object):
    """What chat and text completions have in common: sampling, length, number of choices, streaming."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    default_max_tokens: ClassVar[int | None] = None  # where a request names none; None: what the server gives
    # taken and not used: they change nothing of an answer
    user: str | None = None
    metadata: dict[str, str] = {}
    store: bool = False
    parallel_tool_calls: bool = True
    prompt_cache_key: str = ""
    safety_identifier: str = ""
    presence_penalty: Annotated[Zero, Unserved("0")] = 0
    frequency_penalty: Annotated[Zero, Unserved("0")] = 0
    logit_bias: Annotated[NoObject, Unserved("{}")] = {}
    tools: Annotated[NoList, Unserved("[]")] = []
    functions: Annotated[NoList, Unserved("[]")] = []
    tool_choice: Annotated[Literal["none", "auto"], Unserved('"none"')] = "none"
    function_call: Annotated[Literal["none", "auto"], Unserved('"none"')] = "none"
    response_format: Annotated[TextFormat, Unserved('{"type": "text"}')] = TextFormat(type="text")
    service_tier: Annotated[Literal["auto", "default"], Unserved('"auto"')] = "auto"
    modalities: Annotated[list[Literal["text"]], Unserved('["text"]')] = ["text"]
    reasoning_effort: Annotated[Literal["none"], Unserved('"none"')] = "none"
    verbosity: Annotated[Literal["medium"], Unserved('"medium"')] = "medium"
    prompt_cache_retention: Annotated[Literal["in_memory"], Unserved('"in_memory"')] = "in_memory"
    audio: Annotated[NoObject, Unserved("{}")] = {}
    moderation: Annotated[NoObject, Unserved("{}")] = {}
    prediction: Annotated[NoObject, Unserved("{}")] = {}
    prompt_cache_options: Annotated[NoObject, Unserved("{}")] = {}
    web_search_options: Annotated[NoObject, Unserved("{}")] = {}

    @model_validator(mode="before")
    @classmethod
    def _characters_are_whole(cls, value: Any) -> Any:
        """Raises APIError for text that JSON can write and UTF-8 cannot."""
        for name, item in value.items() if isinstance(value, dict) else ():
            try:
                json.dumps([name, item], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                half = "half of a surrogate pair (\\ud800 to \\udfff) is no character: send both halves or neither"
                raise APIError(400, f"{one_line(name, 80)}: {half}", name) from None
            except RecursionError:
                raise APIError(400, f"{one_line(name, 80)}: nested too deep", name) from None
        return value

    @field_validator("stop")
    @classmethod
    def _stop_list(cls, value: str | list[str] | None) -> list[str]:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 4 or any(not t for t in texts):
            raise ValueError("at most 4 stop texts, none of them empty")
        return texts

    @property
    def stops(self) -> list[str]:
        """Stop texts; `stop` is always a list after validation."""
        return self.stop if isinstance(self.stop, list) else []

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options.include_usage

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


class TextPart(_Object):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Object):
    """One turn of a conversation. `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None  # taken and not used
    # what an assistant's message of an earlier answer may carry, sent back as it came
    refusal: Annotated[NoText, Unserved('""')] = ""
    tool_calls: Annotated[NoList, Unserved("[]")] = []
    annotations: Annotated[NoList, Unserved("[]")] = []
    function_call: Annotated[NoObject, Unserved("{}")] = {}
    audio: Annotated[NoObject, Unserved("{}")] = {}

    @property
    def text(self) -> str:
        """The whole content."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: Annotated[Zero, Unserved("0")] = 0

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
        marker = {
            "system": tokenizer.system,
            "developer": tokenizer.system,
            "user": tokenizer.user,
            "assistant": tokenizer.assistant,
        }
        ids = [tokenizer.bos]
        for m in self.messages:
            ids += [marker[m.role], *tokenizer.encode(m.text)]
            ids += [tokenizer.eos] if m.role == "assistant" else []
        return [[*ids, tokenizer.assistant]]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. A prompt is a text or tokens; several of either may be given."""

    prompt: str | list[str] | list[int] | list[list[int]]
    default_max_tokens: ClassVar[int | None] = 16  # as OpenAI's
    logprobs: int | None = Field(None, ge=0, le=1)
    echo: Annotated[No, Unserved("false")] = False
    best_of: Annotated[int, Field(ge=1, le=1), Unserved("1")] = 1
    suffix: Annotated[NoText, Unserved('""')] = ""

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
