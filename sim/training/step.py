"""One training step on the clock: every pipeline rank of every replica is a SimPy process that runs its schedule.

What a rank does next is fixed by the schedule (`sim/training/schedules.py`); when it can is decided here: its input
must have arrived over a link that may be busy, its own previous op must be done, and each op takes as long as the
slowest of the rank's chips. After the pipeline come what no schedule hides: the rest of the gradient reduction
(`sim/training/gradients.py`), the optimiser (which waits for all ranks: the gradient norm is global), the parameter
gather and the host's own work.

What is simplified: a transfer occupies the sender's port and never the sender; replicas that share experts are
simulated as one in lock step (`ep_group_replicas`); collectives of different ranks do not collide.

Where chance makes replicas differ and each has ports of its own, `sim/training/work_off.py` gives the same result, to
the last bit, in a fraction of the time; `MINGLM_FAST=0` plays the events there too.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import simpy

from minglm.errors import InputError
from minglm.runtime.switch import fast
from sim.cost.step_costs import StepCosts
from sim.training import gradients
from sim.training.critical_path import Segment, critical_path
from sim.training.jitter import Jitter, expert_load_imbalance, largest
from sim.training.program import Program, compile_programs, last_gradients
from sim.training.rank_process import Link, WaitCounter, rank_process
from sim.training.replica import Replica
from sim.training.work_off import work_off


@dataclass(slots=True)
class StepResult:
    """Outcome of one simulated step. Times in seconds; per-rank figures are of the slowest replica.

    bubble_fraction: idle share of rank time between the step's start and the end of the last backward.
    bubble_overhead: the same idle time over the busy time, the (p−1)/m of the papers.
    exposed_comm_s: hideable all-to-all that no compute hid, mean over ranks, jitter left out.
    grad_exposed_s: gradient reduction after the last backward of all.
    events: what SimPy schedules when the step is played as events.
    """

    step_s: float
    pipeline_s: float
    bubble_fraction: float
    bubble_overhead: float
    busy_s: tuple[float, ...]
    exposed_comm_s: float
    grad_exposed_s: float
    events: int
    processes: int
    replicas: int
    simulated_replicas: int
    schedule: str
    tokens: int
    wall_s: float
    critical_path: list[Segment]
    reduced_s: tuple[float, ...]  # per rank: when its gradients were reduced
    programs: list[Program] = field(repr=False)
    slowest: Replica = field(repr=False)

    @property
    def folded(self) -> bool:
        """Whether one replica stands for several."""
        return self.simulated_replicas < self.replicas

    @property
    def tokens_per_s(self) -> float:
        """Trained tokens per second of all replicas."""
        return self.tokens / self.step_s if self.step_s else math.inf


class Recorder(Protocol):
    """Is given everything that a step simulated, such as `sim.trace.perfetto.StepTrace`."""

    def record(self, result: StepResult, replicas: Sequence[Replica], costs: StepCosts) -> None:
        """Keep what is wanted of it."""


def simulate(  # noqa: PLR0913 - every argument is a fact of the machine or of the run
    costs: StepCosts,
    schedule: str = "1f1b",
    *,
    replicas: int = 1,
    fold: bool = True,
    jitter: Jitter | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
    replicas_per_port: int = 1,
    ep_group_replicas: int = 1,
) -> StepResult:
    """Simulate one training step.

    Args:
        costs: what each op takes (`sim/cost/step_costs.py`).
        schedule: one of `sim.spec.plan.SCHEDULES`.
        replicas: data-parallel replicas to simulate. Identical ones fold into one, which changes nothing; with noise
            none are identical and all are simulated.
        fold: False simulates every replica even where they are identical.
        jitter: unevenness; None for none.
        seed: of the jitter. Same seed, same result.
        recorder: is given everything that was simulated.
        replicas_per_port: how many neighbouring replicas send the transfers of the same rank through one port.
        ep_group_replicas: how many neighbouring replicas an expert-parallel group spans. They exchange tokens in every
            expert layer and wait for each other there, so they are simulated as one, at the pace of their slowest chip.
    Raises:
        InputError: a schedule that cannot run so, or costs that are negative or not finite.
    """
    for name, value in (
        ("replicas", replicas),
        ("replicas_per_port", replicas_per_port),
        ("ep_group_replicas", ep_group_replicas),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")
    began = time.perf_counter()
    programs, size, _ = compile_programs(costs, schedule)
    jitter = jitter or Jitter()
    factors = _slowness(jitter, replicas, len(programs), costs.chips_per_rank, seed)
    if ep_group_replicas > 1:
        groups = (factors[k : k + ep_group_replicas] for k in range(0, replicas, ep_group_replicas))
        factors = [tuple(map(max, zip(*group, strict=True))) for group in groups]
    chips_together = costs.chips_per_rank * min(ep_group_replicas, replicas)
    indices = _representatives(factors, replicas_per_port) if fold and not jitter.random else range(len(factors))

    # No port is shared, no two ranks act at the same moment by design: there is nothing for events to decide.
    alone = replicas_per_port == 1 and jitter.random and fast()
    env, rng = simpy.Environment(), random.Random(f"work {seed}")
    ports: dict[int, list[Link]] = {}
    simulated, counter = [], WaitCounter()
    for index in indices:
        group = index // replicas_per_port
        if group not in ports:
            ports[group] = [Link() for _ in programs]
        slots: list = [0.0] + [None] * (size - 1)  # all are filled when the step has run
        replica = Replica(index, slots, [[] for _ in programs], [])
        load = _loads(jitter, size, rng)
        for rank, program in enumerate(programs):
            seconds = _seconds(program, factors[index][rank], jitter, chips_together, load, rng)
            replica.seconds.append(seconds)
        if alone:
            replica.ends, replica.slots, waits = work_off(programs, replica.seconds, size, costs.p2p_s)
            counter.waits += waits
        else:
            for program, seconds, port, ends in zip(programs, replica.seconds, ports[group], replica.ends, strict=True):
                env.process(rank_process(env, program.rows, seconds, slots, port, costs.p2p_s, ends, counter))
        simulated.append(replica)
    _run(env)
    result = _result(costs, schedule, programs, simulated, replicas, counter.waits)
    result.simulated_replicas = min(replicas, len(simulated) * ep_group_replicas)
    result.wall_s = time.perf_counter() - began
    if recorder is not None:
        recorder.record(result, simulated, costs)
        result.wall_s = time.perf_counter() - began
    return result


def _slowness(jitter: Jitter, replicas: int, ranks: int, chips_per_rank: int, seed: int) -> list[tuple[float, ...]]:
    """Permanent slowness of each rank of each replica, [replicas][ranks]."""
    for replica, rank, factor in jitter.slow:
        if not (0 <= replica < replicas and 0 <= rank < ranks):
            raise InputError(
                f"jitter slow=({replica}, {rank}, {factor:g}): there are replicas 0 to {replicas - 1} and ranks 0 to "
                f"{ranks - 1}; name one of them"
            )
    return jitter.rank_factors(replicas, ranks, chips_per_rank, seed)


def _run(env: simpy.Environment) -> None:
    """Run to the end with the cycle collector off: it would walk every process again and again and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        env.run()
    finally:
        if enabled:
            gc.enable()


