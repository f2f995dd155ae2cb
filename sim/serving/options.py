"""One deployment against a latency target: does it meet TTFT and TPOT, and what do its tokens cost?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.base.figure import Figure
from sim.serving.calibration import chip_of, fitted, rows
from sim.serving.defaults import rent_of
from sim.serving.deployment import Deployment
from sim.serving.first_token import front_s, prepared_s, steps_before
from sim.serving.memory import chip_memory, shortfall
from sim.serving.step_time import EngineStepTime, decode_step, largest_batch, prefill, tpot
from sim.serving.workload import number
from sim.spec.hardware import Chip
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

HEADROOM = 0.8  # assumed: share of its throughput an instance is loaded to, so that queues stay short
MAX_BATCH = 4096  # requests per attention group at most
PREFILL_BATCH_TOKENS = 16384  # new tokens prefilled together at most
MEASURED_FROM = 64  # chips of an instance: the published rows are of large expert-parallel instances


@dataclass(frozen=True)
class Target:
    """What a user must get: lengths in tokens, latencies in seconds.

    cached_share: share of the prompt found in a prefix cache.
    """

    prompt: float
    output: float
    ttft_s: float = 2.0
    tpot_s: float = 0.05
    cached_share: float = 0.0
    rate_per_s: float | None = None  # requests per second of the whole service; None: per instance only

    def check(self) -> Target:
        """Itself, when every value can be.

        Raises:
            InputError: the first value that cannot.
        """
        number(self.prompt, "prompt", 1)
        number(self.output, "output", 1)
        number(self.ttft_s, "ttft", 1e-6)
        number(self.tpot_s, "tpot", 1e-6)
        number(self.cached_share, "cached_share", 0.0, 0.999)
        if self.rate_per_s is not None:
            number(self.rate_per_s, "rate", 1e-9)
        return self

    @property
    def new(self) -> float:
        """Prompt tokens that no cache holds."""
        return self.prompt * (1 - self.cached_share)

    @property
    def context(self) -> float:
        """Mean cached tokens of a request while it decodes."""
        return self.prompt + self.output / 2


@dataclass(frozen=True)
class Option:
    """One deployment that meets the target.

    layout: prefill and decode on instances of their own (same shape), or shared.
    """

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
    simulated: Mapping[str, Any] | None = None  # what the event simulation saw, when asked for

    @property
    def kept(self) -> bool:
        """Whether the simulated requests kept the target (true when none were simulated)."""
        return self.simulated is None or (self.simulated["keeps_ttft"] and self.simulated["keeps_tpot"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the deployment in words."""
        out = {k: v for k, v in self.__dict__.items() if k != "decode"}
        return {"deployment": self.decode.describe(), "cluster": self.decode.cluster.name, **out}


def evaluate(
    d: Deployment, target: Target, mode: str = "hybrid", rent: Figure | float | None = None, shared: bool = False
) -> Option | str:
    """An option, or the reason why this deployment does not meet the target: memory, TPOT or TTFT."""
    target.check()
    if shortfall(d) > 0:
        return "weights do not fit"
    fitting = chip_memory(d).requests(target.prompt + target.output)
    if fitting < 1:
        return "no room for one context"
    if mode == "hybrid":
        d = fitted(d)
    if tpot(d, 1, target.context, mode) > target.tpot_s:
        return "TPOT too slow at batch 1"
    prefill_tokens_per_s, ttft_s = prefill_rate(d, target, mode)
    if prefill_tokens_per_s <= 0:
        return "TTFT too slow"
    if shared:
        batch, tpot_s = _shared_batch(d, target, target.new / prefill_tokens_per_s, min(fitting, MAX_BATCH), mode)
        if not batch:
            return "TPOT too slow while prefilling"
        step = decode_step(d, batch, target.context, mode)
        if mode == "hybrid":  # the running batch's steps come before a first token, too
            ttft_s += steps_before(d.stack) * step.total_s
            if ttft_s > target.ttft_s:
                return "TTFT too slow"
    else:
        batch = min(largest_batch(d, target.context, target.tpot_s, mode), fitting)
        step = decode_step(d, batch, target.context, mode)
        tpot_s = step.total_s / d.tokens_per_step
    return _option(d, target, mode, rent, shared, batch, step, tpot_s, prefill_tokens_per_s, ttft_s)


