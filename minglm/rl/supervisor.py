"""The workers of a run under one roof: started, listened to, restarted when they die or fall silent. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from minglm.errors import InputError

START_S = 240.0  # until a new process has imported torch and said so, on a machine that is busy


@dataclass
class Member:
    """One worker and what is known of it."""

    handle: object  # LocalWorker, or a Ray actor's handle
    name: str
    heard: float = field(default_factory=time.monotonic)
    started: bool = False
    made: int = 0  # tokens it reported, less those delivered: what a kill would cost
    groups: set[int] = field(default_factory=set)


class Crew:
    """One trainer and some rollout workers.

    Args:
        launch: (name, "module:Class", arguments) → a handle with send, receive, kill, restart, stop, pid and `wait_any`.
        on_loss: attribute, called with (member, reason) when a worker has been started again, to give it what it needs.
    """

    def __init__(self, launch: Callable, stall_s: float, max_restarts: int) -> None:
        self.launch, self.stall_s, self.max_restarts = launch, stall_s, max_restarts
        self.on_loss: Callable[[Member, str], None] = lambda member, reason: None
        self.members: list[Member] = []
        self.restarts = 0
        self._lost: list[tuple[Member, str]] = []

    def hire(self, name: str, make: str, arguments: dict) -> Member:
        member = Member(self.launch(name, make, arguments), name)
        self.members.append(member)
        return member

    def listen(self, timeout_s: float) -> list[tuple[Member, dict]]:
        """Messages that came within the time. Who is dead or silent is kept for `mend`, after these have been read.

        Raises:
            InputError: a worker failed for a reason that a restart would meet again.
        """
        handles = [m.handle for m in self.members]
        type(handles[0]).wait_any(handles, timeout_s)
        out = []
        for member in self.members:
            messages, alive = member.handle.receive()
            if messages:
                member.heard = time.monotonic()
            reason = None if alive else "its process has ended"
            for message in messages:
                if message["got"] == "failed":
                    if message["input"]:
                        raise InputError(f"{member.name}: {message['why']}")
                    reason = message["why"]
                elif message["got"] != "beat" or len(message) > 1:
                    member.started = True
                    out.append((member, message))
            silent = time.monotonic() - member.heard
            if silent > (self.stall_s if member.started else max(START_S, self.stall_s)):
                reason = reason or f"silent for {silent:.0f} s"
            if reason:
                self._lost.append((member, reason))
        return out

    def mend(self) -> None:
        """Start lost workers again.

        Raises:
            InputError: the run's restarts are used up.
        """
        lost, self._lost = self._lost, []
        for member, reason in lost:
            self.restarts += 1
            if self.restarts > self.max_restarts:
                raise InputError(
                    f"{member.name}: lost for the {self.restarts}th time in this run ({reason}) and max_restarts={self.max_restarts}; "
                    "the same command resumes from the last checkpoint"
                )
            member.handle.restart()
            self.on_loss(member, reason)
            member.started, member.heard, member.made = False, time.monotonic(), 0

    def dismiss(self) -> None:
        for member in self.members:
            try:
                member.handle.stop()
            except Exception:  # leaving is never an error
                pass
        self.members = []
