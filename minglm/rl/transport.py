"""A worker in a process of its own, and how the coordinator talks to it. Torch-free.

A worker is an object with `handle(message) -> replies`, `step() -> replies` and `busy`; `serve` runs one wherever it lives
(here a local process, in minglm/rl/ray_workers.py a Ray actor). Messages are dicts: "do" from the coordinator, "got" from
the worker. Nobody waits without a bound: the coordinator sends through a thread of its own and reads with a timeout, and a
worker whose coordinator has gone ends at its next message.
"""

from __future__ import annotations

import importlib
import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from minglm.errors import InputError

BEAT_S = 1.0  # a worker says that it lives at least this often


class Worker(Protocol):
    """What `serve` runs."""

    busy: bool

    def handle(self, message: dict) -> Iterator[dict]: ...

    def step(self) -> Iterator[dict]: ...


def serve(
    make: Callable[[Callable[[], None]], Worker], receive: Callable[[float], dict | None], send: Callable[[dict], None]
) -> None:
    """Run a worker until it is told to stop or `receive`/`send` say that the other side has gone (EOFError, OSError).

    Args:
        make: builds the worker; its argument is a function to call during long work, which sends a heartbeat when due.
        receive: seconds → the next message, or None when none came in that time.
    """
    last = [0.0]

    def out(reply: dict) -> None:
        last[0] = time.monotonic()
        send(reply)

    def beat() -> None:
        if time.monotonic() - last[0] >= BEAT_S:
            out({"got": "beat"})

    try:
        worker = make(beat)
        out({"got": "started"})
        while True:
            message = receive(0.0 if worker.busy else BEAT_S)
            while message is not None:
                if message["do"] == "stop":
                    return
                for reply in worker.handle(message):
                    out(reply)
                message = receive(0.0)
            if worker.busy:
                for reply in worker.step():
                    out(reply)
            beat()
    except (EOFError, OSError):
        return
    except InputError as err:
        _last_words(send, {"got": "failed", "why": str(err), "input": True})
    except Exception as err:
        _last_words(
            send,
            {
                "got": "failed",
                "why": f"{type(err).__name__}: {err}",
                "input": False,
                "traceback": traceback.format_exc(),
            },
        )


def _last_words(send: Callable[[dict], None], reply: dict) -> None:
    try:
        send(reply)
    except (EOFError, OSError):
        pass


def find(name: str) -> Callable[..., Worker]:
    """The worker class `module:Class`, imported where it will run, so that the coordinator needs no torch."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _process(make: str, arguments: dict, pipe: Connection) -> None:
    """Main function of a local worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    serve(lambda beat: find(make)(beat=beat, **arguments), lambda s: pipe.recv() if pipe.poll(s) else None, pipe.send)


class LocalWorker:
    """A worker as a child process, started fresh (spawn), with a pipe."""

    def __init__(self, name: str, make: str, arguments: dict) -> None:
        self.name, self._make, self._arguments = name, make, arguments
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_process, args=(self._make, self._arguments, theirs), name=f"minglm-{self.name}", daemon=True
        )
        self._process.start()
        theirs.close()  # so that a dead child is an end of file
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._gone = threading.Event()
        threading.Thread(target=self._post, args=(self._pipe, self._outbox, self._gone), daemon=True).start()

    @staticmethod
    def _post(pipe: Connection, outbox: queue.SimpleQueue, gone: threading.Event) -> None:
        while True:
            message = outbox.get()
            if message is None:
                return
            try:
                pipe.send(message)
            except (OSError, ValueError):
                gone.set()
                return

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, message: dict) -> None:
        """Never blocks; a message to a dead worker is dropped, which `receive` reports."""
        self._outbox.put(message)

    def receive(self) -> tuple[list[dict], bool]:
        """(messages that have come, is the worker alive). Never blocks longer than reading one message takes."""
        messages = []
        try:
            while self._pipe.poll(0):
                messages.append(self._pipe.recv())
        except (EOFError, OSError):
            return messages, False
        return messages, not self._gone.is_set()

    def waitable(self) -> Any:
        return self._pipe

    def kill(self) -> None:
        self._outbox.put(None)
        self._process.kill()
        self._process.join(10)
        self._pipe.close()

    def restart(self) -> None:
        self.kill()
        self._start()

    def stop(self, patience_s: float = 5.0) -> None:
        """Ask it to end, then make it."""
        self.send({"do": "stop"})
        self._process.join(patience_s)
        self.kill()

    @staticmethod
    def wait_any(workers: list[LocalWorker], timeout_s: float) -> None:
        """Until one has something to say, or the time is over."""
        wait([w.waitable() for w in workers], timeout_s)


class InlineWorker:
    """A worker in the coordinator's own process and thread: no overlap, no clock, the same order of events every time.

    Rollout workers run until they have nothing left before the trainer handles its next message, so with `async` every
    batch is as stale as η allows. For experiments on staleness, for stepping through a run, and for fast tests.
    """

    def __init__(self, name: str, make: str, arguments: dict) -> None:
        self.name, self._make, self._arguments = name, make, arguments
        self.pid = None
        self.restart()

    def restart(self) -> None:
        self._worker = find(self._make)(beat=lambda: None, **self._arguments)
        self._inbox: list[dict] = []
        self._outbox: list[dict] = [{"got": "started"}]

    def send(self, message: dict) -> None:
        self._inbox.append(message)

    def receive(self) -> tuple[list[dict], bool]:
        messages, self._outbox = self._outbox, []
        return messages, True

    def kill(self) -> None:
        self._inbox, self._outbox = [], []

    def stop(self) -> None:
        self.kill()

    def _work(self) -> bool:
        """One message, or one step; whether there was anything to do."""
        try:
            if self._inbox:
                self._outbox += self._worker.handle(self._inbox.pop(0))
            elif self._worker.busy:
                self._outbox += self._worker.step()
            else:
                return False
        except InputError as err:
            self._outbox.append({"got": "failed", "why": str(err), "input": True})
        return True

    @staticmethod
    def wait_any(workers: list[InlineWorker], timeout_s: float) -> None:
        """Work until one has something to say: rollout first, the trainer when rollout has nothing to do."""
        if any(w._outbox for w in workers):
            return
        for worker in sorted(workers, key=lambda w: w.name == "trainer"):
            while worker._work():
                if worker._outbox:
                    return
