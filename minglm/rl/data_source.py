"""Groups of samples, and where they come from: unfinished ones first, then new problems. Torch-free.

A group is one problem with all its samples. Problem i of a run is a function of task and i alone, and a sample's draws of
(seed, group, sample) alone, so a resumed or restarted run asks for the same things again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.policy import PartialBuffer


@dataclass
class Sample:
    """One answer as it grows. The lists have one entry per token of the answer."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # under the weights that sampled the token
    versions: list[int] = field(default_factory=list)  # of those weights
    routes: list | None = None  # experts chosen, where they are recorded
    reason: str | None = None  # None while unfinished; "stop" or "length"
    segments: list[list[float]] = field(
        default_factory=list
    )  # [start_s, end_s, tokens made] of each stretch of rollout
    reward: float | None = None

    @property
    def done(self) -> bool:
        return self.reason is not None

    def to_dict(self) -> dict:
        return dict(self.__dict__)


@dataclass
class Group:
    """One problem with all its samples."""

    index: int  # position in the data, the group's name
    prompt: list[int]
    samples: list[Sample]
    problem: object = None  # what the task's reward reads
    difficulty: int = 1
    version: int = 0  # of the weights when it was handed out

    @property
    def complete(self) -> bool:
        return all(s.done for s in self.samples)

    @property
    def oldest_version(self) -> int:
        return min((v for s in self.samples for v in s.versions), default=0)

    def to_dict(self) -> dict:
        return {"index": self.index, "samples": [s.to_dict() for s in self.samples]}


class DataSource:
    """Hands out groups: the buffer of partial groups first, then new ones.

    Args:
        task: with `problem(seed, difficulty)` and `train_seed(i)`. encode: text of a prompt → token ids.
    """

    def __init__(self, settings: Settings, task, encode) -> None:
        self.settings, self.task, self.encode = settings, task, encode
        self.position = 0  # new groups handed out so far
        self.buffer: PartialBuffer[Group] = PartialBuffer()
        self.recovered: dict[tuple[int, int], Sample] = {}  # finished before a kill, (group, sample) → sample

    def take(self, count: int) -> list[Group]:
        """`count` groups, the oldest unfinished ones first."""
        groups = self.buffer.take(count)
        while len(groups) < count:
            groups.append(self.make(self.position))
            self.position += 1
        for group in groups:
            for k in range(len(group.samples)):
                if not group.samples[k].done and (group.index, k) in self.recovered:
                    group.samples[k] = self.recovered.pop((group.index, k))
        return groups

    def make(self, index: int) -> Group:
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
        return Group(
            index, self.encode(problem.prompt), [Sample() for _ in range(s.samples_per_prompt)], problem, difficulty
        )

    def restore(self, group: dict) -> Group:
        """A group written by `Group.to_dict`, with its problem made again."""
        made = self.make(group["index"])
        made.samples = [Sample(**s) for s in group["samples"]]
        made.version = made.oldest_version
        return made
