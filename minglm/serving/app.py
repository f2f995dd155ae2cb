"""The HTTP side: routes, keys, errors in OpenAI's shape.

POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health   GET /metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from minglm.data.tokenizer import Tokenizer
from minglm.serving.completion import complete
from minglm.serving.config import ServeSettings
from minglm.serving.engine_thread import EngineThread
from minglm.serving.middleware import BodyLimitMiddleware, error_response
from minglm.serving.protocol import APIError, ChatCompletionRequest, CompletionRequest


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
        if model != name:
            raise APIError(404, f"model {model[:80]!r}: this server has {name!r}", "model")
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
        return error_response(_explain_validation(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(_explain_http(request, error))


def _explain_validation(first: dict[str, Any]) -> APIError:
    """The first thing that pydantic found wrong with a body, as a sentence that names the parameter."""
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return APIError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    # the branches of a union are pydantic's names for types, no part of the path
    path = [str(p) for p in first["loc"] if p not in ("body", "str", "list[str]", "list[int]")]
    if not path and kind == "value_error":  # a rule of the whole request, in its own words
        return APIError(400, str(first["ctx"]["error"]))
    if not path:
        return APIError(400, "the body must be a JSON object, sent with the header content-type: application/json")
    text = {"missing": "is needed", "extra_forbidden": "is not supported here"}.get(kind, message)
    where = ".".join(path)
    return APIError(400, f"{where}: {text}", where)


def _explain_http(request: Request, error: HTTPException) -> APIError:
    """What the framework refuses by itself: unknown paths, wrong methods, bodies it cannot read."""
    path = request.url.path[:80]
    text = {404: f"no such path {path}", 405: f"{request.method} is not for {path}"}.get(
        error.status_code, str(error.detail)
    )
    if error.status_code == 400 and "parsing the body" in text:  # bytes that are no text, or nested too deep
        text = "the body is not JSON"
    return APIError(error.status_code, text)
