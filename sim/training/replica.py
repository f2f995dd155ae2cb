"""What one simulated data-parallel replica did in a step."""

from __future__ import annotations

from dataclasses import dataclass

from sim.training.program import Program


@dataclass(slots=True)
class Replica:
    """When each op ended and when each input arrived, seconds. Enough to draw the replica again.

    index: among the data-parallel replicas.
    slots: arrival of each input, numbered as in `Program.rows`.
    ends: end of each op, [rank][op].
    seconds: length of each op, [rank][op].
    """

    index: int
    slots: list[float]
    ends: list[list[float]]
    seconds: list[list[float]]

    def spans(self, rank: int, program: Program) -> list[tuple[float, float]]:
        """Start and end of each op of the rank, seconds."""
        spans, before, slots = [], 0.0, self.slots
        for (need, need2, *_), end in zip(program.rows, self.ends[rank], strict=True):
            spans.append((max(before, slots[need], slots[need2]), end))
            before = end
        return spans

    @property
    def end_s(self) -> float:
        """When the last rank has done its last op."""
        return max(ends[-1] for ends in self.ends)
