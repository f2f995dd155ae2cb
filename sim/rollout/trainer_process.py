"""The trainer of a rollout simulation as a process: wait for a batch, train, send the weights, again."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from sim.rollout.case import Case
from sim.rollout.collector import Collector
from sim.rollout.dispatcher import Dispatcher
from sim.rollout.group import Group
from sim.rollout.timeline import Process, Signal, Timeline


class TrainerProcess:
    """Trains `case.steps` steps of `case.parts` updates each, with one weight sync a step at most."""

    def __init__(self, case: Case, timeline: Timeline, dispatcher: Dispatcher, collector: Collector) -> None:
        self.case, self.policy, self.timeline = case, case.policy, timeline
        self.dispatcher, self.collector = dispatcher, collector
        share = self.policy.prompts_per_batch // case.parts
        whole = case.parts == 1
        self.part = self.policy if whole else replace(self.policy, prompts_per_batch=share, over_sampling=None)
        self.wait_s = self.train_s = 0.0  # of the present step

    def run(self) -> Process:
        """The process."""
        case, policy = self.case, self.policy
        self.dispatcher.begin()
        for number in range(1, case.steps + 1):
            self.wait_s = self.train_s = 0.0
            groups: list[Group] = []
            for k in range(case.parts):
                groups += yield from self._update(last=k == case.parts - 1)
            step = self.collector.trained(groups, self.dispatcher.status.version)
            sync_s = 0.0
            if policy.syncs_weights_after(number):
                began = self.timeline.now
                yield from self._sync_weights()
                sync_s = self.timeline.now - began
                self.collector.trainer_spans.append(
                    ("weight_sync", self.timeline.now - case.weight_sync_s, self.timeline.now)
                )
            step.end_s, step.wait_s, step.train_s, step.weight_sync_s = (
                self.timeline.now,
                self.wait_s,
                self.train_s,
                sync_s,
            )
            if number == case.warmup:
                self.collector.end_warmup()
            if number < case.steps:
                if policy.continuous:
                    self.dispatcher.refill()
                elif not policy.generates_ahead:
                    self.dispatcher.begin()

    def _update(self, last: bool) -> Generator[float | Signal, None, list[Group]]:
        """One update; returns the groups that it took."""
        case, policy, timeline, dispatcher = self.case, self.policy, self.timeline, self.dispatcher
        began = timeline.now
        if not dispatcher.batch_is_ready(self.part):
            dispatcher.untouched_for_s = self._least_train_s()
            while True:
                dispatcher.group_done = Signal()
                yield dispatcher.group_done
                if dispatcher.batch_is_ready(self.part):
                    break
        dispatcher.untouched_for_s = 0.0
        self.wait_s += timeline.now - began
        if last and not policy.continuous:
            dispatcher.end_rollout()
        batch = dispatcher.take(self.part.prompts_per_batch)
        if last and policy.generates_ahead:
            dispatcher.begin()
        if policy.continuous:
            dispatcher.refill()
        seconds = case.train_seconds([t.length + t.prompt for group in batch for t in group.samples])
        if self.collector.busy:
            seconds *= case.train_interference
        seconds += case.overhead_s if last else 0.0
        self.collector.trainer_spans.append(("train", timeline.now, timeline.now + seconds))
        if case.decode_interference != 1.0:
            dispatcher.slow_down(case.decode_interference)
        yield from self._leave_alone(seconds)
        if case.decode_interference != 1.0:
            dispatcher.slow_down(1.0)
        self.train_s += seconds
        return batch

    def _leave_alone(self, seconds: float) -> Process:
        """So many seconds in which nothing is asked of an engine."""
        self.dispatcher.untouched_until = self.timeline.now + seconds
        yield seconds

    def _least_train_s(self) -> float:
        """Seconds that pass between any moment of a wait for a batch and the next time that an engine is touched.

        Under `async` a batch is taken without a word to the engines: only the weights after its update reach them.
        """
        case = self.case
        if self.policy.mode != "async" or case.decode_interference != 1.0:
            return 0.0
        tokens = self.dispatcher.least_tokens(self.part.prompts_per_batch)
        return (case.train_fixed_s / case.parts + case.train_s_per_token * tokens) * min(1.0, case.train_interference)

    def _sync_weights(self) -> Process:
        dispatcher = self.dispatcher
        if self.policy.generates_ahead:
            while dispatcher.status.running:  # the rollout ends first
                dispatcher.group_done = Signal()
                yield dispatcher.group_done
        elif self.policy.continuous and not self.case.interruptible:
            dispatcher.hold()
            if self.collector.busy:
                dispatcher.drained = Signal()
                yield dispatcher.drained
        dispatcher.sync_weights(self.case.weight_sync_s)
        yield from self._leave_alone(self.case.weight_sync_s)
        dispatcher.status.version += 1
