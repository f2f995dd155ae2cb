"""A training job that fails and recovers, as SimPy processes. Time jumps from one interruption to the next.

Between interruptions nothing is left to chance: steps of equal length with a checkpoint every so many. So where the job
stands after any time is arithmetic (`SegmentTimeline`), and an event is spent only on failures, slow servers, repairs
and changes of plan, not on steps or checkpoints.

Rules. A failure during recovery starts the recovery over. Work since the last usable checkpoint is done again. Where a
replica is missing, its share of the batch is left out, so more steps are needed (time × R/(R−1)); once it has its
servers it joins between two steps, with the state of its peers, as fault-tolerant data parallelism does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, TypeAlias

import simpy

from sim.base.units import DAY_S
from sim.spec.phases import RunSegment, Throughput
from sim.training.campaign_input import CampaignInput
from sim.training.checkpoints import Checkpoint
from sim.training.failures import Failure, SlowServers

Events: TypeAlias = Generator[simpy.Event, Any, Any]  # a SimPy process


class Interval(NamedTuple):
    """One stretch of the run's timeline, seconds; `tokens` is what is done and kept at its end."""

    start_s: float
    end_s: float
    state: str
    note: str
    tokens: float


class Position(NamedTuple):
    """A place in the run: segment, finished checkpoint periods in it, seconds of nominal work in the present period."""

    segment: int
    period: int = 0
    work_s: float = 0.0


class Advance(NamedTuple):
    """What some time of training came to.

    position: where the job stands. stalled_s: already spent in that place's checkpoint. done_s: nominal work.
    in_stalls_s: time in stalls of checkpoints. first_saved_s: from the start to the first checkpoint finished, if any.
    """

    position: Position
    stalled_s: float
    done_s: float
    in_stalls_s: float
    first_saved_s: float | None


class SegmentTimeline:
    """One segment cut into periods of `steps` steps, each closed by a checkpoint; the last may be shorter."""

    def __init__(self, segment: RunSegment, checkpoint: Checkpoint, mtbf_s: float):
        self.segment, p = segment, segment.throughput
        self.steps = min(segment.steps, checkpoint.steps_between(p.step_s, p.num_chips, mtbf_s))
        self.count = math.ceil(segment.steps / self.steps)
        self.period_s = self.steps * p.step_s
        self.last_s = (segment.steps - (self.count - 1) * self.steps) * p.step_s
        self.stall_s, self.delay_s = checkpoint.stall_s(p.num_chips), checkpoint.delay_s
        self.every = checkpoint.every(self.period_s + self.stall_s)

    def length(self, period: int) -> float:
        """Nominal work of a period, seconds."""
        return self.last_s if period == self.count - 1 else self.period_s

    def work(self, period: int, work_s: float) -> float:
        """Nominal work of the segment up to there, seconds."""
        return (
            (self.count - 1) * self.period_s + self.last_s if period >= self.count else period * self.period_s + work_s
        )

    def wall(self, at: Position, stalled_s: float, slow: float) -> float:
        """Time from there to the end of the segment when a step takes `slow` times as long and nothing happens."""
        periods = self.count - at.period
        return (
            (self.work(self.count, 0.0) - self.work(at.period, at.work_s)) * slow + periods * self.stall_s - stalled_s
        )

    def advance(self, at: Position, stalled_s: float, slow: float, elapsed_s: float) -> Advance:
        """Where the job stands after `elapsed_s` from `at`, of whose period's checkpoint `stalled_s` are already
        spent."""
        begun = self.work(at.period, at.work_s)
        left = (self.length(at.period) - at.work_s) * slow
        if elapsed_s < left:
            at = at._replace(work_s=at.work_s + elapsed_s / slow)
            return Advance(at, 0.0, self.work(at.period, at.work_s) - begun, 0.0, None)
        first = left + self.stall_s - stalled_s
        if elapsed_s < first:
            at = at._replace(work_s=self.length(at.period))
            done, in_stalls = self.work(at.period, at.work_s) - begun, elapsed_s - left
            return Advance(at, stalled_s + elapsed_s - left, done, in_stalls, None)
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
        return Advance(Position(at.segment, period, work_s), stalled, done, elapsed_s - done * slow, first)

    def cycle_s(self, slow: float) -> float:
        """A whole period with its checkpoint's stall."""
        return self.period_s * slow + self.stall_s


