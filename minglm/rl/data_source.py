"""Groups of samples, and where they come from: unfinished ones first, then new problems. Torch-free.

A group is one problem with all its samples. Problem i of a run is a function of task and i alone, and a sample's draws
of (seed, group, sample) alone, so a resumed or restarted run asks for the same things again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.messages import Routes
from minglm.rl.modes import PartialBuffer
from minglm.rl.tasks import Problem


@dataclass
class Sample:
    """One response as it grows. The lists have one entry per token of the response."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # under the weights that sampled the token
    versions: list[int] = field(default_factory=list)  # of those weights
    routes: Routes | None = None  # experts chosen, where they are recorded
    reason: str | None = None  # None while unfinished; "stop" or "length"
    # [start_s, end_s, tokens] of each stretch of rollout; while it lasts, end_s is None and tokens are those before it
    segments: list[list[Any]] = field(default_factory=list)
    reward: float | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.reason is not None

    def begin_segment(self, now: float) -> None:
        """A worker goes on with it from now."""
        self.segments.append([now, None, len(self.tokens)])

    def end_segment(self, now: float) -> None:
        """It comes back, with `tokens` brought up to date."""
        if self.segments and self.segments[-1][1] is None:
            start, _, before = self.segments[-1]
            self.segments[-1] = [start, now, len(self.tokens) - before]

    def drop_open_segment(self) -> None:
        """What a worker did with it is lost."""
        self.segments = [segment for segment in self.segments if segment[1] is not None]

    def to_dict(self) -> dict[str, Any]:
        """For the journal and for a checkpoint; `Sample(**values)` reads it."""
        return dict(self.__dict__)


@dataclass
class Group:
    """One problem with all its samples."""

    index: int  # position in the data, the group's name
    prompt: list[int]
    samples: list[Sample]
    problem: Problem  # what the task's reward reads
    difficulty: int = 1
    version: int = 0  # of the weights when it was handed out

    @property
    def complete(self) -> bool:
        """Whether all samples have ended."""
        return all(s.done for s in self.samples)

    @property
    def started(self) -> bool:
        """Whether any token was sampled."""
        return any(s.versions for s in self.samples)

    @property
    def oldest_version(self) -> int:
        """Of the weights that sampled its oldest token; 0 where there is none."""
        return min((v for s in self.samples for v in s.versions), default=0)

    @property
    def response_tokens(self) -> int:
        """Of all samples so far."""
        return sum(len(s.tokens) for s in self.samples)

    def rewards(self) -> list[float]:
        """Of all samples, once they have been scored."""
        return [s.reward for s in self.samples if s.reward is not None]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint; `DataSource.restore` reads it."""
        return {"index": self.index, "samples": [s.to_dict() for s in self.samples]}


class ProblemSource(Protocol):
    """What gives problems; `minglm.rl.tasks.Task` does."""

    def train_seed(self, i: int, /) -> int:
        """Seed of the i-th training problem."""
        ...

    def problem(self, seed: int, difficulty: int, /) -> Problem:
        """The problem of a seed."""
        ...


class DataSource:
    """Hands out groups: the buffer of partial groups first, then new ones.

    Args:
        encode: text of a prompt → token ids.
    """

    def __init__(self, settings: Settings, task: ProblemSource, encode: Callable[[str], list[int]]) -> None:
        self.settings, self.task, self.encode = settings, task, encode
        self.position = 0  # new groups handed out so far
        self.buffer: PartialBuffer[Group] = PartialBuffer()
        self.recovered: dict[tuple[int, int], Sample] = {}  # finished before a kill, (group, sample) → sample

    def take(self, count: int) -> list[Group]:
        """`count` groups, the oldest unfinished ones first."""
        groups = self.buffer.take(count)
        while len(groups) < count:
            groups.append(self.build(self.position))
            self.position += 1
        for group in groups:
            for k in range(len(group.samples)):
                if not group.samples[k].done and (group.index, k) in self.recovered:
                    group.samples[k] = self.recovered.pop((group.index, k))
        return groups

    def build(self, index: int) -> Group:
        """The group at a position of the data, with nothing rolled out.

        Raises:
            InputError: the task gives an empty prompt.
        """
        s = self.settings
        difficulty = s.difficulty[index % len(s.difficulty)]
        problem = self.task.problem(self.task.train_seed(index + s.seed * 1_000_003), difficulty)
        if not problem.prompt.strip():
            raise InputError(
                f"task {s.task}, problem {index}: its prompt is empty; a prompt needs at least one character"
            )
        samples = [Sample() for _ in range(s.samples_per_prompt)]
        return Group(index, self.encode(problem.prompt), samples, problem, difficulty)

    def restore(self, values: dict[str, Any]) -> Group:
        """A group written by `Group.to_dict`, with its problem made again."""
        group = self.build(values["index"])
        group.samples = [Sample(**s) for s in values["samples"]]
        group.version = group.oldest_version
        return group
