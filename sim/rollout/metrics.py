"""Quantities of a simulated rollout by name, and two runs compared."""

from __future__ import annotations

from typing import Any

from sim.rollout.result import Result
from sim.rollout.scenario import RolloutScenario, baseline
from sim.rollout.simulate import simulate

IN_POINTS = ("gain", "tail_share", "rollout_idle")  # quantities whose error is a difference


def compare(case: RolloutScenario, result: Result | None = None) -> list[dict[str, Any]]:
    """Published figures beside predicted ones: quantity, published, predicted, error (relative; of gains and shares in
    points)."""
    if not case.published:
        return []
    result = result or simulate(case.case)
    base = None
    rows = []
    for name, published in case.published.items():
        if name in ("speedup", "rollout_speedup", "gain") and base is None:
            base = simulate(baseline(case).case)
        predicted = quantity(name, result, base)
        if name == "gain" and published > 3:
            published /= 100.0  # percent
        error = predicted - published if name in IN_POINTS else predicted / published - 1.0
        rows.append({"quantity": name, "published": published, "predicted": predicted, "error": error})
    return rows


def quantity(name: str, result: Result, base: Result | None = None) -> float:
    """One figure of a result, against a baseline where it is a ratio."""
    if name in ("step_s", "rollout_s", "tokens_per_s", "trained_tokens_per_s"):
        return float(getattr(result.throughput, name))
    if name in ("tail_share", "rollout_idle"):
        return float(getattr(result.utilisation, name))
    if name == "preemptions":
        return result.waste.preemptions / len(result.steps)
    if name == "tokens_per_s_per_chip":
        return result.throughput.tokens_per_s / result.chips
    assert base is not None, f"{name} is a ratio: it needs a baseline"
    if name == "speedup":
        return result.throughput.trained_tokens_per_s / base.throughput.trained_tokens_per_s
    return rollout_rate(result) / rollout_rate(base) - (1.0 if name == "gain" else 0.0)


def rollout_rate(result: Result) -> float:
    """Generated tokens per second of rollout (the whole step where rollout never stops)."""
    return result.throughput.generated_tokens / (result.throughput.rollout_s * len(result.steps))
