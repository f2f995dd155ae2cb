"""The same workers as Ray actors, for more than one machine. Torch-free; Ray is imported when it is asked for.

An actor runs `minglm.rl.transport.serve` in a thread, with two queues where a local process has a pipe; the coordinator
sends by `put` and keeps one `take` call waiting. Run folder and weights are files, so all machines must see the same folder
at the same path (a network file system), as slime's disk transport needs too.
"""

from __future__ import annotations

import queue
import threading

from minglm.rl.transport import find, serve
from minglm.runtime import ray as ray_cluster

TAKE_S = 1.0  # a call to `take` waits at most so long inside the actor
CALL_S = 30.0  # and its answer may take so long on the way


class _Actor:
    """What lives in Ray's process."""

    def __init__(self, make: str, arguments: dict) -> None:
        self._inbox: queue.Queue = queue.Queue()
        self._outbox: queue.Queue = queue.Queue()

        def receive(seconds: float) -> dict | None:
            try:
                return self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
            except queue.Empty:
                return None

        threading.Thread(
            target=serve, args=(lambda beat: find(make)(beat=beat, **arguments), receive, self._outbox.put), daemon=True
        ).start()

    def put(self, message: dict) -> None:
        self._inbox.put(message)

    def take(self, seconds: float) -> list[dict]:
        """All that the worker has said, waiting up to `seconds` for the first word."""
        try:
            out = [self._outbox.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._outbox.empty():
            out.append(self._outbox.get_nowait())
        return out

    def where(self) -> int:
        import os

        return os.getpid()


def connect(address: str | None):
    """Start Ray here, or join the cluster at `address`; returns the maker of workers.

    Raises:
        InputError: Ray is not installed, or there is no cluster at that address.
    """
    ray_cluster.connect(address)
    return RayWorker


class RayWorker:
    """A worker as a Ray actor; the interface of `minglm.rl.transport.LocalWorker`."""

    def __init__(self, name: str, make: str, arguments: dict) -> None:
        self.name, self._make, self._arguments = name, make, arguments
        self._start()

    def _start(self) -> None:
        import ray

        # One call waits in `take` while others `put`, so two at a time; the thread with the work is a third.
        self._actor = ray.remote(num_cpus=0, max_concurrency=3, max_restarts=0)(_Actor).remote(
            self._make, self._arguments
        )
        self._where, self._pid = self._actor.where.remote(), None
        self._taking = self._actor.take.remote(TAKE_S)
        self._puts: list = []

    @property
    def pid(self) -> int | None:
        import ray

        if self._pid is None:
            try:
                self._pid = ray.get(self._where, timeout=TAKE_S)
            except ray.exceptions.RayError:  # dead, or (GetTimeoutError) not there yet
                return None
        return self._pid

    def send(self, message: dict) -> None:
        self._puts = [*self._puts[-8:], self._actor.put.remote(message)]

    def receive(self) -> tuple[list[dict], bool]:
        import ray

        messages: list[dict] = []
        try:
            while ray.wait([self._taking], timeout=0)[0]:
                found = ray.get(self._taking, timeout=CALL_S)
                self._taking = self._actor.take.remote(TAKE_S)
                if not found:
                    break
                messages += found
        except ray.exceptions.RayError:
            return messages, False
        return messages, True

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)

    def restart(self) -> None:
        self.kill()
        self._start()

    def stop(self) -> None:
        self.kill()

    @staticmethod
    def wait_any(workers: list[RayWorker], timeout_s: float) -> None:
        import ray

        ray.wait([w._taking for w in workers], timeout=timeout_s)
