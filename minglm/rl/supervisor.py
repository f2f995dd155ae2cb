"""The workers of a run under one roof: started, listened to, restarted when they die or fall silent. Torch-free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from minglm.errors import InputError
from minglm.rl.messages import Command, Failed, Heartbeat, Report
from minglm.rl.transport import Connection

START_S = 240.0  # until a new process has imported torch and said so, on a machine that is busy

# (name, "module:Class", its arguments) → a connection to the worker, started
Launcher: TypeAlias = Callable[[str, str, dict[str, Any]], Connection]


@dataclass(eq=False)
class WorkerHandle:
    """One worker and what is known of it."""

    connection: Connection
    name: str
    last_heard: float = field(default_factory=time.monotonic)  # monotonic clock, s
    started: bool = False
    undelivered_tokens: int = 0  # tokens it reported, less those delivered: what a kill would cost
    groups: set[int] = field(default_factory=set)  # indices of the groups it decodes

    def send(self, command: Command) -> None:
        """Never blocks; a command to a dead worker is lost, which the next `Supervisor.listen` finds."""
        self.connection.send(command)


class Supervisor:
    """One trainer and some rollout workers.

    Args:
        launch: starts a worker. stall_s: seconds of silence after which one counts as lost. max_restarts: in the whole
            run.
        on_restart: attribute, called with (worker, reason) when one has been started again, to give it what it needs.
    """

    def __init__(self, launch: Launcher, stall_s: float, max_restarts: int) -> None:
        self.launch, self.stall_s, self.max_restarts = launch, stall_s, max_restarts
        self.on_restart: Callable[[WorkerHandle, str], None] = lambda worker, reason: None
        self.workers: list[WorkerHandle] = []
        self.restarts = 0
        self._lost: list[tuple[WorkerHandle, str]] = []

    def spawn(self, name: str, make: str, arguments: dict[str, Any]) -> WorkerHandle:
        """Start the worker `make` ("module:Class") with these arguments."""
        worker = WorkerHandle(self.launch(name, make, arguments), name)
        self.workers.append(worker)
        return worker

    def listen(self, timeout_s: float) -> list[tuple[WorkerHandle, Report]]:
        """Reports that came within the time. Who is dead or silent waits for `restart_lost`, after these have been
        read.

        Raises:
            InputError: a worker failed for a reason that a restart would meet again.
            MessageError: a report that this coordinator does not know.
        """
        connections = [worker.connection for worker in self.workers]
        type(connections[0]).wait_any(connections, timeout_s)
        heard: list[tuple[WorkerHandle, Report]] = []
        for worker in self.workers:
            reports, alive = worker.connection.receive()
            if reports:
                worker.last_heard = time.monotonic()
            reason = None if alive else "its process has ended"
            for report in reports:
                match report:
                    case Failed(reason=why, fatal=True):
                        raise InputError(f"{worker.name}: {why}")
                    case Failed(reason=why):
                        reason = why
                    case Heartbeat(progress=None):
                        pass
                    case _:
                        worker.started = True
                        heard.append((worker, report))
            silent_s = time.monotonic() - worker.last_heard
            if silent_s > (self.stall_s if worker.started else max(START_S, self.stall_s)):
                reason = reason or f"silent for {silent_s:.0f} s"
            if reason:
                self._lost.append((worker, reason))
        return heard

    def restart_lost(self) -> None:
        """Start lost workers again.

        Raises:
            InputError: the run's restarts are used up.
        """
        lost, self._lost = self._lost, []
        for worker, reason in lost:
            self.restarts += 1
            if self.restarts > self.max_restarts:
                raise InputError(
                    f"{worker.name}: lost for the {self.restarts}th time in this run ({reason}) and "
                    f"max_restarts={self.max_restarts}; the same command resumes from the last checkpoint"
                )
            worker.connection.restart()
            self.on_restart(worker, reason)
            worker.started, worker.last_heard, worker.undelivered_tokens = False, time.monotonic(), 0

    def shutdown(self) -> None:
        """End all workers."""
        for worker in self.workers:
            with contextlib.suppress(Exception):  # leaving is never an error
                worker.connection.stop()
        self.workers = []
