"""A server in this process: the model read, the engine's thread, uvicorn; SIGTERM or Ctrl-C drains it."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from minglm.errors import InputError
from minglm.inference.engine import Engine
from minglm.inference.load import load_model
from minglm.serving.app import make_app
from minglm.serving.config import ServeSettings
from minglm.serving.connections import connection_class, say_seldom
from minglm.serving.engine_thread import EngineThread
from minglm.serving.metrics import Metrics

KEEP_ALIVE_S = 10  # an answered connection may stay silent for so long
SWITCH_S = 0.0005
DEFAULT_MODEL_LEN = 1024  # each place in the batch keeps a row of the cache: not all of a long model's positions


def build(checkpoint: str | Path, settings: ServeSettings, device: str = "cpu") -> tuple[EngineThread, FastAPI]:
    """The engine's thread (not started) and the application, for a run folder or checkpoint folder.

    Raises:
        InputError: no model there, or one with fewer positions than `settings.max_model_len`.
    """
    model, tokenizer, _ = load_model(checkpoint, device)
    positions = model.config.max_position_embeddings
    max_model_len = settings.max_model_len or min(DEFAULT_MODEL_LEN, positions)
    if max_model_len > positions:
        raise InputError(
            f"max_model_len={max_model_len}: the model has {positions} positions; "
            "give at most that, or leave --max-model-len out"
        )
    settings = dataclasses.replace(settings, max_model_len=max_model_len)
    engine = Engine(
        model, settings.max_batch, max_model_len, mode=settings.mode, speculate=settings.num_speculative_tokens
    )
    engine_thread = EngineThread(engine, Metrics())
    return engine_thread, make_app(engine_thread, tokenizer, settings)


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket, taken before the model is read so that a port in use is known at once.

    Raises:
        InputError: the address or port cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as err:
        sock.close()
        raise InputError(
            f"{settings.host}:{settings.port}: {err.strerror or err}; choose another with --port (0 takes a free one)"
        ) from None
    except (TypeError, UnicodeError):  # a text that no encoding of host names takes
        sock.close()
        raise InputError(f"host {settings.host!r}: is not an address; give one such as 127.0.0.1") from None
    return sock


def serve(
    checkpoint: str | Path, settings: ServeSettings, device: str = "cpu", report: Callable[[str], None] = print
) -> int:
    """Serve until stopped; `report` gets the lines for the terminal. Returns 0 after a drain, 1 when the engine died.

    Raises:
        InputError: the port is taken, or there is no such model.
    """
    sock = listen(settings)
    try:
        engine_thread, app = build(checkpoint, settings, device)
    except BaseException:
        sock.close()
        raise
    config = uvicorn.Config(
        app,
        http=connection_class(settings),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=128,
        server_header=False,
        limit_concurrency=None,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = uvicorn.Server(config)
    host, port = sock.getsockname()[:2]
    report(
        f"{settings.served_model_name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1 "
        f"({'key needed' if settings.api_key else 'this machine only, no key'}); Ctrl-C drains and stops"
    )

    # The engine's thread gives up the interpreter in every torch operation; a handler may then hold it for this long.
    # Python's default is 5 ms, which is a whole step of a small model.
    sys.setswitchinterval(SWITCH_S)
    threading.Thread(target=_stop_with_engine, args=(server, engine_thread), daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        # uvicorn drains on these two and then raises them again for whoever was listening before:
        # a drained server ends with 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
    asyncio.run(_serve(server, sock))
    if engine_thread.failure:
        report(f"the engine stopped: {engine_thread.failure}")
        return 1
    return 0


async def _serve(server: uvicorn.Server, sock: socket.socket) -> None:
    say_seldom()
    await server.serve(sockets=[sock])


def _stop_with_engine(server: uvicorn.Server, engine_thread: EngineThread) -> None:
    """Wait for the engine's end, and end the server where it was a failure."""
    while not (server.started or server.should_exit):
        time.sleep(0.05)
    engine_thread.join()
    if engine_thread.failure:
        server.should_exit = True
