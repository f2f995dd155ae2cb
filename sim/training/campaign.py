"""Months of training: how long it takes, how much of the time is first-time work, and what ate the rest.

    >>> from sim.spec.phases import Leg, Pace
    >>> from sim.training.campaign import CampaignInput, run
    >>> from sim.training.checkpoints import Checkpoint
    >>> leg = Leg("pre-training", 100_000, Pace(step_s=10.0, tokens_per_step=16e6, num_chips=16384, replicas=128, plan="TP8 PP16"))
    >>> result = run(CampaignInput((leg,), cluster_chips=16512, checkpoint=Checkpoint(bytes=5.6e12)), seed=1)
    >>> result.finished and 0.90 < result.goodput < 0.99
    True

The processes are in `sim/training/job.py`; failures, checkpoints and phases in the files of those names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from functools import partial

from minglm.errors import InputError
from sim.base.units import DAY_S
from sim.spec.phases import Leg
from sim.training.checkpoints import Checkpoint, expected_goodput
from sim.training.failures import Failure, FailureModel, Recovery, SlowServers
from sim.training.job import Job, Span


@dataclass(frozen=True, slots=True)
class CampaignInput:
    """Everything a campaign depends on.

    legs: stretches of equal steps in order (`sim.spec.phases.legs` or `choose_plans`).
    cluster_chips: all there are; what a leg's plan does not use is spare.
    slow: servers that turn slow; None for none.
    horizon_s: stop here even if tokens are left (a 90-day stress case; ten years otherwise).
    max_failures: stop after so many; a job that fails faster than it restarts would never end.
    """

    legs: tuple[Leg, ...]
    cluster_chips: int
    failures: FailureModel = field(default_factory=FailureModel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    recovery: Recovery = field(default_factory=Recovery)
    slow: SlowServers | None = field(default_factory=SlowServers)
    chips_per_server: int = 8
    horizon_s: float = 3650 * DAY_S
    max_failures: int = 200_000

    def __post_init__(self) -> None:
        if not self.legs:
            raise InputError(
                "legs=(): a campaign needs at least one phase; give a schedule such as sim.spec.phases.GLM5"
            )
        for name in ("cluster_chips", "chips_per_server", "max_failures"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: must be a whole number of at least 1; give {name}: 1 or more")
        most = max(self.legs, key=lambda leg: leg.pace.num_chips)
        if most.pace.num_chips > self.cluster_chips:
            raise InputError(
                f"phase {most.phase!r} plans {most.pace.num_chips:,} chips: more than the inventory of {self.cluster_chips:,}; use fewer "
                "replicas or a larger inventory"
            )
        if not 0 < self.horizon_s < float("inf"):
            raise InputError(
                f"horizon_s={self.horizon_s!r}: must be a positive finite number; leave it out for ten years"
            )


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
    timeline: list[Span]
    seed: int

    @property
    def interruptions(self) -> int:
        return sum(self.failures.values())


def run(
    inp: CampaignInput, seed: int = 0, timeline: bool = True, failures: Iterable[Failure] | None = None
) -> CampaignResult:
    """Play one campaign. Same input and seed, same result; two failure rates with one seed share their failures.

    `failures`: play these instead of drawing them (in order of time).
    """
    job = Job(inp, seed, timeline, None if failures is None else iter(failures))
    env = job.env
    env.run(until=job.process | job.stopped | env.timeout(inp.horizon_s))
    if finished := not job.process.is_alive:
        job.at = job.at._replace(leg=len(inp.legs), period=0, work_s=0.0)
    else:
        job._account()
    days = env.now / DAY_S
    ideal = job.done_s(job.at)
    done = job.tokens(job.at)
    by_phase: dict[str, float] = {}
    for leg in inp.legs:
        part = min(leg.tokens, max(0.0, done))
        by_phase[leg.phase] = by_phase.get(leg.phase, 0.0) + part
        done -= leg.tokens
    main = max(range(len(inp.legs)), key=lambda k: inp.legs[k].work_s)
    pace = inp.legs[main].pace
    return CampaignResult(
        days=days,
        ideal_days=ideal / DAY_S,
        goodput=ideal / env.now if env.now else 1.0,
        finished=finished,
        lost_hours={cause: s / 3600.0 for cause, s in job.lost.items()},
        failures=dict(sorted(job.failed.items(), key=lambda item: (-item[1], item[0]))),
        tokens_by_phase=by_phase,
        tokens=sum(by_phase.values()),
        repeated_tokens=sum(s / leg.pace.step_s * leg.pace.tokens_per_step for s, leg in zip(job.repeated, inp.legs)),
        chip_hours=inp.cluster_chips * env.now / 3600.0,
        mtbf_s=inp.failures.mtbf_s(pace.num_chips),
        checkpoint_interval_s=job.courses[main].period_s,
        expected_goodput=expected(inp),
        timeline=job.timeline or [],
        seed=seed,
    )


def expected(inp: CampaignInput) -> float:
    """Goodput after Daly's formula: no simulation, no spares, no slow servers, no phase changes."""
    ideal = real = 0.0
    for leg in inp.legs:
        c, chips, mtbf_s = inp.checkpoint, leg.pace.num_chips, inp.failures.mtbf_s(leg.pace.num_chips)
        work = min(leg.steps, c.steps_between(leg.pace.step_s, chips, mtbf_s)) * leg.pace.step_s
        memory = c.kind == "memory"
        restart = inp.recovery.detect_s + inp.recovery.restart_s + c.load_s(chips, memory)
        delay = 0.0 if memory else c.delay_s
        share = expected_goodput(work, c.stall_s(chips), restart, mtbf_s, delay)
        ideal += leg.work_s
        real = real + leg.work_s / share if share else float("inf")
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
    play = partial(_figures, inp)
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
                collect(pool.map(play, range(seeds), chunksize=max(1, min(4, seeds // (workers * 4)))))
        except (OSError, ImportError, NotImplementedError, BrokenExecutor):
            pass  # the rest is played here, one after another
    collect(map(play, range(len(rows), seeds)))
    columns = {"days": [r[0] for r in rows], "goodput": [r[1] for r in rows], "interruptions": [r[2] for r in rows]}
    columns |= {f"lost {cause}": [r[3][cause] for r in rows] for cause in rows[0][3]}
    return {name: tuple(_quantile(sorted(v), q) for q in (0.025, 0.5, 0.975)) for name, v in columns.items()}


def _quantile(values: list[float], q: float) -> float:
    at = q * (len(values) - 1)
    low = int(at)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (at - low)
