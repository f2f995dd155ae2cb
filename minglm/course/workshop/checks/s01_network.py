"""Checks of the sheet to scale/01: ring and tree in events, where they cross, and a slow link."""

import math
from functools import cache, partial

from minglm.course.workshop.checking import Exercise, Mistake


def _ring(size, starts, rates, latency, whole=False, trips=2, patient=True):
    """Asked from the end: when has rank i both sent and received in round r?"""
    n = len(rates)

    @cache
    def sent(i, r):
        return ready(i, r - 1) + latency + (size if whole else size / n) / rates[i]

    def ready(i, r):
        if r < 0:
            return starts[i]
        return max(sent(i, r), sent((i - 1) % n, r)) if patient else sent(i, r)

    return max(ready(i, trips * (n - 1) - 1) for i in range(n))


def _tree(size, starts, rate, latency, back=True, wait=True):
    n, hop = len(starts), latency + size / rate
    arrived = {}

    def total(i, width):
        """When rank i holds the sum of the `width` ranks from i on."""
        if width == 1:
            return starts[i]
        half = width // 2
        mine, other = total(i, half), total(i + half, half)
        return (max(mine, other) if wait else other) + hop

    def spread(i, width, at):
        if width == 1:
            arrived[i] = at
            return
        spread(i + width // 2, width // 2, at + hop)
        spread(i, width // 2, at + hop)

    at = total(0, n)
    if not back:
        return at
    spread(0, n, at)
    return max(arrived.values())


def _crossing(n, rate, latency, one_way=False):
    """By halving the interval of the logarithm."""

    def ring_is_longer(size):
        depth = (1 if one_way else 2) * math.log2(n)
        return 2 * (n - 1) * (latency + size / n / rate) > depth * (latency + size / rate)

    low, high = 1e-6, 1e18
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ring_is_longer(middle) else (low, middle)
    return low


def _slow_down(n, left):
    rates = [left, *[1.0] * (n - 1)]
    return _ring(1.0, [0.0] * n, rates, 0.0) / _ring(1.0, [0.0] * n, [1.0] * n, 0.0)


EXERCISES = [
    Exercise(
        "scale_01.ring",
        _ring,
        lambda: [
            (8e9, [0.0] * 8, [1e10] * 8, 1e-5),
            (1e6, [0.0, 1e-3, 0.0, 0.0], [1e10, 1e10, 5e9, 1e10], 2e-6),
            (3.0, [0.0, 20.0, 1.0], [1.0, 2.0, 4.0], 0.5),
            (1.0, [0.0, 0.0], [3.0, 1.0], 0.0),
            (6.0, [9.0, 0.0, 0.0, 0.0], [1.0, 3.0, 2.0, 3.0], 0.0),
        ],
        (
            Mistake(partial(_ring, whole=True), "A round moves one chunk, size / n, not the whole message."),
            Mistake(
                partial(_ring, trips=1), "That is half of it: n - 1 rounds to add up, n - 1 to hand the sums round."
            ),
            Mistake(
                partial(_ring, patient=False),
                "A rank waits for what its left neighbour sends: it is ready when it has sent and received.",
            ),
        ),
        "2(n − 1) rounds: sent[i] = ready[i] + latency + size/n/rates[i], then ready[i] = max(sent[i], sent[i − 1]).",
        hints=(
            "Keep one number a rank: when it is ready for its next round.",
            "In a round first work out when each rank has sent, from when it was ready; then who has received.",
            "ready[i] = max(sent[i], sent[i - 1]); in Python, index -1 is the last rank, as the ring wants it.",
        ),
    ),
    Exercise(
        "scale_01.tree",
        _tree,
        lambda: [
            (1e6, [0.0] * 8, 1e10, 1e-5),
            (4.0, [0.0, 3.0, 0.5, 7.0], 2.0, 1.0),
            (1.0, [5.0, 0.0], 1.0, 0.25),
            (1.0, [9.0, 0.0, 0.0, 0.0], 1.0, 0.0),
            # sixteen ranks that are ready at times of their own, a late one in every subtree
            (7.0, [9.4, 8.6, 5.9, 7.0, 9.2, 3.8, 4.9, 4.6, 11.9, 1.8, 1.5, 1.4, 7.0, 11.1, 0.9, 6.6], 2.0, 0.0),
        ],
        (
            Mistake(partial(_tree, back=False), "The total stands in rank 0 only: it must go back to all."),
            Mistake(
                partial(_tree, wait=False),
                "A receiver that is not ready cannot take the sum: the transfer starts when both are.",
            ),
        ),
        "Up: ready[i − 2^r] = max of both + hop; back, the last round first: both = ready[i − 2^r] + hop.",
        hints=(
            "Draw eight ranks: in round 0 the odd ones send, in round 1 ranks 2 and 6, in round 2 rank 4.",
            "range(2**r, n, 2**(r + 1)) are the senders of round r; the receiver is 2**r below.",
            "Backwards for r in reversed order: the sender stands 2**r below the receiver, busy until it has sent.",
        ),
    ),
    Exercise(
        "scale_01.crossing",
        _crossing,
        lambda: [(8, 1e10, 1e-5), (64, 2.5e10, 5e-6), (4096, 4e11, 2e-6), (4, 1.0, 1.0)],
        (
            Mistake(partial(_crossing, one_way=True), "The tree goes up and down: 2·log2(n) hops."),
            Mistake(lambda n, rate, latency: latency * rate, "That is the size that costs as much as a latency."),
        ),
        "Set both times equal; latency and size stand once on each side, so size comes out directly.",
        hints=(
            "Divide both by 2 and write d for log2(n).",
            "(n − 1)·latency + size·(n − 1)/(n·rate) = d·latency + d·size/rate.",
            "size = latency·rate·(n − 1 − d) / (d − (n − 1)/n).",
        ),
    ),
    Exercise(
        "scale_01.slow_down",
        _slow_down,
        lambda: [(8, 0.5), (2, 0.25), (5, 1.0), (16, 0.9)],
        (
            Mistake(
                lambda n, left: (n - 1 + 1 / left) / n,
                "That is the mean link. All wait for the slowest, in every round.",
            ),
            Mistake(lambda n, left: left, "That is its share of the rate; the time grows by the inverse."),
        ),
        "Every chunk crosses the slow link, and it sends in each of the 2(n − 1) rounds.",
        hints=(
            "Work off your `ring` with one slow link, for two or three sizes.",
            "How long does the rank with the slow link take for all its rounds?",
            "It is busy all the time, at 1/left of the usual time a round.",
        ),
    ),
]
