"""Is my number normal? A measured figure beside its prediction, published runs like it, and what would explain it.

    normal(load_scenario("mine.yaml"), "tokens_per_s_per_chip", 140.0)

The prediction is the scenario's own; its interval holds the ranges of the facts and the simulator's errors on runs that
it was not fitted on. A cause is one knob turned alone: it is ranked by how little it has to be turned to explain the
figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from minglm.errors import InputError, nearest
from sim.base.distributions import DRAWS
from sim.cost.evaluate import in_closed_form
from sim.scenario.training import Scenario
from sim.spec.plan import Plan
from sim.study.answer import changed, point
from sim.study.monte_carlo import draws, interval
from sim.validation.predict import predict, speed_error
from sim.validation.rows import MeasuredRow, read_rows

QUANTITIES = {
    "step_s": "seconds of a step",
    "tokens_per_s": "tokens a second of the whole cluster",
    "tokens_per_s_per_chip": "tokens a second of a chip that the plan uses",
    "tflops": "model FLOP/s of a chip, in TFLOPS",
    "mfu": "share of the chip's own peak",
}
EXPLAINS = 0.05  # of the step: a cause that comes this near explains the figure


@dataclass(frozen=True)
class Cause:
    """A knob: `step_s(x)` is the step (or the time of a token) with it at x; it goes from `own` to `most`."""

    name: str
    unit: str
    own: float
    most: float
    step_s: Callable[[float], float]
    is_counting: bool = False  # another way to count: it holds or not, and changes the number, not the run


def normal(s: Scenario, quantity: str, measured: float, samples: int = DRAWS) -> dict[str, Any]:
    """The measured figure's place among what is predicted, JSON-ready.

    Raises:
        InputError: a quantity that is not known, or a figure that is not above 0.
    """
    if quantity not in QUANTITIES:
        raise InputError(f"measured {quantity!r}: not one of {', '.join(QUANTITIES)}{nearest(quantity, QUANTITIES)}")
    if not 0 < measured < math.inf:
        raise InputError(f"measured {quantity}={measured:g}: must be more than 0; give what was measured")
    p = point(s, jitter=None)
    own, step_s = p.result.step_s, _step_of(s, quantity, measured)
    steps = [r["step_s"] for r in draws(s, samples)]
    slower = sum(x > step_s for x in steps) / len(steps)
    span = interval(steps)
    return {
        "quantity": quantity,
        "measured": measured,
        "predicted": _figure_of(s, quantity, own),
        "interval": sorted(_figure_of(s, quantity, span[end]) for end in ("p5", "p95")),
        "faster_than": slower,
        "normal": span["p5"] <= step_s <= span["p95"],
        "step_s": {"measured": step_s, "predicted": own, "p5": span["p5"], "p95": span["p95"]},
        "nearest": nearest_rows(s),
        "above_peak": _figure_of(s, "mfu", step_s) > 1.0,
        "causes": ranked([*_knobs(s, own), *_countings(s, quantity, own)], step_s, own, (span["p5"], span["p95"])),
    }


def _per_chip_flops(s: Scenario, step_s: float) -> float:
    per_token = s.model.train_flops_per_token(s.workload.seq, mtp=s.workload.mtp)
    return per_token * s.workload.tokens / step_s / s.plan.num_chips


def _figure_of(s: Scenario, quantity: str, step_s: float) -> float:
    """The quantity of a step of so many seconds."""
    per_s = s.workload.tokens / step_s
    return {
        "step_s": step_s,
        "tokens_per_s": per_s,
        "tokens_per_s_per_chip": per_s / s.plan.num_chips,
        "tflops": _per_chip_flops(s, step_s) / 1e12,
        "mfu": _per_chip_flops(s, step_s) / s.cluster.chip.peak("fp8" if s.precision == "fp8" else "bf16").value,
    }[quantity]


def _step_of(s: Scenario, quantity: str, measured: float) -> float:
    """Seconds of the step that a measured quantity means."""
    if quantity == "step_s":
        return measured
    return _figure_of(s, quantity, 1.0) / measured  # all others are inverse to the step


# ------------------------------------------------------------------ published runs like it


def nearest_rows(s: Scenario, most: int = 5) -> list[dict[str, Any]]:
    """Published runs most like the scenario: same chip first, then by active parameters, chips and sequence."""
    found = []
    for row in read_rows():
        if not isinstance(row, MeasuredRow) or row.quantity in ("memory_gib", "bubble"):
            continue
        run = row.run
        apart = sum(
            abs(math.log(a / b))
            for a, b in (
                (run.model.active_params(), s.model.active_params()),
                (run.plan.num_chips, s.plan.num_chips),
                (run.workload.seq, s.workload.seq),
            )
        )
        apart += 3.0 * (run.cluster.chip.file != s.cluster.chip.file)
        apart += 1.0 * (bool(run.model.experts) != bool(s.model.experts))
        found.append((apart, row.id, row))
    out = []
    for apart, name, row in sorted(found, key=lambda f: f[:2])[:most]:
        try:
            predicted = predict(row)
        except InputError:
            continue
        out.append(
            {
                "id": name,
                "chip": row.chip,
                "quantity": row.quantity,
                "measured": row.measured,
                "predicted": predicted,
                "error": speed_error(row, predicted),
                "kind": row.kind,
                "apart": apart,
                "source": row.source,
            }
        )
    return out


# ------------------------------------------------------------------ what would explain it


def ranked(causes: list[Cause], wanted_s: float, own_s: float, span: tuple[float, float]) -> list[dict[str, Any]]:
    """Every knob alone, with the size at which it explains the measured seconds; those that reach it first, the least
    turn (as a share of what the knob can do) before the others. Another way of counting explains a figure that it puts
    inside of what is predicted (`span`, in seconds)."""
    out = []
    for cause in causes:
        try:
            reach = cause.step_s(cause.most)
        except InputError:
            continue
        entry: dict[str, Any] = {"name": cause.name, "unit": cause.unit, "most": cause.most, "step_s_at_most": reach}
        towards = (reach - own_s) * (wanted_s - own_s) > 0
        entry["explains"] = towards and abs(reach - own_s) >= abs(wanted_s - own_s) * (1 - EXPLAINS)
        if cause.is_counting:
            entry["explains"] = towards and span[0] <= wanted_s * own_s / reach <= span[1]
            entry["needs"] = cause.most if entry["explains"] else None
        else:
            entry["needs"] = _needed(cause, own_s, wanted_s) if entry["explains"] else None
        entry["turn"] = (
            abs(entry["needs"] - cause.own) / abs(cause.most - cause.own) if entry["needs"] is not None else math.inf
        )
        entry["covers"] = (reach - own_s) / (wanted_s - own_s) if towards and wanted_s != own_s else 0.0
        out.append(entry)
    ranked = sorted(out, key=lambda e: (not e["explains"], e["turn"], -e["covers"]))
    return [{k: v for k, v in e.items() if k != "turn"} for e in ranked]


def _needed(cause: Cause, own_s: float, wanted_s: float) -> float:
    """The knob's value at which the step is the measured one, by bisection."""
    low, high = cause.own, cause.most
    sign = 1.0 if wanted_s > own_s else -1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if sign * (cause.step_s(middle) - wanted_s) >= 0 else (middle, high)
    return high


