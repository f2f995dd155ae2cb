"""One sample of a prompt, as engines see it."""

from __future__ import annotations


class Trajectory:
    """One sample. `done` counts tokens that an interruption kept; `segments` say which weights sampled how many.

    While it runs, `end` is what the token clock of its engine shows at its end.
    """

    __slots__ = ("admitted", "done", "end", "first_mark", "group", "length", "origin", "prompt", "segments")

    def __init__(self, group, length: int, prompt: int):
        self.group, self.length, self.prompt, self.done = group, length, prompt, 0
        self.origin, self.first_mark, self.admitted = 0.0, 0, 0
        self.end = 0.0
        self.segments: list[tuple[int, int]] | tuple[()] = ()


def progress(trajectory: Trajectory, v: float) -> int:
    """Its whole tokens when the clock shows `v`."""
    done = int(v - trajectory.origin + 1e-9)
    if done < trajectory.done:
        return trajectory.done
    return done if done < trajectory.length else trajectory.length
