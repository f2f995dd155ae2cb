"""The coordinator of an RL run: hands out groups, gathers samples, gives rewards, feeds the trainer, passes weights on.

It asks `minglm.rl.modes` what may happen next and computes nothing itself (no torch here), so all five modes are this
one loop. Three parts know what their side of the run holds: `RolloutPool` the groups in flight, `WeightSync` the
weights on their way, `TrainerClient` what the trainer was told. What they hold survives any worker. If the coordinator
itself dies, the same command goes on from the checkpoint, and the journal gives back the samples that finished after
it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError
from minglm.rl.config import Settings
from minglm.rl.data_source import DataSource, Group
from minglm.rl.messages import (
    CheckpointSaved,
    EvaluationDone,
    Heartbeat,
    Progress,
    Report,
    RolloutResult,
    RolloutsAborted,
    RolloutsDone,
    Started,
    StepDone,
    TrainerReady,
    WeightsLoaded,
    WeightsPublished,
    WeightsRefused,
    unexpected,
)
from minglm.rl.modes import Status
from minglm.rl.recorder import MetricsRecorder
from minglm.rl.rewards import RewardManager, RewardTask
from minglm.rl.rollout_pool import RolloutPool
from minglm.rl.supervisor import Supervisor, WorkerHandle
from minglm.rl.trainer_client import TrainerClient
from minglm.rl.weight_sync import Weights, WeightSync

WAIT_S = 0.25  # longest time between two looks at the clock
PATIENCE_S = 600.0  # without any progress, before the run gives up


@dataclass(frozen=True)
class Workers:
    """The workers of a run, started; `ready` is the trainer's first report."""

    supervisor: Supervisor
    trainer: WorkerHandle
    rollouts: Sequence[WorkerHandle]
    ready: TrainerReady


@dataclass
class PromptEncoder:
    """<|bos|><|user|>prompt<|assistant|>; refused where no response would fit behind it."""

    tokenizer: Tokenizer
    max_new_tokens: int
    max_positions: int

    def __call__(self, text: str) -> list[int]:
        """Token ids of a prompt. Raises InputError where prompt and response together are too long for the model."""
        ids = [self.tokenizer.bos, self.tokenizer.user, *self.tokenizer.encode(text), self.tokenizer.assistant]
        if len(ids) + self.max_new_tokens > self.max_positions:
            raise InputError(
                f"prompt of {len(ids)} tokens and max_new_tokens={self.max_new_tokens}: the model has "
                f"max_position_embeddings={self.max_positions}; lower max_new_tokens or the difficulty"
            )
        return ids


@dataclass
class Stopwatch:
    """How long nothing has happened."""

    patience_s: float
    last: float = field(default_factory=time.monotonic)

    def look(self, moved: bool) -> float | None:
        """Seconds without progress where they are too many."""
        now = time.monotonic()
        if moved:
            self.last = now
        return now - self.last if now - self.last > self.patience_s else None


def is_progress(report: Report) -> bool:
    """Whether a report says more than that its worker lives."""
    return not isinstance(report, Heartbeat) or bool(report.progress and report.progress.tokens)