def _knobs(s: Scenario, own_s: float) -> list[Cause]:
    """What a measured run may have that the scenario does not say, one at a time."""
    closed = _closed(s)

    def scaled(seconds: float) -> float:
        return own_s * seconds / closed

    def of_rate(i: int, rate: float) -> Callable[[float], float]:
        return lambda x: scaled(_closed(s, {("tiers", i, "bytes_per_s"): rate * x}))

    def part(name: str, plan: Plan) -> Cause:
        # a switch that is on for a share of the layers: the step lies between
        full = scaled(_closed(s, plan=plan))
        return Cause(name, "share of the layers", 0.0, 1.0, lambda x: own_s + x * (full - own_s))

    off: dict[str, Any] = {
        name: False
        for name in ("overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_p2p", "overlap_all_to_all")
    }
    out = [part("no communication under compute", replace(s.plan, **off))]
    if s.plan.recompute == "none":
        out.append(part("full recomputation", replace(s.plan, recompute="full", recompute_layers=None)))
    else:
        out.append(part("no recomputation", replace(s.plan, recompute="none", recompute_layers=None)))
    last = len(s.cluster.tiers) - 1
    for i, tier in enumerate(s.cluster.tiers):
        rate = tier.bytes_per_s.value
        for most, words in ((0.25, "slower"), (2.0, "faster")):
            out.append(
                Cause(
                    f"{tier.name} {words}" + (" (the network)" if i == last else ""),
                    "of its rate",
                    1.0,
                    most,
                    of_rate(i, rate),
                )
            )
    if s.model.experts:
        mean = s.stack.style(False, s.workload.busiest, s.plan.ep).imbalance
        for name, most in (("experts' imbalance", 4.0 * mean), ("experts balanced by force", 1.0)):
            out.append(Cause(name, "busiest rank over the mean", mean, most, lambda x: scaled(_closed(s, imbalance=x))))
    out.append(Cause("host slower", "of its time to issue work", 1.0, 4.0, lambda x: scaled(_closed(s, host=x))))
    return [
        *out,
        Cause("clock of the chips", "of the rate assumed", 1.0, 0.5, lambda x: _slower(s, own_s, x)),
        Cause("clock of the chips, faster", "of the rate assumed", 1.0, 1.5, lambda x: _slower(s, own_s, x)),
    ]


