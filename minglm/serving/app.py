"""The HTTP side: routes, keys, errors in OpenAI's shape.

POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health   GET /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from minglm.data.tokenizer import Tokenizer
from minglm.errors import one_line
from minglm.serving.completion import complete
from minglm.serving.config import ServeSettings
from minglm.serving.engine_thread import EngineThread
from minglm.serving.middleware import BodyLimitMiddleware, error_response
from minglm.serving.protocol import (
    APIError,
    ChatCompletionRequest,
    CompletionRequest,
    Message,
    check_model,
    unserved,
)


def make_app(engine_thread: EngineThread, tokenizer: Tokenizer, settings: ServeSettings) -> FastAPI:
    """The application around an engine thread that its lifespan starts and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine_thread.start()
        yield
        engine_thread.close()
        await asyncio.to_thread(engine_thread.join, 10)

    app = FastAPI(title="minglm", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimitMiddleware, max_body=settings.max_body, metrics=engine_thread.metrics)
    _add_error_handlers(app)  # they sit inside the middleware
    _add_routes(app, engine_thread, tokenizer, settings)
    return app


def _add_routes(app: FastAPI, engine_thread: EngineThread, tokenizer: Tokenizer, settings: ServeSettings) -> None:
    name = settings.served_model_name
    card = {"id": name, "object": "model", "created": 0, "owned_by": "you"}

    async def require_key(request: Request) -> None:
        if settings.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), settings.api_key.encode()):
            raise APIError(
                401,
                "no key, or a wrong one: send the header Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        if engine_thread.stopped:
            raise APIError(503, f"the engine has stopped: {engine_thread.failure or 'closing'}")
        engine = engine_thread.engine
        return {"status": "ok", "model": name, "running": engine.running, "waiting": engine.waiting}

    @app.get("/metrics", dependencies=[Depends(require_key)])
    async def metrics() -> Response:
        return Response(engine_thread.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=[Depends(require_key)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model}", dependencies=[Depends(require_key)])
    async def one_model(model: str) -> dict[str, Any]:
        check_model(model, name)
        return card

    @app.post("/v1/chat/completions", dependencies=[Depends(require_key)])
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        return await complete(body, request, engine_thread, tokenizer, settings)

    @app.post("/v1/completions", dependencies=[Depends(require_key)])
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await complete(body, request, engine_thread, tokenizer, settings)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(APIError)
    async def _(_request: Request, error: APIError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(_explain_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(_explain_http(request, error))


def _explain_validation(errors: Sequence[dict[str, Any]]) -> APIError:
    """The first thing that pydantic found wrong with a body, as a sentence that names the parameter."""
    # where a text or a list may stand and a list was sent, the text's error is beside the point
    first = next((e for e in errors if not (e["loc"][-1] == "str" and isinstance(e.get("input"), list))), errors[0])
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return APIError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    # the branches of a union are pydantic's names for types, no part of the path
    field, inner = first["loc"][1:2], first["loc"][2:]
    path = [str(p) for p in (*field, *(p for p in inner if p != "str" and not str(p).startswith("list[")))]
    if not path and kind == "value_error":  # a rule of the whole request, in its own words
        return APIError(400, str(first["ctx"]["error"]))
    if not path:
        return APIError(400, "the body must be a JSON object, sent with the header content-type: application/json")
    text = {"missing": "is needed", "extra_forbidden": "is not supported here; leave it out"}.get(kind, message)
    if kind == "value_error":
        text = str(first["ctx"]["error"])
    in_message = path[0] == "messages" and len(path) > 2
    neutral = unserved(*((Message,) if in_message else (ChatCompletionRequest, CompletionRequest)))
    if (name := path[2] if in_message else path[0]) in neutral:
        text = f"is not supported here; leave it out, or give {neutral[name]}"
    where = one_line(".".join(path), 80)
    return APIError(400, f"{where}: {text}", where)


def _explain_http(request: Request, error: HTTPException) -> APIError:
    """What the framework refuses by itself: unknown paths, wrong methods, bodies it cannot read."""
    path = one_line(request.url.path, 80)
    text = {404: f"no such path {path}", 405: f"{request.method} is not for {path}"}.get(
        error.status_code, str(error.detail)
    )
    if error.status_code == 400 and "parsing the body" in text:  # bytes that are no text, or nested too deep
        text = "the body is not JSON"
    return APIError(error.status_code, text)
