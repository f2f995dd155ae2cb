"""The step simulator against a bare SimPy loop, and how its cost grows with events and with chips.

`make bench ONLY=step`. Ratios are taken within one run, repetitions interleaved, medians.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import simpy

from minglm.runtime.switch import VARIABLE
from minglm.tools.bench_summary import answer
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.trace.perfetto import StepTrace
from sim.training.jitter import Jitter
from sim.training.rank_process import Link
from sim.training.step import simulate

NAME = "step"
NOISE = Jitter(noise=0.02, spread=0.01)


def costs(ranks: int, micro_batches: int, replicas: int = 1, chunks: int = 1) -> StepCosts:
    """A stage of about the headline run's size: 20 ms forward, 40 ms backward, 2 ms to the next stage."""
    c = ChunkCost(0.020 / chunks, 0.022 / chunks, 0.018 / chunks)
    return StepCosts(
        chunks=((c,) * chunks,) * ranks,
        micro_batches=micro_batches,
        p2p_s=0.002,
        p2p_bytes=5e7,
        grad_reduce_s=0.3,
        param_gather_s=0.1,
        overlap_grad_reduce=True,
        optimizer_s=0.02,
        tokens=64_000_000,
        replicas=replicas,
        chips_per_rank=8,
    )


def bare(processes: int, events: int) -> float:
    """Seconds for a SimPy loop of as many processes and events that does nothing but wait, the collector off as in the
    simulator. Each process costs its start, its end and its timeouts."""
    each, rest = divmod(events - 2 * processes, processes)
    env, rng = simpy.Environment(), random.Random(1)

    def idle(count, delay):
        for _ in range(count):
            yield env.timeout(delay)

    began = time.perf_counter()
    for k in range(processes):
        env.process(idle(each + (k < rest), rng.uniform(0.02, 0.04)))
    gc.disable()
    try:
        env.run()
    finally:
        gc.enable()
    return time.perf_counter() - began


def whole_cluster():
    """99,840 of 100,000 chips: 780 replicas of 16 stages of 8 chips, all simulated, 24 micro-batches, deferred weight
    gradients."""
    return simulate(costs(16, 24, 780), "zb-h1", replicas=780, jitter=NOISE)


def row(name, value, unit, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "target": target, "met": met}


def median_time(make, repeat: int) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        make()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def queue_by_resource(senders: int, each: int) -> float:
    env = simpy.Environment()
    port = simpy.Resource(env)

    def send():
        for _ in range(each):
            with port.request() as turn:
                yield turn
                yield env.timeout(0.001)

    began = time.perf_counter()
    for _ in range(senders):
        env.process(send())
    env.run()
    return time.perf_counter() - began


def queue_by_link(senders: int, each: int) -> float:
    env = simpy.Environment()
    port = Link()

    def send():
        for _ in range(each):
            yield env.timeout(port.send(env.now, 0.001) - env.now)

    began = time.perf_counter()
    for _ in range(senders):
        env.process(send())
    env.run()
    return time.perf_counter() - began


