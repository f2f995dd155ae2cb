"""Who runs next, when to stop, what is too stale: the rules of asynchronous RL, without torch and without a clock.

The real loop (processes, a model) and the simulator (SimPy) ask the same `Policy` the same questions, so what one shows
the other obeys. A *group* is one prompt with all its samples; only complete groups train. Versions count weight syncs.

    mode          rollout of the next batch        at the target         weight sync
    sync          after the update                 all are done          after every update, nothing is running
    one_step_off  while the last batch trains      all are done          after every update, the rollout has ended
    async         always, at most `max_staleness`  rollout goes on       after every update, into running requests
                  batches ahead
    april         after the update, over-sampled   abort; partials are   after every update, nothing is running
                                                   resumed first
    glm5          always                           rollout goes on       every `weight_sync_interval` updates, into
                                                                         running requests

Sources: slime `sglang_rollout.py` and `train_async.py` (sync, one_step_off, april); APRIL, arXiv 2509.18521 (april);
AReaL `staleness_manager.py` (async: the capacity rule); GLM-5 report, arXiv 2602.15763 §4.1 (glm5).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from minglm.errors import InputError, nearest

MODES = ("sync", "one_step_off", "async", "april", "glm5")
OVERLAPPED = ("one_step_off", "async", "glm5")  # modes in which rollout and training run at the same time
Group = TypeVar("Group")


@dataclass(frozen=True)
class Policy:
    """The rules of one mode. Counts are groups, versions are weight syncs.

    Raises:
        InputError: a value that breaks a rule, in one line.
    """

    mode: str = "sync"
    prompts_per_batch: int = 8  # complete groups that make a training batch
    over_sampling: int | None = (
        None  # groups submitted at a time (april: above prompts_per_batch); None: prompts_per_batch
    )
    max_concurrent: int | None = None  # groups in flight at most; None: no limit beyond the mode's own
    max_staleness: float = 1  # async: batches that may be started ahead of the one in training (AReaL: η,
    # `max_head_offpolicyness`; a fraction of a batch is verl's staleness threshold)
    weight_sync_interval: int = 1  # glm5: updates between two weight syncs (K)
    filter_staleness_above: int | None = (
        None  # glm5: drop a group whose oldest token is more than this many versions behind (τ)
    )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r}: not one of {', '.join(MODES)}{nearest(self.mode, MODES)}")
        if (
            isinstance(self.max_staleness, bool)
            or not isinstance(self.max_staleness, (int, float))
            or not 0 <= self.max_staleness < math.inf
        ):
            raise InputError(
                f"max_staleness={self.max_staleness!r}: staleness must be a number of at least 0; the default is "
                f"{type(self).max_staleness}"
            )
        for name, least in (("prompts_per_batch", 1), ("weight_sync_interval", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name}={value!r}: must be a whole number of at least {least}; the default is "
                    f"{getattr(type(self), name)}"
                )
        for name, least in (
            ("over_sampling", self.prompts_per_batch),
            ("max_concurrent", 1),
            ("filter_staleness_above", 0),
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(
                    f"{name}={value!r}: must be a whole number of at least {least}; leave it out for the default"
                )
        if self.over_sampling not in (None, self.prompts_per_batch) and self.mode != "april":
            raise InputError(
                f"over_sampling={self.over_sampling} with mode {self.mode!r}: only april aborts the surplus; "
                f"leave it out or use mode april"
            )

    @property
    def submit_at_once(self) -> int:
        """Groups submitted whenever fewer than a batch can still complete."""
        return self.over_sampling or self.prompts_per_batch

    @property
    def continuous(self) -> bool:
        """Whether rollout goes on while the trainer works, across updates."""
        return self.mode in ("async", "glm5")

    @property
    def aborts_at_target(self) -> bool:
        """Whether what still runs is stopped when a batch is complete, and resumed first in the next round."""
        return self.mode == "april"

    @property
    def discards_surplus(self) -> bool:
        """Whether complete groups beyond the batch are lost, since they would be stale at the next update."""
        return self.mode in ("sync", "one_step_off")

    @property
    def generates_ahead(self) -> bool:
        """Whether the next batch rolls out while this one trains."""
        return self.mode == "one_step_off"

    @property
    def resets_optimizer_after_weight_sync(self) -> bool:
        """Whether new weights begin with a fresh optimiser."""
        return self.mode == "glm5"

    def groups_to_submit(self, status: Status) -> int:
        """How many new groups may start now."""
        if self.mode == "async":
            allowed = math.floor((self.max_staleness + status.version + 1) * self.prompts_per_batch + 1e-9)
            room = allowed - (status.accepted + status.finished + status.running)
        elif self.mode == "glm5":
            room = self.submit_at_once * 2 - (status.running + status.finished)
        elif (
            status.running + status.finished < self.prompts_per_batch
        ):  # a round: submit, and refill what a filter dropped
            room = self.submit_at_once
        else:
            room = 0
        if self.max_concurrent is not None:
            room = min(room, self.max_concurrent - status.running)
        return max(0, room)

    def batch_is_ready(self, status: Status) -> bool:
        """Whether enough complete groups wait for an update."""
        return status.finished >= self.prompts_per_batch

    def must_wait(
        self, status: Status, running: Mapping[int, int], finished: Mapping[int, int], batch: int | None = None
    ) -> bool:
        """Whether an update must wait for groups in flight, so that none is ever more than ⌈max_staleness⌉ versions
        old when trained.

        Args:
            running, finished: version at which they were started → groups in flight, and complete groups that wait.
            batch: groups that this update takes, the oldest complete ones first; by default `prompts_per_batch`.

        Async only. Whatever was started at version v or before must be trained by version v + ⌈max_staleness⌉, so
        among the first (v + ⌈max_staleness⌉ + 1)·B groups (B = `prompts_per_batch`). The capacity rule of
        `groups_to_submit` keeps that while groups are trained in the order of their start; a younger group that ends
        before an older one and is trained takes its place. Hence the same rule once more for every version v in
        flight: groups accepted by then, and those of version ≤ v still to come, must not be more than
        (v + ⌈max_staleness⌉ + 1)·B. It never blocks: with nothing in flight the oldest go first.
        """
        if self.mode != "async":
            return False
        batch = self.prompts_per_batch if batch is None else batch
        left = done = 0
        for version in sorted({*running, *finished}):
            left, done = left + running.get(version, 0), done + finished.get(version, 0)
            places = (version + math.ceil(self.max_staleness) + 1) * self.prompts_per_batch - status.accepted - batch
            if running.get(version) and left + max(0, done - batch) > places:
                return True
        return False

    def syncs_weights_after(self, updates: int) -> bool:
        """Whether weights go to the rollout engines after this many updates in all (1, 2, …)."""
        return updates % (self.weight_sync_interval if self.mode == "glm5" else 1) == 0

    def too_stale(self, version: int, oldest_version: int) -> bool:
        """Whether a group whose oldest token was sampled at `oldest_version` is dropped by a trainer at `version`."""
        return (
            self.mode == "glm5"
            and self.filter_staleness_above is not None
            and version - oldest_version > self.filter_staleness_above
        )


def micro_batches(lengths: Iterable[int], limit: int) -> list[list[int]]:
    """How a trainer cuts rows into forward passes: sorted by length, as many as fit when padded to the longest of them.

    Args:
        lengths: tokens of each row. limit: tokens of a pass, padding included; a row that is longer goes alone.

    >>> micro_batches([3, 100, 4, 5], 16)
    [[3, 4, 5], [100]]
    """
    out: list[list[int]] = []
    for n in sorted(lengths):
        if out and (len(out[-1]) + 1) * n <= limit:
            out[-1].append(n)
        else:
            out.append([n])
    return out


def train_load(rows: list[int], micro_tokens: int | None) -> tuple[int, int, int]:
    """(passes, tokens, squared lengths) that a trainer computes for rows of so many tokens, padding included; without
    `micro_tokens` each row goes alone."""
    if not micro_tokens:
        return len(rows), sum(rows), sum([n * n for n in rows])
    parts = micro_batches(rows, micro_tokens)
    return len(parts), sum(len(p) * p[-1] for p in parts), sum(len(p) * p[-1] ** 2 for p in parts)


@dataclass
class Status:
    """What a policy may know: counts of groups, and the version."""

    running: int = 0  # submitted, not complete
    finished: int = 0  # complete, waiting for an update
    accepted: int = 0  # already trained on, in all
    version: int = 0  # weight syncs so far


@dataclass
class PartialBuffer(Generic[Group]):
    """Groups that an abort left unfinished, first in, first out, ahead of new prompts. Nothing put in is ever lost."""

    waiting: deque[Group] = field(default_factory=deque)

    def put_back(self, groups: Iterable[Group]) -> None:
        """These were stopped unfinished."""
        self.waiting.extend(groups)

    def take(self, count: int) -> list[Group]:
        """Up to `count` groups, the oldest first; the caller fills up with new prompts."""
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def __len__(self) -> int:
        return len(self.waiting)
