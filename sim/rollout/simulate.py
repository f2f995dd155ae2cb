"""Asynchronous RL on a cluster: rollout engines, a data buffer, a trainer, weight pushes (SimPy).

The rules are `minglm.rl.policy.Policy`, the ones that the real loop obeys: who may start, when a batch is ready, what is too
stale. This file adds time: engines decode at rates that depend on batch and cache (`sim.rollout.engine`), the trainer takes
seconds per token, a push takes seconds. One event per completion, none per token, so that half a million trajectories on
three thousand engines take seconds of one core.

    >>> from sim.rollout.engine import DecodeCurve
    >>> from sim.rollout.lengths import Lengths
    >>> case = Case(Policy("sync", prompts_per_batch=8), 4, Lengths.lognormal(500, 4000), 2, DecodeCurve(((1, 0.01), (16, 0.02))), steps=2)
    >>> simulate(case).trained_trajectories
    64

Units: seconds and tokens. A *group* is one prompt with all its samples; only complete groups train. Deterministic: lengths
are drawn per group in the order of creation from one seed, so that every mode meets the same groups.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections import Counter
from dataclasses import replace

import simpy

from minglm.errors import InputError
from minglm.rl.policy import PartialBuffer, Policy, Status
from sim.rollout.case import Case, Result, Step
from sim.rollout.engine import Engine, Trajectory

__all__ = ["Case", "Result", "Step", "simulate"]

TAIL = 0.1  # the tail: time while fewer than this share of the most trajectories in flight were still running


class Group:
    """One prompt with its samples. `version`: weights when it was first submitted."""

    __slots__ = ("id", "samples", "left", "version", "kept")

    def __init__(self, id: int, version: int, kept: bool):
        self.id, self.version, self.kept = id, version, kept
        self.samples: list[Trajectory] = []
        self.left = 0


class _Run:
    """The processes of one simulation."""

    def __init__(self, case: Case):
        self.case, self.policy, self.env = case, case.policy, simpy.Environment()
        self.rng = random.Random(case.seed)
        self.engines = [
            Engine(
                i,
                case.curve,
                case.prefill_s_per_token,
                case.prefill_fixed_s,
                case.kv_limit,
                case.max_running,
                case.reuse_kv_cache,
                case.topk,
                case.share_prompts,
                case.kv_offload_s,
            )
            for i in range(case.engines)
        ]
        self.loads = [(0, i) for i in range(case.engines)]  # heap of (load, engine), stale entries skipped
        self.status, self.buffer = Status(), PartialBuffer()
        self.running: dict[int, Group] = {}  # by id, in order of submission
        self.finished: list[Group] = []
        self.running_versions, self.finished_versions = Counter(), Counter()  # groups by the version they started at
        self.bell, self.drained = self.env.event(), self.env.event()
        self.rolling_since = self.last_complete = 0.0
        self.made, self.rolling, self.in_flight, self.peak = 0, False, 0, 0
        self.dirty: dict[int, Engine] = {}
        self.filtered: list[Group] = []
        self.dropped: list[Group] = []
        self.surplus: list[Group] = []
        self.trained = 0
        self.steps: list[Step] = []
        self.rollout_spans: list[tuple[float, float]] = []
        self.trainer_spans: list[tuple[str, float, float]] = []
        self.watched = [[(0.0, 0)] for _ in range(min(case.watch, case.engines))]
        self.last_change = self.tail_s = self.active_s = self.running_area = 0.0
        self.staleness, self.oldest, self.span = Counter(), Counter(), 0
        self.start = {
            "time": 0.0,
            "generated": 0.0,
            "busy": 0.0,
            "tail": 0.0,
            "active": 0.0,
            "area": 0.0,
            "rolling": 0.0,
            "filtered": 0,
            "dropped": 0,
            "surplus": 0,
            "reprefilled": 0,
            "preemptions": 0,
        }

    # ---- submission
    def refill(self) -> None:
        """Start what the policy allows: unfinished groups first, then new prompts."""
        room = self.policy.groups_to_submit(self.status)
        while room > 0:
            groups = self.buffer.take(room)
            groups += [self._new() for _ in range(room - len(groups))]
            for group in groups:
                self.running[group.id] = group
                self.running_versions[group.version] += 1
                self.status.running += 1
                for trajectory in group.samples:
                    if trajectory.done < trajectory.length:
                        self._dispatch(trajectory)
            room = self.policy.groups_to_submit(self.status)
        self._flush()

    def _new(self) -> Group:
        case = self.case
        group = Group(self.made, self.status.version, case.filter_keep >= 1.0)
        lengths = case.lengths.draw_group(self.rng, case.samples_per_prompt, self.made)
        if case.filter_keep < 1.0:
            group.kept = self.rng.random() < case.filter_keep
        prompt = case.lengths.prompt_of(self.made)
        group.samples = [Trajectory(group, n, prompt) for n in lengths]
        group.left = len(lengths)
        self.made += 1
        return group

    def _dispatch(self, trajectory: Trajectory) -> None:
        """To the engine with the fewest requests, the first of equals."""
        loads, engines = self.loads, self.engines
        if len(loads) > 8 * len(engines) + 64:
            self.loads = loads = [(e.load, e.id) for e in engines]
            heapq.heapify(loads)
        while True:
            load, i = loads[0]
            engine = engines[i]
            if engine.n + len(engine.queue) == load:
                break
            heapq.heappop(loads)
        if i not in self.dirty:
            self._touch(engine)
        engine.queue.append(trajectory)
        heapq.heapreplace(loads, (load + 1, i))

    def _touch(self, engine: Engine) -> None:
        engine.advance(self.env.now)
        self.dirty[engine.id] = engine

    def _flush(self) -> None:
        """Admit and plan the next event of every engine that changed."""
        dirty, self.dirty = self.dirty, {}
        for engine in dirty.values():
            self._plan(engine)

    def _plan(self, engine: Engine) -> None:
        now = self.env.now
        new = engine.admit(now)
        if new:
            self._count(new)
        if engine.id < len(self.watched):
            self.watched[engine.id].append((now, engine.n))
        engine.timer += 1
        at = engine.next_event(now)
        if at is not None:
            timer = self.env.timeout(max(0.0, at - now), (engine, engine.timer))
            timer.callbacks.append(self._due)

    def _count(self, change: int) -> None:
        """Book how many requests run in all engines together."""
        now = self.env.now
        dt = now - self.last_change
        if dt > 0.0:
            if self.in_flight:
                self.active_s += dt
                self.running_area += dt * self.in_flight
                if self.in_flight < TAIL * self.peak:
                    self.tail_s += dt
            self.last_change = now
        self.in_flight += change
        if self.in_flight > self.peak:
            self.peak = self.in_flight

    # ---- what happens
    def _due(self, event) -> None:
        engine, timer = event.value
        if timer != engine.timer:
            return  # the engine changed since
        before = engine.n
        ended = engine.fire(self.env.now)
        self._count(engine.n - before)
        self.dirty[engine.id] = engine
        complete = False
        for trajectory in ended:
            group = trajectory.group
            group.left -= 1
            if not group.left:
                complete = True
                self._complete(group)
        heapq.heappush(self.loads, (engine.n + len(engine.queue), engine.id))
        if complete and (self.policy.continuous or self.rolling):
            self.refill()
        self._flush()
        if complete and not self.bell.triggered:
            self.bell.succeed()
        if not self.in_flight and not self.drained.triggered:
            self.drained.succeed()

    def _complete(self, group: Group) -> None:
        del self.running[group.id]
        self.running_versions[group.version] -= 1
        self.last_complete = self.env.now
        self.status.running -= 1
        if not group.kept:
            self.filtered.append(group)
            return
        self.finished.append(group)
        self.finished_versions[group.version] += 1
        self.status.finished += 1

    # ---- the trainer
    def trainer(self):
        case, policy, env = self.case, self.policy, self.env
        share = policy.prompts_per_batch // case.parts
        part = replace(policy, prompts_per_batch=share, over_sampling=None) if case.parts > 1 else policy
        updates = 0
        self._begin()
        while updates < case.steps * case.parts:
            waited = trained = 0.0
            used: list[Group] = []
            for k in range(case.parts):
                last = k == case.parts - 1
                start = env.now
                while not self._ready(part):
                    self.bell = env.event()
                    yield self.bell
                waited += env.now - start
                if last and not policy.continuous:
                    self.rollout_spans.append((self.rolling_since, self.last_complete))
                    if self.running:
                        self._abort()
                    self.rolling = False
                batch = self._take(share)
                used += batch
                if last and policy.generates_ahead:
                    self._begin()
                if policy.continuous:
                    self.refill()
                rows = [t.length + t.prompt for g in batch for t in g.samples]
                seconds = case.train_seconds(rows)
                if self.in_flight:
                    seconds *= case.train_interference
                seconds += case.overhead_s if last else 0.0
                self.trainer_spans.append(("train", env.now, env.now + seconds))
                self._slow_down(case.decode_interference)
                yield env.timeout(seconds)
                self._slow_down(1.0)
                trained += seconds
                updates += 1
            self._book(used)
            pushed = 0.0
            if policy.syncs_weights_after(updates // case.parts):
                start = env.now
                yield from self._push()
                pushed = env.now - start
                self.trainer_spans.append(("weight_sync", env.now - case.weight_sync_s, env.now))
            step = self.steps[-1]
            step.end_s, step.wait_s, step.train_s, step.weight_sync_s = env.now, waited, trained, pushed
            if len(self.steps) == case.warmup:
                self._restart()
            if updates < case.steps * case.parts:
                if policy.continuous:
                    self.refill()
                elif not policy.generates_ahead:
                    self._begin()

    def _slow_down(self, factor: float) -> None:
        """From now on every engine takes `factor` times its usual seconds: a trainer works beside it, or no longer."""
        if self.case.decode_interference == 1.0:
            return
        for engine in self.engines:
            engine.advance(self.env.now)
            engine.slow = factor
            if engine.load:
                self._plan(engine)

    def _begin(self) -> None:
        self.rolling, self.rolling_since = True, self.env.now
        self.refill()

    def _ready(self, part: Policy) -> bool:
        policy, status = self.policy, self.status
        if policy.filter_staleness_above is not None:
            for group in [g for g in self.finished if policy.too_stale(status.version, _oldest(g))]:
                self.finished.remove(group)
                self.finished_versions[group.version] -= 1
                self.dropped.append(group)
                status.finished -= 1
        if not part.batch_is_ready(status):
            if policy.continuous:
                self.refill()
            return False
        return not (
            self.case.strict
            and policy.must_wait(status, self.running_versions, self.finished_versions, part.prompts_per_batch)
        )

    def _take(self, count: int) -> list[Group]:
        """The batch: the oldest groups under a strict bound, otherwise in the order in which they ended."""
        if self.case.strict and self.policy.mode == "async":
            self.finished.sort(key=lambda g: g.id)
        batch, self.finished = self.finished[:count], self.finished[count:]
        if self.policy.discards_surplus:
            self.surplus += self.finished
            self.finished = []
        self.finished_versions = Counter(g.version for g in self.finished)
        self.status.finished = len(self.finished)
        self.status.accepted += count
        return batch

    def _abort(self) -> None:
        """Stop what still runs: april keeps the parts for the next round, the others lose what a filter's refill began."""
        for engine in self.engines:
            if engine.load:
                engine.advance(self.env.now)
                before = engine.n
                stopped = engine.abort(self.env.now)
                self._count(-before)
                self._plan(engine)
                for trajectory in stopped:
                    if trajectory.done >= trajectory.length:  # it ended at this very moment
                        trajectory.group.left -= 1
                        if not trajectory.group.left:
                            self._complete(trajectory.group)
        left, self.running = self.running, {}
        if self.policy.aborts_at_target:
            self.buffer.put_back(left.values())
        else:
            self.surplus += left.values()
        self.running_versions.clear()
        self.status.running, self.status.finished = 0, len(self.finished)
        self.loads = [(0, e.id) for e in self.engines]

    def _push(self):
        env, case, status = self.env, self.case, self.status
        if self.policy.generates_ahead:
            while status.running:  # the rollout ends first
                self.bell = env.event()
                yield self.bell
        elif self.policy.continuous and not case.interruptible:
            for engine in self.engines:
                engine.held = True
            if self.in_flight:
                self.drained = env.event()
                yield self.drained
        version = status.version + 1
        for engine in self.engines:
            engine.advance(env.now)
            engine.push(env.now, version, case.weight_sync_s)
            engine.held = False
            if engine.n == 0:
                engine.resume = env.now + case.weight_sync_s
            if engine.load:
                self._plan(engine)
        yield env.timeout(case.weight_sync_s)
        status.version = version

    # ---- accounts
    def _book(self, groups: list[Group]) -> None:
        version = self.status.version
        tokens = stale = worst = 0
        for group in groups:
            for t in group.samples:
                oldest = newest = t.segments[0][0] if t.segments else version
                for made, n in t.segments:
                    lag = version - made
                    self.staleness[lag] += n
                    tokens += n
                    if lag:
                        stale += n
                        if lag > worst:
                            worst = lag
                    newest = made if made > newest else newest
                    oldest = made if made < oldest else oldest
                self.oldest[version - oldest] += 1
                self.span = max(self.span, newest - oldest)
        self.trained += len(groups)
        self.steps.append(Step(self.env.now, 0.0, 0.0, 0.0, tokens, stale / tokens if tokens else 0.0, worst))

    def _totals(self) -> dict:
        now = self.env.now
        for engine in self.engines:
            engine.advance(now)
        self._count(0)
        rolling = sum(b - a for a, b in self.rollout_spans)
        return {
            "time": now,
            "generated": sum(e.tokens for e in self.engines),
            "busy": sum(e.busy_s for e in self.engines),
            "tail": self.tail_s,
            "active": self.active_s,
            "area": self.running_area,
            "rolling": rolling,
            "filtered": len(self.filtered),
            "dropped": len(self.dropped),
            "surplus": len(self.surplus),
            "reprefilled": sum(e.reprefilled for e in self.engines),
            "preemptions": sum(e.preemptions for e in self.engines),
        }

    def _restart(self) -> None:
        """The warm-up is over: figures count from here."""
        self.start = self._totals()
        self.staleness, self.oldest, self.span = Counter(), Counter(), 0

    def result(self) -> Result:
        case, end, begin = self.case, self._totals(), self.start
        diff = {k: end[k] - begin[k] for k in end}
        seconds = diff["time"]
        steps = self.steps[case.warmup :]
        tokens = sum(s.tokens for s in steps)
        spans = [b - a for a, b in self.rollout_spans if a >= begin["time"] - 1e-12]
        rolling = case.engines * (diff["rolling"] if case.colocated else seconds)
        rollout_idle = max(0.0, 1.0 - diff["busy"] / rolling) if rolling else 0.0
        busy_trainer = sum(s.train_s for s in steps)
        trainer_idle = 0.0 if case.colocated else max(0.0, 1.0 - busy_trainer / seconds) if seconds else 0.0
        if case.colocated:
            idle = max(0.0, diff["rolling"] - diff["busy"] / case.engines) / seconds if seconds else 0.0
        else:
            rollout_chips = case.engines * case.chips_per_engine
            idle = (
                (rollout_idle * rollout_chips + trainer_idle * case.train_chips) / case.chips
                if case.chips
                else rollout_idle
            )

        def samples(groups) -> int:
            return sum(len(g.samples) for g in groups)

        counts = {
            "submitted": self.made * case.samples_per_prompt,
            "trained": self.trained * case.samples_per_prompt,
            "waiting": samples(self.finished),
            "filtered": samples(self.filtered),
            "too_stale": samples(self.dropped),
            "surplus": samples(self.surplus),
            "buffered": samples(self.buffer.waiting),
            "running": samples(self.running.values()),
        }
        wasted = {
            name: sum(t.done for g in groups for t in g.samples)
            for name, groups in (
                ("filtered", self.filtered[begin["filtered"] :]),
                ("too_stale", self.dropped[begin["dropped"] :]),
                ("surplus", self.surplus[begin["surplus"] :]),
            )
        }
        return Result(
            case.name,
            case.policy.mode,
            seconds,
            tuple(steps),
            seconds / len(steps),
            sum(spans) / len(spans) if spans else seconds / len(steps),
            diff["generated"],
            diff["generated"] / seconds if seconds else 0.0,
            tokens,
            tokens / seconds if seconds else 0.0,
            len(steps) * case.policy.prompts_per_batch * case.samples_per_prompt,
            idle,
            rollout_idle,
            trainer_idle,
            diff["tail"] / diff["active"] if diff["active"] else 0.0,
            diff["area"] / diff["active"] / case.engines if diff["active"] else 0.0,
            dict(self.staleness),
            max(self.staleness, default=0),
            dict(self.oldest),
            self.span,
            wasted,
            diff["reprefilled"],
            diff["preemptions"],
            counts,
            case.chips,
            tuple(tuple(w) for w in self.watched),
            tuple(self.trainer_spans),
        )


def _oldest(group: Group) -> int:
    return min((t.segments[0][0] for t in group.samples if t.segments), default=group.version)


def simulate(case: Case) -> Result:
    """Run `case.steps` steps.

    Raises:
        InputError: a case that cannot run, or one in which no batch can ever be ready.
    """
    run = _Run(case.check())
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects that live as long as the run: collecting them again and again is quadratic
    try:
        run.env.run(until=run.env.process(run.trainer()))
    except RuntimeError:  # simpy: nothing is scheduled and the trainer still waits
        raise InputError(
            f"mode {case.policy.mode}: after {len(run.steps)} steps nothing runs and no batch of {case.policy.prompts_per_batch} groups is "
            f"complete; raise filter_staleness_above, keep or max_concurrent"
        ) from None
    finally:
        if collecting:
            gc.enable()
    return run.result()
