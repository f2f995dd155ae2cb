"""The same workers as Ray actors, for more than one machine. Torch-free; Ray is imported when it is asked for.

An actor runs `minglm.rl.transport.serve` in a thread, with two queues where a local process has a pipe; the coordinator
sends by `put` and keeps one `take` call waiting. Run folder and weights are files, so all machines must see the same
folder at the same path (a network file system), as slime's disk transport needs too.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

from minglm.rl.messages import REPORTS, Command, Report, Wire, from_wire, to_wire
from minglm.rl.transport import find, serve
from minglm.runtime import ray as ray_cluster

TAKE_S = 1.0  # a call to `take` waits at most so long inside the actor
CALL_S = 30.0  # and its answer may take so long on the way
PENDING_PUTS = 8  # references of calls still on their way that are kept, so that Ray does not cancel them


class _Actor:
    """What lives in Ray's process."""

    def __init__(self, make: str, arguments: dict[str, Any]) -> None:
        self._inbox: queue.Queue[Wire] = queue.Queue()
        self._outbox: queue.Queue[Wire] = queue.Queue()

        def receive(timeout_s: float) -> Wire | None:
            try:
                return self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
            except queue.Empty:
                return None

        threading.Thread(
            target=serve,
            args=(lambda heartbeat: find(make)(heartbeat=heartbeat, **arguments), receive, self._outbox.put),
            daemon=True,
        ).start()

    def put(self, message: Wire) -> None:
        self._inbox.put(message)

    def take(self, timeout_s: float) -> list[Wire]:
        """All that the worker has reported, waiting up to `timeout_s` for the first message."""
        try:
            out = [self._outbox.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._outbox.empty():
            out.append(self._outbox.get_nowait())
        return out

    def process_id(self) -> int:
        return os.getpid()


def connect(address: str | None) -> type[RayWorker]:
    """Start Ray here, or join the cluster at `address`; returns the maker of workers.

    Raises:
        InputError: Ray is not installed, or there is no cluster at that address.
    """
    ray_cluster.connect(address)
    return RayWorker


class RayWorker:
    """A worker as a Ray actor; the interface of `minglm.rl.transport.Connection`."""

    def __init__(self, name: str, make: str, arguments: dict[str, Any]) -> None:
        self.name, self._make, self._arguments = name, make, arguments
        self._start()

    def _start(self) -> None:
        import ray

        # One call waits in `take` while others `put`, so two at a time; the thread with the work is a third.
        remote: Any = ray.remote  # its overloads know tasks only, not the options of an actor
        actor = remote(num_cpus=0, max_concurrency=3, max_restarts=0)(_Actor)
        self._actor: Any = actor.remote(self._make, self._arguments)
        self._pid_call: Any = self._actor.process_id.remote()
        self._pid: int | None = None
        self._taking: Any = self._actor.take.remote(TAKE_S)
        self._puts: list[Any] = []

    @property
    def pid(self) -> int | None:
        """Of the actor's process; None while it is starting, or when it is dead."""
        import ray

        if self._pid is None:
            try:
                self._pid = ray.get(self._pid_call, timeout=TAKE_S)
            except ray.exceptions.RayError:  # dead, or (GetTimeoutError) not there yet
                return None
        return self._pid

    def send(self, command: Command) -> None:
        """Never blocks; a command to a dead actor is dropped, which `receive` reports."""
        self._puts = [*self._puts[-PENDING_PUTS:], self._actor.put.remote(to_wire(command))]

    def receive(self) -> tuple[list[Report], bool]:
        """(reports that have come, is the actor alive)."""
        import ray

        reports: list[Report] = []
        try:
            while ray.wait([self._taking], timeout=0)[0]:
                messages: list[Wire] = ray.get(self._taking, timeout=CALL_S)
                self._taking = self._actor.take.remote(TAKE_S)
                if not messages:
                    break
                reports += [from_wire(message, REPORTS) for message in messages]
        except ray.exceptions.RayError:
            return reports, False
        return reports, True

    def kill(self) -> None:
        """End the actor at once."""
        import ray

        ray.kill(self._actor)

    def restart(self) -> None:
        """Kill it and start a fresh one."""
        self.kill()
        self._start()

    def stop(self) -> None:
        """End it."""
        self.kill()

    @staticmethod
    def wait_any(connections: Sequence[RayWorker], timeout_s: float) -> None:
        """Until one has something to say, or the time is over."""
        import ray

        ray.wait([worker._taking for worker in connections], timeout=timeout_s)  # noqa: SLF001 its own class
