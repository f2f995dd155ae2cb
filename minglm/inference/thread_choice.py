"""One thread or all of them for the steps of a single sequence: whichever takes less time now.

A step is a few hundred small operations. Split over threads, each ends by waiting for the slowest, and beside another
busy program the slowest waits for a time slice. On one thread nothing waits, and unless the matrices are large nothing
is lost on a quiet machine either. So steps begin on one thread, all are tried now and then, and kept while they win. A
trial that loses makes the next one come later. The values of a single row do not hang on the choice; those of a batch
may in their last bit, so a batch runs on all threads always.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch

from minglm.runtime.switch import fast

Result = TypeVar("Result")

FIRST_TRIAL, LAST_TRIAL = 16, 4096  # steps on one thread before the first trial of all, and at most between two
WINS = 3  # trials in a row that all threads must win
SLACK = 1.25  # times a step on one thread, from which all threads have lost


class ThreadChoice:
    """Runs steps and chooses for the next one.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.alone: deque[float] = deque(maxlen=8)  # seconds of the last steps on one thread
        self.interval = self.countdown = FIRST_TRIAL
        self.wins = 0

    def run(self, step: Callable[[], Result]) -> Result:
        """What `step` returns, run on one thread or on all that torch has; its time counts for the next choice."""
        if not _may_choose():
            return step()
        everyone, began = self.countdown <= 0, self.clock()
        result = step() if everyone else _on_one_thread(step)
        self._learn(everyone, self.clock() - began)
        return result

    def follow(self, step: Callable[[], Result]) -> Result:
        """The same as the last choice was, without trials and without counting: for work beside the steps."""
        return step() if self.wins >= WINS or not _may_choose() else _on_one_thread(step)

    def _learn(self, everyone: bool, seconds: float) -> None:
        if not everyone:
            self.alone.append(seconds)
            self.countdown -= 1
            return
        chosen = self.wins >= WINS  # else a trial
        if seconds < statistics.median(self.alone) * (SLACK if chosen else 1):
            self.wins = min(WINS, self.wins + 1)
        else:
            self.interval = FIRST_TRIAL if chosen else min(LAST_TRIAL, 2 * self.interval)
            self.countdown, self.wins = self.interval, 0


def _may_choose() -> bool:
    return torch.get_num_threads() > 1 and fast()


def _on_one_thread(step: Callable[[], Result]) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return step()
    finally:
        torch.set_num_threads(threads)