def _option(  # noqa: PLR0913 (a private second half of `evaluate`)
    d: Deployment,
    target: Target,
    mode: str,
    rent: Figure | float | None,
    shared: bool,
    batch: int,
    step: EngineStepTime,
    tpot_s: float,
    prefill_tokens_per_s: float,
    ttft_s: float,
) -> Option:
    """Rates, instances for the target's load, and money of a deployment that meets the target."""
    decode_rate, row_id = step.tokens_per_s / d.chips, ""
    if mode == "hybrid" and not shared and d.chips >= MEASURED_FROM:
        published = measured(d.model, d.cluster.chip, target.context, target.tpot_s)
        if published:
            decode_rate, row_id = published
    prefill_rate_chip = prefill_tokens_per_s / d.chips
    per_in, per_out = 1.0 / (prefill_rate_chip * HEADROOM), 1.0 / (decode_rate * HEADROOM)
    rate, n_decode, n_prefill = target.rate_per_s, 1, 0 if shared else 1
    if rate and shared:
        n_decode = max(1, math.ceil(rate * (target.new * per_in + target.output * per_out) / d.chips))
    elif rate:
        n_decode = max(1, math.ceil(rate * target.output * per_out / d.chips))
        n_prefill = max(1, math.ceil(rate * target.new * per_in / d.chips))
    price = rent_of(d.cluster, rent)
    usd = (price.value / 3600) if price else None
    return Option(
        decode=d,
        layout="shared" if shared else "disaggregated",
        batch=batch,
        tpot_s=tpot_s,
        ttft_s=ttft_s,
        decode_tokens_per_s_chip=decode_rate,
        prefill_tokens_per_s_chip=prefill_rate_chip,
        chips=(n_decode + n_prefill) * d.chips,
        decode_instances=n_decode,
        prefill_instances=n_prefill,
        chip_seconds_input=per_in,
        chip_seconds_output=per_out,
        usd_per_million_input=usd and 1e6 * usd * per_in,
        usd_per_million_output=usd and 1e6 * usd * per_out,
        usd_per_request=usd and usd * (target.new * per_in + target.output * per_out),
        mode="measured" if row_id else mode,
        measured_row=row_id,
    )


def ttft(d: Deployment, target: Target, prompts: int, mode: str) -> float:
    """Seconds to the first token when batches of `prompts` prompts follow each other.

    That is the host's part, half a running batch, then one's own.
    """
    own_s = prefill(d, target.prompt, target.prompt * target.cached_share, prompts, mode).total_s
    host_s = front_s(d.stack, target.prompt) + prepared_s(d, own_s) if mode == "hybrid" else 0.0
    return host_s + 1.5 * own_s


def prefill_rate(d: Deployment, target: Target, mode: str) -> tuple[float, float]:
    """(new tokens/s of the instance, TTFT) at the largest batch that keeps TTFT; rate 0 when one prompt is too slow."""
    tokens_per_s, ttft_s = 0.0, math.inf
    most = max(1, round(PREFILL_BATCH_TOKENS / target.new))
    for prompts in sorted({1, 2, 4, 8, most}):
        if prompts > most:
            break
        wait = ttft(d, target, prompts, mode)
        if wait > target.ttft_s:
            return tokens_per_s, min(ttft_s, wait)
        step = prefill(d, target.prompt, target.prompt * target.cached_share, prompts, mode)
        tokens_per_s, ttft_s = step.tokens_per_s, wait
    return tokens_per_s, ttft_s


def measured(model: ModelSpec, chip: Chip, context: float, limit_s: float) -> tuple[float, str] | None:
    """(output tokens/s per chip, row id) of the fastest published decode row of this model and chip, if there is one.

    Its context is within a tenth of `context`, and it kept a TPOT of `limit_s`.
    """
    best = None
    for row in rows():
        if (
            row["kind"] != "decode"
            or _speeds(chip_of(row)) != _speeds(chip)
            or load_model(row["deployment"]["model"]).name != model.name
        ):
            continue
        seconds = row.get("measured_tpot_ms", 1e3 * row["batch"] / row["measured"]) / 1e3
        if abs(row["context"] / context - 1) <= 0.1 and seconds <= limit_s:
            rate = row["measured"] / row.get("per", 1)
            if best is None or rate > best[0]:
                best = (rate, row["id"])
    return best


def _speeds(chip: Chip) -> tuple:
    """What a published rate of a chip depends on: a changed chip has none, one with another name or price has."""
    return chip.file, chip.peak_flops, chip.memory_bytes, chip.memory_bytes_per_s


def _shared_batch(d: Deployment, target: Target, fill_s: float, most: int, mode: str) -> tuple[int, float]:
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
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if slowed(middle) <= target.tpot_s else (low, middle - 1)
    return low, slowed(low)
