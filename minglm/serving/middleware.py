"""Limits on a request's body, in bytes and in time, outside of all routes. Counts answers by status."""

from __future__ import annotations

import asyncio

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minglm.serving.metrics import Metrics
from minglm.serving.protocol import APIError

BODY_TIMEOUT_S = 30.0  # a request's body must have come by then
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


def error_response(error: APIError, close: bool = False) -> JSONResponse:
    """The HTTP answer that states `error`; `close` ends the connection after it."""
    headers = {**error.headers, **({"connection": "close"} if close else {})}
    return JSONResponse(error.body(), error.status, headers=headers)


class BodyLimitMiddleware:
    """Outermost: reads the whole body within its limits before the routes see it. Pure ASGI, so that streams pass.

    max_body: bytes. Answers 413 above it, and 408 after BODY_TIMEOUT_S.
    """

    def __init__(self, app: ASGIApp, max_body: int, metrics: Metrics):
        self.app, self.max_body, self.metrics = app, max_body, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI calls it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in ROUTES else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            body = await asyncio.wait_for(self._body(receive), BODY_TIMEOUT_S)
        except TimeoutError:
            late = APIError(408, f"the body had not come after {BODY_TIMEOUT_S:.0f} s")
            await error_response(late, close=True)(scope, receive, counted)
            return
        except APIError as error:
            await error_response(error, close=True)(scope, receive, counted)
            return
        if body is None:
            return  # the client left
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, replay, counted)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left before its end."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise APIError(
                    413,
                    f"the body is larger than {self.max_body:,} bytes: send less, "
                    "or start the server with a larger --max-body",
                )
            more = message.get("more_body", False)
        return b"".join(parts)
