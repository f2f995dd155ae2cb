"""Is my latency normal? A measured time per output token beside its prediction, engines like it, and what explains it.

    normal(load("serving_glm5_h200"), 0.030)

The prediction is a decode step of the scenario's deployment with as many requests as its load keeps in flight, and the
prompts that are read between its tokens (`sim.serving.step_time`, no queues). The interval is that of the engines that
others measured (`sim.serving.error`), for a model of that kind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minglm.errors import InputError
from sim.planner.normal import Cause, ranked
from sim.scenario.file import set_path, set_value
from sim.serving.deployment import Deployment
from sim.serving.error import interval
from sim.serving.first_token import unqueued_s
from sim.serving.remedies import require_fit
from sim.serving.scenario import fleet_and_work, load
from sim.serving.simulate import Fleet
from sim.serving.stacks import load_stack
from sim.serving.step_time import decode_step, prefill
from sim.study.answer import changed
from sim.validation.engine_row import EngineRow
from sim.validation.engine_rows import deployment_of, predict_ms, use_of
from sim.validation.engine_rows import load as load_rows

SHARE_HELD = 0.8  # of engines, by the interval of `sim.serving.error`
Z = statistics.NormalDist().inv_cdf((1 + SHARE_HELD) / 2)


@dataclass(frozen=True)
class Load:
    """Requests that one attention group keeps in flight, and their mean lengths in tokens."""

    requests: float
    prompt: float
    output: float
    cached: float  # tokens of a prompt that the prefix cache holds
    shares_chips: bool  # prompts are read by the chips that decode


def tpot_s(d: Deployment, at: Load) -> float:
    """Seconds from one output token of a request to its next in the steady state."""
    step = decode_step(d, at.requests, at.prompt + at.output / 2).total_s
    read = prefill(d, at.prompt, at.cached, 1).total_s if at.shares_chips else 0.0
    return step / d.tokens_per_step + max(at.requests - 1.0, 0.0) * read / at.output


def load_of(fleet: Fleet, work: Any) -> Load:
    """What a scenario's requests keep in flight: their concurrency, or Little's law where a rate is given."""
    d, prompt, output = fleet.decode, work.prompt.mean, work.output.mean
    groups = d.groups * fleet.decode_instances
    most = max(1.0, min(float(fleet.max_batch), require_fit(d, prompt + output, 1).requests(prompt + output)))
    at = Load(1.0, prompt, output, prompt * work.cached_share, fleet.prefill is None)
    if work.concurrency is not None:
        return replace(at, requests=min(most, max(1.0, work.concurrency / groups)))
    for _ in range(60):  # in flight = rate × seconds of a request, which grow with what is in flight
        wanted = min(most, max(1.0, work.rate_per_s / groups * output * tpot_s(d, at)))
        at = replace(at, requests=(at.requests + wanted) / 2)
    return at


def load_changed(name: str, changes: Sequence[str], replaced: Mapping[str, object] | None = None) -> dict[str, Any]:
    """A serving scenario with values replaced (dotted key → value; None leaves it), then each 'key.sub=value' of
    `changes`; checked as a file is."""
    scenario = load(name)
    for key, value in (replaced or {}).items():
        if value is not None:
            scenario = set_path(scenario, key.split("."), value)
    for change in changes:
        scenario = set_value(scenario, change)
    return load(scenario)


def normal(scenario: Mapping[str, Any], measured_s: float) -> dict[str, Any]:
    """The measured TPOT's place among what is predicted, JSON-ready.

    Raises:
        InputError: a time that is not above 0, or a deployment that does not fit.
    """
    if not 0 < measured_s < math.inf:
        raise InputError(f"measured tpot={measured_s:g}: must be more than 0; give what was measured, such as 30 ms")
    fleet, work = fleet_and_work(scenario)
    d, at = fleet.decode, load_of(fleet, work)
    own = tpot_s(d, at)
    low, high = (own * share for share in interval(d.model))
    errors = statistics.NormalDist((math.log(low) + math.log(high)) / 2, math.log(high / low) / 2 / Z)
    return {
        "quantity": "tpot",
        "measured": measured_s,
        "predicted": own,
        "interval": [low, high],
        "held": SHARE_HELD,
        "faster_than": 1.0 - errors.cdf(math.log(measured_s)),
        "normal": low <= measured_s <= high,
        "in_flight": {"requests_per_group": at.requests, "groups": d.groups * fleet.decode_instances},
        "nearest": nearest_rows(d, at),
        "causes": ranked(
            [*_knobs(d, at, own), *_countings(fleet, at, own)],
            measured_s,
            own,
            (low, high),
        ),
    }


def nearest_rows(d: Deployment, at: Load, most: int = 5) -> list[dict[str, Any]]:
    """Measured engines most like the deployment: same chip and kind of model first, then by size, load and length."""
    chip = d.cluster.chip.file

    def apart(row: EngineRow) -> float:
        other = deployment_of(row)
        pairs = (
            (other.model.active_params(), d.model.active_params()),
            (row.running, at.requests),
            (row.mean_prompt + row.mean_output, at.prompt + at.output),
            (other.chips, d.chips),
        )
        unlike = bool(other.model.experts) != bool(d.model.experts)
        return sum(abs(math.log(a / b)) for a, b in pairs) + 3.0 * (row.chip != chip) + 1.0 * unlike

    kinds = ((row, use_of(row)[0]) for row in load_rows())
    rows = [(row, kind) for row, kind in kinds if kind != "unsupported"]
    nearest = sorted(rows, key=lambda pair: (apart(pair[0]), pair[0].tpot_ms))[:most]
    return [_compared(row, kind) for row, kind in nearest]


def _compared(row: EngineRow, kind: str) -> dict[str, Any]:
    """A measured engine beside its prediction."""
    predicted_ms = predict_ms(row)
    chips = deployment_of(row).chips
    return {
        "id": f"{row.model} {row.precision} on {chips}, {row.engine}, {row.running:.0f} in flight",
        "chip": row.chip,
        "measured": row.tpot_ms / 1e3,
        "predicted": predicted_ms / 1e3,
        "error": predicted_ms / row.tpot_ms - 1.0,
        "quantity": "tpot",
        "kind": kind,
    }


def _knobs(d: Deployment, at: Load, own: float) -> list[Cause]:
    """What a measured endpoint may have that the scenario does not say, one at a time."""

    def in_flight(x: float) -> float:
        return tpot_s(d, replace(at, requests=x))

    def with_prompt(x: float) -> float:
        return tpot_s(d, replace(at, prompt=x, cached=at.cached * x / at.prompt))

    def with_figure(*path: Any, value: float) -> Callable[[float], float]:
        return lambda x: tpot_s(d.with_changes(cluster=changed(d.cluster, path, value * x)), at)

    def part(name: str, other: Deployment, load_there: Load = at) -> Cause:
        full = tpot_s(other, load_there)  # on for a share of the time: the mean lies between
        return Cause(name, "share of the steps", 0.0, 1.0, lambda x: own + x * (full - own))

    memory = d.cluster.chip.memory_bytes_per_s.value
    out = [
        Cause("more requests in flight", "a group", at.requests, 4 * at.requests, in_flight),
        Cause("fewer requests in flight", "a group", at.requests, 1.0, in_flight),
        Cause("longer prompts", "tokens", at.prompt, 8 * at.prompt, with_prompt),
        Cause("shorter prompts", "tokens", at.prompt, at.prompt / 8, with_prompt),
        Cause("memory bandwidth", "of its rate", 1.0, 0.4, with_figure("chip", "memory_bytes_per_s", value=memory)),
    ]
    for i, tier in enumerate(d.cluster.tiers):
        rate = with_figure("tiers", i, "bytes_per_s", value=tier.bytes_per_s.value)
        out.append(Cause(f"{tier.name} slower", "of its rate", 1.0, 0.25, rate))
    eager = d.stack.with_changes("assumed", "no graphs", eager_op_s=load_stack("vllm-eager")["eager_op_s"])
    out.append(part("no graphs: the host issues each kernel", d.with_changes(stack=eager)))
    if d.precision != "bf16":
        out.append(part("weights in bf16", d.with_changes(precision="bf16")))
    if d.drafts:
        out.append(part("no drafts", d.with_changes(drafts=0, accept_length=None)))
    if not at.shares_chips:
        out.append(part("prompts read by the chips that decode", d, replace(at, shares_chips=True)))
    elif at.requests > 1:
        out.append(part("prompts read by other chips", d, replace(at, shares_chips=False)))
    return out


def _countings(fleet: Fleet, at: Load, own: float) -> list[Cause]:
    """Other ways to count that a figure may have come from."""
    first = unqueued_s(fleet.prefill or fleet.decode, at.prompt, own)

    def counted(name: str, other: float) -> Cause:
        return Cause(name, "applied (1) or not (0)", 0.0, 1.0, lambda x: own + x * (other - own), is_counting=True)

    out = [counted("latency of the whole answer over its tokens", own + first / at.output)]
    if fleet.decode.tokens_per_step > 1:
        out.append(counted("a step with its drafts counted as one token", own * fleet.decode.tokens_per_step))
    return out
