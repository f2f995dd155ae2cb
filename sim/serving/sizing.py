"""Sizing a deployment to a latency target: the smallest and the cheapest that meet TTFT and TPOT.

Every combination of instance size, attention width, precision, cache format and draft length is tried; what does not fit
or is too slow is counted by its reason. Each answer names its mode:

* `measured`: a published row of this model on this chip meets the target; its figure replaces the model's.
* `hybrid`: published kernel shares and latencies around a roofline, with the fitted scalar of the chip and stack if any.
* `roofline`: peaks alone, a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.serving.calibration import fitted, rows
from sim.serving.deployment import Deployment, memory, shortfall
from sim.serving.stacks import ServingStack, load_stack
from sim.serving.step_time import decode_step, largest_batch, prefill, tpot
from sim.serving.workload import number
from sim.spec.hardware import Cluster, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

HEADROOM = 0.8  # assumed: share of its throughput an instance is loaded to, so that queues stay short
DEFAULT_CLUSTERS = ("dgx_h100", "dgx_h200", "dgx_b200", "cloudmatrix384", "atlas_800t_a2")


@dataclass(frozen=True)
class Target:
    """What a user must get. `cached_share`: share of the prompt found in a prefix cache."""

    prompt: float
    output: float
    ttft_s: float = 2.0
    tpot_s: float = 0.05
    cached_share: float = 0.0
    rate_per_s: float | None = None  # requests per second of the whole service; None: per instance only

    def check(self) -> Target:
        number(self.prompt, "prompt", 1)
        number(self.output, "output", 1)
        number(self.ttft_s, "ttft", 1e-6)
        number(self.tpot_s, "tpot", 1e-6)
        number(self.cached_share, "cached_share", 0.0, 0.999)
        if self.rate_per_s is not None:
            number(self.rate_per_s, "rate", 1e-9)
        return self

    @property
    def context(self) -> float:
        """Mean cached tokens of a request while it decodes."""
        return self.prompt + self.output / 2


@dataclass(frozen=True)
class Option:
    """One deployment that meets the target. `layout`: prefill and decode on instances of their own (same shape), or shared."""

    decode: Deployment
    layout: str  # disaggregated | shared
    batch: int  # requests per attention group
    tpot_s: float
    ttft_s: float  # one prompt's prefill plus half a running batch's
    decode_tokens_per_s_chip: float
    prefill_tokens_per_s_chip: float  # new (uncached) tokens
    chips: int  # one instance of each kind, or what the rate asks for
    decode_instances: int
    prefill_instances: int
    chip_seconds_input: float  # per uncached prompt token
    chip_seconds_output: float  # per output token
    usd_per_million_input: float | None
    usd_per_million_output: float | None
    usd_per_request: float | None
    mode: str
    measured_row: str = ""
    simulated: Mapping | None = None  # what the event simulation saw, when asked for

    @property
    def kept(self) -> bool:
        """Whether the simulated requests kept the target (true when none were simulated)."""
        return self.simulated is None or (self.simulated["keeps_ttft"] and self.simulated["keeps_tpot"])

    def to_dict(self) -> dict:
        out = {k: v for k, v in self.__dict__.items() if k != "decode"}
        return {"deployment": self.decode.describe(), "cluster": self.decode.cluster.name, **out}


@dataclass(frozen=True)
class Sizing:
    """Options that meet the target, best first, and why the others do not."""

    target: Target
    options: list[Option]
    smallest: Option | None
    cheapest: Option | None
    refused: Mapping[str, int]
    tried: int
    nearest: str = ""
    notes: list[str] = field(default_factory=list)


def default_stack(cluster: Cluster, tensor: bool) -> ServingStack:
    """The software assumed where none is named: by maker and by whether experts need an all-to-all."""
    name = cluster.chip.name.upper()
    if name.startswith("910C"):
        return load_stack("cloudmatrix-infer")
    if name.startswith("910"):
        return load_stack("ascend-a2")
    if name.startswith("H800"):
        return load_stack("deepseek-inhouse")
    return load_stack("sglang-tp" if tensor else "sglang-ep")


def precisions(cluster: Cluster) -> tuple[str, ...]:
    """Formats tried unless told otherwise: FP8 where the chip has it (the published GLM-5 and DeepSeek checkpoints), else INT8."""
    if "fp8" in cluster.chip.peak_flops:
        return ("fp8", "bf16")
    return ("w8a8", "w4a8", "bf16") if "int8" in cluster.chip.peak_flops else ("bf16",)


def cache_formats(cluster: Cluster) -> tuple[str, ...]:
    """An fp8 cache is tried only on chips with fp8; Huawei's published figures keep 16 bits."""
    return ("fp8", "bf16") if "fp8" in cluster.chip.peak_flops else ("bf16",)


