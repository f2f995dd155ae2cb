"""One sample of a prompt, as engines see it."""

from __future__ import annotations

PUT_BACK = -1


class Trajectory:
    """One sample. `done` counts its tokens up to the last interruption or to its end.

    Weights of version `sampled_by` sampled the last of them, and those in `earlier`, (version, tokens) in order, the
    others. While it runs, `origin` is what the token clock of its engine showed at its first token, and `first_mark`
    says which weights were there when it came; `PUT_BACK`, that a full cache put it back: its cache is gone, whatever
    an engine keeps. Millions of these live at once, so nothing is kept that can be worked out.
    """

    __slots__ = ("done", "earlier", "first_mark", "group", "length", "origin", "prompt", "sampled_by")
    origin: float

    def __init__(self, group, length: int, prompt: int):
        self.group, self.length, self.prompt, self.done = group, length, prompt, 0
        self.sampled_by = self.first_mark = 0
        self.earlier: tuple[tuple[int, int], ...] = ()

    def book(self, done: int, version: int) -> None:
        """Its tokens from `done` so far up to this one were sampled by weights of this version."""
        if self.done and self.sampled_by != version:
            self.earlier = tuple(self.segments)
        self.done, self.sampled_by = done, version

    @property
    def segments(self) -> list[tuple[int, int]]:
        """(version, tokens that weights of this version sampled), in order."""
        if not self.done:
            return []
        return [*self.earlier, (self.sampled_by, self.done - sum(count for _, count in self.earlier))]


def progress(trajectory: Trajectory, v: float) -> int:
    """Its whole tokens when the clock shows `v`."""
    done = int(v - trajectory.origin + 1e-9)
    if done < trajectory.done:
        return trajectory.done
    return done if done < trajectory.length else trajectory.length