class Loop:
    """One run in memory.

    Args:
        task: gives problems and rewards (`minglm.rl.tasks`). tokenizer: of the model.
        workers: started; for a resumed run `workers.ready.state` is what `_snapshot` made.
        show: called with one line for each thing that happens.
    """

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        task: RewardTask,
        tokenizer: Tokenizer,
        workers: Workers,
        show: Callable[[str], None] = lambda line: None,
    ) -> None:
        ready = workers.ready
        self.settings, self.policy, self.show = settings, settings.policy(), show
        self.stop_token = tokenizer.eos
        self.encode = PromptEncoder(tokenizer, settings.max_new_tokens, ready.config["max_position_embeddings"])
        self.source = DataSource(settings, task, self.encode)
        self.rewards = RewardManager(settings, task, tokenizer.decode)
        self.status, self.updates = Status(version=ready.version), 0
        self.ready: list[Group] = []  # complete, waiting for an update
        self.supervisor = workers.supervisor
        self.recorder = MetricsRecorder(settings, run_dir, ready.state, show)
        self.rollouts = RolloutPool(settings, workers.rollouts, self.recorder.now)
        self.weights = WeightSync(workers.rollouts, ready.config, self.encode.max_positions)
        self.weights.begin(Weights(ready.weights, ready.version))
        self.trainer = TrainerClient(workers.trainer)
        self.stopwatch = Stopwatch(max(PATIENCE_S, 2 * settings.stall_s))
        self.supervisor.on_restart = self._on_restart
        for worker in self.supervisor.workers:
            self.recorder.event("started", worker=worker.name, pid=worker.connection.pid)
        if ready.state:
            self._restore(ready.state)

    # ------------------------------------------------------------------ running

    def run(self) -> dict[str, Any]:
        """All updates; returns a summary. Raises InputError for what cannot be mended."""
        try:
            if self.recorder.count.first_pass is None:
                self._evaluate()
            while self._unfinished():
                self._advance()
                self._listen()
                if self.rewards.solved:
                    self.show(self.rewards.solved)
                    break
            if self.recorder.count.last_eval != self.updates:
                self._evaluate()
                while self.trainer.evaluating:
                    self._listen()
            self._save()
            while self.trainer.saving:
                self._listen()
            return self.recorder.summary(self.updates, self.rewards, self.supervisor.restarts)
        finally:
            self.supervisor.shutdown()
            self.recorder.close()

    def _unfinished(self) -> bool:
        trainer_busy = self.trainer.in_training is not None or self.trainer.evaluating is not None
        return self.updates < self.settings.updates or trainer_busy or self.weights.pending is not None

    def _listen(self) -> None:
        heard = self.supervisor.listen(WAIT_S)
        idle_s = self.stopwatch.look(moved=any(is_progress(report) for _, report in heard))
        if idle_s is not None:
            raise InputError(
                f"nothing has happened for {idle_s:.0f} s though all workers live ({len(self.rollouts.in_flight)} "
                "groups "
                f"in flight, {len(self.ready)} ready); the same command resumes from the last checkpoint"
            )
        for worker, report in heard:
            if worker is self.trainer.worker:
                self._on_trainer_report(report)
            else:
                self._on_rollout_report(worker, report)
        self.supervisor.restart_lost()

    def _on_trainer_report(self, report: Report) -> None:
        match report:
            case Started():
                self._on_started(self.trainer.worker)
            case TrainerReady():
                self._on_trainer_back(report)
            case StepDone():
                self._on_step_done(report)
            case WeightsPublished(weights=path, version=version):
                self.weights.republished(Weights(path, version))
            case EvaluationDone():
                self._on_evaluated(report)
            case CheckpointSaved():
                self.trainer.checkpoint_saved(report)
            case _:
                raise unexpected(report, "the coordinator, from a trainer,")

    def _on_rollout_report(self, worker: WorkerHandle, report: Report) -> None:
        match report:
            case Started():
                self._on_started(worker)
            case Heartbeat(progress=Progress() as progress):
                self._on_progress(worker, progress)
            case RolloutsDone(requests=results, progress=progress):
                self._on_progress(worker, progress)
                self._on_results(worker, results)
            case RolloutsAborted(requests=results, progress=progress):
                self._on_progress(worker, progress)
                for result in results:
                    self._receive(worker, result)
                self._on_aborted(worker)
            case WeightsLoaded():
                self._on_weights_loaded(worker, report)
            case WeightsRefused():
                self._on_weights_refused(worker, report)
            case _:
                raise unexpected(report, "the coordinator, from a rollout worker,")

    def _on_started(self, worker: WorkerHandle) -> None:
        self.recorder.event("started", worker=worker.name, pid=worker.connection.pid)

    # ------------------------------------------------------------------ what may happen next

    def _advance(self) -> None:
        """Everything that may start now."""
        in_flight = bool(self.rollouts.in_flight)
        pending = self.weights.pending
        if pending is not None and not pending.sent and (self.policy.continuous or not in_flight):
            self.weights.send()
        if len(self.source.buffer) and self.policy.continuous and self._may_submit():
            # what a checkpoint left unfinished is old: it is in flight again before the next update is chosen
            self._submit()
        if self._may_train():
            self._filter_stale()
            self._count()
            if self.policy.batch_is_ready(self.status) and not self._must_wait():
                if self.rollouts.in_flight and not self.policy.continuous:
                    self.rollouts.abort()
                else:
                    self._train()
        if self._may_submit():
            self._submit()

    def _may_train(self) -> bool:
        trainer_free = self.trainer.in_training is None and self.trainer.evaluating is None
        return (
            trainer_free
            and self.rollouts.aborting is None
            and self.weights.pending is None
            and self.updates < self.settings.updates
        )

    def _may_submit(self) -> bool:
        if self.rollouts.aborting is not None or self.weights.current is None:
            return False
        if self.policy.continuous:
            return True
        free = self.weights.pending is None and self.trainer.evaluating is None
        return free and (self.policy.generates_ahead or self.trainer.in_training is None)

    def _must_wait(self) -> bool:
        """Async: whether a group in flight would break the staleness bound if this update came before it."""
        if not self.settings.strict:
            return False
        return self.policy.must_wait(self.status, self.rollouts.versions(), Counter(g.version for g in self.ready))

    def _count(self) -> None:
        self.status.running, self.status.finished = len(self.rollouts.in_flight), len(self.ready)

    # ------------------------------------------------------------------ rollout

    def _submit(self) -> None:
        while True:
            self._count()
            in_training = 1 if self.trainer.in_training else 0
            updates_left = self.settings.updates - self.updates - in_training
            needed = updates_left * self.policy.prompts_per_batch - self.status.finished - self.status.running
            count = self.policy.groups_to_submit(self.status)
            if not (self.policy.aborts_at_target and needed > 0):
                count = min(count, needed)
            if count <= 0:
                return
            for group in self.source.take(count):
                group.version = group.oldest_version if group.started else self.status.version
                self.rollouts.submit(group)
            for group in [g for g in self.rollouts.in_flight.values() if g.complete]:
                self._complete(group)  # all of it came back from the journal

    def _on_progress(self, worker: WorkerHandle, progress: Progress) -> None:
        worker.undelivered_tokens += progress.tokens
        self.recorder.rollout(progress)

    def _receive(self, worker: WorkerHandle, result: RolloutResult) -> tuple[Group, int] | None:
        received = self.rollouts.receive(worker, result)
        if received is None:
            return None
        group, k, _, new_tokens = received
        self.recorder.count.generated += new_tokens
        return group, k

    def _on_results(self, worker: WorkerHandle, results: Sequence[RolloutResult]) -> None:
        for result in results:
            if received := self._receive(worker, result):
                group, k = received
                self.recorder.finished(group.index, k, group.samples[k])
                if group.complete:
                    self._complete(group)

    def _complete(self, group: Group) -> None:
        self.rollouts.remove(group)
        status = self.rewards.score(group)
        self.recorder.completed(group, status, self.rewards)
        if status == "ready":
            self.ready.append(group)

    def _on_aborted(self, worker: WorkerHandle) -> None:
        """The target is reached and others still ran: april keeps their parts; else what a filter's refill began is
        lost."""
        groups = self.rollouts.aborted(worker)
        if groups is None:
            return
        self.recorder.aborted(groups, kept=self.policy.aborts_at_target)
        if self.policy.aborts_at_target:
            self.source.buffer.put_back(groups)

    # ------------------------------------------------------------------ training

    def _filter_stale(self) -> None:
        for group in [g for g in self.ready if self.policy.too_stale(self.status.version, g.oldest_version)]:
            self.ready.remove(group)
            self.recorder.filtered_stale(group)

    def _train(self) -> None:
        if self.settings.strict and self.policy.mode == "async":  # the oldest may not wait for the next update
            self.ready.sort(key=lambda g: (g.version, g.index))
        size = self.policy.prompts_per_batch
        batch, self.ready = self.ready[:size], self.ready[size:]
        if self.policy.discards_surplus:
            self.recorder.wasted(self.ready)
            self.ready = []
        update = self.updates + 1
        syncs = self.policy.syncs_weights_after(update)
        version = self.status.version
        self.recorder.training(batch, version)
        self.trainer.train(batch, update, version, version + 1 if syncs else None)
        self.trainer.reset_next = syncs and self.policy.resets_optimizer_after_weight_sync
        self.status.accepted += len(batch)

    def _on_step_done(self, report: StepDone) -> None:
        command = self.trainer.step_done(report)
        if command is None:
            return  # a restarted trainer goes through what was already done
        self.updates = report.update
        newest = self.status.version
        if report.weights is not None and command.sync_version is not None:
            newest = command.sync_version
            self.weights.begin(Weights(report.weights, newest))
        self.recorder.trained(report, newest, self.rewards, self.supervisor.restarts)
        last = self.updates == self.settings.updates
        if self.updates % self.settings.checkpoint_every == 0 and not last:
            self._save()
        if self.settings.eval_every and self.updates % self.settings.eval_every == 0:
            self._evaluate()

    def _on_weights_loaded(self, worker: WorkerHandle, report: WeightsLoaded) -> None:
        if not self.weights.loaded(worker, report):
            return  # an old sync's, from a worker that was restarted
        self.recorder.weights_loaded(worker.name, report)
        if self.weights.pending is None:
            self.status.version = report.version

    def _on_weights_refused(self, worker: WorkerHandle, report: WeightsRefused) -> None:
        self.recorder.weights_refused(worker.name, report)
        if self.weights.refused(worker, report):
            self.trainer.publish(report.version)

    # ------------------------------------------------------------------ workers come and go

    def _on_restart(self, worker: WorkerHandle, reason: str) -> None:
        """A worker has been started again: send what it needs; nothing that had finished is lost."""
        if worker is self.trainer.worker:
            self.recorder.fault(worker.name, reason, lost_tokens=0, requeued=0)
            self.trainer.restarted()
            return
        groups, samples = self.rollouts.unfinished(worker)
        self.recorder.fault(worker.name, reason, lost_tokens=max(0, worker.undelivered_tokens), requeued=len(samples))
        self.weights.resend(worker)
        if self.rollouts.aborting is not None and worker.name in self.rollouts.aborting:
            self._on_aborted(worker)  # its parts go back as they were sent to it
        else:
            self.rollouts.resubmit(worker, groups)

    def _on_trainer_back(self, report: TrainerReady) -> None:
        self.trainer.repeat(report)
        pending = self.weights.pending
        if pending is not None and pending.refusals:
            self.trainer.publish(pending.weights.version)

    # ------------------------------------------------------------------ held-out problems, checkpoints

    def _evaluate(self) -> None:
        if self.settings.eval_problems:
            prompts = [self.encode(problem.prompt) for problem in self.rewards.held_out]
            self.trainer.evaluate(prompts, self.encode.max_positions, [self.stop_token])

    def _on_evaluated(self, report: EvaluationDone) -> None:
        if self.trainer.evaluating is None:
            return  # a restarted trainer did it twice
        self.trainer.evaluating = None
        sampled, greedy = self.rewards.pass_at_1(report.sampled), self.rewards.pass_at_1(report.greedy)
        self.recorder.evaluated(self.updates, sampled, greedy, report.seconds)

    def _save(self) -> None:
        self.recorder.before_checkpoint(self.updates)
        self.trainer.save(self._snapshot())

    def _snapshot(self) -> dict[str, Any]:
        """All that a resumed run needs beside weights and optimiser; draws follow from seeds and need no state."""
        unfinished = (*self.rollouts.in_flight.values(), *self.source.buffer.waiting)
        pending = self.weights.pending
        return {
            "version": pending.weights.version if pending is not None else self.status.version,
            "updates": self.updates,
            "accepted": self.status.accepted,
            "position": self.source.position,
            "reset_next": self.trainer.reset_next,
            "ready": [group.to_dict() for group in self.ready],
            "unfinished": [group.to_dict() for group in unfinished],
            "counts": self.recorder.counts(),
            "rewards": self.rewards.counts(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.updates, self.status.accepted, self.status.version = state["updates"], state["accepted"], state["version"]
        self.source.position, self.trainer.reset_next = state["position"], state["reset_next"]
        self.ready = [self.source.restore(values) for values in state["ready"]]
        self.rewards.restore(state["rewards"])
        groups = [self.source.restore(values) for values in state["unfinished"]]
        for sample in (s for g in groups for s in g.samples):
            sample.drop_open_segment()
        self.source.buffer.put_back(groups)
        done = {group.index for group in self.ready}
        self.source.recovered = self.recorder.recover(state["updates"], state["version"], done)
