"""From a checked request to its answer: limits, one engine request a choice, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable
from typing import NamedTuple, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from minglm.data.tokenizer import Tokenizer
from minglm.serving.config import ServeSettings
from minglm.serving.detokenizer import LogprobAligner, StreamDetokenizer
from minglm.serving.engine_thread import EngineThread, RequestHandle
from minglm.serving.protocol import APIError, ChatCompletionRequest, GenerationRequest, check_model
from minglm.serving.responses import Choice, ResponseBuilder, TokenLogprob, usage

T = TypeVar("T")
POLL_S = 0.25  # how often a request that waits looks whether its client is still there


class Piece(NamedTuple):
    """What is new of one choice; the last piece has the reason."""

    text: str
    logprobs: list[TokenLogprob] | None  # None where the request wants none
    finish_reason: str | None


async def complete(
    body: GenerationRequest,
    connection: Request,
    engine_thread: EngineThread,
    tokenizer: Tokenizer,
    settings: ServeSettings,
) -> Response:
    """The answer to a request for completions of either kind.

    Raises:
        APIError: 400 for what cannot be served, 404 for another model, 429 when too much is in work,
            499 when the client leaves, 500 or 503 when the engine fails.
    """
    check_model(body.model, settings.served_model_name)
    prompts = body.prompts(tokenizer)
    max_new_tokens = resolve_max_new_tokens(body, prompts, engine_thread.engine.model.config.vocab_size, settings)
    if engine_thread.stopped:
        raise APIError(503, "the engine has stopped; the server is going down")
    if engine_thread.load + len(prompts) * body.n > settings.max_concurrent:
        raise APIError(
            429,
            f"{engine_thread.load} sequences are in work, of at most {settings.max_concurrent}: try again in a moment",
            headers={"retry-after": "1"},
        )
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    handles = [
        engine_thread.submit(
            list(p),
            max_new_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=seed + i,
            stop=(tokenizer.eos,),
            timeout_s=settings.timeout_s,
            final_only=not body.stream and not body.stops,
        )
        for i, p in enumerate(p for p in prompts for _ in range(body.n))
    ]
    answer = _Answer(body, handles, engine_thread, tokenizer, settings.served_model_name, sum(map(len, prompts)))
    if body.stream:
        return StreamingResponse(
            answer.events(),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
    return JSONResponse(await answer.whole(connection))


def resolve_max_new_tokens(
    body: GenerationRequest, prompts: list[list[int]], vocab_size: int, settings: ServeSettings
) -> int:
    """New tokens of each answer at most: what is asked for, or the endpoint's default as far as the server gives it and
    the longest prompt leaves it.

    Raises:
        APIError: 400 for an empty prompt, a token outside the vocabulary, or more tokens than there is room for.
    """
    assert settings.max_model_len is not None  # `minglm.serving.server.build` has settled it
    for p in prompts:
        if not p:
            raise APIError(400, "prompt is empty: give a text or at least one token", "prompt")
        if outside := next((t for t in p if not 0 <= t < vocab_size), None):
            raise APIError(400, f"token {outside}: the vocabulary is 0 to {vocab_size - 1}", "prompt")
    longest = max(map(len, prompts))
    available = settings.max_model_len - longest
    if available < 1:
        raise APIError(
            400,
            f"the prompt has {longest:,} tokens: with an answer at most {settings.max_model_len:,} fit; shorten it",
            "messages" if isinstance(body, ChatCompletionRequest) else "prompt",
        )
    wanted = body.max_new_tokens
    if wanted is None:
        return min(settings.max_tokens, available, body.default_max_tokens or available)
    if wanted > settings.max_tokens:
        raise APIError(400, f"max_tokens={wanted:,}: this server gives at most {settings.max_tokens:,}", "max_tokens")
    if wanted > available:
        raise APIError(
            400,
            f"prompt and answer are {longest + wanted:,} tokens: at most {settings.max_model_len:,} fit; "
            "shorten one of them",
            "max_tokens",
        )
    return wanted


class _Answer:
    """One request's choices as they come out of the engine."""

    def __init__(
        self,
        body: GenerationRequest,
        handles: list[RequestHandle],
        engine_thread: EngineThread,
        tokenizer: Tokenizer,
        model_name: str,
        prompt_tokens: int,
    ):
        self.body, self.handles, self.engine_thread, self.tokenizer = body, handles, engine_thread, tokenizer
        self.builder = ResponseBuilder(isinstance(body, ChatCompletionRequest), model_name)
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = [0] * len(handles)

    async def whole(self, connection: Request) -> dict:
        """All choices together, as one JSON object."""
        try:
            choices = await _while_connected(
                connection, asyncio.gather(*(self._collect(i) for i in range(len(self.handles))))
            )
        finally:
            self._cancel()
        return self.builder.whole(choices, usage(self.prompt_tokens, sum(self.completion_tokens)))

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events; several choices take turns as their tokens come. Closed early, it cancels what runs."""
        chunks: asyncio.Queue[dict | None] = asyncio.Queue()

        async def forward(index: int) -> None:
            first = True
            async for text, logprobs, reason in self._pieces(index):
                if text or logprobs or reason or first:
                    await chunks.put(self.builder.chunk(index, text, reason, first, logprobs))
                    first = False

        tasks = [asyncio.create_task(forward(i)) for i in range(len(self.handles))]
        together = asyncio.gather(*tasks)

        def ended(future: asyncio.Future) -> None:
            if not future.cancelled():
                future.exception()  # looked at, so that asyncio does not report it as forgotten
            chunks.put_nowait(None)

        together.add_done_callback(ended)
        try:
            while (chunk := await chunks.get()) is not None:
                yield _event(chunk)
            try:
                together.result()
            except APIError as error:
                yield _event(error.body())
                return
            if self.body.wants_usage:
                yield _event(self.builder.usage_chunk(usage(self.prompt_tokens, sum(self.completion_tokens))))
            yield "data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            self._cancel()

    async def _collect(self, index: int) -> Choice:
        text, finish_reason = "", ""
        logprobs: list[TokenLogprob] = []
        async for piece in self._pieces(index):
            text += piece.text
            logprobs += piece.logprobs or []
            finish_reason = piece.finish_reason or finish_reason
        return Choice(text, finish_reason, logprobs if self.body.wants_logprobs else None)

    async def _pieces(self, index: int) -> AsyncIterator[Piece]:
        """Choice `index` as it comes."""
        handle, detokenizer = self.handles[index], StreamDetokenizer(self.tokenizer, self.body.stops)
        aligner = LogprobAligner(self.tokenizer) if self.body.wants_logprobs else None
        while True:
            tokens, logprobs, reason = await handle.outputs.get()
            if reason == "failed":
                why = handle.request.reason or self.engine_thread.failure or "the server is closing"
                raise APIError(500, f"the engine gave up on this sequence: {why}")
            text = detokenizer.add(tokens, last=reason is not None)
            self.completion_tokens[index] = len(detokenizer.tokens)
            stopped = detokenizer.stopped
            named = None
            if aligner is not None:
                aligner.add(tokens, logprobs)
                named = aligner.leave(len(detokenizer.sent), stopped or reason is not None, stopped)
            if stopped and reason is None:
                self.engine_thread.cancel(handle)
            if stopped or reason:
                yield Piece(text, named, "stop" if stopped else "length" if reason == "timeout" else reason)
                return
            yield Piece(text, named, None)

    def _cancel(self) -> None:
        for handle in self.handles:
            if not handle.request.reason:
                self.engine_thread.cancel(handle)


def _event(payload: dict) -> str:
    return f"data: {json.dumps(payload)}\n\n"


async def _while_connected(connection: Request, work: Awaitable[T]) -> T:
    """Await `work`, but give it up when the client leaves."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=POLL_S))[0]:
            if await connection.is_disconnected():
                raise APIError(499, "the client left")
        return task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, APIError):
            await task
