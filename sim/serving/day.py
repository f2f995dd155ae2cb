"""A day of traffic on a fleet of any size: latencies, throughput and money hour by hour.

Instances are alike, so a few stand for all: a *pod* of instances behind one router that knows their loads, as many pods
as the fleet holds, and requests dealt to the pods in turn. That is a fleet in its own right, simulated without loss: a
pod gets every so-manieth request of the Poisson stream, whose gaps are a gamma distribution. Beside one router over all
instances it is a little less even, the less the larger a pod. A pod has up to `POD` instances, fewer where its day
would be more than `MOST` requests, down to two; where even theirs are more, hours are shortened, all alike, but never
below `STAYS` times what a request stays: an hour of steady traffic looks the same before it ends. The last hour is
played once before the first, so that the day begins warm.

    >>> from sim.serving.deployment import Deployment
    >>> d = Deployment.of("glm5", "dgx_h200", chips=8, kv="fp8", attention_tp=8, stack="sglang-tp")
    >>> work = ServingWorkload(rate_per_s=100.0, prompt=1000, output=200)
    >>> result = day(Fleet(decode=d, decode_instances=1000), work, (0.5,) * 12 + (1.5,) * 12, most=2_000)
    >>> len(result["hours"]), result["pod_instances"], round(result["requests"] / 1e6, 2)
    (24, 2, 8.64)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from minglm.errors import InputError
from sim.serving.instances import Request
from sim.serving.load_curve import capacity_per_s, kept_share
from sim.serving.simulate import Fleet, simulate
from sim.serving.workload import ServingWorkload, percentiles

DAY_S = 86_400.0
POD, LEAST_POD = 8, 2  # instances that are simulated for all
MOST = 250_000  # requests of a pod in a day
STAYS = 4.0  # an hour is at least so many times as long as a request decodes in a full batch


def pod_of(fleet: Fleet, each: float, most: float) -> tuple[Fleet, float]:
    """(the fleet that is simulated, how many of it make the whole); each: requests of a day to an instance."""
    if fleet.prefill is None:
        count = min(fleet.decode_instances, POD, max(LEAST_POD, int(most / each)))
        return replace(fleet, decode_instances=count), fleet.decode_instances / count
    both = math.gcd(fleet.decode_instances, fleet.prefill_instances)
    pods = max(
        n
        for n in range(1, both + 1)
        if both % n == 0 and (n == 1 or (fleet.decode_instances + fleet.prefill_instances) // n >= POD)
    )
    return (
        replace(
            fleet,
            decode_instances=fleet.decode_instances // pods,
            prefill_instances=fleet.prefill_instances // pods,
        ),
        float(pods),
    )


def day(
    fleet: Fleet,
    work: ServingWorkload,
    hourly: Sequence[float] = (1.0,) * 24,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    seed: int = 0,
    most: int = MOST,
) -> dict[str, Any]:
    """A day at `work.rate_per_s` on average, in equal stretches of these relative rates.

    Returns: hours (rate_per_s of the whole fleet, load as a share of its capacity, ttft and tpot p50 and p95 in
    seconds, kept: share of the requests within the limits, None without one, queue_grows: waits were longer at its
    end), the same of the whole day, requests and tokens of the day, capacity_per_s, pod_instances, pods,
    simulated_requests, stretch_s. JSON-ready.

    Raises:
        InputError: no rate, rates that cannot be, or a fleet that cannot hold a request.
    """
    if work.rate_per_s is None:
        raise InputError("a day of traffic needs a mean rate: give --rate, or workload.rate, requests per second")
    if not hourly or sum(hourly) <= 0.0:
        raise InputError("a day of traffic: the relative rates of its hours must not all be 0")
    pod, pods = pod_of(fleet, work.rate_per_s * DAY_S / fleet.decode_instances, most)
    capacity, stay_s = capacity_per_s(fleet, work)
    rate = work.rate_per_s / pods
    whole_s = DAY_S / len(hourly)
    stretch_s = min(whole_s, max(STAYS * stay_s, most / rate / len(hourly)))
    played = replace(
        work,
        rate_per_s=rate * fmean((hourly[-1], *hourly)) / fmean(hourly),
        concurrency=None,
        stretches=(hourly[-1], *hourly),
        stretch_s=stretch_s,
        dealt_over=max(1.0, pods),
    )
    result = simulate(pod, played, seed, warmup=0.0)
    by_hour: list[list[Request]] = [[] for _ in range(len(hourly) + 1)]
    for request in result.requests:
        by_hour[min(len(hourly), int(request.arrive / stretch_s))].append(request)
    times = whole_s / stretch_s * pods
    rows: list[dict[str, Any]] = []
    for share, requests in zip(hourly, by_hour[1:], strict=True):
        now_per_s = work.rate_per_s * share / fmean(hourly)
        rows.append({"rate_per_s": now_per_s, "load": now_per_s / capacity, **_figures(requests, ttft_s, tpot_s)})
        rows[-1]["queue_grows"] = _queue_grows(requests)
    counted = [request for requests in by_hour[1:] for request in requests]
    return {
        "hours": rows,
        **_figures(counted, ttft_s, tpot_s),
        "requests": work.rate_per_s * DAY_S,
        "input_tokens": times * sum(r.prompt for r in counted),
        "output_tokens": times * sum(r.output for r in counted),
        "capacity_per_s": capacity,
        "pod_instances": pod.decode_instances + (pod.prefill_instances if pod.prefill else 0),
        "pods": pods,
        "simulated_requests": len(result.requests),
        "stretch_s": stretch_s,
    }


def _queue_grows(requests: Sequence[Request]) -> bool:
    """Whether the last quarter waited for its prefill three times as long as the first, and more than a second."""
    waits, quarter = [r.start - r.arrive for r in requests], len(requests) // 4
    return quarter > 0 and fmean(waits[-quarter:]) > max(1.0, 3.0 * fmean(waits[:quarter]))


def _figures(requests: Sequence[Request], ttft_s: float | None, tpot_s: float | None) -> dict[str, float | None]:
    of_first, of_each = percentiles([r.ttft_s for r in requests]), percentiles([r.tpot_s for r in requests])
    return {
        "ttft_p50_s": of_first["p50"],
        "ttft_p95_s": of_first["p95"],
        "tpot_p50_s": of_each["p50"],
        "tpot_p95_s": of_each["p95"],
        "kept": kept_share(requests, ttft_s, tpot_s),
    }
