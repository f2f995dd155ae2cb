"""Sizing a deployment to a latency target: the smallest and the cheapest that meet TTFT and TPOT.

Every combination of instance size, attention width, precision, cache format and draft length is tried; what does not
fit or is too slow is counted by its reason. Each answer names its mode:

* `measured`: a published row of this model on this chip meets the target; its figure replaces the model's.
* `hybrid`: published kernel shares and latencies around a roofline, with the fitted scalar of chip and stack if any.
* `roofline`: peaks alone, a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.serving.calibration import fitted
from sim.serving.defaults import cache_formats, default_stack, precisions
from sim.serving.deployment import Deployment
from sim.serving.options import Option, Target, evaluate, ttft
from sim.serving.simulate import Fleet, simulate
from sim.serving.step_time import tpot
from sim.serving.workload import ServingWorkload
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

DEFAULT_CLUSTERS = ("dgx_h100", "dgx_h200", "dgx_b200", "cloudmatrix384", "atlas_800t_a2")


@dataclass(frozen=True)
class Sizing:
    """Options that meet the target, best first, and why the others do not."""

    target: Target
    options: list[Option]
    smallest: Option | None
    cheapest: Option | None
    refused: Mapping[str, int]  # how many failed for which reason
    tried: int
    nearest: str = ""
    notes: list[str] = field(default_factory=list)


def size(
    model: str | ModelSpec,
    target: Target,
    clusters: Iterable[str | Cluster] = DEFAULT_CLUSTERS,
    mode: str = "hybrid",
    rent: Figure | float | None = None,
    most: int = 160,
    verify: int = 0,
    seed: int = 0,
    **narrow: Any,
) -> Sizing:
    """Smallest and cheapest deployment that meets `target` on any of `clusters`.

    most: chips of an instance. verify: simulate up to so many candidates for each of the two, and take the first that
    keeps the target under arrivals. narrow: kvs, formats, drafts, accept, as in `candidates`.

    Raises:
        InputError: nothing meets the target; the message says how many failed for which reason and what comes nearest.
    """
    model, target = load_model(model), target.check()
    search = _Search(target, mode, rent)
    for cluster in map(cluster_from, clusters):
        for d in candidates(model, cluster, most, **narrow):
            search.evaluate(d, shared=False)
            if d.chips <= cluster.chips_per_node:
                search.evaluate(d, shared=True)
    if not search.options:
        raise InputError(search.refusal(model))
    options = sorted(search.options, key=lambda o: (o.usd_per_request is None, o.usd_per_request or 0.0, o.chips))
    priced = [o for o in options if o.usd_per_request is not None]
    by_size = sorted(options, key=lambda o: (o.chips, o.usd_per_request or math.inf))
    smallest = _first_kept(by_size, target, verify, seed)
    cheapest = _first_kept(priced, target, verify, seed) if priced else None
    notes = []
    if len(priced) < len(options):
        notes.append("some chips have no rent in data/chips: give --chip-hour-price to compare them by cost")
    for name, option in (("smallest", smallest), ("cheapest", cheapest)):
        if option and not option.kept:
            notes.append(
                f"none of the first {verify} candidates for the {name} kept the target when simulated; "
                "the first is shown"
            )
    return Sizing(target, options, smallest, cheapest, search.refused, search.tried, search.nearest, notes)


class _Search:
    """Evaluates deployments one by one; keeps the options, the reasons against the others, and the nearest of those."""

    def __init__(self, target: Target, mode: str, rent: Figure | float | None):
        self.target, self.mode, self.rent = target, mode, rent
        self.options: list[Option] = []
        self.refused: dict[str, int] = {}
        self.tried = 0
        self.nearest = ""
        self._nearest_excess = math.inf  # times the target's latency

    def evaluate(self, d: Deployment, shared: bool) -> None:
        """Try one more."""
        self.tried += 1
        outcome = evaluate(d, self.target, self.mode, self.rent, shared)
        if isinstance(outcome, Option):
            self.options.append(outcome)
            return
        self.refused[outcome] = self.refused.get(outcome, 0) + 1
        if outcome in ("TPOT too slow at batch 1", "TTFT too slow"):
            self._compare_with_nearest(fitted(d) if self.mode == "hybrid" else d)

    def _compare_with_nearest(self, d: Deployment) -> None:
        target = self.target
        tpot_s, ttft_s = tpot(d, 1, target.context, self.mode), ttft(d, target, 1, self.mode)
        excess = max(tpot_s / target.tpot_s, ttft_s / target.ttft_s)
        if excess < self._nearest_excess:
            self._nearest_excess = excess
            self.nearest = f"{d.describe()}: TPOT {1e3 * tpot_s:.1f} ms at batch 1, TTFT {ttft_s:.2f} s for one prompt"

    def refusal(self, model: ModelSpec) -> str:
        """Why there are no options, in one line."""
        target = self.target
        reasons = "; ".join(f"{n} {reason}" for reason, n in sorted(self.refused.items(), key=lambda kv: -kv[1]))
        return (
            f"no deployment of {model.name} meets TTFT {target.ttft_s:g} s and TPOT {1e3 * target.tpot_s:g} ms "
            f"with {target.prompt:,.0f} tokens in and {target.output:,.0f} out ({self.tried} tried: {reasons})"
            + (f"; nearest: {self.nearest}" if self.nearest else "")
            + "; relax the target, shorten the prompt or give other clusters"
        )


def _first_kept(options: list[Option], target: Target, verify: int, seed: int) -> Option:
    """The first of up to `verify` options that keeps the target when simulated; else the first."""
    first = None
    for option in options[:verify]:
        simulated = replace(option, simulated=check_by_simulation(option, target, seed=seed))
        if simulated.kept:
            return simulated
        first = first or simulated
    return first or options[0]


def check_by_simulation(option: Option, target: Target, seed: int = 0, most: int = 20_000) -> dict[str, Any]:
    """Does the option keep TTFT and TPOT under Poisson arrivals at HEADROOM of its capacity, or at the target's rate?

    Enough requests to fill the batch four times over, up to `most`; the first half is warm-up. TTFT is judged at the
    median.
    """
    d = option.decode
    decode_s, prefill_s = (
        option.chip_seconds_output * target.output / d.chips,
        option.chip_seconds_input * target.new / d.chips,
    )
    if option.layout == "shared":
        capacity = option.decode_instances / (decode_s + prefill_s)
        fleet = Fleet(decode=d, decode_instances=option.decode_instances, max_batch=option.batch)
    else:
        capacity = min(option.decode_instances / decode_s, option.prefill_instances / prefill_s)
        fleet = Fleet(
            decode=d,
            decode_instances=option.decode_instances,
            prefill=d,
            prefill_instances=option.prefill_instances,
            max_batch=option.batch,
        )
    rate = min(target.rate_per_s or capacity, capacity)
    requests = int(min(most, max(400, 4 * rate * (target.ttft_s + target.output * option.tpot_s))))
    result = simulate(
        fleet,
        ServingWorkload(
            rate_per_s=rate,
            requests=requests,
            prompt=target.prompt,
            output=target.output,
            cached_share=target.cached_share,
        ),
        seed=seed,
        warmup=0.5,
    )
    return {
        "rate_per_s": rate,
        "requests": requests,
        "ttft_p95_s": result.ttft_s["p95"],
        "tpot_p95_s": result.tpot_s["p95"],
        "ttft_p50_s": result.ttft_s["p50"],
        "tpot_p50_s": result.tpot_s["p50"],
        "output_tokens_per_s_chip": result.output_tokens_per_s_chip,
        "saturated": result.saturated,
        "keeps_ttft": result.ttft_s["p50"] <= target.ttft_s,
        "keeps_tpot": result.tpot_s["p95"] <= target.tpot_s * 1.02,
    }


def candidates(
    model: ModelSpec,
    cluster: Cluster,
    most: int = 160,
    kvs: Iterable[str] | None = None,
    formats: Iterable[str] | None = None,
    drafts: Iterable[int] | None = None,
    accept: Mapping[int, float] | None = None,
) -> list[Deployment]:
    """Deployments to try on one cluster, instances of at most `most` chips.

    accept: mean tokens a step for a number of drafts; by default 70% of drafts are right in turn (assumed by
    CloudMatrix-Infer).
    """
    tried_drafts = tuple(drafts) if drafts is not None else ((0, 1, 3) if model.mtp_modules else (0,))
    tried_formats = tuple(formats or precisions(cluster))
    tried_kvs = tuple(kvs or cache_formats(cluster))
    return [
        Deployment(
            model, cluster, chips, precision, kv, tp, k, accept_length=(accept or {}).get(k), stack=stack
        ).check()
        for chips in _sizes(cluster, model, most)
        for tp in _widths(cluster, model, chips)
        for stack in (default_stack(cluster, tp == chips),)
        for precision in tried_formats
        for kv in tried_kvs
        for k in tried_drafts
    ]


def _widths(cluster: Cluster, model: ModelSpec, chips: int) -> list[int]:
    """Attention widths: one chip, four, or the whole instance inside a node."""
    widths = {1, chips if chips <= cluster.chips_per_node else 1, min(4, chips)}
    return sorted(w for w in widths if chips % w == 0 and model.heads % w == 0 and (w in (1, chips) or model.experts))


def _sizes(cluster: Cluster, model: ModelSpec, most: int) -> list[int]:
    """Chips of an instance: parts of a node, and up to eighteen nodes."""
    node = cluster.chips_per_node
    steps = {1, 2, 4, node // 2, node, 2 * node, 4 * node, 8 * node, 9 * node, 18 * node}
    cap = min(most, cluster.num_chips, max(node, (model.experts or 1) * 2))
    return sorted(n for n in steps if 1 <= n <= cap)
