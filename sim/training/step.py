"""One training step on the clock: every pipeline rank of every replica is a SimPy process that plays its schedule.

What a rank does next is fixed by the schedule (`sim/training/schedules.py`); when it can is decided here: its input must have
arrived over a link that may be busy, its own previous work must be done, and each piece takes as long as the slowest of
the rank's chips. After the pipeline come what no schedule hides: the rest of the gradient reduction (`sim/training/gradients.py`),
the optimiser (which waits for all ranks: the gradient norm is global), the parameter gather and the host's own work.

What is simplified: a transfer occupies the sender's port and never the sender; replicas that share experts are played as
one in lock step (`lockstep`); collectives of different ranks do not collide.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Generator
from dataclasses import dataclass, field

import simpy

from minglm.errors import InputError
from sim.cost.step_costs import StepCosts
from sim.training import gradients
from sim.training.critical_path import Segment, critical_path
from sim.training.jitter import Jitter, largest, overload
from sim.training.links import Link
from sim.training.program import Program, compile_programs


@dataclass(slots=True)
class Replica:
    """What one simulated replica did: when each piece of work ended, when each slot was filled. Enough to redraw it."""

    index: int
    slots: list[float | None]
    ends: list[list[float]]  # [rank][op], seconds
    seconds: list[list[float]]  # [rank][op], length of the work

    def spans(self, rank: int, program: Program) -> list[tuple[float, float]]:
        """Start and end of each piece of the rank's work, seconds."""
        out, before, slots = [], 0.0, self.slots
        for (need, need2, *_), end in zip(program.rows, self.ends[rank]):
            out.append((max(before, slots[need], slots[need2]), end))
            before = end
        return out


@dataclass(slots=True)
class StepResult:
    """Outcome of one simulated step. Times in seconds; per-rank figures are of the slowest replica.

    bubble_share: idle share of rank time between the step's start and the end of the last backward.
    bubble_ratio: the same idle time over the busy time, the (p−1)/m of the papers.
    exposed_comm_s: hideable all-to-all that no compute hid, mean over ranks, jitter left out.
    grad_exposed_s: gradient reduction after the last backward of all.
    """

    step_s: float
    pipeline_s: float
    bubble_share: float
    bubble_ratio: float
    busy_s: tuple[float, ...]
    exposed_comm_s: float
    grad_exposed_s: float
    events: int
    processes: int
    replicas: int
    simulated_replicas: int
    schedule: str
    tokens: int
    chips: int
    wall_s: float
    critical_path: list[Segment]
    reduced_s: tuple[float, ...] = ()  # per rank: when its gradients were reduced
    programs: list[Program] = field(repr=False, default_factory=list)
    slowest: Replica | None = field(repr=False, default=None)

    @property
    def folded(self) -> bool:
        return self.simulated_replicas < self.replicas

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_s if self.step_s else math.inf