def run() -> list[dict]:
    seconds: dict[str, list[float]] = {"fast": [], "events": [], "bare": []}
    for _ in range(3):
        result = whole_cluster()
        seconds["fast"].append(result.wall_s)
        os.environ[VARIABLE] = "0"
        try:
            seconds["events"].append(whole_cluster().wall_s)
        finally:
            del os.environ[VARIABLE]
        seconds["bare"].append(bare(result.processes, result.events))
    ratios = {way: [a / b for a, b in zip(seconds[way], seconds["bare"], strict=True)] for way in ("fast", "events")}
    ratio, slow = (statistics.median(ratios[way]) for way in ("fast", "events"))
    chips = f"99,840 chips unfolded with jitter: {result.events:,} events, {result.processes:,} processes"
    rows = [
        row(chips, statistics.median(seconds["fast"]), "s", ratio, "<= 1.5 x bare SimPy", ratio <= 1.5)
        | answer("100,000 chips unfolded with jitter, time over bare SimPy", ratio, ratios["fast"]),
        row("the same, played as events (MINGLM_FAST=0)", statistics.median(seconds["events"]), "s", slow),
        row("the bare SimPy loop with as many events and processes", statistics.median(seconds["bare"]), "s"),
    ]
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_step as b; b.whole_cluster(); "
        "from minglm.runtime import machine; print(machine.peak_rss_bytes())"  # not getrusage: it counts the parent
    )
    peaks = []
    for way in ("1", "0"):
        command = [sys.executable, "-c", program, str(Path(__file__).parent)]
        done = subprocess.run(command, env={**os.environ, VARIABLE: way}, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 2**30)
    rows.append(
        row("memory of such a process at its peak", peaks[0], "GiB", target="< 4 GiB", met=peaks[0] < 4)
        | answer("100,000 chips unfolded with jitter, memory", peaks[0])
    )
    rows.append(row("the same, played as events", peaks[1], "GiB"))

    pairs = [(queue_by_resource(2000, 10), queue_by_link(2000, 10)) for _ in range(3)]
    gain = statistics.median(a / b for a, b in pairs)
    rows.append(
        row(
            "a busy link as simpy.Resource, over one as a next-free time",
            statistics.median(a for a, _ in pairs),
            "s",
            gain,
        )
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"

        def traced():
            trace = StepTrace()
            simulate(replace(costs(8, 64), chips_per_rank=8), "1f1b", recorder=trace)
            trace.write(path)

        gpt3 = median_time(traced, 3)
        size = path.stat().st_size
    rows.append(
        row(
            f"GPT-3 PP8, 64 micro-batches, trace of {size / 1e6:.1f} MB written",
            gpt3,
            "s",
            target="< 5 s",
            met=gpt3 < 5,
        )
    )
    for schedule, chunks in (("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("dualpipe", 1)):
        folded = median_time(lambda: simulate(costs(16, 64, 780, chunks), schedule, replicas=780), 9)  # noqa: B023
        rows.append(
            row(
                f"folded TP8 PP16, 64 micro-batches, {schedule}",
                folded * 1e3,
                "ms",
                target="< 50 ms" if schedule == "1f1b" else None,
                met=folded < 0.05 if schedule == "1f1b" else None,
            )
        )

    per_event = []
    for m in (16, 32, 64):
        results = [simulate(costs(16, m, 100), "1f1b", replicas=100, jitter=NOISE) for _ in range(3)]
        each = statistics.median(r.wall_s for r in results) / results[0].events
        per_event.append(each)
        rows.append(row(f"100 replicas, {m} micro-batches: {results[0].events:,} events", each * 1e6, "us/event"))
    rows.append(
        row(
            "time per event, 4 times the events over once",
            per_event[-1] * 1e6,
            "us/event",
            per_event[-1] / per_event[0],
            "<= 1.5 (linear)",
            per_event[-1] / per_event[0] <= 1.5,
        )
    )
    by_chips = []
    for chips in (1_000, 10_000, 100_000, 1_000_000):
        replicas = max(1, chips // 128)
        seconds = median_time(lambda: simulate(costs(16, 20, replicas), "zb-h1", replicas=replicas), 5)  # noqa: B023
        by_chips.append(seconds)
        rows.append(row(f"folded, {chips:,} chips ({replicas:,} replicas)", seconds * 1e3, "ms"))
    growth = by_chips[-1] / by_chips[0]
    rows.append(
        row("folded, 1,000 times the chips", by_chips[-1] * 1e3, "ms", growth, "<= 10 (sub-linear)", growth <= 10)
    )
    for chips in (1_000, 10_000, 100_000):
        replicas = chips // 128
        result = simulate(costs(16, 20, replicas), "1f1b", replicas=replicas, jitter=NOISE)
        rows.append(row(f"unfolded with jitter, {chips:,} chips: {result.events:,} events", result.wall_s, "s"))
    return rows
