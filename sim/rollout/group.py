"""A prompt with its samples, as the simulator counts it."""

from __future__ import annotations

from sim.rollout.trajectory import Trajectory


class Group:
    """One prompt with its samples.

    Attributes:
        id: in the order of creation. version: of the weights when it was first submitted.
        kept: the dynamic filter will keep it. unfinished: samples that still run or wait.
        ended_s: when the last of those that have ended did. tokens: of all, prompts included.
        engine: where its samples are placed together; None before the first.
    """

    __slots__ = ("ended_s", "engine", "id", "kept", "samples", "tokens", "unfinished", "version")

    def __init__(self, id: int, version: int, kept: bool) -> None:
        self.id, self.version, self.kept = id, version, kept
        self.samples: list[Trajectory] = []
        self.unfinished = self.tokens = 0
        self.ended_s = 0.0
        self.engine: int | None = None

    @property
    def oldest_version(self) -> int:
        """Of the weights that sampled its oldest token."""
        return min((t.segments[0][0] for t in self.samples if t.done), default=self.version)
