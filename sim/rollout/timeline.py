"""The clock of a rollout simulation: a heap of what is due, and one process that waits for a time or for a signal.

SimPy's order (by time, then by who was scheduled first) without an event, a list of callbacks and their calls for each
completion: a large case has millions of them, and only the trainer is a process.

    >>> timeline, seen = Timeline(), []
    >>> def trainer():
    ...     yield 2.0
    ...     seen.append(timeline.now)
    >>> _ = timeline.at(1.0, lambda engine, serial: seen.append(engine), "engine 0")
    >>> timeline.run(trainer()), seen
    (True, ['engine 0', 2.0])
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any, TypeAlias


class Signal:
    """Something that happens once, and that the process may wait for."""

    __slots__ = ("given", "on_given")

    def __init__(self) -> None:
        self.given = False
        self.on_given: Callable[[], object] | None = None

    def give(self) -> None:
        """It happens: who waits goes on, after what is already due now."""
        self.given = True
        if self.on_given is not None:
            self.on_given()


Process: TypeAlias = Generator["float | Signal", None, Any]  # seconds to wait, or a signal to wait for


class Timeline:
    """`now`, in seconds, and what is due after it."""

    __slots__ = ("_due", "_process", "_serial", "now")

    def __init__(self) -> None:
        self.now, self._serial = 0.0, 0
        self._due: list[tuple[float, int, Callable[[Any, int], None], Any]] = []
        self._process: Process | None = None

    def at(self, time_s: float, act: Callable[[Any, int], None], argument: Any = None) -> int:
        """`act(argument, serial)` then, which is not in the past; returns the serial, to tell a later plan from it."""
        self._serial += 1
        heappush(self._due, (time_s, self._serial, act, argument))
        return self._serial

    def run(self, process: Process) -> bool:
        """Until the process has ended; False where it waits and nothing is due any more."""
        self._process, due = process, self._due
        self._resume()
        while self._process is not None and due:
            self.now, serial, act, argument = heappop(due)
            act(argument, serial)
        return self._process is None

    def _resume(self, argument: None = None, serial: int = 0) -> None:
        """The process goes on to what it waits for next."""
        assert self._process is not None, "only a process that has not ended waits"
        try:
            waits_for = next(self._process)
        except StopIteration:
            self._process = None
            return
        if isinstance(waits_for, Signal):
            waits_for.on_given = lambda: self.at(self.now, self._resume)
        else:
            self.at(self.now + waits_for, self._resume)
