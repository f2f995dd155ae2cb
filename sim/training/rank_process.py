"""The hot loop of a step: one pipeline rank as a SimPy process. A million events pass through here; do not imitate.

The loop reads its program as tuples, writes into shared lists and repeats `Link.send` in place of calling it, because a
call an event is what a step on 100,000 chips cannot afford. Everywhere else in this house code is written to be read.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import simpy


class Link:
    """A link that serves one transfer after another, kept as the time in seconds at which it is next free.

    With first-come-first-served and known transfer lengths that one number holds everything a queue would: a transfer
    asked for at `now_s` starts at max(now_s, busy_until). It costs no event, where a `simpy.Resource` costs several.
    """

    __slots__ = ("busy_until",)

    def __init__(self) -> None:
        self.busy_until = 0.0

    def send(self, now_s: float, transfer_s: float) -> float:
        """Queue a transfer of `transfer_s` seconds at `now_s`; returns when it has arrived. Ask in order of time."""
        free = self.busy_until
        self.busy_until = arrived = (free if free > now_s else now_s) + transfer_s
        return arrived


class WaitCounter:
    """How many inputs were waited for by an event of their own."""

    __slots__ = ("waits",)

    def __init__(self) -> None:
        self.waits = 0


def rank_process(
    env: simpy.Environment,
    rows: Sequence[tuple[int, int, int, bool, int, bool]],
    seconds: Sequence[float],
    slots: list,
    port: Link,
    p2p_s: float,
    ends: list[float],
    counter: WaitCounter,
) -> Generator:
    """One pipeline rank of one replica, op by op.

    Where an input's arrival is known, waiting and working are one timeout; only an input that nobody has sent yet costs
    an event of its own.

    Args:
        rows: of `sim.training.program.Program`.
        seconds: length of each op.
        slots: shared by the replica's ranks: when each input arrived, or the event of who waits for it, or None.
        port: what this rank sends through.
        p2p_s: length of a transfer to another rank.
        ends: is filled with the time at which each op ended.
    """
    timeout = env.timeout
    for (need, need2, out, far, out2, far2), work_s in zip(rows, seconds, strict=True):
        arrived = slots[need]
        if arrived is None:
            slots[need] = waiting = env.event()
            counter.waits += 1
            arrived = yield waiting
        if need2:
            arrived2 = slots[need2]
            if arrived2 is None:
                slots[need2] = waiting = env.event()
                counter.waits += 1
                arrived2 = yield waiting
            if arrived2 > arrived:
                arrived = arrived2
        now = env.now
        yield timeout(work_s if arrived <= now else arrived - now + work_s)
        now = env.now
        ends.append(now)
        if out:
            if far:  # Link.send, spelled out
                free = port.busy_until
                port.busy_until = arrived = (free if free > now else now) + p2p_s
            else:
                arrived = now
            waiting, slots[out] = slots[out], arrived
            if waiting is not None:
                waiting.succeed(arrived)
        if out2:
            arrived = port.send(now, p2p_s) if far2 else now
            waiting, slots[out2] = slots[out2], arrived
            if waiting is not None:
                waiting.succeed(arrived)
