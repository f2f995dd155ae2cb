"""Months of training: how long it takes, how much of the time is first-time work, and what ate the rest.

    >>> from sim.spec.phases import RunSegment, Throughput
    >>> from sim.training.campaign import run
    >>> from sim.training.campaign_input import CampaignInput
    >>> from sim.training.checkpoints import Checkpoint
    >>> throughput = Throughput(step_s=10.0, tokens_per_step=16e6, num_chips=16384, replicas=128, plan="TP8 PP16")
    >>> segment = RunSegment("pre-training", steps=100_000, throughput=throughput)
    >>> result = run(CampaignInput((segment,), cluster_chips=16512, checkpoint=Checkpoint(bytes=5.6e12)), seed=1)
    >>> result.finished and 0.90 < result.goodput < 0.99
    True

The processes are in `sim/training/job.py`; failures, checkpoints and phases in the files of those names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import partial

from minglm.errors import InputError
from sim.base.quantiles import quantile
from sim.base.tape import least
from sim.base.units import DAY_S
from sim.training.campaign_input import CampaignInput
from sim.training.checkpoints import expected_goodput
from sim.training.failures import Failure
from sim.training.job import Interval, Job


@dataclass(slots=True)
class CampaignResult:
    """What a campaign came to. `ideal_days` is the kept work at nominal step time; goodput is ideal over real time."""

    days: float
    ideal_days: float
    goodput: float
    finished: bool
    lost_hours: dict[str, float]
    failures: dict[str, int]
    tokens_by_phase: dict[str, float]
    tokens: float
    repeated_tokens: float
    chip_hours: float
    mtbf_s: float
    checkpoint_interval_s: float
    expected_goodput: float
    timeline: list[Interval]
    seed: int

    @property
    def interruptions(self) -> int:
        """Failures that stopped the job."""
        return sum(self.failures.values())


def run(
    inp: CampaignInput, seed: int = 0, timeline: bool = True, failures: Iterable[Failure] | None = None
) -> CampaignResult:
    """Simulate one campaign. Same input and seed, same result; two failure rates with one seed share their failures.

    `failures`: simulate these instead of drawing them (in order of time).
    """
    job = Job(inp, seed, timeline, None if failures is None else iter(failures))
    env = job.env
    env.run(until=job.process | job.stopped | env.timeout(inp.horizon_s))
    if finished := not job.process.is_alive:
        job.position = job.position._replace(segment=len(inp.segments), period=0, work_s=0.0)
    else:
        job.record()
    days = env.now / DAY_S
    ideal = job.done_s(job.position)
    done = job.tokens(job.position)
    by_phase: dict[str, float] = {}
    for segment in inp.segments:
        part = min(segment.tokens, max(0.0, done))
        by_phase[segment.phase] = by_phase.get(segment.phase, 0.0) + part
        done -= segment.tokens
    main = max(range(len(inp.segments)), key=lambda k: inp.segments[k].work_s)
    throughput = inp.segments[main].throughput
    return CampaignResult(
        days=days,
        ideal_days=ideal / DAY_S,
        goodput=ideal / env.now if env.now else 1.0,
        finished=finished,
        lost_hours={cause: s / 3600.0 for cause, s in job.lost.items()},
        failures=dict(sorted(job.failed.items(), key=lambda item: (-item[1], item[0]))),
        tokens_by_phase=by_phase,
        tokens=sum(by_phase.values()),
        repeated_tokens=sum(
            s / segment.throughput.step_s * segment.throughput.tokens_per_step
            for s, segment in zip(job.repeated, inp.segments, strict=True)
        ),
        chip_hours=inp.cluster_chips * env.now / 3600.0,
        mtbf_s=inp.failures.mtbf_s(throughput.num_chips),
        checkpoint_interval_s=job.timelines[main].period_s,
        expected_goodput=expected(inp),
        timeline=job.timeline or [],
        seed=seed,
    )


def expected(inp: CampaignInput) -> float:
    """Goodput after Daly's formula: no simulation, no spares, no slow servers, no changes of plan."""
    ideal = real = 0.0
    for segment in inp.segments:
        c, num_chips, mtbf_s = (
            inp.checkpoint,
            segment.throughput.num_chips,
            inp.failures.mtbf_s(segment.throughput.num_chips),
        )
        work = (
            least(segment.steps, c.steps_between(segment.throughput.step_s, num_chips, mtbf_s))
            * segment.throughput.step_s
        )
        memory = c.kind == "memory"
        restart = inp.recovery.detect_s + inp.recovery.restart_s + c.load_s(num_chips, memory)
        delay = 0.0 if memory else c.delay_s
        share = expected_goodput(work, c.stall_s(num_chips), restart, mtbf_s, delay)
        ideal += segment.work_s
        real = real + segment.work_s / share if share else float("inf")
    return ideal / real


def _figures(inp: CampaignInput, seed: int) -> tuple[float, float, float, dict[str, float]]:
    r = run(inp, seed, timeline=False)
    return r.days, r.goodput, float(r.interruptions), r.lost_hours


def interval(
    inp: CampaignInput, seeds: int = 200, workers: int | None = None, progress: Callable[[int], object] | None = None
) -> dict[str, tuple[float, float, float]]:
    """95% intervals over `seeds` campaigns: (2.5%, median, 97.5%) of `days`, `goodput`, `interruptions` and each
    `lost <cause>` in hours. The seeds are 0…seeds−1, so the answer does not depend on how many workers there are.
    `progress` is called with 1 after each campaign (a progress bar's `update`).

    Raises InputError for fewer than 2 seeds.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 2:
        raise InputError(f"seeds={seeds!r}: an interval needs at least 2; give 200")
    workers = min(workers or os.cpu_count() or 1, seeds)
    simulate = partial(_figures, inp)
    rows: list[tuple] = []

    def collect(figures: Iterable[tuple]) -> None:
        for row in figures:
            rows.append(row)
            if progress is not None:
                progress(1)

    if workers > 1:
        try:
            from concurrent.futures import ProcessPoolExecutor  # not in a browser

            with ProcessPoolExecutor(workers) as pool:
                collect(pool.map(simulate, range(seeds), chunksize=max(1, min(4, seeds // (workers * 4)))))
        except (OSError, ImportError, NotImplementedError, BrokenExecutor):
            pass  # the rest is simulated here, one after another
    collect(map(simulate, range(len(rows), seeds)))
    columns = {"days": [r[0] for r in rows], "goodput": [r[1] for r in rows], "interruptions": [r[2] for r in rows]}
    columns |= {f"lost {cause}": [r[3][cause] for r in rows] for cause in rows[0][3]}
    return {name: _quantiles(v) for name, v in columns.items()}


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    """2.5%, median and 97.5%."""
    ordered = sorted(values)
    return quantile(ordered, 0.025), quantile(ordered, 0.5), quantile(ordered, 0.975)