def simulate(
    costs: StepCosts,
    schedule: str = "1f1b",
    *,
    replicas: int = 1,
    fold: bool = True,
    jitter: Jitter | None = None,
    seed: int = 0,
    recorder=None,
    share_port: int = 1,
    lockstep: int = 1,
) -> StepResult:
    """Play one training step.

    Args:
        costs: what each piece of work takes (`sim/cost/step_costs.py`).
        schedule: one of `sim.spec.plan.SCHEDULES`.
        replicas: data-parallel replicas to play. Identical ones fold into one, which changes nothing; with noise none are
            identical and all are played.
        fold: False plays every replica even where they are identical.
        jitter: unevenness; None for none.
        seed: of the jitter. Same seed, same result.
        recorder: an object with `take(result, replicas, costs)`, such as a `sim.trace.perfetto.StepTrace`, which is given
            everything that was simulated.
        share_port: how many neighbouring replicas send the transfers of the same rank through one port.
        lockstep: how many neighbouring replicas exchange tokens in every expert layer (experts spread beyond one replica).
            They wait for each other layer by layer, so they are played as one, at the pace of the slowest chip of all.
    Raises:
        InputError: a schedule that cannot run so, or costs that are negative or not finite.
    """
    for name, value in (("replicas", replicas), ("share_port", share_port), ("lockstep", lockstep)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")
    began = time.perf_counter()
    programs, size, _ = compile_programs(costs, schedule)
    jitter = jitter or Jitter()
    for replica, rank, factor in jitter.slow:
        if not (0 <= replica < replicas and 0 <= rank < len(programs)):
            raise InputError(
                f"jitter slow=({replica}, {rank}, {factor:g}): there are replicas 0 to {replicas - 1} and ranks 0 to "
                f"{len(programs) - 1}; name one of them"
            )
    factors = jitter.rank_factors(replicas, len(programs), costs.chips_per_rank, seed)
    if lockstep > 1:
        factors = [tuple(map(max, zip(*factors[k : k + lockstep]))) for k in range(0, replicas, lockstep)]
    chips = costs.chips_per_rank * min(lockstep, replicas)
    chosen = _representatives(factors, share_port) if fold and not jitter.random else range(len(factors))

    env, rng = simpy.Environment(), random.Random(f"work {seed}")
    played, ports, waits = [], {}, [0]
    for index in chosen:
        group = index // share_port
        if group not in ports:
            ports[group] = [Link() for _ in programs]
        replica = Replica(index, [0.0] + [None] * (size - 1), [[] for _ in programs], [])
        load = _loads(jitter, size, rng)
        for rank, program in enumerate(programs):
            seconds = _seconds(program, factors[index][rank], jitter, chips, load, rng)
            replica.seconds.append(seconds)
            env.process(
                _rank(
                    env,
                    program.rows,
                    seconds,
                    replica.slots,
                    ports[group][rank],
                    costs.p2p_s,
                    replica.ends[rank],
                    waits,
                )
            )
        played.append(replica)
    _run(env)
    result = _result(costs, schedule, programs, played, replicas, waits[0])
    result.simulated_replicas = min(replicas, len(played) * lockstep)
    result.wall_s = time.perf_counter() - began
    if recorder is not None:
        recorder.take(result, played, costs)
        result.wall_s = time.perf_counter() - began
    return result


def _rank(
    env: simpy.Environment, rows, seconds, slots, port: Link, p2p_s: float, ends: list[float], waits: list[int]
) -> Generator:
    """One pipeline rank of one replica. Where an input's arrival is known, waiting and working are one timeout; only an
    input that nobody has sent yet costs an event of its own."""
    timeout = env.timeout
    for (need, need2, out, far, out2, far2), work_s in zip(rows, seconds):
        arrived = slots[need]
        if arrived is None:
            slots[need] = waiting = env.event()
            waits[0] += 1
            arrived = yield waiting
        if need2:
            arrived2 = slots[need2]
            if arrived2 is None:
                slots[need2] = waiting = env.event()
                waits[0] += 1
                arrived2 = yield waiting
            if arrived2 > arrived:
                arrived = arrived2
        now = env.now
        yield timeout(work_s if arrived <= now else arrived - now + work_s)
        now = env.now
        ends.append(now)
        if out:
            if far:  # Link.send, spelled out: this is the hot loop
                free = port[0]
                port[0] = arrived = (free if free > now else now) + p2p_s
            else:
                arrived = now
            waiting, slots[out] = slots[out], arrived
            if waiting is not None:
                waiting.succeed(arrived)
        if out2:
            arrived = port.send(now, p2p_s) if far2 else now
            waiting, slots[out2] = slots[out2], arrived
            if waiting is not None:
                waiting.succeed(arrived)


def _run(env: simpy.Environment) -> None:
    """Run to the end with the cycle collector off: it would walk every process again and again and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        env.run()
    finally:
        if enabled:
            gc.enable()


def _representatives(factors: list[tuple[float, ...]], share_port: int) -> list[int]:
    """One replica (or one group that shares ports) of each kind: same slowness of each rank, same course."""
    seen, chosen = set(), []
    for first in range(0, len(factors), share_port):
        kind = tuple(factors[first : first + share_port])
        if kind not in seen:
            seen.add(kind)
            chosen += range(first, first + len(kind))
    return chosen


def _loads(jitter: Jitter, size: int, rng: random.Random) -> list[float] | None:
    """Expert overload of each (stage, micro-batch), indexed by the slot that its pass waits for."""
    return rng.choices(overload(jitter.expert_spread), k=size) if jitter.expert_spread else None


def _seconds(
    program: Program, factor: float, jitter: Jitter, chips: int, load: list[float] | None, rng: random.Random
) -> list[float]:
    """Length of each piece of a rank's work in this replica."""
    if not jitter.random:
        if factor == 1.0:
            return program.seconds
        return [w.seconds(factor) for w in program.work]
    noise = (
        rng.choices(largest(jitter.noise, chips), k=len(program.rows)) if jitter.noise else [1.0] * len(program.rows)
    )
    if load is None and not program.hideable:
        return [s * factor * n for s, n in zip(program.seconds, noise)]
    if load is None:
        return [w.seconds(factor * n) for w, n in zip(program.work, noise)]
    return [
        w.seconds(factor * n, load[row[0]], load[row[1] or row[0]], jitter.expert_share)
        for w, n, row in zip(program.work, noise, program.rows)
    ]


def _result(
    costs: StepCosts, schedule: str, programs: list[Program], played: list[Replica], replicas: int, waits: int
) -> StepResult:
    ranks = range(len(programs))
    ends = [max(replica.ends[r][-1] for replica in played) for r in ranks]
    last = [_last_gradient(program) for program in programs]
    reduced = []
    for r in ranks:
        windows = [
            [(replica.ends[r][k] - replica.seconds[r][k], replica.ends[r][k]) for k in last[r]] for replica in played
        ]
        reduced.append(gradients.reduction_end(windows, ends[r], costs.grad_reduce_s, costs.overlap_grad_reduce))
    pipeline_s = max(ends)
    after_s = costs.optimizer_s + costs.param_gather_s + costs.fixed_s
    slowest = max(played, key=lambda replica: max(e[-1] for e in replica.ends))
    busy = tuple(math.fsum(s) for s in slowest.seconds)
    exposed = sum(sum(s - min(s, w.compute_s) for s, w in zip(p.seconds, p.work)) for p in programs) / len(programs)
    mean_busy = sum(busy) / len(busy)
    work = sum(len(p.rows) for p in programs) * len(played)
    return StepResult(
        step_s=max(reduced) + after_s,
        pipeline_s=pipeline_s,
        bubble_share=max(0.0, 1.0 - mean_busy / pipeline_s) if pipeline_s else 0.0,
        bubble_ratio=max(0.0, pipeline_s / mean_busy - 1.0) if mean_busy else 0.0,
        busy_s=busy,
        exposed_comm_s=exposed,
        grad_exposed_s=max(reduced) - pipeline_s,
        # SimPy schedules a start and an end for each process, a timeout for each piece of work, an event for each wait.
        events=work + waits + 2 * len(programs) * len(played),
        processes=len(programs) * len(played),
        replicas=replicas,
        simulated_replicas=len(played),
        schedule=schedule,
        tokens=costs.tokens,
        chips=len(programs) * costs.chips_per_rank * replicas,
        wall_s=0.0,
        critical_path=critical_path(
            programs, slowest, costs, max(range(len(reduced)), key=reduced.__getitem__), reduced
        ),
        reduced_s=tuple(reduced),
        programs=programs,
        slowest=slowest,
    )


def _last_gradient(program: Program) -> list[int]:
    """For each chunk of a rank, the index of the work after which its gradients are complete."""
    last: dict[int, int] = {}
    for k, op in enumerate(program.ops):
        if op.kind in "BW":
            last[op.chunk] = k
        elif op.kind == "FB":
            last[op.b_chunk] = k
    return [last[c] for c in sorted(last)]
