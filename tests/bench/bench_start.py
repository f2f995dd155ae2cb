"""What a command costs before it does anything: both console scripts' --help and `import sim`, each in a new process.

In turn; medians. The figure is processor time, which on a quiet machine is the time that passes and on a busy one is
not stretched by others; what passed stands beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from minglm.tools.bench_summary import answer

NAME = "start"
REPEATS = 7
COMMANDS = {
    "minglm --help": ["-m", "minglm", "--help"],
    "clustersim --help": ["-m", "sim", "--help"],
    "import sim": ["-c", "import sim"],
}


def once(arguments: list[str]) -> tuple[float, float]:
    """(processor, wall) seconds of a new Python process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after, passed = os.times(), time.perf_counter() - began
    return after.children_user + after.children_system - before.children_user - before.children_system, passed


def run() -> list[dict]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for turn in range(REPEATS + 1):
        for name, arguments in COMMANDS.items():
            took = once(arguments)
            if turn:  # the first fills the disk's cache
                seconds[name].append(took)
    rows = []
    for name, pairs in seconds.items():
        spent, passed = zip(*pairs, strict=True)
        median = statistics.median(spent)
        rows.append(
            {
                "name": f"{name}, processor time ({statistics.median(passed):.2f} s passed)",
                "value": median,
                "unit": "s",
                "target": "<= 0.25",
                "met": median <= 0.25,
            }
            | answer(f"start: {name}", median, spent)
        )
    return rows
