"""Checks of the sheet to scale/00: intensity, the roof, and the batch that fills a chip."""

from fractions import Fraction
from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake


def _intensity(m, n, k, width, flops=2.0, result=True):
    read = sum(rows * columns for rows, columns in ((m, k), (k, n)))
    return flops * m * n * k / width / (read + (m * n if result else 0))


def _seconds(flops, moved, peak, bandwidth, start, how="max"):
    ranked = sorted(((flops / peak, 2, "compute"), (moved / bandwidth, 1, "memory"), (start, 0, "launch")))
    time, _, name = ranked[-1]
    if how == "sum":
        time = sum(t for t, _, _ in ranked)
    if how == "no launch":
        time, _, name = max(r for r in ranked if r[2] != "launch")
    return [time, name]


def _pair(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


def _smallest(n, k, width, peak, bandwidth, rows=True, down=False):
    """By doubling, then halving the interval, in whole numbers."""

    def full(b):
        moved = width * (k * n + (b * (k + n) if rows else 0))
        return 2 * b * n * k * Fraction(bandwidth) >= moved * Fraction(peak)  # exact where both times grow alike

    high = 1
    while not full(high):
        high *= 2
        if high > 2**60:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if full(middle) else (middle, high)
    return low if down else high


EXERCISES = [
    Exercise(
        "scale_00.intensity",
        _intensity,
        lambda: [(1, 4096, 4096, 2), (4096, 4096, 4096, 2), (7, 300, 20, 1)],
        (
            Mistake(partial(_intensity, flops=1.0), "A multiplication and an addition are two FLOPs."),
            Mistake(partial(_intensity, result=False), "The result is written, too: m · n numbers."),
        ),
        "2·m·n·k over width · (m·k + k·n + m·n).",
        hints=(
            "Count FLOPs and bytes apart; divide at the end.",
            "There are m·n results of k products each. Three matrices cross the memory's border once each.",
            "2·m·n·k over width · (m·k + k·n + m·n).",
        ),
    ),
    Exercise(
        "scale_00.seconds",
        _seconds,
        lambda: [
            (1e12, 1e9, 3e14, 1e12, 1e-6),
            (1e9, 1e9, 3e14, 1e12, 1e-6),
            (1e3, 1e3, 3e14, 1e12, 1e-6),
            (4.0, 2.0, 2.0, 1.0, 2.0),
        ],
        (
            Mistake(
                partial(_seconds, how="sum"), "The chip computes and moves at the same time: the longer one counts."
            ),
            Mistake(
                partial(_seconds, how="no launch"), "No operator is shorter than its launch: `start` counts as well."
            ),
        ),
        "The largest of flops/peak, moved/bandwidth and start, and its name.",
        use=_pair,
        hints=(
            "Three times; which of them does the operator wait for?",
            "A dict of the three times in the order compute, memory, launch, and max with key.",
            "times = {...}; slowest = max(times, key=times.get); return times[slowest], slowest.",
        ),
    ),
    Exercise(
        "scale_00.smallest_batch",
        _smallest,
        lambda: [
            (4096, 4096, 2, 3.2e14, 1.6e12),
            (7168, 2048, 1, 6.4e14, 1.6e12),
            (64, 64, 2, 3.2e14, 1.6e12),
            (1000, 500, 2, 1e12, 1e11),
            (64, 64, 2, 2.0**45, 2.0**40),  # a row's compute and memory take equally long
        ],
        (
            Mistake(partial(_smallest, rows=False), "Each row moves bytes, too: k read and n written."),
            Mistake(
                partial(_smallest, down=True), "One too few: at the batch asked for, compute takes at least as long."
            ),
        ),
        "2·b·n·k/peak >= width·(b·k + k·n + b·n)/bandwidth; collect b on one side, and round up.",
        hints=(
            "Write both times as functions of b; both are straight lines.",
            "Compute grows by 2·n·k/peak with each row, memory by width·(k + n)/bandwidth, and starts at the weights.",
            "b = width·k·n/bandwidth over the difference of the slopes, rounded up; None where that is not positive.",
        ),
    ),
]
