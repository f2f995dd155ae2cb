"""Who runs where: groups of prompts handed to engines as the policy allows, and what becomes of them.

An engine plans its next completion (`Engine.next_event`), and whatever changes an engine plans it anew; the event
planned before is then stale and is passed over (`Engine.timer`). Where nobody can touch an engine for a while (the
trainer is at work, and no prompt is handed out when one ends), it works out all that happens until then at once, and
only the end of a group is an event: the same figures, with a small part of the events and of the memory touched.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from minglm.rl.modes import PartialBuffer, Policy, Status
from sim.rollout.case import Case
from sim.rollout.collector import Collector
from sim.rollout.engine import Engine
from sim.rollout.group import Group
from sim.rollout.placement import Placement
from sim.rollout.request_buffer import RequestBuffer
from sim.rollout.timeline import Signal, Timeline
from sim.rollout.trajectory import Trajectory


class Dispatcher:
    """The rollout side of a simulation."""

    def __init__(self, case: Case, timeline: Timeline, engines: Sequence[Engine], collector: Collector) -> None:
        self.case, self.policy, self.timeline = case, case.policy, timeline
        self.engines, self.collector = engines, collector
        self.status = Status()
        self.buffer: PartialBuffer[Group] = PartialBuffer()
        self.running: dict[int, Group] = {}  # by id, in order of submission
        self.finished: list[Group] = []
        self.running_versions: Counter[int] = Counter()  # groups by the version they started at
        self.finished_versions: Counter[int] = Counter()
        self.submitted = 0  # groups in all
        self.rolling_out = False
        self.rollout_began = self.last_complete = 0.0
        self.group_done, self.drained = Signal(), Signal()
        self._rng = random.Random(case.seed)
        self._placement = Placement(case.placement, engines, case.policy.prompts_per_batch)
        self._dirty: dict[int, Engine] = {}  # changed at this moment, to be planned
        self._requests = RequestBuffer(engines, case.lengths.longest) if case.placement == "divided" else None
        # Until when, and for how long from any moment on, the trainer leaves engines alone; it says so while it waits
        self.untouched_until, self.untouched_for_s = 0.0, 0.0
        # Nothing is handed out when requests end: then an engine that is left alone hangs on nothing but itself
        self._runs_ahead = (
            self._requests is None
            and case.filter_keep >= 1.0
            and self.policy.max_concurrent is None
            and self.policy.filter_staleness_above is None
        )
        # A round is one batch: the trainer asks nothing of an engine before every request of it has ended
        self._whole_rounds = (
            not self.policy.continuous
            and self.policy.submit_at_once == self.policy.prompts_per_batch
            and case.decode_interference == 1.0
        )

    # ---- submission
    def begin(self) -> None:
        """A rollout phase begins."""
        self.rolling_out, self.rollout_began = True, self.timeline.now
        self.refill()

    def refill(self) -> None:
        """Start what the policy allows: unfinished groups first, then new prompts."""
        room = self.policy.groups_to_submit(self.status)
        while room > 0:
            groups = self.buffer.take(room)
            groups += [self._new_group() for _ in range(room - len(groups))]
            for group in groups:
                self.running[group.id] = group
                self.running_versions[group.version] += 1
                self.status.running += 1
                self._dispatch(group)
            room = self.policy.groups_to_submit(self.status)
        self._plan_changed()

    def _new_group(self) -> Group:
        case, index = self.case, self.submitted
        group = Group(index, self.status.version, kept=case.filter_keep >= 1.0)
        lengths = case.lengths.draw_group(self._rng, case.samples_per_prompt, index)
        if case.filter_keep < 1.0:
            group.kept = self._rng.random() < case.filter_keep
        prompt = case.lengths.prompt_of(index)
        group.samples = [Trajectory(group, length, prompt) for length in lengths]
        group.unfinished = len(lengths)
        group.tokens = sum(lengths) + prompt * len(lengths)
        self.submitted += 1
        return group

    def _dispatch(self, group: Group) -> None:
        """Its unfinished samples, to the queues of the engines that the placement chooses, or to the buffer of divided
        rollout."""
        samples = [t for t in group.samples if t.done < t.length]
        if self._requests is not None:
            for trajectory in samples:
                self._requests.add(trajectory)
        else:
            for engine, some in self._placement.choose(group, samples):
                self._queue(some, engine)

    def _queue(self, trajectories: Iterable[Trajectory], engine: Engine) -> None:
        if engine.id not in self._dirty:
            engine.advance(self.timeline.now)
            self._dirty[engine.id] = engine
        engine.queue.extend(trajectories)

    def _plan_changed(self) -> None:
        if self._requests is not None:
            for trajectory, chosen in self._requests.hand_out():
                self._queue((trajectory,), chosen)
        dirty, self._dirty = self._dirty, {}
        for engine in dirty.values():
            self.plan(engine)

    def plan(self, engine: Engine) -> None:
        """Admit what fits and plan the next event of an engine that has changed; it must be at the present time.

        Where nothing can touch it for a while, what happens until then is worked out here, in one go.
        """
        now = clock = self.timeline.now
        idle = not engine.n
        engine.admit(now)
        if idle and engine.n:
            self.collector.count(1)
        watched = engine.id < self.case.watch
        untouched_until = now
        if self._runs_ahead:
            untouched_until = math.inf if self._whole_rounds else max(self.untouched_until, now + self.untouched_for_s)
        if untouched_until > now and not watched:
            self._ended(engine, engine.run_on(untouched_until))
            clock = engine.t
        while True:
            if watched:
                self.collector.watch(engine, clock)
            due_s = engine.next_event(clock)
            if due_s is None:
                engine.timer = 0  # what was planned before is stale
                if clock > now:
                    self.timeline.at(clock, self._on_idle)
                return
            due_s = max(due_s, clock)
            if due_s >= untouched_until:
                engine.timer = self.timeline.at(due_s, self._on_due, engine)
                return
            clock = due_s
            self._ended(engine, [(clock, trajectory) for trajectory in engine.fire(clock)])
            engine.admit(clock)

    # ---- what happens
    def _on_due(self, engine: Engine, timer: int) -> None:
        if timer != engine.timer:
            return  # the engine changed since
        now = self.timeline.now
        ended = engine.fire(now)
        if not engine.n:
            self.collector.count(-1)
        self._dirty[engine.id] = engine
        any_complete = self._ended(engine, [(now, trajectory) for trajectory in ended])
        if self._requests is not None:
            for trajectory in ended:
                self._requests.chunk_ended(engine, trajectory)
                if trajectory.done < trajectory.length:
                    self._requests.add(trajectory)
        self._go_on(any_complete)

    def _on_idle(self, _: None, __: int) -> None:
        """An engine that ran ahead has ended its last request."""
        self.collector.count(-1)
        self._go_on(any_complete=False)

    def _on_group_end(self, group: Group, _: int) -> None:
        """The last sample of a group ends, on an engine that ran ahead."""
        self._book(group)
        self._go_on(any_complete=True)

    def _go_on(self, any_complete: bool) -> None:
        """After requests have ended: others may start, and who waits for groups or for idle engines is told."""
        if any_complete and (self.policy.continuous or self.rolling_out):
            self.refill()
        self._plan_changed()
        if any_complete and not self.group_done.given:
            self.group_done.give()
        if not self.collector.busy and not self.drained.given:
            self.drained.give()

    def _ended(self, engine: Engine, ended: Iterable[tuple[float, Trajectory]]) -> bool:
        """Book requests of an engine that end, each with when; whether a group is complete with that now."""
        if self._requests is not None:
            ended = [(at_s, trajectory) for at_s, trajectory in ended if trajectory.done == trajectory.length]
        if self.rolling_out:
            self.collector.ended(ended)
        any_complete, now = False, self.timeline.now
        for at_s, trajectory in ended:
            group: Group = trajectory.group
            group.unfinished -= 1
            if at_s > group.ended_s:
                group.ended_s = at_s
            if group.unfinished:
                continue
            if group.ended_s > now:
                self.timeline.at(group.ended_s, self._on_group_end, group)
            else:
                self._book(group)
                any_complete = True
        self._placement.changed(engine)
        return any_complete

    def _book(self, group: Group) -> None:
        """A group is complete now."""
        del self.running[group.id]
        self.running_versions[group.version] -= 1
        self.status.running -= 1
        self.last_complete = self.timeline.now
        if group.kept:
            self.finished.append(group)
            self.finished_versions[group.version] += 1
            self.status.finished += 1
        else:
            self.collector.lost["filtered"].append(group)

    # ---- what the trainer asks for
    def least_tokens(self, count: int) -> int:
        """The tokens, prompts included, that a batch of so many of the groups at hand has at least."""
        groups = itertools.chain(self.finished, self.running.values())
        return sum(heapq.nsmallest(count, (group.tokens for group in groups)))

    def batch_is_ready(self, part: Policy) -> bool:
        """Whether `part` of a batch may be trained on now; groups that have become too stale are dropped before."""
        policy, status = self.policy, self.status
        if policy.filter_staleness_above is not None:
            for group in [g for g in self.finished if policy.too_stale(status.version, g.oldest_version)]:
                self.finished.remove(group)
                self.finished_versions[group.version] -= 1
                self.collector.lost["too_stale"].append(group)
                status.finished -= 1
        if not part.batch_is_ready(status):
            if policy.continuous:
                self.refill()
            return False
        return not (
            self.case.strict
            and policy.must_wait(status, self.running_versions, self.finished_versions, part.prompts_per_batch)
        )

    def take(self, count: int) -> list[Group]:
        """The batch: the oldest groups under a strict bound, otherwise in the order in which they ended."""
        if self.case.strict and self.policy.mode == "async":
            self.finished.sort(key=lambda g: g.id)
        batch, self.finished = self.finished[:count], self.finished[count:]
        if self.policy.discards_surplus:
            self.collector.lost["surplus"] += self.finished
            self.finished = []
        self.finished_versions = Counter(g.version for g in self.finished)
        self.status.finished = len(self.finished)
        self.status.accepted += count
        return batch

    def end_rollout(self) -> None:
        """A rollout phase ends. What still runs is stopped: april keeps the parts for the next phase, the others lose
        what a filter's refill began."""
        self.collector.end_rollout(self.rollout_began, self.last_complete)
        if self.running:
            self._abort()
        self.rolling_out = False

    def _abort(self) -> None:
        for engine in self.engines:
            if engine.load:
                engine.advance(self.timeline.now)
                if engine.n:
                    self.collector.count(-1)
                stopped = engine.abort(self.timeline.now)
                self.plan(engine)
                now = self.timeline.now
                self._ended(engine, [(now, t) for t in stopped if t.done >= t.length])  # at this very moment
        unfinished, self.running = self.running, {}
        if self.policy.aborts_at_target:
            self.buffer.put_back(unfinished.values())
        else:
            self.collector.lost["surplus"] += unfinished.values()
        self.running_versions.clear()
        self.status.running, self.status.finished = 0, len(self.finished)
        self._placement.reset()
        if self._requests is not None:
            self._requests.clear()

    def slow_down(self, factor: float) -> None:
        """From now on every engine takes `factor` times its usual seconds: a trainer shares the machine, or no
        longer."""
        for engine in self.engines:
            engine.advance(self.timeline.now)
            engine.slow = factor
            if engine.load:
                self.plan(engine)

    def hold(self) -> None:
        """No engine admits a request until the next weights."""
        for engine in self.engines:
            engine.held = True

    def sync_weights(self, pause_s: float) -> None:
        """New weights go out: every engine pauses for so long."""
        now, version = self.timeline.now, self.status.version + 1
        for engine in self.engines:
            engine.advance(now)
            engine.sync_weights(now, version, pause_s)
            engine.held = False
            if engine.n == 0:
                engine.resume = now + pause_s
            if engine.load:
                self.plan(engine)
