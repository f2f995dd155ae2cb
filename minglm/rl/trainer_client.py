"""The trainer as the coordinator sees it: what it was told, and what it must be told again after a restart. Torch-free.

A trainer that dies resumes from its checkpoint and is given the updates since then once more, with the checkpoints and
the evaluation that lie between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minglm.rl.data_source import Group, Sample
from minglm.rl.messages import (
    CheckpointSaved,
    Evaluate,
    Hello,
    PublishWeights,
    SaveCheckpoint,
    StepDone,
    Train,
    TrainerReady,
    TrainGroup,
    TrainSample,
)
from minglm.rl.supervisor import WorkerHandle


def train_sample(sample: Sample) -> TrainSample:
    """A finished sample as the trainer reads it."""
    assert sample.reward is not None, "only groups with a reward train"
    return TrainSample(sample.tokens, sample.logprobs, sample.versions, sample.reward, sample.routes)


class TrainerClient:
    """Sends commands to the trainer and remembers those that a restart would lose."""

    def __init__(self, worker: WorkerHandle) -> None:
        self.worker = worker
        self.in_training: Train | None = None
        self.evaluating: Evaluate | None = None
        self.saving: SaveCheckpoint | None = None
        self.reset_next = False  # the next update begins with a fresh optimiser
        self._save_repeated = False  # `saving` was sent to the trainer that has been restarted
        self._since_checkpoint: list[Train] = []  # in order

    # ------------------------------------------------------------------ commands

    def train(self, batch: Sequence[Group], update: int, version: int, sync_version: int | None) -> None:
        """Begin an update on these groups."""
        groups = tuple(TrainGroup(g.prompt, tuple(train_sample(s) for s in g.samples)) for g in batch)
        command = Train(update, version, sync_version, self.reset_next, groups)
        self.in_training = command
        self._since_checkpoint.append(command)
        self.worker.send(command)

    def evaluate(self, prompts: list[list[int]], max_len: int, stop: list[int]) -> None:
        """Have held-out prompts answered."""
        self.evaluating = Evaluate(prompts, max_len, stop)
        self.worker.send(self.evaluating)

    def save(self, state: dict[str, Any]) -> None:
        """Have a checkpoint written, with the coordinator's state in it."""
        self.saving, self._save_repeated = SaveCheckpoint(state), False
        self.worker.send(self.saving)

    def publish(self, version: int) -> None:
        """Have the weights written once more."""
        self.worker.send(PublishWeights(version))

    # ------------------------------------------------------------------ reports

    def step_done(self, report: StepDone) -> Train | None:
        """The update that has ended; None for one that a restarted trainer goes through again."""
        if self.in_training is None or report.update != self.in_training.update:
            return None
        ended, self.in_training = self.in_training, None
        return ended

    def checkpoint_saved(self, report: CheckpointSaved) -> None:
        """Updates before the checkpoint need not be repeated any more."""
        self.saving = None
        self._since_checkpoint = [command for command in self._since_checkpoint if command.update > report.updates]

    # ------------------------------------------------------------------ restart

    def restarted(self) -> None:
        """The process has been started again: its `TrainerReady` will say from which update it goes on."""
        self._save_repeated = False
        self.worker.send(Hello())

    def repeat(self, report: TrainerReady) -> None:
        """Send everything since the trainer's checkpoint again, each checkpoint between the updates where it
        belongs."""
        for command in self._since_checkpoint:
            if self.saving is not None and command.update > self.saving.state["updates"]:
                self._repeat_save()
            if command.update > report.updates:
                self.worker.send(command)
        self._repeat_save()
        if self.evaluating is not None:
            self.worker.send(self.evaluating)

    def _repeat_save(self) -> None:
        if self.saving is not None and not self._save_repeated:
            self._save_repeated = True
            self.worker.send(self.saving)
