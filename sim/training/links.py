"""A link that serves one transfer after another, kept as the time at which it is next free.

With first-come-first-served and known transfer lengths that one number holds everything a queue would: a transfer asked
for at `now` starts at max(now, free). It costs no event, where a `simpy.Resource` costs several.
"""

from __future__ import annotations


class Link(list):
    """One number in a list, [next_free_s], so that the hot loop of a step may read and set it without a call."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__((0.0,))

    def send(self, now_s: float, transfer_s: float) -> float:
        """Queue a transfer of `transfer_s` seconds at `now_s`; returns when it has arrived. Ask in order of time."""
        free = self[0]
        self[0] = arrived = (free if free > now_s else now_s) + transfer_s
        return arrived
