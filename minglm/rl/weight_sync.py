"""New weights on their way from the trainer to all rollout workers. Torch-free.

The trainer writes a file, the coordinator names it to every worker, and each says that it has loaded it or why not.
Only when all have it does the version count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minglm.errors import InputError
from minglm.rl.messages import UpdateWeights, WeightsLoaded, WeightsRefused
from minglm.rl.supervisor import WorkerHandle

MAX_REFUSALS = 3  # of one version, before the run stops


@dataclass(frozen=True)
class Weights:
    """A file of weights."""

    path: str
    version: int


@dataclass
class PendingSync:
    """A weight sync that not all workers have ended."""

    weights: Weights
    waiting: set[str]  # names of the workers that it has not reached
    sent: bool = False
    refusals: int = field(default=0)


class WeightSync:
    """At most one weight sync at a time.

    Args:
        workers: rollout workers. config: of the model, as its `to_dict`. max_len: positions of a request.
    """

    def __init__(self, workers: Sequence[WorkerHandle], config: dict[str, Any], max_len: int) -> None:
        self.workers, self.config, self.max_len = workers, config, max_len
        self.current: Weights | None = None  # the newest that all workers have
        self.pending: PendingSync | None = None

    def begin(self, weights: Weights) -> None:
        """These go out next; `send` says when."""
        self.pending = PendingSync(weights, {worker.name for worker in self.workers})

    def send(self) -> None:
        """To all workers."""
        assert self.pending is not None, "no weights are pending"
        self.pending.sent = True
        for worker in self.workers:
            self._send(worker, self.pending.weights)

    def _send(self, worker: WorkerHandle, weights: Weights) -> None:
        worker.send(UpdateWeights(weights.path, weights.version, self.config, self.max_len))

    def loaded(self, worker: WorkerHandle, report: WeightsLoaded) -> bool:
        """Whether this worker took part in the sync that is pending. When it was the last, the sync has ended."""
        if self.pending is None or report.version != self.pending.weights.version:
            return False
        self.pending.waiting.discard(worker.name)
        if not self.pending.waiting:
            self.current, self.pending = self.pending.weights, None
        return True

    def refused(self, worker: WorkerHandle, report: WeightsRefused) -> bool:
        """Whether the trainer must write the file once more: it was missing, torn or of another version.

        Raises:
            InputError: refused too often.
        """
        if self.pending is None or report.version != self.pending.weights.version:
            return False
        self.pending.refusals += 1
        if self.pending.refusals > MAX_REFUSALS:
            raise InputError(
                f"{worker.name}: refused the weights {self.pending.refusals} times ({report.reason}); "
                f"look at {self.pending.weights.path}"
            )
        return True

    def republished(self, weights: Weights) -> None:
        """The file is there again: to those that still lack it."""
        if self.pending is None or self.pending.weights.version != weights.version:
            return
        self.pending.weights = weights
        for worker in self.workers:
            if worker.name in self.pending.waiting:
                self._send(worker, weights)

    def resend(self, worker: WorkerHandle) -> None:
        """To a worker that has been started again: what it would have by now."""
        weights = self.pending.weights if self.pending is not None and self.pending.sent else self.current
        if weights is not None:
            self._send(worker, weights)
