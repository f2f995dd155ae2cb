"""A server in this process: the model read, the engine's thread, uvicorn; SIGTERM or Ctrl-C drains it."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

from minglm.errors import InputError
from minglm.serving.config import ServeSettings

SWITCH_S = 0.0005


def build(checkpoint: str | Path, settings: ServeSettings, device: str = "cpu"):
    """(driver, application) for a run folder or checkpoint folder.

    Raises:
        InputError: no model there, or one with fewer positions than `settings.max_model_len`.
    """
    from minglm.inference.engine import Engine
    from minglm.inference.load import load_model
    from minglm.serving.app import make_app
    from minglm.serving.engine_thread import Driver
    from minglm.serving.metrics import Metrics

    model, tokenizer, _ = load_model(checkpoint, device)
    positions = model.config.max_position_embeddings
    if settings.max_model_len and settings.max_model_len > positions:
        raise InputError(
            f"max_model_len={settings.max_model_len}: the model has {positions} positions; give at most that, or leave --max-model-len out"
        )
    # A row of the cache is kept for each place in the batch, so not all of a long model's positions unless asked for.
    settings = dataclasses.replace(settings, max_model_len=settings.max_model_len or min(1024, positions))
    engine = Engine(
        model, settings.max_batch, settings.max_model_len, mode=settings.mode, speculate=settings.num_speculative_tokens
    )
    driver = Driver(engine, Metrics())
    return driver, make_app(driver, tokenizer, settings)


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket, taken before the model is read so that a port in use is said at once."""
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
    return sock


def serve(checkpoint: str | Path, settings: ServeSettings, device: str = "cpu", said=print) -> int:
    """Serve until stopped. Returns 0 after a drain, 1 when the engine died."""
    import uvicorn

    sock = listen(settings)
    try:
        driver, app = build(checkpoint, settings, device)
    except BaseException:
        sock.close()
        raise
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        timeout_keep_alive=10,
        server_header=False,
        limit_concurrency=None,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = uvicorn.Server(config)

    def watch() -> None:
        driver.join()
        if driver.failure:
            server.should_exit = True

    import threading

    host, port = sock.getsockname()[:2]
    said(
        f"{settings.served_model_name} on http://{f'[{host}]' if ':' in host else host}:{port}/v1 "
        f"({'key needed' if settings.api_key else 'this machine only, no key'}); Ctrl-C drains and stops"
    )

    # The engine's thread gives up the interpreter in every torch operation; a handler may then keep it for this long. Python's
    # default is 5 ms, which is a whole step of a small model.
    sys.setswitchinterval(SWITCH_S)

    async def run() -> None:
        await server.serve(sockets=[sock])

    watcher = threading.Thread(target=lambda: (_started(server, driver), watch()), daemon=True)
    watcher.start()
    import asyncio
    import signal

    if threading.current_thread() is threading.main_thread():
        # uvicorn drains on these two and then raises them again for whoever was listening before: a drained server ends with 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
    asyncio.run(run())
    if driver.failure:
        said(f"the engine stopped: {driver.failure}")
        return 1
    return 0


def _started(server, driver) -> None:
    import time

    while not (server.started or server.should_exit):
        time.sleep(0.05)