def _sizes(cluster: Cluster, model: ModelSpec, most: int) -> list[int]:
    node = cluster.chips_per_node
    steps = {1, 2, 4, node // 2, node, 2 * node, 4 * node, 8 * node, 9 * node, 18 * node}
    cap = min(most, cluster.num_chips, max(node, (model.experts or 1) * 2))
    return sorted(n for n in steps if 1 <= n <= cap)


def rent_of(cluster: Cluster, rent: Figure | float | None = None) -> Figure | None:
    """USD per chip-hour: as given, or the chip's."""
    if isinstance(rent, Figure):
        return rent
    if rent is not None:
        value = number(rent, "rent", 1e-9, 1e6)
        return Figure(value, value, value, "USD/h", "given", "assumed")
    return cluster.chip.rent_usd_per_hour


def ttft(d: Deployment, target: Target, prompts: int, mode: str) -> float:
    """Seconds to the first token when batches of `prompts` prompts follow each other: half a running batch, then one's own."""
    return 1.5 * prefill(d, target.prompt, target.prompt * target.cached_share, prompts, mode).total_s


def prefill_rate(d: Deployment, target: Target, mode: str) -> tuple[float, float]:
    """(new tokens/s of the instance, TTFT) at the largest batch that keeps TTFT; rate 0 when one prompt is too slow."""
    best, seen = 0.0, math.inf
    new = target.prompt * (1 - target.cached_share)
    most = max(1, round(16384 / new))
    for prompts in sorted({1, 2, 4, 8, most}):
        if prompts > most:
            break
        wait = ttft(d, target, prompts, mode)
        if wait > target.ttft_s:
            return best, min(seen, wait)
        best, seen = prefill(d, target.prompt, target.prompt * target.cached_share, prompts, mode).tokens_per_s, wait
    return best, seen


def measured(model: ModelSpec, chip: str, context: float, limit_s: float) -> tuple[float, str] | None:
    """(output tokens/s per chip, row id) of a published decode row of this model and chip: context within a tenth, TPOT met."""
    found = None
    for row in rows():
        if (
            row["kind"] != "decode"
            or not chip.upper().startswith(row["chip"])
            or load_model(row["deployment"]["model"]).name != model.name
        ):
            continue
        seconds = row.get("measured_tpot_ms", 1e3 * row["batch"] / row["measured"]) / 1e3
        if abs(row["context"] / context - 1) <= 0.1 and seconds <= limit_s:
            rate = row["measured"] / row.get("per", 1)
            if found is None or rate > found[0]:
                found = (rate, row["id"])
    return found


def _shared_batch(d: Deployment, target: Target, fill_s: float, room: int, mode: str) -> tuple[int, float]:
    """(largest batch, TPOT) when prefills of `fill_s` seconds a prompt interrupt the decoding of the same instance.

    Requests leave at rate r = x / (1 + fill·x) with x = batch / (decode seconds of a whole output); decoding then has
    1 − r·fill of the time.
    """

    def slowed(batch: int) -> float:
        alone = decode_step(d, batch, target.context, mode).total_s / d.tokens_per_step
        x = batch * d.groups / (alone * target.output)
        return alone * (1.0 + fill_s * x)

    if slowed(1) > target.tpot_s:
        return 0, slowed(1)
    low, high = 1, room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if slowed(middle) <= target.tpot_s else (low, middle - 1)
    return low, slowed(low)


def evaluate(
    d: Deployment, target: Target, mode: str = "hybrid", rent: Figure | float | None = None, shared: bool = False
) -> Option | str:
    """An option, or the reason why this deployment does not meet the target: memory, TPOT or TTFT."""
    target.check()
    if shortfall(d) > 0:
        return "weights do not fit"
    room = memory(d).requests(target.prompt + target.output)
    if room < 1:
        return "no room for one context"
    if mode == "hybrid":
        d = fitted(d)
    if tpot(d, 1, target.context, mode) > target.tpot_s:
        return "TPOT too slow at batch 1"
    fill, wait = prefill_rate(d, target, mode)
    if fill <= 0:
        return "TTFT too slow"
    new = target.prompt * (1 - target.cached_share)
    if shared:
        batch, seconds = _shared_batch(d, target, new / fill, min(room, 4096), mode)
        if not batch:
            return "TPOT too slow while prefilling"
    else:
        batch, seconds = min(largest_batch(d, target.context, target.tpot_s, mode), room), 0.0
    step = decode_step(d, batch, target.context, mode)
    decode_rate, said, row = step.tokens_per_s / d.chips, mode, ""
    seen = (
        measured(d.model, d.cluster.chip.name, target.context, target.tpot_s)
        if mode == "hybrid" and not shared
        else None
    )
    if seen and d.chips >= 64:  # the rows are large expert-parallel instances
        decode_rate, said, row = seen[0], "measured", seen[1]
    fill_rate = fill / d.chips
    per_in, per_out = 1.0 / (fill_rate * HEADROOM), 1.0 / (decode_rate * HEADROOM)
    rate, n_decode, n_prefill = target.rate_per_s, 1, 0 if shared else 1
    if rate and shared:
        n_decode = max(1, math.ceil(rate * (new * per_in + target.output * per_out) / d.chips))
    elif rate:
        n_decode = max(1, math.ceil(rate * target.output * per_out / d.chips))
        n_prefill = max(1, math.ceil(rate * new * per_in / d.chips))
    price = rent_of(d.cluster, rent)
    usd = (price.value / 3600) if price else None
    return Option(
        decode=d,
        layout="shared" if shared else "disaggregated",
        batch=batch,
        tpot_s=seconds or step.total_s / d.tokens_per_step,
        ttft_s=wait,
        decode_tokens_per_s_chip=decode_rate,
        prefill_tokens_per_s_chip=fill_rate,
        chips=(n_decode + n_prefill) * d.chips,
        decode_instances=n_decode,
        prefill_instances=n_prefill,
        chip_seconds_input=per_in,
        chip_seconds_output=per_out,
        usd_per_million_input=usd and 1e6 * usd * per_in,
        usd_per_million_output=usd and 1e6 * usd * per_out,
        usd_per_request=usd and usd * (new * per_in + target.output * per_out),
        mode=said,
        measured_row=row,
    )


def candidates(
    model: ModelSpec,
    cluster: Cluster,
    most: int = 160,
    kvs: Iterable[str] | None = None,
    formats: Iterable[str] | None = None,
    drafts: Iterable[int] | None = None,
    accept: Mapping[int, float] | None = None,
) -> list[Deployment]:
    """Deployments to try on one cluster.

    accept: mean tokens a step for a number of drafts; by default 70% of drafts are right in turn (assumed by CloudMatrix-Infer).
    """
    found = []
    drafts = tuple(drafts) if drafts is not None else ((0, 1, 3) if model.mtp_modules else (0,))
    for chips in _sizes(cluster, model, most):
        widths = {1, chips if chips <= cluster.chips_per_node else 1, min(4, chips)}
        for tp in sorted(w for w in widths if chips % w == 0 and model.heads % w == 0):
            if tp not in (1, chips) and not model.experts:
                continue
            stack = default_stack(cluster, tp == chips)
            for precision in formats or precisions(cluster):
                for kv in kvs or cache_formats(cluster):
                    for k in drafts:
                        found.append(
                            Deployment(
                                model,
                                cluster,
                                chips,
                                precision,
                                kv,
                                tp,
                                k,
                                accept_length=(accept or {}).get(k),
                                stack=stack,
                            ).check()
                        )
    return found


def size(
    model,
    target: Target,
    clusters: Iterable = DEFAULT_CLUSTERS,
    mode: str = "hybrid",
    rent: Figure | float | None = None,
    most: int = 160,
    verify: int = 0,
    seed: int = 0,
    **narrow,
) -> Sizing:
    """Smallest and cheapest deployment that meets `target` on any of `clusters`.

    verify: simulate up to so many candidates for each of the two, and take the first that keeps the target under arrivals.
    narrow: kvs, formats, drafts, accept, as in `candidates`.
    Raises:
        InputError: nothing meets the target; the message says how many failed for which reason and what comes nearest.
    """
    model, target = load_model(model), target.check()
    options, refused, tried, near = [], {}, 0, None
    for given in clusters:
        cluster = cluster_from(given)
        both = [
            (d, shared)
            for d in candidates(model, cluster, most, **narrow)
            for shared in ((False, True) if d.chips <= cluster.chips_per_node else (False,))
        ]
        for d, shared in both:
            tried += 1
            outcome = evaluate(d, target, mode, rent, shared)
            if isinstance(outcome, Option):
                options.append(outcome)
                continue
            refused[outcome] = refused.get(outcome, 0) + 1
            if outcome in ("TPOT too slow at batch 1", "TTFT too slow"):
                e = fitted(d) if mode == "hybrid" else d
                one, first = tpot(e, 1, target.context, mode), ttft(e, target, 1, mode)
                lack = max(one / target.tpot_s, first / target.ttft_s)
                if near is None or lack < near[0]:
                    near = (
                        lack,
                        f"{e.describe()}: TPOT {1e3 * one:.1f} ms at batch 1, TTFT {first:.2f} s for one prompt",
                    )
    text = near[1] if near else ""
    if not options:
        why = "; ".join(f"{n} {reason}" for reason, n in sorted(refused.items(), key=lambda kv: -kv[1]))
        raise InputError(
            f"no deployment of {model.name} meets TTFT {target.ttft_s:g} s and TPOT {1e3 * target.tpot_s:g} ms with {target.prompt:,.0f} "
            f"tokens in and {target.output:,.0f} out ({tried} tried: {why})"
            + (f"; nearest: {text}" if text else "")
            + "; relax the target, shorten the prompt or give other clusters"
        )
    options.sort(key=lambda o: (o.usd_per_request is None, o.usd_per_request or 0.0, o.chips))
    priced = [o for o in options if o.usd_per_request is not None]
    notes = (
        []
        if len(priced) == len(options)
        else ["some chips have no rent in data/chips: give --chip-hour-price to compare them by cost"]
    )
    smallest = _first_kept(
        sorted(options, key=lambda o: (o.chips, o.usd_per_request or math.inf)), target, verify, seed
    )
    cheapest = _first_kept(priced, target, verify, seed) if priced else None
    for name, option in (("smallest", smallest), ("cheapest", cheapest)):
        if option and not option.kept:
            notes.append(
                f"none of the first {verify} candidates for the {name} kept the target when simulated; the first is shown"
            )
    return Sizing(target, options, smallest, cheapest, refused, tried, text, notes)


def _first_kept(options: list[Option], target: Target, verify: int, seed: int) -> Option:
    seen = (
        [replace(o, simulated=check_by_simulation(o, target, seed=seed)) for o in options[:1]]
        if verify
        else options[:1]
    )
    while verify and not seen[-1].kept and len(seen) < min(verify, len(options)):
        seen.append(replace(options[len(seen)], simulated=check_by_simulation(options[len(seen)], target, seed=seed)))
    return seen[-1] if seen[-1].kept else seen[0]


def check_by_simulation(option: Option, target: Target, seed: int = 0, most: int = 20_000) -> dict:
    """The option under Poisson arrivals at HEADROOM of its capacity (or at the target's rate): does it keep TTFT and TPOT?

    Enough requests to fill the batch four times over, up to `most`; the first half is warm-up. TTFT is judged at the median.
    """
    from sim.serving.simulate import Fleet, ServingWorkload, simulate

    d = option.decode
    new = target.prompt * (1 - target.cached_share)
    decode_s, prefill_s = (
        option.chip_seconds_output * target.output / d.chips,
        option.chip_seconds_input * new / d.chips,
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
