"""The data-parallel reduction of gradients, and how much of it the schedule lets run under the last backward passes.

A chunk's gradients are complete only in its last micro-batch: they become ready bucket by bucket while that last
backward (or, in zero-bubble schedules, that last weight gradient) runs, and all replicas must have the bucket. So what
can hide is what comes after on the same rank, no more.
"""

from __future__ import annotations

from collections.abc import Sequence

# Per chunk. Megatron and DDP cut gradients into buckets so that reduction starts before the last layer is done.
BUCKETS = 8


def reduction_end(
    windows: Sequence[Sequence[tuple[float, float]]],
    end_s: float,
    reduce_s: float,
    overlap: bool,
    buckets: int = BUCKETS,
) -> float:
    """When one rank's gradients are reduced, seconds.

    windows[replica][chunk]: start and end of the chunk's last gradient work on this rank, seconds.
    end_s: when the slowest replica's rank has finished everything; reduction starts here when it may not overlap.
    reduce_s: length of the whole reduction, unhidden, spread evenly over the chunks and their buckets.
    """
    if not overlap or not reduce_s:
        return end_s + reduce_s
    chunks = len(windows[0])
    ready = sorted(
        max(start + (end - start) * (k + 1) / buckets for start, end in (w[c] for w in windows))
        for c in range(chunks)
        for k in range(buckets)
    )
    free, each = 0.0, reduce_s / (chunks * buckets)
    for ready_s in ready:
        free = max(free, ready_s) + each
    return max(free, end_s)
