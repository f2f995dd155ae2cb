"""The accounts of a rollout simulation: who ran when, what was trained, what was lost; and the result made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sim.rollout.case import Case
from sim.rollout.engine import Engine
from sim.rollout.group import Group
from sim.rollout.result import Result, Staleness, Step, Throughput, Utilisation, Waste
from sim.rollout.timeline import Timeline
from sim.rollout.trajectory import Trajectory

TAIL = 0.1  # the tail of a rollout phase: its last share of trajectories to end (Seer, arXiv 2511.14617)
LOSSES = ("filtered", "too_stale", "surplus")  # why a complete group is not trained


@dataclass(frozen=True)
class Totals:
    """Running sums, at the end of the warm-up and at the end."""

    time_s: float = 0.0
    generated_tokens: float = 0.0
    busy_s: float = 0.0  # of all engines
    tail_s: float = 0.0
    active_s: float = 0.0  # with anything running
    running_s: float = 0.0  # requests running, times seconds
    rollout_s: float = 0.0  # of rollout phases
    reprefilled_tokens: int = 0
    preemptions: int = 0
    lost_groups: tuple[int, ...] = (0,) * len(LOSSES)


class Collector:
    """Counts while a simulation runs."""

    def __init__(self, case: Case, timeline: Timeline, engines: Sequence[Engine]) -> None:
        self.case, self.timeline, self.engines = case, timeline, engines
        self.busy = 0  # engines that run anything
        self.steps: list[Step] = []
        self.rollout_spans: list[tuple[float, float]] = []
        self.trainer_spans: list[tuple[str, float, float]] = []
        self.lost: dict[str, list[Group]] = {reason: [] for reason in LOSSES}
        self.trained_groups = 0
        self._watched: list[list[tuple[float, int]]] = [[(0.0, 0)] for _ in range(min(case.watch, len(engines)))]
        self._last_change = 0.0
        self._ends: list[float] = []  # of trajectories of this rollout phase
        self._tail_s = self._active_s = 0.0
        self._begin = Totals()
        self._restart_staleness()

    def _restart_staleness(self) -> None:
        self._tokens: Counter[int] = Counter()  # versions behind → trained tokens
        self._oldest: Counter[int] = Counter()  # versions behind of the oldest token → trajectories
        self._max_span = 0

    # ---- while it runs
    def count(self, change: int) -> None:
        """Book that so many engines more run something."""
        if self.busy:
            self._active_s += self.timeline.now - self._last_change
        self._last_change = self.timeline.now
        self.busy += change

    def ended(self, ended: Iterable[tuple[float, Trajectory]]) -> None:
        """Book trajectories that end, each with when."""
        self._ends += [at_s for at_s, _ in ended]

    def end_rollout(self, began: float, last: float) -> None:
        """A rollout phase is over: its time, and the time in which only its last trajectories were still to end."""
        self.rollout_spans.append((began, last))
        if self._ends:
            self._ends.sort()
            before_tail = max(1, math.ceil((1.0 - TAIL) * len(self._ends)))
            self._tail_s += max(0.0, last - self._ends[before_tail - 1])
            self._ends = []

    def watch(self, engine: Engine, at_s: float) -> None:
        """Remember how many requests an engine, one of those for the picture, runs from then on."""
        self._watched[engine.id].append((at_s, engine.n))

    def trained(self, groups: Sequence[Group], version: int) -> Step:
        """Book a step's groups, trained from weights of this version; the caller fills in the step's times."""
        by_version: Counter[int] = Counter()  # weights that sampled → tokens
        oldest_of: Counter[int] = Counter()  # oldest weights of a trajectory → trajectories
        for group in groups:
            for trajectory in group.samples:
                if not trajectory.earlier and trajectory.done:
                    by_version[trajectory.sampled_by] += trajectory.done
                    oldest_of[trajectory.sampled_by] += 1
                    continue
                segments = trajectory.segments
                oldest = newest = segments[0][0] if segments else version
                for sampled_by, count in segments:
                    by_version[sampled_by] += count
                    if sampled_by > newest:
                        newest = sampled_by
                    elif sampled_by < oldest:
                        oldest = sampled_by
                oldest_of[oldest] += 1
                if newest - oldest > self._max_span:
                    self._max_span = newest - oldest
            group.samples.clear()  # and each knew its group: gone now, not when all is swept at the end
        for sampled_by, count in by_version.items():
            self._tokens[version - sampled_by] += count
        for sampled_by, count in oldest_of.items():
            self._oldest[version - sampled_by] += count
        tokens, stale = by_version.total(), by_version.total() - by_version[version]
        worst = max((version - sampled_by for sampled_by, count in by_version.items() if count), default=0)
        self.trained_groups += len(groups)
        step = Step(
            end_s=self.timeline.now,
            wait_s=0.0,
            train_s=0.0,
            weight_sync_s=0.0,
            tokens=tokens,
            stale_share=stale / tokens if tokens else 0.0,
            staleness_max=worst,
        )
        self.steps.append(step)
        return step

    def end_warmup(self) -> None:
        """Figures count from here."""
        self._begin = self._totals()
        self._restart_staleness()

    def _totals(self) -> Totals:
        for engine in self.engines:
            engine.advance(self.timeline.now)
        self.count(0)
        return Totals(
            time_s=self.timeline.now,
            generated_tokens=sum(e.tokens for e in self.engines),
            busy_s=sum(e.busy_s for e in self.engines),
            tail_s=self._tail_s,
            active_s=self._active_s,
            running_s=sum(e.running_s for e in self.engines),
            rollout_s=sum(end - start for start, end in self.rollout_spans),
            reprefilled_tokens=sum(e.reprefilled for e in self.engines),
            preemptions=sum(e.preemptions for e in self.engines),
            lost_groups=tuple(len(groups) for groups in self.lost.values()),
        )

    # ---- at the end
    def result(self, left: Mapping[str, Iterable[Group]], submitted: int) -> Result:
        """The figures since the warm-up.

        Args:
            left: groups that are neither trained nor lost, by where they are. submitted: groups in all.
        """
        case, begin, end = self.case, self._begin, self._totals()
        steps = tuple(self.steps[case.warmup :])
        size = case.samples_per_prompt
        counts = {
            "submitted": submitted * size,
            "trained": self.trained_groups * size,
            "waiting": _trajectories(left["waiting"]),
            **{reason: _trajectories(groups) for reason, groups in self.lost.items()},
            "buffered": _trajectories(left["buffered"]),
            "running": _trajectories(left["running"]),
        }
        wasted = {
            reason: sum(t.done for group in groups[before:] for t in group.samples)
            for (reason, groups), before in zip(self.lost.items(), begin.lost_groups, strict=True)
        }
        return Result(
            name=case.name,
            mode=case.policy.mode,
            seconds=end.time_s - begin.time_s,
            chips=case.chips,
            steps=steps,
            throughput=self._throughput(steps, begin, end),
            utilisation=self._utilisation(steps, begin, end),
            staleness=Staleness(
                tokens=dict(self._tokens),
                max=max(self._tokens, default=0),
                oldest=dict(self._oldest),
                max_span=self._max_span,
            ),
            waste=Waste(
                tokens=wasted,
                reprefilled_tokens=end.reprefilled_tokens - begin.reprefilled_tokens,
                preemptions=end.preemptions - begin.preemptions,
            ),
            counts=counts,
            watched=tuple(map(tuple, self._watched)),
            trainer_spans=tuple(self.trainer_spans),
        )

    def _throughput(self, steps: Sequence[Step], begin: Totals, end: Totals) -> Throughput:
        seconds, generated = end.time_s - begin.time_s, end.generated_tokens - begin.generated_tokens
        tokens = sum(step.tokens for step in steps)
        rollouts = [stop - start for start, stop in self.rollout_spans if start >= begin.time_s - 1e-12]
        return Throughput(
            step_s=seconds / len(steps),
            rollout_s=sum(rollouts) / len(rollouts) if rollouts else seconds / len(steps),
            generated_tokens=generated,
            tokens_per_s=generated / seconds if seconds else 0.0,
            trained_tokens=tokens,
            trained_tokens_per_s=tokens / seconds if seconds else 0.0,
            trained_trajectories=len(steps) * self.case.policy.prompts_per_batch * self.case.samples_per_prompt,
        )

    def _utilisation(self, steps: Sequence[Step], begin: Totals, end: Totals) -> Utilisation:
        case, seconds = self.case, end.time_s - begin.time_s
        busy_s, rollout_s, active_s = (
            end.busy_s - begin.busy_s,
            end.rollout_s - begin.rollout_s,
            end.active_s - begin.active_s,
        )
        engine_s = case.engines * (rollout_s if case.colocated else seconds)
        rollout_idle = max(0.0, 1.0 - busy_s / engine_s) if engine_s else 0.0
        if case.colocated:
            trainer_idle = 0.0
            idle_share = max(0.0, rollout_s - busy_s / case.engines) / seconds if seconds else 0.0
        else:
            train_s = sum(step.train_s for step in steps)
            trainer_idle = max(0.0, 1.0 - train_s / seconds) if seconds else 0.0
            idle_chips = rollout_idle * (case.engines * case.chips_per_engine) + trainer_idle * case.train_chips
            idle_share = idle_chips / case.chips if case.chips else rollout_idle
        return Utilisation(
            idle_share=idle_share,
            rollout_idle=rollout_idle,
            trainer_idle=trainer_idle,
            tail_share=(end.tail_s - begin.tail_s) / rollout_s if rollout_s else 0.0,
            mean_running=(end.running_s - begin.running_s) / active_s / case.engines if active_s else 0.0,
        )


def _trajectories(groups: Iterable[Group]) -> int:
    return sum(len(group.samples) for group in groups)
