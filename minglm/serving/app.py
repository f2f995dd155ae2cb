"""The HTTP side: routes, limits, errors in OpenAI's shape, streaming as server-sent events.

POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health   GET /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from minglm.serving.config import ServeSettings
from minglm.serving.detokenizer import Words
from minglm.serving.engine_thread import Driver, Ticket
from minglm.serving.metrics import Metrics
from minglm.serving.protocol import Answer, ChatAsked, Refusal, TextAsked, usage

BODY_S = 30.0  # a request's body must have come by then


class Gate:
    """Outermost: reads the whole body within its limits of bytes and time, counts answers. Pure ASGI, so that streams pass."""

    def __init__(self, app, settings: ServeSettings, metrics: Metrics):
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = (
            scope["path"]
            if scope["path"] in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
            else "other"
        )

        async def counted(message):
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            body = await asyncio.wait_for(self._body(receive), BODY_S)
        except TimeoutError:
            return await _refuse(Refusal(408, f"the body had not come after {BODY_S:.0f} s"))(scope, receive, counted)
        except Refusal as no:
            return await _refuse(no, close=True)(scope, receive, counted)
        if body is None:
            return None  # the client left
        given = False

        async def again():
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return await self.app(scope, again, counted)

    async def _body(self, receive) -> bytes | None:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.settings.max_body:
                raise Refusal(
                    413,
                    f"the body is larger than {self.settings.max_body:,} bytes: send less, or start the server with a larger --max-body",
                )
            more = message.get("more_body", False)
        return b"".join(parts)


def _refuse(no: Refusal, close: bool = False) -> JSONResponse:
    return JSONResponse(no.body(), no.status, headers={**no.headers, **({"connection": "close"} if close else {})})


def make_app(driver: Driver, tokenizer, settings: ServeSettings) -> FastAPI:
    """The application around a driver that `lifespan` starts and closes."""
    metrics = driver.metrics

    @contextlib.asynccontextmanager
    async def lifespan(_):
        driver.start()
        yield
        driver.close()
        await asyncio.to_thread(driver.join, 10)

    app = FastAPI(title="minglm", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    # handlers of what a route raises sit inside the middleware above

    @app.exception_handler(Refusal)
    async def _(_request, no: Refusal):
        return _refuse(no)

    @app.exception_handler(RequestValidationError)
    async def _(_request, err: RequestValidationError):
        first = err.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if p not in ("body", "str", "list[str]", "list[int]")) or "body"
        said = {
            "json_invalid": "the body is not JSON",
            "missing": "is needed",
            "extra_forbidden": "is not supported here",
        }.get(first["type"], first["msg"])
        if where == "body" and first["type"] == "value_error":  # a rule of the whole request, said in its own words
            return _refuse(Refusal(400, str(first["ctx"]["error"])))
        if where == "body" and first["type"] != "json_invalid":
            return _refuse(
                Refusal(400, "the body must be a JSON object, sent with the header content-type: application/json")
            )
        if first["type"] == "json_invalid":
            return _refuse(Refusal(400, f"{said}: {first.get('ctx', {}).get('error', first['msg'])}"))
        return _refuse(Refusal(400, f"{where}: {said}", where))

    @app.exception_handler(HTTPException)
    async def _(request: Request, err: HTTPException):
        text = {
            404: f"no such path {request.url.path[:80]}",
            405: f"{request.method} is not for {request.url.path[:80]}",
        }.get(err.status_code, str(err.detail))
        if (
            err.status_code == 400 and "parsing the body" in text
        ):  # FastAPI's word for bytes that are no text, or nested too deep
            text = "the body is not JSON"
        return _refuse(Refusal(err.status_code, text))

    async def known(request: Request) -> None:
        if settings.api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.api_key.encode()):
            raise Refusal(
                401,
                "no key, or a wrong one: send the header Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )

    @app.get("/health")
    async def health():
        if driver.failure or not driver.is_alive():
            raise Refusal(503, f"the engine has stopped: {driver.failure or 'closing'}")
        return {
            "status": "ok",
            "model": settings.served_model_name,
            "running": driver.engine.running,
            "waiting": driver.engine.waiting,
        }

    @app.get("/metrics", dependencies=[Depends(known)])
    async def show_metrics():
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=[Depends(known)])
    async def models():
        return {
            "object": "list",
            "data": [{"id": settings.served_model_name, "object": "model", "created": 0, "owned_by": "you"}],
        }

    @app.get("/v1/models/{name}", dependencies=[Depends(known)])
    async def one_model(name: str):
        if name != settings.served_model_name:
            raise Refusal(404, f"model {name[:80]!r}: this server has {settings.served_model_name!r}", "model")
        return {"id": settings.served_model_name, "object": "model", "created": 0, "owned_by": "you"}

    @app.post("/v1/chat/completions", dependencies=[Depends(known)])
    async def chat(asked: ChatAsked, request: Request):
        return await _answer(asked, request, driver, tokenizer, settings)

    @app.post("/v1/completions", dependencies=[Depends(known)])
    async def complete(asked: TextAsked, request: Request):
        return await _answer(asked, request, driver, tokenizer, settings)

    return app


async def _answer(asked: ChatAsked | TextAsked, request: Request, driver: Driver, tokenizer, settings: ServeSettings):
    prompts = asked.prompts(tokenizer)
    limit = _limit(asked, prompts, driver, settings)
    if driver.failure or not driver.is_alive():
        raise Refusal(503, "the engine has stopped; the server is going down")
    count = len(prompts) * asked.n
    if driver.load + count > settings.max_concurrent:
        raise Refusal(
            429,
            f"{driver.load} sequences are in work, of at most {settings.max_concurrent}: try again in a moment",
            headers={"retry-after": "1"},
        )
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    tickets = [
        driver.submit(
            list(p),
            limit,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=seed + i,
            stop=(tokenizer.eos,),
            timeout_s=settings.timeout_s,
            whole=not asked.stream and not asked.stop,
        )
        for i, p in enumerate(p for p in prompts for _ in range(asked.n))
    ]
    answer, wants_logs = (
        Answer(isinstance(asked, ChatAsked), settings.served_model_name),
        asked.logprobs not in (None, False),
    )
    read_in = sum(map(len, prompts))
    if asked.stream:
        events = _stream(asked, answer, tickets, driver, tokenizer, wants_logs, read_in)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
    try:
        ended = await _while_connected(
            request, asyncio.gather(*(_collect(t, asked, driver, tokenizer) for t in tickets))
        )
    finally:
        _cancel(tickets, driver)
    made = sum(n for *_, n in ended)
    choices = [(text, reason, _named(logs, tokenizer) if wants_logs else None) for text, reason, logs, _ in ended]
    return JSONResponse(answer.whole(choices, usage(read_in, made)))


def _limit(asked, prompts: list[list[int]], driver: Driver, settings: ServeSettings) -> int:
    V, longest = driver.engine.model.config.vocab_size, max(map(len, prompts))
    for p in prompts:
        if not p:
            raise Refusal(400, "prompt is empty: give a text or at least one token", "prompt")
        if bad := next((t for t in p if not 0 <= t < V), None):
            raise Refusal(400, f"token {bad}: the vocabulary is 0 to {V - 1}", "prompt")
    room = settings.max_model_len - longest
    if room < 1:
        raise Refusal(
            400,
            f"the prompt has {longest:,} tokens: with an answer at most {settings.max_model_len:,} fit; shorten it",
            "messages" if isinstance(asked, ChatAsked) else "prompt",
        )
    if asked.limit is None:
        return min(settings.max_tokens, room)
    if asked.limit > settings.max_tokens:
        raise Refusal(
            400, f"max_tokens={asked.limit:,}: this server gives at most {settings.max_tokens:,}", "max_tokens"
        )
    if asked.limit > room:
        raise Refusal(
            400,
            f"prompt and answer are {longest + asked.limit:,} tokens: at most {settings.max_model_len:,} fit; shorten one of them",
            "max_tokens",
        )
    return asked.limit


def _cancel(tickets: list[Ticket], driver: Driver) -> None:
    for t in tickets:
        if not t.request.reason:
            driver.cancel(t)


async def _while_connected(request: Request, work):
    """Await `work`, but give it up when the client leaves."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=0.25))[0]:
            if await request.is_disconnected():
                raise Refusal(499, "the client left")
        return task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Refusal):
            await task


