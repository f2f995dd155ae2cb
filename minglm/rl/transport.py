"""A worker in a process of its own, and how the coordinator talks to it. Torch-free.

A worker takes commands and gives reports (`minglm.rl.messages`); `serve` runs one wherever it lives (here a local
process, in minglm/rl/ray_workers.py a Ray actor). What goes through a pipe is the plain dict of `to_wire`. Nobody
waits without a bound: the coordinator sends through a thread of its own and reads with a timeout, and a worker whose
coordinator has gone ends at its next message.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from minglm.errors import InputError
from minglm.rl.messages import (
    COMMANDS,
    REPORTS,
    Command,
    Failed,
    Heartbeat,
    MessageError,
    Report,
    Started,
    Stop,
    Wire,
    from_wire,
    to_wire,
)

HEARTBEAT_S = 1.0  # a worker says that it lives at least this often
_C = TypeVar("_C", bound="Connection")


class Worker(Protocol):
    """What `serve` runs."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def handle(self, command: Command) -> Iterator[Report]:
        """Obey a command. Raises MessageError for one that this kind of worker does not know."""
        ...

    def step(self) -> Iterator[Report]:
        """Go on with what was begun."""
        ...


MakeWorker: TypeAlias = Callable[[Callable[[], None]], Worker]  # its argument sends a heartbeat when one is due


class Connection(Protocol):
    """The coordinator's end: one worker, started, wherever it lives."""

    @property
    def pid(self) -> int | None:
        """Of its process, where it has one of its own."""
        ...

    def send(self, command: Command) -> None:
        """Never blocks; a command to a dead worker is dropped, which `receive` reports."""
        ...

    def receive(self) -> tuple[list[Report], bool]:
        """(reports that have come, is the worker alive); does not wait for more.

        Raises:
            MessageError: a report that is unknown or malformed.
        """
        ...

    def restart(self) -> None:
        """Kill it and start a fresh one."""
        ...

    def stop(self) -> None:
        """End it."""
        ...

    @staticmethod
    def wait_any(connections: Sequence[Any], timeout_s: float) -> None:
        """Until one of these has something to say, or the time is over."""
        ...


def serve(make: MakeWorker, receive: Callable[[float], Wire | None], send: Callable[[Wire], None]) -> None:
    """Run a worker until it is told to stop or `receive`/`send` say that the other side has gone (EOFError, OSError).

    Args:
        make: builds the worker; its argument is a function to call during long work, which sends a heartbeat when due.
        receive: seconds → the next message, or None when none came in that time.
    """
    last_sent = 0.0

    def report(message: Report) -> None:
        nonlocal last_sent
        last_sent = time.monotonic()
        send(to_wire(message))

    def heartbeat() -> None:
        if time.monotonic() - last_sent >= HEARTBEAT_S:
            report(Heartbeat())

    try:
        worker = make(heartbeat)
        report(Started())
        while _round(worker, receive, report):
            heartbeat()
        return
    except (EOFError, OSError):
        return
    except (InputError, MessageError) as err:
        failure = Failed(reason=str(err), fatal=True)
    except Exception as err:
        failure = Failed(f"{type(err).__name__}: {err}", fatal=False, traceback=traceback.format_exc())
    with contextlib.suppress(EOFError, OSError):
        send(to_wire(failure))


def _round(worker: Worker, receive: Callable[[float], Wire | None], report: Callable[[Report], None]) -> bool:
    """Obey all commands that have come, then do one step of the work; False when told to stop."""
    message = receive(0.0 if worker.busy else HEARTBEAT_S)
    while message is not None:
        command = from_wire(message, COMMANDS)
        if isinstance(command, Stop):
            return False
        for reply in worker.handle(command):
            report(reply)
        message = receive(0.0)
    if worker.busy:
        for reply in worker.step():
            report(reply)
    return True


def find(name: str) -> Callable[..., Worker]:
    """The worker class `module:Class`, imported where it will run, so that the coordinator needs no torch."""
    module, _, attribute = name.partition(":")
    worker: Callable[..., Worker] = getattr(importlib.import_module(module), attribute)
    return worker


