"""One replica's step without an event queue: its operations worked off in any order that respects what each waits for.

An operation starts when its rank is free and its inputs have arrived, and a rank's port serves its transfers in the
order of its program. So where no other replica sends through the same port, nothing is left for a queue of events to
decide: `sim.training.rank_process` gives the same times, to the last bit, because the sums here are taken as there.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.training.program import Program


def work_off(
    programs: Sequence[Program], seconds: Sequence[Sequence[float]], size: int, p2p_s: float
) -> tuple[list[list[float]], list[float], int]:
    """Work off the programs of a replica's ranks.

    Args:
        seconds: length of each op, [rank][op].
        size: number of slots (`sim.training.program`).
        p2p_s: length of a transfer to another rank, seconds.
    Returns:
        End of each op, [rank][op]; arrival of each slot's input; how many inputs were waited for. All in seconds. Two
        ranks that act at the very same moment count as if none had waited.
    """
    arrived: list = [0.0] + [None] * (size - 1)  # all are filled at the end
    sent = [0.0] * size  # when the sender of each input was done with it: who waits wakes then, and works on arrival
    ends: list[list[float]] = [[] for _ in programs]
    free = [0.0] * len(programs)  # when each rank's port is free again
    waiting: dict[int, int] = {}  # slot → the rank that stands before it
    ready, waits = list(range(len(programs))), 0
    while ready:
        rank = ready.pop()
        rows, work, done, port = programs[rank].rows, seconds[rank], ends[rank], free[rank]
        now = done[-1] if done else 0.0
        for k in range(len(done), len(rows)):
            need, need2, out, far, out2, far2 = rows[k]
            start, second = arrived[need], arrived[need2]
            if start is None or second is None:
                waiting[need if start is None else need2] = rank
                break
            if second > start:
                start = second
            if sent[need] > now:
                now = sent[need]
                waits += 1
            if sent[need2] > now:
                now = sent[need2]
                waits += 1
            now += work[k] if start <= now else start - now + work[k]
            done.append(now)
            for slot, away in ((out, far), (out2, far2)):
                if slot:
                    if away:
                        port = (port if port > now else now) + p2p_s
                    arrived[slot], sent[slot] = port if away else now, now
                    if slot in waiting:
                        ready.append(waiting.pop(slot))
        free[rank] = port
    return ends, arrived, waits
