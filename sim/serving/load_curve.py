"""Latencies against load, and the goodput under a latency target: the same fleet at rates up to its capacity.

Goodput is the rate of requests that keep both limits; the answer names the largest rate at which `KEPT` of them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sim.serving.instances import Request
from sim.serving.memory import chip_memory
from sim.serving.simulate import Fleet, ServingResult, simulate
from sim.serving.step_time import decode_step, prefill
from sim.serving.workload import RequestLengths, ServingWorkload

LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # shares of the capacity
WARMUP = 0.3  # share of the requests that fill the fleet and are not counted
KEPT = 0.95  # assumed: share of requests that must keep a target
TURNS = 6  # times that the requests of a point stay one after the other
MOST = 20_000  # requests of a point


def capacity_per_s(fleet: Fleet, work: ServingWorkload) -> tuple[float, float]:
    """(requests a second, seconds that a request decodes) with every batch full.

    Decode and prefill one after the other, or each on its own chips.
    """
    d, p = fleet.decode, fleet.prefill or fleet.decode
    prompt, output = RequestLengths.of(work.prompt).mean, RequestLengths.of(work.output).mean
    batch = max(1, min(fleet.max_batch, chip_memory(d).requests(prompt + output)))
    stay_s = output * decode_step(d, batch, prompt + output / 2, fleet.mode).total_s / d.tokens_per_step
    decode_s = stay_s / (batch * d.groups)
    together = max(1, int((fleet.prefill_batch_tokens if fleet.prefill else fleet.chunk_tokens) // prompt))
    fill = prefill(p, prompt, min(prompt * work.cached_share, prompt - 1), together, fleet.mode)
    prefill_s = fill.total_s / (together * p.groups)
    if fleet.prefill:
        return min(fleet.decode_instances / decode_s, fleet.prefill_instances / prefill_s), stay_s
    return fleet.decode_instances / (decode_s + prefill_s), stay_s


def load_curve(
    fleet: Fleet,
    work: ServingWorkload,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    seed: int = 0,
    loads: Sequence[float] = LOADS,
) -> dict[str, Any]:
    """Percentiles, throughput and kept share at each load; the goodput where a limit is given.

    Returns: capacity_per_s, rows (load, rate_per_s, ttft and tpot p50 and p95 in seconds, output_tokens_per_s,
    mean_batch, kept), goodput_per_s (0 where no load keeps the target; None without one), kept_share. JSON-ready.

    Raises:
        InputError: a fleet that cannot hold a request, or a workload that makes no sense.
    """
    capacity, stay_s = capacity_per_s(fleet, work)
    rows: list[dict[str, Any]] = []
    good_per_s = 0.0
    for load in loads:
        rate = load * capacity
        requests = int(min(MOST, max(200, TURNS * rate * stay_s)))
        at_rate = replace(work, rate_per_s=rate, concurrency=None, requests=requests)
        result = simulate(fleet, at_rate, seed, warmup=WARMUP)
        kept = kept_share(result.requests[int(WARMUP * len(result.requests)) :], ttft_s, tpot_s)
        rows.append({"load": load, "rate_per_s": rate, **_figures(result), "kept": kept})
        if kept is not None and kept >= KEPT:
            good_per_s = max(good_per_s, rate)
    asked = ttft_s is not None or tpot_s is not None
    return {
        "capacity_per_s": capacity,
        "rows": rows,
        "goodput_per_s": good_per_s if asked else None,
        "kept_share": KEPT,
    }


def _figures(result: ServingResult) -> dict[str, float]:
    return {
        "ttft_p50_s": result.ttft_s["p50"],
        "ttft_p95_s": result.ttft_s["p95"],
        "tpot_p50_s": result.tpot_s["p50"],
        "tpot_p95_s": result.tpot_s["p95"],
        "output_tokens_per_s": result.output_tokens_per_s,
        "mean_batch": result.mean_batch,
    }


def kept_share(requests: Sequence[Request], ttft_s: float | None, tpot_s: float | None) -> float | None:
    """Share of the requests that kept the limits; None without any limit, or any request."""
    if (ttft_s is None and tpot_s is None) or not requests:
        return None
    good = sum((ttft_s is None or r.ttft_s <= ttft_s) and (tpot_s is None or r.tpot_s <= tpot_s) for r in requests)
    return good / len(requests)