def _process(make: str, arguments: dict[str, Any], pipe: multiprocessing.connection.Connection) -> None:
    """Main function of a local worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    serve(
        lambda heartbeat: find(make)(heartbeat=heartbeat, **arguments),
        lambda timeout_s: pipe.recv() if pipe.poll(timeout_s) else None,
        pipe.send,
    )


class LocalWorker:
    """A worker as a child process, started fresh (spawn), with a pipe."""

    def __init__(self, name: str, make: str, arguments: dict[str, Any]) -> None:
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
        self._outbox: queue.SimpleQueue[Wire | None] = queue.SimpleQueue()
        self._gone = threading.Event()
        threading.Thread(target=self._post, args=(self._pipe, self._outbox, self._gone), daemon=True).start()

    @staticmethod
    def _post(
        pipe: multiprocessing.connection.Connection, outbox: queue.SimpleQueue[Wire | None], gone: threading.Event
    ) -> None:
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
        """Of the child."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Never blocks; a command to a dead worker is dropped, which `receive` reports."""
        self._outbox.put(to_wire(command))

    def receive(self) -> tuple[list[Report], bool]:
        """(reports that have come, is the worker alive). Never blocks longer than reading one message takes."""
        reports: list[Report] = []
        try:
            while self._pipe.poll(0):
                reports.append(from_wire(self._pipe.recv(), REPORTS))
        except (EOFError, OSError):
            return reports, False
        return reports, not self._gone.is_set()

    def kill(self) -> None:
        """End the process at once."""
        self._outbox.put(None)
        self._process.kill()
        self._process.join(10)
        self._pipe.close()

    def restart(self) -> None:
        """Kill it and start a fresh one."""
        self.kill()
        self._start()

    def stop(self, patience_s: float = 5.0) -> None:
        """Ask it to end, then make it."""
        self.send(Stop())
        self._process.join(patience_s)
        self.kill()

    @staticmethod
    def wait_any(connections: Sequence[LocalWorker], timeout_s: float) -> None:
        """Until one has something to say, or the time is over."""
        multiprocessing.connection.wait([c._pipe for c in connections], timeout_s)  # noqa: SLF001 its own class


class InlineWorker:
    """A worker in the coordinator's own process and thread: no overlap, no clock, the same order of events every time.

    Rollout workers run until they have nothing left before the trainer handles its next command, so with `async` every
    batch is as stale as `max_staleness` allows. For experiments on staleness, for stepping through a run, and for fast
    tests.
    """

    pid: int | None = None

    def __init__(self, name: str, make: str, arguments: dict[str, Any]) -> None:
        self.name, self._make, self._arguments = name, make, arguments
        self.restart()

    def restart(self) -> None:
        """Build the worker anew."""
        self._worker = find(self._make)(heartbeat=lambda: None, **self._arguments)
        self._inbox: list[Wire] = []
        self._outbox: list[Wire] = [to_wire(Started())]

    def send(self, command: Command) -> None:
        """Put it behind the others."""
        self._inbox.append(to_wire(command))

    def receive(self) -> tuple[list[Report], bool]:
        """All that was reported since the last time."""
        messages, self._outbox = self._outbox, []
        return [from_wire(message, REPORTS) for message in messages], True

    def stop(self) -> None:
        """Forget what was to be done."""
        self._inbox, self._outbox = [], []

    @property
    def has_reports(self) -> bool:
        """Whether `receive` would give any."""
        return bool(self._outbox)

    def work(self) -> bool:
        """Handle one command, or do one step; whether there was anything to do."""
        try:
            if self._inbox:
                reports = self._worker.handle(from_wire(self._inbox.pop(0), COMMANDS))
            elif self._worker.busy:
                reports = self._worker.step()
            else:
                return False
            self._outbox += map(to_wire, reports)
        except InputError as err:
            self._outbox.append(to_wire(Failed(reason=str(err), fatal=True)))
        return True

    @staticmethod
    def wait_any(connections: Sequence[InlineWorker], timeout_s: float) -> None:
        """Work until one has something to say: rollout first, the trainer when rollout has nothing to do."""
        if any(worker.has_reports for worker in connections):
            return
        for worker in sorted(connections, key=lambda w: w.name == "trainer"):
            while worker.work():
                if worker.has_reports:
                    return