async def _pieces(ticket: Ticket, asked, driver: Driver, tokenizer) -> AsyncIterator[tuple[str, list, str | None]]:
    """(text, tokens with log-probabilities, finish_reason or None) as it comes; the last one has the reason."""
    words = Words(tokenizer, asked.stop or [])
    while True:
        tokens, logprobs, reason = await ticket.out.get()
        if reason == "failed":
            raise Refusal(
                500,
                f"the engine gave up on this sequence: {ticket.request.reason or driver.failure or 'the server is closing'}",
            )
        text = words.add(tokens, last=reason is not None)
        logs = list(zip(tokens, logprobs))
        if words.stopped:
            if reason is None:
                driver.cancel(ticket)
            yield text, logs, "stop"
            return
        yield text, logs, {"timeout": "length"}.get(reason, reason)
        if reason:
            return


def _named(logs: list[tuple[int, float]], tokenizer) -> list[tuple[str, float]]:
    return [(tokenizer.token(t), p) for t, p in logs]


async def _collect(ticket: Ticket, asked, driver: Driver, tokenizer) -> tuple[str, str, list, int]:
    """(text, finish_reason, tokens with log-probabilities, their number) of a whole sequence."""
    said, logs, end = [], [], ""
    async for text, more, reason in _pieces(ticket, asked, driver, tokenizer):
        said.append(text)
        logs += more
        end = reason or end
    return "".join(said), end, logs, len(logs)


async def _stream(
    asked, answer: Answer, tickets: list[Ticket], driver: Driver, tokenizer, wants_logs: bool, read_in: int
) -> AsyncIterator[str]:
    """Server-sent events; several choices take turns as their tokens come. Closed by the client, it cancels what runs."""
    lines: asyncio.Queue = asyncio.Queue()
    made = [0] * len(tickets)

    async def one(index: int, ticket: Ticket) -> None:
        first = True
        async for text, logs, reason in _pieces(ticket, asked, driver, tokenizer):
            made[index] += len(logs)
            if text or reason or first:
                await lines.put(
                    answer.chunk(index, text, reason, first, _named(logs, tokenizer) if wants_logs else None)
                )
                first = False

    tasks = [asyncio.create_task(one(i, t)) for i, t in enumerate(tickets)]
    together = asyncio.gather(*tasks)

    def ended(future: asyncio.Future) -> None:
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio does not report it as forgotten
        lines.put_nowait(None)

    together.add_done_callback(ended)
    try:
        while (chunk := await lines.get()) is not None:
            yield f"data: {json.dumps(chunk)}\n\n"
        try:
            together.result()
        except Refusal as no:
            yield f"data: {json.dumps(no.body())}\n\n"
            return
        if asked.wants_usage:
            yield f"data: {json.dumps(answer.last(usage(read_in, sum(made))))}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        _cancel(tickets, driver)
