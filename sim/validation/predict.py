"""A row's quantity as the simulator predicts it, and how predictions are scored."""

from __future__ import annotations

from typing import Any

from sim.cost import memory
from sim.cost.closed_form import StepTime
from sim.cost.evaluate import step_of_estimate
from sim.cost.stacks import Stack
from sim.cost.step import Estimate, estimate
from sim.scenario.build import Run
from sim.spec.model import ModelSpec
from sim.validation.rows import MeasuredRow


def megatron_flops_per_token(model: ModelSpec, seq: int) -> float:
    """Megatron's count with full recomputation: 96·B·s·L·C²(1 + s/6C + V/16LC) per step (arXiv 2104.04473 eq. 3)."""
    C, L = model.hidden, model.layers
    return 96.0 * L * C * C * (1 + seq / (6 * C) + model.vocab / (16 * L * C))


def flops_per_token(row: MeasuredRow) -> float:
    """FLOPs for one trained token as the source of the row counts them."""
    run = row.run
    if row.flops == "megatron_2021":
        return megatron_flops_per_token(run.model, run.workload.seq)
    causal = row.flops != "model_full"
    count = run.model.train_flops_per_token(run.workload.seq, causal=causal, mtp=run.workload.mtp)
    if row.flops == "hardware" and run.plan.recompute == "full":
        count *= 4 / 3
    return count


def step_of(run: Run, stack: Stack | None = None) -> tuple[StepTime, Estimate]:
    """Closed-form step of a run, under its own stack or another."""
    costed = estimate(run.model, run.cluster, run.plan, run.workload, run.precision, stack or run.stack)
    return step_of_estimate(costed, run.plan), costed


def predict(row: MeasuredRow, stack: Stack | None = None) -> float:
    """The row's quantity as the simulator has it, in the unit of `row.quantity`.

    Raises:
        InputError: a plan that cannot run.
    """
    run = row.run
    if row.quantity == "memory_gib":
        need = memory.peak(run.model, run.plan, run.workload, run.precision, stack or run.stack)
        return need.total_bytes / 2**30
    step, _ = step_of(run, stack)
    if row.quantity == "bubble":
        return step.bubble_fraction
    if row.quantity == "seconds_per_step":
        return step.total_s
    per_second = run.workload.tokens / step.total_s
    if row.quantity == "tokens_per_s":
        return per_second
    per_chip = per_second / run.plan.num_chips
    if row.quantity == "tokens_per_s_per_chip":
        return per_chip
    rate = per_chip * flops_per_token(row)
    return rate / row.peak_flops if row.peak_flops is not None else rate / 1e12


def speed_error(row: MeasuredRow, predicted: float) -> float:
    """Predicted / measured − 1."""
    return predicted / row.measured - 1.0


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean absolute and worst errors over scored rows, apart for calibration and holdout, by stack and by chip."""

    def of(kind: str, key: str | None = None, value: str = "") -> list[float]:
        return [
            abs(r["error"])
            for r in rows
            if r["kind"] == kind and r["error"] is not None and (key is None or r[key] == value)
        ]

    predicted = [r for r in rows if r["kind"] == "holdout" and r["error"] is not None]
    worst = max(predicted, key=lambda r: abs(r["error"]), default=None)
    return {
        "mape_holdout": _mean(of("holdout")),
        "mape_calibration": _mean(of("calibration")),
        "count_holdout": len(predicted),
        "count_calibration": len(of("calibration")),
        "count_unsupported": sum(r["kind"] == "unsupported" for r in rows),
        "worst_holdout": abs(worst["error"]) if worst else None,
        "worst_row": worst["id"] if worst else None,
        "by_stack": {s: _mean(of("holdout", "stack", s)) for s in sorted({r["stack"] for r in predicted})},
        "by_chip": {c: _mean(of("holdout", "chip", c)) for c in sorted({r["chip"] for r in predicted})},
    }
