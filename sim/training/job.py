"""A training job that fails and recovers, as SimPy processes. Time jumps from one interruption to the next.

Between interruptions nothing is left to chance: steps of equal length with a checkpoint every so many. So where the job
stands after any time is arithmetic (`Course`), and an event is spent only on failures, slow servers, repairs and phase
changes, not on steps or checkpoints.

Rules. A failure during recovery starts the recovery over. Work since the last usable checkpoint is done again. Where a
replica is missing, its share of the batch is left out, so more steps are needed (time × R/(R−1)); once it has its servers
it joins between two steps, with the state of its peers, as fault-tolerant data parallelism does.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import simpy

from sim.base.units import DAY_S
from sim.spec.phases import Leg
from sim.training.checkpoints import Checkpoint
from sim.training.failures import Failure


class Span(NamedTuple):
    """One stretch of the campaign's timeline, seconds; `tokens` is what is done and kept at its end."""

    start_s: float
    end_s: float
    state: str
    note: str
    tokens: float


class At(NamedTuple):
    """A place in the campaign: leg, finished checkpoint periods in it, seconds of nominal work in the present period."""

    leg: int
    period: int = 0
    work_s: float = 0.0


class Course:
    """One leg cut into periods of `steps` steps, each closed by a checkpoint; the last may be shorter."""

    def __init__(self, leg: Leg, checkpoint: Checkpoint, mtbf_s: float):
        self.leg, p = leg, leg.pace
        self.steps = min(leg.steps, checkpoint.steps_between(p.step_s, p.num_chips, mtbf_s))
        self.count = math.ceil(leg.steps / self.steps)
        self.period_s = self.steps * p.step_s
        self.last_s = (leg.steps - (self.count - 1) * self.steps) * p.step_s
        self.stall_s, self.delay_s = checkpoint.stall_s(p.num_chips), checkpoint.delay_s
        self.every = checkpoint.every(self.period_s + self.stall_s)

    def length(self, period: int) -> float:
        return self.last_s if period == self.count - 1 else self.period_s

    def work(self, period: int, work_s: float) -> float:
        """Nominal work of the leg up to there, seconds."""
        return (
            (self.count - 1) * self.period_s + self.last_s if period >= self.count else period * self.period_s + work_s
        )

    def wall(self, at: At, stalled_s: float, slow: float) -> float:
        """Time from there to the end of the leg when a step takes `slow` times as long and nothing happens."""
        periods = self.count - at.period
        return (
            (self.work(self.count, 0.0) - self.work(at.period, at.work_s)) * slow + periods * self.stall_s - stalled_s
        )

    def advance(self, at: At, stalled_s: float, slow: float, elapsed_s: float):
        """Where the job stands after `elapsed_s` from `at`, of whose period's checkpoint `stalled_s` are already spent.

        Returns (place, seconds stalled in its checkpoint, nominal work done, time spent in stalls, time from the start to
        the first checkpoint finished, or None when there was none).
        """
        begun = self.work(at.period, at.work_s)
        left = (self.length(at.period) - at.work_s) * slow
        if elapsed_s < left:
            at = at._replace(work_s=at.work_s + elapsed_s / slow)
            return at, 0.0, self.work(at.period, at.work_s) - begun, 0.0, None
        first = left + self.stall_s - stalled_s
        if elapsed_s < first:
            at = at._replace(work_s=self.length(at.period))
            return at, stalled_s + elapsed_s - left, self.work(at.period, at.work_s) - begun, elapsed_s - left, None
        rest, cycle = elapsed_s - first, self.period_s * slow + self.stall_s
        whole = min(int(rest / cycle), self.count - 2 - at.period) if cycle and at.period < self.count - 1 else 0
        period, rest = at.period + 1 + whole, rest - whole * cycle
        work_s = stalled = 0.0
        if period < self.count:
            work_s = min(rest / slow, self.length(period))
            stalled = max(0.0, rest - self.length(period) * slow)
            if work_s == self.length(period) and stalled >= self.stall_s:
                period, work_s, stalled = period + 1, 0.0, 0.0
        done = self.work(period, work_s) - begun
        return At(at.leg, period, work_s), stalled, done, elapsed_s - done * slow, first

    def cycle_s(self, slow: float) -> float:
        return self.period_s * slow + self.stall_s


