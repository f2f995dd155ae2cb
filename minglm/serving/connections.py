"""Limits on connections, below HTTP: time for headers, time to read an answer, how many of one address.

The request's body has limits of its own (`minglm.serving.middleware`), an answered connection uvicorn's keep-alive.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from minglm.serving.config import ServeSettings
from minglm.serving.protocol import APIError

UNREAD_S = 60.0  # a client that has its buffers full and takes nothing for so long is cut
FILES_KEPT = 64  # descriptors left for everything that is no connection
SAID_EVERY_S = 1.0
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def most_connections() -> int:
    """Connections that this process can hold open, by its limit of open files."""
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return 1 << 16
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(8, soft - FILES_KEPT)


class LimitedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, which waits for nobody without a bound.

    A connection more than the limits allow takes the place of the one that has been silent longest; where none is
    silent, it is answered 429 (its address has too many) or 503 (the process has) and closed.
    """

    settings: ServeSettings
    most: int
    _headers_due: asyncio.TimerHandle | None = None
    _read_due: asyncio.TimerHandle | None = None
    _spoke = False
    silent_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request, if there is room."""
        super().connection_made(transport)
        self.silent_since = time.monotonic()
        others = [c for c in self.connections if c is not self and isinstance(c, LimitedConnection)]
        near = [c for c in others if c.client and self.client and c.client[0] == self.client[0]]
        limit = self.settings.max_connections_per_address
        if len(near) >= limit and not _close_longest_silent(near):
            self._refuse(APIError(429, f"{limit} connections of this address are in use: close some, or wait"))
        elif len(others) >= self.most and not _close_longest_silent(others):
            self._refuse(APIError(503, f"{self.most} connections are in use: try again in a moment"))
        else:
            self._watch_headers()

    def data_received(self, data: bytes) -> None:
        """Take what came; a request's headers have a bound from their first byte, however slowly they come."""
        self._spoke = True
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        """Between two requests the keep-alive's clock runs."""
        self.silent_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read: from now on it has a bound."""
        super().pause_writing()
        self._read_due = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._stop_clocks("_read_due")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._stop_clocks("_read_due", "_headers_due")
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so, in OpenAI's shape; in the middle of an answer there is nothing to say."""
        if self.silent:
            self._refuse(APIError(400, msg))
        else:
            self.transport.close()

    @property
    def silent(self) -> bool:
        """Whether it waits for a request."""
        return self.cycle is None or self.cycle.response_complete

    def _watch_headers(self) -> None:
        wanted = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not wanted:
            self._stop_clocks("_headers_due")
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(self.settings.header_timeout_s, self._headers_late)

    def _headers_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._spoke:
            self._refuse(APIError(408, f"the headers had not come after {self.settings.header_timeout_s:g} s"))
        else:
            self.transport.close()

    def _stop_clocks(self, *names: str) -> None:
        for name in names:
            if (clock := getattr(self, name)) is not None:
                clock.cancel()
                setattr(self, name, None)

    def _refuse(self, error: APIError) -> None:
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connection_class(settings: ServeSettings) -> type[LimitedConnection]:
    """The class of one server's connections, with its settings."""
    return type("Connection", (LimitedConnection,), {"settings": settings, "most": most_connections()})


def _close_longest_silent(connections: list[LimitedConnection]) -> bool:
    silent = [c for c in connections if c.silent and not c.transport.is_closing()]
    if silent:
        min(silent, key=lambda c: c.silent_since).transport.abort()
    return bool(silent)


def say_seldom() -> None:
    """What a stranger can provoke at will is logged once a second at most: bytes that are no HTTP, and connections that
    the system has no room for, which asyncio reports hundreds of times at once, each with a traceback."""
    logging.getLogger("uvicorn.error").addFilter(_OnceASecond())
    loop, once = asyncio.get_running_loop(), _OnceASecond()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _FULL):
            loop.default_exception_handler(context)
        elif once.due("full"):
            logging.getLogger("uvicorn.error").warning("no room for another connection: %s; it waits", error.strerror)

    loop.set_exception_handler(handle)


class _OnceASecond(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def due(self, text: str) -> bool:
        """Whether `text` was not said within the last second."""
        now_s = time.monotonic()
        if now_s - self._last_s.get(text, -SAID_EVERY_S) < SAID_EVERY_S:
            return False
        self._last_s = {t: at for t, at in self._last_s.items() if now_s - at < SAID_EVERY_S} | {text: now_s}
        return True

    def filter(self, record: logging.LogRecord) -> bool:
        return self.due(str(record.msg))