class Job:
    """The state of the campaign and the processes that change it."""

    def __init__(
        self, inp: CampaignInput, seed: int, keep_timeline: bool = True, failures: Iterator[Failure] | None = None
    ) -> None:
        self.inp, self.env = inp, simpy.Environment()
        self.timelines = [
            SegmentTimeline(segment, inp.checkpoint, inp.failures.mtbf_s(segment.throughput.num_chips))
            for segment in inp.segments
        ]
        self.before = [0.0]  # nominal work before each segment
        self.tokens_before = [0.0]  # tokens before each segment
        for timeline in self.timelines:
            self.before.append(self.before[-1] + timeline.segment.work_s)
            self.tokens_before.append(self.tokens_before[-1] + timeline.segment.tokens)
        self.position, self.stalled = Position(0), 0.0
        self.saved, self.memory = Position(0), Position(0)  # newest checkpoint in storage, newest in memory
        self.writing: list[tuple[float, Position]] = []  # (when storage will have it, place)
        self.servers = inp.cluster_chips // inp.chips_per_server
        self.repairing = self.missing = self.slow = self.needed = 0
        self.spares = 0
        self._allocate()
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
                "plan change",
            ),
            0.0,
        )
        self.failed: dict[str, int] = {}
        self.repeated = [0.0] * len(self.timelines)  # nominal work done again, by segment
        self.state, self.since = "", 0.0
        self.timeline: list[Interval] | None = [] if keep_timeline else None
        self.returned = self.env.event()
        self.stopped = self.env.event()
        self.process = self.env.process(self.train())
        self.env.process(self.fail(failures if failures is not None else inp.failures.stream(inp.cluster_chips, seed)))
        if inp.slow is not None and inp.slow.per_server_day > 1e-9:  # one in three million years is none
            self.env.process(self.straggler_onset(inp.slow, random.Random(f"slow {seed}")))

    # ------------------------------------------------------------------ the job

    def train(self) -> Events:
        """The job itself: segment after segment, with what interrupts it."""
        env, inp = self.env, self.inp
        while self.position.segment < len(self.timelines):
            timeline, slow = self.timelines[self.position.segment], self.slowdown()
            self._enter_state("train")
            self.slowed = slow
            try:
                yield env.timeout(timeline.wall(self.position, self.stalled, slow))
            except simpy.Interrupt as interrupt:
                yield from self.interrupted(interrupt.cause)
                continue
            self.record(ended=True)
            was, segment = self.position.segment, self.position.segment + 1
            self.position, self.stalled = Position(segment), 0.0
            if (
                segment < len(self.timelines)
                and inp.segments[was].throughput.plan != inp.segments[segment].throughput.plan
            ):
                self._allocate()
                yield from self.pause("plan change", inp.checkpoint.plan_change_s(inp.recovery.restart_s))

    def interrupted(self, cause: object) -> Events:
        """What follows an interruption of training."""
        self.record()
        if isinstance(cause, Failure):
            yield from self.recover(cause)
        elif cause == "swap":
            c, num_chips = self.inp.checkpoint, self.inp.segments[self.position.segment].throughput.num_chips
            failure = yield from self.pause(
                "slow server swap",
                c.stall_s(num_chips)
                + c.delay_s
                + self.inp.recovery.restart_s
                + c.load_s(num_chips, c.kind == "memory"),
                heed=True,
            )
            self._replace_server()  # done either way: a failure's recovery restarts it too
            if failure is None:
                self.saved = self.memory = self.position  # a swap is planned: it saves first
                self.writing.clear()
            else:
                yield from self.recover(failure)

    def recover(self, failure: Failure | None) -> Events:
        """Back to training after a failure; another failure on the way starts it over."""
        while failure is not None:
            from_memory = self._roll_back(failure)
            self.needed += failure.replaces_server
            failure = yield from self.pause("detection", self.inp.recovery.detect_s, failure.component, heed=True)
            while failure is None and self.needed:
                if self.spares > 0:
                    self.spares -= 1
                    self.needed -= 1
                elif self.inp.recovery.elastic and self.missing + 1 < self._throughput().replicas:
                    self.missing += 1
                    self.spares += self._servers_per_replica()  # the others of that replica are now spares
                else:
                    failure = yield from self.pause("waiting for a server", None, heed=True)
            if failure is None:
                failure = yield from self.pause(
                    "restart",
                    self.inp.recovery.restart_s + self.inp.checkpoint.load_s(self._throughput().num_chips, from_memory),
                    heed=True,
                )

    def pause(self, state: str, seconds: float | None, note: str = "", heed: bool = False) -> Events:
        """Spend time not training. Returns the Failure that broke it off (if `heed`), else None; `seconds` None waits
        for a repaired server."""
        until = None if seconds is None else self.env.now + seconds
        while True:
            self._enter_state(state, note)
            try:
                yield self.returned if until is None else self.env.timeout(max(0.0, until - self.env.now))
                self.record()
                return None
            except simpy.Interrupt as interrupt:
                self.record()
                if interrupt.cause == "swap":
                    self._replace_server()  # it stands still anyway
                elif isinstance(interrupt.cause, Failure):
                    if heed:
                        return interrupt.cause
                    # A failure during a change of plan delays it by a whole recovery.
                    yield from self.recover(interrupt.cause)
                    return None

    # ------------------------------------------------------------------ the world around it

    def fail(self, failures: Iterator[Failure]) -> Events:
        """Failures of all chips; those that hit a chip of the job interrupt it."""
        for count, failure in enumerate(failures):
            if failure.time_s > self.env.now:
                yield self.env.timeout(failure.time_s - self.env.now)
            if not self.process.is_alive:
                return
            if count >= self.inp.max_failures:
                self.stopped.succeed()
                return
            if self._hits_the_job(failure.mark):
                self.failed[failure.component] = self.failed.get(failure.component, 0) + 1
                if failure.replaces_server:
                    self.repair()
                self.process.interrupt(failure)
            elif failure.replaces_server:
                self.spares -= 1  # below 0: a server already in repair needs another one
                self.repair()

    def repair(self) -> None:
        """Send a server away; it comes back as a spare. A call-back on a timeout: nothing else happens to it
        meanwhile."""
        self.repairing += 1
        self.env.timeout(self.inp.recovery.repair_s).callbacks.append(self.repaired)

    def repaired(self, _: object) -> None:
        """A server is back: as a spare, in a replica that misses servers, or for who waits for it."""
        self.repairing -= 1
        self.spares += 1
        if self.missing and self.spares >= self._servers_per_replica() and not self.needed:
            self.spares -= self._servers_per_replica()  # a whole replica again
            self.missing -= 1
            if self.state == "train" and self.process.is_alive:
                self.process.interrupt("speed changed")
        if self.state == "waiting for a server":
            self.returned.succeed()
            self.returned = self.env.event()

    def _hits_the_job(self, mark: float) -> bool:
        """Whether what falls on the chip at `mark` (0 to 1) of the cluster falls on one that the job uses."""
        return mark * self.inp.cluster_chips < self._throughput().num_chips

    def straggler_onset(self, slow: SlowServers, rng: random.Random) -> Events:
        """Servers turn slow; those of the job slow it until they are found."""
        while True:
            yield self.env.timeout(rng.expovariate(slow.per_server_day * self.servers / DAY_S))
            if not self.process.is_alive:
                return
            if self._hits_the_job(rng.random()):
                self.slow += 1
                if self.state == "train":
                    self.process.interrupt("speed changed")
                if slow.remove_after_s is not None:
                    self.env.process(self.straggler_detection(slow.remove_after_s))

    def straggler_detection(self, after_s: float) -> Events:
        """The slow server is found and swapped out."""
        yield self.env.timeout(after_s)
        if self.slow and self.process.is_alive:
            self.process.interrupt("swap")

    # ------------------------------------------------------------------ bookkeeping

    def slowdown(self) -> float:
        """How many times longer a step's worth of tokens takes now: slow servers, and replicas that are missing."""
        replicas = self._throughput().replicas
        straggler = self.inp.slow.factor if self.slow and self.inp.slow else 1.0
        return straggler * replicas / (replicas - self.missing)

    def done_s(self, at: Position) -> float:
        """Nominal work from the campaign's start to that place."""
        return self.before[at.segment] + (
            self.timelines[at.segment].work(at.period, at.work_s) if at.segment < len(self.timelines) else 0.0
        )

    def tokens(self, at: Position) -> float:
        """Tokens from the start to that place."""
        whole = self.tokens_before[at.segment]
        if at.segment == len(self.timelines):
            return whole
        throughput = self._throughput(at.segment)
        return (
            whole
            + self.timelines[at.segment].work(at.period, at.work_s) / throughput.step_s * throughput.tokens_per_step
        )

    def _throughput(self, segment: int | None = None) -> Throughput:
        return self.inp.segments[
            min(self.position.segment if segment is None else segment, len(self.timelines) - 1)
        ].throughput

    def _servers_per_replica(self) -> int:
        throughput = self._throughput()
        return max(1, math.ceil(throughput.num_chips / throughput.replicas / self.inp.chips_per_server))

    def _allocate(self) -> None:
        """Give the present plan its servers; what is left over are spares."""
        self.missing = 0
        self.spares = (
            self.servers - self.repairing - math.ceil(self._throughput().num_chips / self.inp.chips_per_server)
        )
        while self.spares < 0:
            if self.missing + 1 < self._throughput().replicas:
                self.missing += 1
                self.spares += self._servers_per_replica()
            else:
                self.spares = 0

    def _replace_server(self) -> None:
        if self.slow:
            self.slow -= 1
            if self.spares > 0:
                self.spares -= 1
                self.repair()

    def _enter_state(self, state: str, note: str = "") -> None:
        self.state, self.note, self.since = state, note, self.env.now

    def record(self, ended: bool = False) -> None:
        """Book the time since `_enter_state`."""
        now, elapsed = self.env.now, self.env.now - self.since
        if self.state == "train":
            self._progress(elapsed, ended)
        else:
            self.lost[self.state] += elapsed
        if self.timeline is not None and elapsed > 0:
            self.timeline.append(Interval(self.since, now, self.state, self.note, self.tokens(self.position)))
        self.since = now

    def _progress(self, elapsed: float, ended: bool) -> None:
        timeline, slow, start = self.timelines[self.position.segment], self.slowed, self.position
        if ended:
            place, stalled = Position(start.segment, timeline.count), 0.0
            done = timeline.work(timeline.count, 0.0) - timeline.work(start.period, start.work_s)
            in_stalls = elapsed - done * slow
            first: float | None = (
                (timeline.length(start.period) - start.work_s) * slow + timeline.stall_s - self.stalled
            )
        else:
            place, stalled, done, in_stalls, first = timeline.advance(start, self.stalled, slow, elapsed)
        self.position, self.stalled = place, stalled
        by_missing = self._throughput(start.segment).replicas / (
            self._throughput(start.segment).replicas - self.missing
        )
        self.lost["fewer replicas"] += done * (by_missing - 1.0)
        self.lost["slow servers"] += done * (slow - by_missing)
        self.lost["checkpoint stall"] += in_stalls
        if first is None:
            return
        self.memory = place._replace(work_s=0.0)
        now, segment = self.env.now, start.segment
        # Newest first: checkpoints that go to storage, until one that storage already has.
        period = place.period if place.period == timeline.count else place.period - place.period % timeline.every
        while period > start.period:
            taken = self.since + first + (period - start.period - 1) * timeline.cycle_s(slow)
            if period == timeline.count:
                taken = min(taken, now)
            self.writing.append((taken + timeline.delay_s, Position(segment, period)))
            if taken + timeline.delay_s <= now:
                break
            period -= period % timeline.every or timeline.every

    def _roll_back(self, failure: Failure) -> bool:
        """Return to the newest usable checkpoint; True if it came from memory."""
        self.saved = max([self.saved] + [at for due, at in self.writing if due <= self.env.now])
        self.writing.clear()  # a write in flight dies with the job
        c, num_chips = self.inp.checkpoint, self._throughput().num_chips
        in_memory = c.kind == "memory" and failure.luck < c.memory_survival
        from_memory = in_memory and (
            self.memory > self.saved or (self.memory == self.saved and c.load_s(num_chips, True) <= c.load_s(num_chips))
        )
        target = self.memory if from_memory else self.saved
        again = self.done_s(self.position) - self.done_s(target)
        self.lost["work done again"] += again
        for segment in range(target.segment, min(self.position.segment, len(self.timelines) - 1) + 1):
            hi = self.done_s(self.position) if segment == self.position.segment else self.before[segment + 1]
            self.repeated[segment] += hi - max(self.before[segment], self.done_s(target))
        self.position, self.stalled, self.memory = target, 0.0, target
        if target.period >= self.timelines[target.segment].count:
            self.position = self.memory = self.saved = Position(target.segment + 1)
        return from_memory