class Job:
    """The state of the campaign and the processes that change it."""

    def __init__(self, inp, seed: int, keep_timeline: bool = True, failures=None):
        self.inp, self.env = inp, simpy.Environment()
        self.courses = [Course(leg, inp.checkpoint, inp.failures.mtbf_s(leg.pace.num_chips)) for leg in inp.legs]
        self.before = [0.0]  # nominal work before each leg
        self.tokens_before = [0.0]  # tokens before each leg
        for course in self.courses:
            self.before.append(self.before[-1] + course.leg.work_s)
            self.tokens_before.append(self.tokens_before[-1] + course.leg.tokens)
        self.at, self.stalled = At(0), 0.0
        self.saved, self.memory = At(0), At(0)  # newest checkpoint in storage, newest in memory
        self.writing: list[tuple[float, At]] = []  # (when storage will have it, place)
        self.servers = inp.cluster_chips // inp.chips_per_server
        self.repairing = self.missing = self.slow = self.needed = 0
        self.spares = 0
        self._staff()
        self.lost = dict.fromkeys(
            (
                "checkpoint stall",
                "work done again",
                "detection",
                "restart",
                "waiting for a server",
                "fewer replicas",
                "slow servers",
                "slow server swap",
                "phase change",
            ),
            0.0,
        )
        self.failed: dict[str, int] = {}
        self.repeated = [0.0] * len(self.courses)  # nominal work done again, by leg
        self.state, self.since = "", 0.0
        self.timeline: list[Span] | None = [] if keep_timeline else None
        self.returned = self.env.event()
        self.stopped = self.env.event()
        self.process = self.env.process(self.train())
        self.env.process(self.fail(failures if failures is not None else inp.failures.stream(inp.cluster_chips, seed)))
        if inp.slow is not None and inp.slow.per_server_day > 1e-9:  # one in three million years is none
            self.env.process(self.turn_slow(random.Random(f"slow {seed}")))

    # ------------------------------------------------------------------ the job

    def train(self):
        env, inp = self.env, self.inp
        while self.at.leg < len(self.courses):
            course, slow = self.courses[self.at.leg], self.slowdown()
            self._enter("train")
            self.slowed = slow
            try:
                yield env.timeout(course.wall(self.at, self.stalled, slow))
            except simpy.Interrupt as interrupt:
                yield from self.interrupted(interrupt.cause)
                continue
            self._account(ended=True)
            was, leg = self.at.leg, self.at.leg + 1
            self.at, self.stalled = At(leg), 0.0
            if leg < len(self.courses) and inp.legs[was].pace.plan != inp.legs[leg].pace.plan:
                self._staff()
                yield from self.pause(
                    "phase change", inp.recovery.restart_s + inp.checkpoint.load_s(inp.legs[leg].pace.num_chips)
                )

    def interrupted(self, cause):
        """What follows an interruption of training."""
        self._account()
        if isinstance(cause, Failure):
            yield from self.recover(cause)
        elif cause == "swap":
            c, chips = self.inp.checkpoint, self.inp.legs[self.at.leg].pace.num_chips
            failure = yield from self.pause(
                "slow server swap",
                c.stall_s(chips) + c.delay_s + self.inp.recovery.restart_s + c.load_s(chips, c.kind == "memory"),
                heed=True,
            )
            self._swap()  # done either way: a failure's recovery restarts it too
            if failure is None:
                self.saved = self.memory = self.at  # a swap is planned: it saves first
                self.writing.clear()
            else:
                yield from self.recover(failure)

    def recover(self, failure: Failure):
        """Back to training after a failure; another failure on the way starts it over."""
        while failure is not None:
            from_memory = self._roll_back(failure)
            self.needed += failure.replaces_server
            failure = yield from self.pause("detection", self.inp.recovery.detect_s, failure.component, heed=True)
            while failure is None and self.needed:
                if self.spares > 0:
                    self.spares -= 1
                    self.needed -= 1
                elif self.inp.recovery.elastic and self.missing + 1 < self._pace().replicas:
                    self.missing += 1
                    self.spares += self._servers_per_replica()  # the others of that replica are now spares
                else:
                    failure = yield from self.pause("waiting for a server", None, heed=True)
            if failure is None:
                failure = yield from self.pause(
                    "restart",
                    self.inp.recovery.restart_s + self.inp.checkpoint.load_s(self._pace().num_chips, from_memory),
                    heed=True,
                )

    def pause(self, state: str, seconds: float | None, note: str = "", heed: bool = False):
        """Spend time not training. Returns the Failure that broke it off (if `heed`), else None; `seconds` None waits for a
        repaired server."""
        until = None if seconds is None else self.env.now + seconds
        while True:
            self._enter(state, note)
            try:
                yield self.returned if until is None else self.env.timeout(max(0.0, until - self.env.now))
                self._account()
                return None
            except simpy.Interrupt as interrupt:
                self._account()
                if interrupt.cause == "swap":
                    self._swap()  # it stands still anyway
                elif isinstance(interrupt.cause, Failure):
                    if heed:
                        return interrupt.cause
                    # A failure during a phase change delays it by a whole recovery.
                    yield from self.recover(interrupt.cause)
                    return None

    # ------------------------------------------------------------------ the world around it

    def fail(self, failures):
        for count, failure in enumerate(failures):
            if failure.time_s > self.env.now:
                yield self.env.timeout(failure.time_s - self.env.now)
            if not self.process.is_alive:
                return
            if count >= self.inp.max_failures:
                self.stopped.succeed()
                return
            if failure.mark * self.inp.cluster_chips < self._pace().num_chips:
                self.failed[failure.component] = self.failed.get(failure.component, 0) + 1
                if failure.replaces_server:
                    self.repair()
                self.process.interrupt(failure)
            elif failure.replaces_server:
                self.spares -= 1  # below 0: a server already in repair needs another one
                self.repair()

    def repair(self):
        """Send a server away; it comes back as a spare. A call-back on a timeout: nothing else happens to it meanwhile."""
        self.repairing += 1
        self.env.timeout(self.inp.recovery.repair_s).callbacks.append(self.repaired)

    def repaired(self, _):
        self.repairing -= 1
        self.spares += 1
        if self.missing and self.spares >= self._servers_per_replica() and not self.needed:
            self.spares -= self._servers_per_replica()  # a whole replica again
            self.missing -= 1
            if self.state == "train" and self.process.is_alive:
                self.process.interrupt("pace")
        if self.state == "waiting for a server":
            self.returned.succeed()
            self.returned = self.env.event()

    def turn_slow(self, rng: random.Random):
        slow = self.inp.slow
        while True:
            yield self.env.timeout(rng.expovariate(slow.per_server_day * self.servers / DAY_S))
            if not self.process.is_alive:
                return
            if rng.random() * self.inp.cluster_chips < self._pace().num_chips:
                self.slow += 1
                if self.state == "train":
                    self.process.interrupt("pace")
                if slow.remove_after_s is not None:
                    self.env.process(self.find_slow())

    def find_slow(self):
        yield self.env.timeout(self.inp.slow.remove_after_s)
        if self.slow and self.process.is_alive:
            self.process.interrupt("swap")

    # ------------------------------------------------------------------ bookkeeping

    def slowdown(self) -> float:
        replicas = self._pace().replicas
        return (self.inp.slow.factor if self.slow else 1.0) * replicas / (replicas - self.missing)

    def done_s(self, at: At) -> float:
        """Nominal work from the campaign's start to that place."""
        return self.before[at.leg] + (
            self.courses[at.leg].work(at.period, at.work_s) if at.leg < len(self.courses) else 0.0
        )

    def tokens(self, at: At) -> float:
        whole = self.tokens_before[at.leg]
        if at.leg == len(self.courses):
            return whole
        pace = self._pace(at.leg)
        return whole + self.courses[at.leg].work(at.period, at.work_s) / pace.step_s * pace.tokens_per_step

    def _pace(self, leg: int | None = None):
        return self.inp.legs[min(self.at.leg if leg is None else leg, len(self.courses) - 1)].pace

    def _servers_per_replica(self) -> int:
        pace = self._pace()
        return max(1, math.ceil(pace.num_chips / pace.replicas / self.inp.chips_per_server))

    def _staff(self) -> None:
        """Give the present plan its servers; what is left over are spares."""
        self.missing = 0
        self.spares = self.servers - self.repairing - math.ceil(self._pace().num_chips / self.inp.chips_per_server)
        while self.spares < 0:
            if self.missing + 1 < self._pace().replicas:
                self.missing += 1
                self.spares += self._servers_per_replica()
            else:
                self.spares = 0

    def _swap(self) -> None:
        if self.slow:
            self.slow -= 1
            if self.spares > 0:
                self.spares -= 1
                self.repair()

    def _enter(self, state: str, note: str = "") -> None:
        self.state, self.note, self.since = state, note, self.env.now

    def _account(self, ended: bool = False) -> None:
        """Book the time since `_enter`."""
        now, elapsed = self.env.now, self.env.now - self.since
        if self.state == "train":
            self._progress(elapsed, ended)
        else:
            self.lost[self.state] += elapsed
        if self.timeline is not None and elapsed > 0:
            self.timeline.append(Span(self.since, now, self.state, self.note, self.tokens(self.at)))
        self.since = now

    def _progress(self, elapsed: float, ended: bool) -> None:
        course, slow, start = self.courses[self.at.leg], self.slowed, self.at
        if ended:
            place, stalled = At(start.leg, course.count), 0.0
            done = course.work(course.count, 0.0) - course.work(start.period, start.work_s)
            stall, first = (
                elapsed - done * slow,
                (course.length(start.period) - start.work_s) * slow + course.stall_s - self.stalled,
            )
        else:
            place, stalled, done, stall, first = course.advance(start, self.stalled, slow, elapsed)
        self.at, self.stalled = place, stalled
        by_missing = self._pace(start.leg).replicas / (self._pace(start.leg).replicas - self.missing)
        self.lost["fewer replicas"] += done * (by_missing - 1.0)
        self.lost["slow servers"] += done * (slow - by_missing)
        self.lost["checkpoint stall"] += stall
        if first is None:
            return
        self.memory = place._replace(work_s=0.0)
        now, leg = self.env.now, start.leg
        # Newest first: checkpoints that go to storage, until one that storage already has.
        period = place.period if place.period == course.count else place.period - place.period % course.every
        while period > start.period:
            taken = self.since + first + (period - start.period - 1) * course.cycle_s(slow)
            if period == course.count:
                taken = min(taken, now)
            self.writing.append((taken + course.delay_s, At(leg, period)))
            if taken + course.delay_s <= now:
                break
            period -= period % course.every or course.every

    def _roll_back(self, failure: Failure) -> bool:
        """Return to the newest usable checkpoint; True if it came from memory."""
        self.saved = max([self.saved] + [at for due, at in self.writing if due <= self.env.now])
        self.writing.clear()  # a write in flight dies with the job
        c, chips = self.inp.checkpoint, self._pace().num_chips
        in_memory = c.kind == "memory" and failure.luck < c.memory_survival
        from_memory = in_memory and (
            self.memory > self.saved or self.memory == self.saved and c.load_s(chips, True) <= c.load_s(chips)
        )
        target = self.memory if from_memory else self.saved
        again = self.done_s(self.at) - self.done_s(target)
        self.lost["work done again"] += again
        for leg in range(target.leg, min(self.at.leg, len(self.courses) - 1) + 1):
            hi = self.done_s(self.at) if leg == self.at.leg else self.before[leg + 1]
            self.repeated[leg] += hi - max(self.before[leg], self.done_s(target))
        self.at, self.stalled, self.memory = target, 0.0, target
        if target.period >= self.courses[target.leg].count:
            self.at = self.memory = self.saved = At(target.leg + 1)
        return from_memory
