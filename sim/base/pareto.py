"""The Pareto front of plans: those that no other plan beats in time, cost and chips at once.

With one price per chip-hour, cost is proportional to chips × time. A plan with no more chips that is no slower
therefore costs no more, so the front in (time, cost, chips) is the front in (time, chips).
"""

from __future__ import annotations

import bisect
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Front(Generic[Item]):
    """Least time for each number of chips, as plans come in. Times are seconds for one token."""

    def __init__(self) -> None:
        self.chips: list[int] = []  # ascending …
        self.times: list[float] = []  # … with strictly falling times
        self.items: list[Item] = []

    def beats(self, chips: int, time: float) -> bool:
        """Whether some plan with at most `chips` is faster than `time`."""
        i = bisect.bisect_right(self.chips, chips)
        return i > 0 and self.times[i - 1] < time

    def add(self, chips: int, time: float, item: Item) -> None:
        """Take a plan in, and drop those that it beats."""
        i = bisect.bisect_right(self.chips, chips)
        if i and self.times[i - 1] <= time:
            return
        if i and self.chips[i - 1] == chips:
            i -= 1
        j = i
        while j < len(self.chips) and self.times[j] >= time:
            j += 1
        self.chips[i:j], self.times[i:j], self.items[i:j] = [chips], [time], [item]