def _slower(s: Scenario, own_s: float, clock: float) -> float:
    """The step with what a chip computes at another clock; messages stay."""
    p = point(s, jitter=None)
    classes = p.estimate.classes
    busy = sum(classes.values()) or 1.0
    compute = sum(v for k, v in classes.items() if "communication" not in k) / busy
    return own_s * (1 - compute) + own_s * compute / clock


def _countings(s: Scenario, quantity: str, own_s: float) -> list[Cause]:
    """Other ways to count that a figure may have come from: FLOPs for TFLOPS and MFU, the peak for an MFU, tokens for
    all but a step's time."""
    seq, mtp = s.workload.seq, s.workload.mtp
    own = s.model.train_flops_per_token(seq, mtp=mtp)
    whole = s.model.train_flops_per_token(seq, causal=False, mtp=mtp)

    def counted(name: str, ratio: float) -> Cause:
        return Cause(
            name, "applied (1) or not (0)", 0.0, 1.0, lambda x: own_s / (1 + x * (ratio - 1)), is_counting=True
        )

    out = []
    if quantity in ("tflops", "mfu"):
        out = [
            counted("FLOPs counted without the causal half", whole / own),
            counted("FLOPs counted with recomputation (hardware FLOPs)", 4 / 3),
            counted("FLOPs counted by 6 × active parameters", 6 * s.model.active_params() / own),
        ]
        if mtp and s.model.mtp_modules:
            out.append(counted("MTP not counted", s.model.train_flops_per_token(seq, mtp=False) / own))
    if quantity == "mfu":
        out.append(counted("sparse peak (twice the dense one)", 0.5))
    if quantity != "step_s":
        name = "padding or masked tokens not counted"
        out.append(Cause(name, "of the tokens", 0.0, 0.75, lambda x: own_s / max(1 - x, 1e-9)))
    return out


def _closed(
    s: Scenario,
    facts: dict | None = None,
    plan: Plan | None = None,
    imbalance: float | None = None,
    host: float = 1.0,
) -> float:
    cluster, stack, issue = s.cluster, s.stack, s.cluster.chip.host_op_s
    for path, value in (facts or {}).items():
        cluster = changed(cluster, path, value)
    if host != 1.0:
        stack = replace(stack, host_op_s=host * stack.host_op_s, host_message_s=host * stack.host_message_s)
        cluster = changed(cluster, ("chip", "host_op_s"), host * issue.value) if issue else cluster
    work = s.workload if imbalance is None else replace(s.workload, imbalance=imbalance, capacity_factor=None)
    return in_closed_form(s.model, cluster, plan or s.plan, work, s.precision, stack, allow_oom=True)[2]