def _representatives(factors: list[tuple[float, ...]], replicas_per_port: int) -> list[int]:
    """One replica (or one group that shares ports) of each kind: same slowness of each rank, same course."""
    seen: set[tuple] = set()
    indices: list[int] = []
    for first in range(0, len(factors), replicas_per_port):
        kind = tuple(factors[first : first + replicas_per_port])
        if kind not in seen:
            seen.add(kind)
            indices += range(first, first + len(kind))
    return indices


def _loads(jitter: Jitter, size: int, rng: random.Random) -> list[float] | None:
    """Expert load imbalance of each (stage, micro-batch), indexed by the slot that its pass waits for."""
    return rng.choices(expert_load_imbalance(jitter.expert_spread), k=size) if jitter.expert_spread else None


def _seconds(
    program: Program, factor: float, jitter: Jitter, chips_together: int, load: list[float] | None, rng: random.Random
) -> list[float]:
    """Length of each op of a rank in this replica, seconds."""
    if not jitter.random:
        if factor == 1.0:
            return program.seconds
        return [w.seconds(factor) for w in program.work]
    noise = (
        rng.choices(largest(jitter.noise, chips_together), k=len(program.rows))
        if jitter.noise
        else [1.0] * len(program.rows)
    )
    if load is None and not program.hideable:
        return [s * factor * n for s, n in zip(program.seconds, noise, strict=True)]
    if load is None:
        return [w.seconds(factor * n) for w, n in zip(program.work, noise, strict=True)]
    return [
        w.seconds(factor * n, load[row[0]], load[row[1] or row[0]], jitter.expert_share)
        for w, n, row in zip(program.work, noise, program.rows, strict=True)
    ]


def _result(
    costs: StepCosts, schedule: str, programs: list[Program], simulated: list[Replica], replicas: int, waits: int
) -> StepResult:
    ends = [max(replica.ends[r][-1] for replica in simulated) for r in range(len(programs))]
    reduced = []
    for r, program in enumerate(programs):
        last = last_gradients(program)
        windows = [
            [(replica.ends[r][k] - replica.seconds[r][k], replica.ends[r][k]) for k in last] for replica in simulated
        ]
        reduced.append(gradients.reduction_end(windows, ends[r], costs.grad_reduce_s, costs.overlap_grad_reduce))
    pipeline_s = max(ends)
    after_s = costs.optimizer_s + costs.param_gather_s + costs.fixed_s
    slowest = max(simulated, key=lambda replica: replica.end_s)
    busy = tuple(math.fsum(s) for s in slowest.seconds)
    exposed = [sum(s - min(s, w.compute_s) for s, w in zip(p.seconds, p.work, strict=True)) for p in programs]
    mean_busy = sum(busy) / len(busy)
    ops = sum(len(p.rows) for p in programs) * len(simulated)
    return StepResult(
        step_s=max(reduced) + after_s,
        pipeline_s=pipeline_s,
        bubble_fraction=max(0.0, 1.0 - mean_busy / pipeline_s) if pipeline_s else 0.0,
        bubble_overhead=max(0.0, pipeline_s / mean_busy - 1.0) if mean_busy else 0.0,
        busy_s=busy,
        exposed_comm_s=sum(exposed) / len(programs),
        grad_exposed_s=max(reduced) - pipeline_s,
        # SimPy schedules a start and an end for each process, a timeout for each op, an event for each wait.
        events=ops + waits + 2 * len(programs) * len(simulated),
        processes=len(programs) * len(simulated),
        replicas=replicas,
        simulated_replicas=len(simulated),
        schedule=schedule,
        tokens=costs.tokens,
        wall_s=0.0,
        critical_path=critical_path(
            programs, slowest, costs, max(range(len(reduced)), key=reduced.__getitem__), reduced
        ),
        reduced_s=tuple(reduced),
        programs=programs,
        slowest=slowest,
    )
