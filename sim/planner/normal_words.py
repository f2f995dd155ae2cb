"""Is my number normal, in words: what was measured, read, and the answer as lines; a terminal and the page print these.

quantity, value = read_measured("tflops=400")
"""

from __future__ import annotations

import math
from typing import Any

from minglm.errors import InputError, nearest
from sim.base.units import parse, show
from sim.planner.normal import QUANTITIES
from sim.scenario.training import Scenario

TPOT = "tpot"  # of a serving scenario
_DIMENSIONS = {"step_s": "time", "mfu": "ratio", TPOT: "time"}


def read_measured(text: str, label: str = "--measured") -> tuple[str, float]:
    """'tflops=400' as (the quantity, its value in SI units).

    Raises:
        InputError: not QUANTITY=VALUE, a quantity that is not known, or no number of its unit.
    """
    quantity, _, value = text.partition("=")
    quantity = quantity.strip().lower()
    if not quantity or not value.strip():
        raise InputError(f"{label} {text!r}: must be QUANTITY=VALUE, such as {next(iter(QUANTITIES))}=4.1")
    known = (*QUANTITIES, TPOT)
    if quantity not in known:
        raise InputError(f"measured {quantity!r}: not one of {', '.join(known)}{nearest(quantity, known)}")
    return quantity, parse(value, _DIMENSIONS.get(quantity, "count"), f"{label} {quantity}", low=-math.inf)


def title(s: Scenario) -> str:
    """The scenario's own name, or model and chips where it has none."""
    return str(s.document.get("name") or f"{s.model.name} on {s.cluster.num_chips:,} × {s.cluster.chip.name}")


def tpot_text(name: str, r: dict[str, Any]) -> str:
    """The answer about a serving scenario."""
    own, low, high = (show(seconds, "time") for seconds in (r["predicted"], *r["interval"]))
    verdict = "inside" if r["normal"] else "outside"
    requests, groups = r["in_flight"]["requests_per_group"], r["in_flight"]["groups"]
    lines = [
        name,
        "",
        f"{'measured':16}{show(r['measured'], 'time')} from one output token to the next",
        f"{'predicted':16}{own} with {requests:.1f} requests in flight in each of {groups} groups; "
        f"{r['held']:.0%} of measured engines lie at {low} to {high}",
        f"{'':16}the measured figure is {verdict}, faster than {r['faster_than']:.0%} of them",
        "",
        f"{'measured engines like it':64}{'chip':>8}{'measured':>12}{'predicted':>12}{'error':>8}",
    ]
    lines += [
        f"{x['id'][:63]:64}{x['chip'][:8]:>8}{show(x['measured'], 'time'):>12}{show(x['predicted'], 'time'):>12}"
        f"{x['error']:>+8.0%}  ({x['kind']})"
        for x in r["nearest"]
    ]
    return "\n".join([*lines, *_causes(r["causes"])])


def text(name: str, r: dict[str, Any]) -> str:
    """The answer about a training scenario."""
    low, high = r["interval"]
    verdict = "inside" if r["normal"] else "outside"
    lines = [
        name,
        "",
        f"{'measured':16}{r['measured']:.4g} {r['quantity']}: a step of {r['step_s']['measured']:.4g} s",
        f"{'predicted':16}{r['predicted']:.4g}, 90% of draws {low:.4g} to {high:.4g}; the measured figure is "
        f"{verdict}, faster than {r['faster_than']:.0%} of the draws",
        *(["more than the chip's peak: no run is that fast, FLOPs or tokens were counted otherwise"] * r["above_peak"]),
        "",
        f"{'published runs like it':36}{'chip':>8}{'measured':>12}{'predicted':>12}{'error':>8}  quantity",
    ]
    lines += [
        f"{x['id'][:35]:36}{x['chip'][:8]:>8}{x['measured']:>12.4g}{x['predicted']:>12.4g}{x['error']:>+8.0%}  "
        f"{x['quantity']} ({x['kind']})"
        for x in r["nearest"]
    ]
    return "\n".join([*lines, *_causes(r["causes"])])


def _causes(causes: list[dict[str, Any]]) -> list[str]:
    """The ranked causes, a line each."""
    lines = ["", "what would explain the difference, alone", f"{'cause':56}{'needs':>10}{'at most':>10}  unit"]
    for c in causes:
        needs = f"{c['needs']:.3g}" if c["needs"] is not None else "-"
        covers = "" if c["explains"] or c["covers"] <= 0 else f"   covers {c['covers']:.0%} of it"
        lines.append(f"{c['name'][:55]:56}{needs:>10}{c['most']:>10.3g}  {c['unit']}{covers}")
    return lines
