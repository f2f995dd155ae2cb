"""A table of measured iteration times of GPT models on one node, checked in closed form.

Columns (as in VIA-Research/vTrain's public data): # GPUs, global batch, micro batch, hidden size, attention heads,
# layers, sequence length, tensor parallelism, data parallelism, pipeline parallelism, iteration time (ms).

Not in the file, so assumed: vocabulary of 51,200 (padded), A100-SXM4-80GB behind 300 GB/s NVLink, fp16, full
recomputation, 1F1B, gradients reduced after the last backward, learned positions, unfused attention.

The stack's one scalar, the host's time per operator, is fitted on a random tenth of the rows; the rest is predicted.
"""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base import spreadsheet
from sim.cost.closed_form import step_time
from sim.cost.stacks import Stack, load_stack
from sim.cost.step import estimate
from sim.spec.hardware import Cluster, load_cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload
from sim.validation.predict import scores

STACK = "megatron-deepspeed-2023-vtrain"
VOCABULARY = 51200
COLUMNS = (
    "gpus",
    "global batch",
    "micro batch",
    "hidden size",
    "attention heads",
    "layers",
    "sequence length",
    "tensor parallelism",
    "data parallelism",
    "pipeline parallelism",
    "iteration time (ms)",
)
ASSUMPTIONS = (
    "vocabulary of 51,200 (padded)",
    "DGX A100 node, NVLink 300 GB/s each way",
    "fp16, full recomputation, 1F1B",
    "gradients reduced after the last backward",
)


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One line of the table: what was trained and the seconds that it took."""

    model: ModelSpec
    plan: Plan
    workload: Workload
    seconds: float


def _column(name: str) -> str:
    return name.strip().lower().replace("#", "").strip()


def read_table(path: str | Path) -> list[Iteration]:
    """Runs of a CSV with these columns, in any order.

    Raises:
        InputError: no such file, a missing column, or a line that is not numbers.
    """
    lines, decimal = spreadsheet.read_table(path)
    if len(lines) < 2:
        raise InputError(f"{path}: holds no rows; the first line names the columns {', '.join(COLUMNS)}")
    titles = [[_column(c) for c in line] for line in lines[:10]]  # what a sheet says above its table is passed over
    first = next((i for i, line in enumerate(titles) if all(c in line for c in COLUMNS)), 0)
    have = titles[first]
    missing = [c for c in COLUMNS if c not in have]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    columns = [have.index(c) for c in COLUMNS]
    runs, models = [], {}
    for number, line in enumerate(lines[first + 1 :], first + 2):
        if len(line) <= max(columns):
            raise InputError(f"{path} line {number}: is not a line of numbers for {', '.join(COLUMNS)}")
        cells = [(line[i], f"{path} line {number}: {name}") for i, name in zip(columns, COLUMNS, strict=True)]
        sizes = [spreadsheet.cell_whole(cell, decimal, where) for cell, where in cells[:-1]]
        gpus, batch, micro, hidden, heads, layers, seq, tp, dp, pp = sizes
        seconds = spreadsheet.cell_number(cells[-1][0], decimal, cells[-1][1]) / 1e3
        if (
            min(gpus, batch, micro, hidden, heads, layers, seq, tp, dp, pp, seconds) <= 0
            or tp * dp * pp != gpus
            or batch % (dp * micro)
        ):
            raise InputError(
                f"{path} line {number}: needs positive values with tensor × data × pipeline = GPUs and a batch that "
                "is a multiple of data × micro batch"
            )
        key = (layers, hidden, heads, seq)
        if key not in models:
            models[key] = ModelSpec(
                name="GPT",
                layers=layers,
                hidden=hidden,
                heads=heads,
                kv_heads=heads,
                head_dim=hidden // heads,
                ffn=4 * hidden,
                vocab=VOCABULARY,
                gated_ffn=False,
                tied=True,
                norm="layer",
                positions=seq,
                max_seq=seq,
            ).check()
        runs.append(
            Iteration(
                models[key],
                Plan(tp=tp, dp=dp, pp=pp, micro_batch=micro, sp=False, recompute="full"),
                Workload(batch, seq),
                seconds,
            )
        )
    return runs


def seconds_of(iteration: Iteration, cluster: Cluster, stack: Stack) -> float:
    """Seconds of the iteration as the simulator has them, in closed form."""
    costs = estimate(iteration.model, cluster, iteration.plan, iteration.workload, "fp16", stack).costs
    return step_time(costs, iteration.plan.schedule).total_s


def with_host(stack: Stack, chip: str, value: float) -> Stack:
    """The stack with `value` as the host's seconds per operator on `chip`."""
    return dataclasses.replace(stack, fitted={chip: {"name": "host_op_s", "value": value, "rows": []}})


def mean_error(runs: list[Iteration], cluster: Cluster, stack: Stack) -> float:
    """Mean absolute relative error over `runs`."""
    return sum(abs(seconds_of(r, cluster, stack) / r.seconds - 1) for r in runs) / len(runs)


def fit_host(runs: list[Iteration], cluster: Cluster, stack: Stack, low: float = 20e-6, high: float = 200e-6) -> float:
    """Host time per operator with the least mean absolute error on `runs` (golden section)."""
    ratio = (5**0.5 - 1) / 2

    def error(value: float) -> float:
        return mean_error(runs, cluster, with_host(stack, cluster.chip.name, value))

    c, d = high - ratio * (high - low), low + ratio * (high - low)
    at_c, at_d = error(c), error(d)
    for _ in range(9):
        if at_c < at_d:
            high, d, at_d = d, c, at_c
            c = high - ratio * (high - low)
            at_c = error(c)
        else:
            low, c, at_c = c, d, at_d
            d = low + ratio * (high - low)
            at_d = error(d)
    return (low + high) / 2


def run_csv(path: str | Path, seed: int = 0, fit: bool = True) -> dict:
    """Fit on a random tenth, predict the rest, and also rotate: each tenth fitted once, errors on the other nine.

    Returns the dict of `sim.validation.training.run` with, besides, host_op_s, evaluation_s (all rows once in closed
    form), by_tensor_parallel and rotation (lowest and highest error of ten).
    """
    runs, cluster, stack = read_table(path), load_cluster("dgx_a100"), load_stack(STACK)
    order = list(range(len(runs)))
    random.Random(seed).shuffle(order)
    folds = [order[i::10] for i in range(10)] if len(runs) >= 20 else [order]
    rotation = []
    if fit and len(folds) == 10:
        for fold in folds:
            value = fit_host([runs[i] for i in fold], cluster, stack)
            chosen = set(fold)
            rotation.append(
                (
                    value,
                    mean_error(
                        [r for i, r in enumerate(runs) if i not in chosen],
                        cluster,
                        with_host(stack, cluster.chip.name, value),
                    ),
                )
            )
        value = rotation[0][0]
    else:
        value = stack.scalar(cluster.chip, "host_op_s", stack.host_op_s)
    used = with_host(stack, cluster.chip.name, value)
    start = time.perf_counter()
    predicted = [seconds_of(r, cluster, used) for r in runs]
    evaluation = time.perf_counter() - start
    fitted = set(folds[0]) if rotation else set()
    rows: list[dict[str, Any]] = []
    for i, (r, seconds) in enumerate(zip(runs, predicted, strict=True)):
        plan = r.plan
        name = (
            f"h{r.model.hidden}-L{r.model.layers}-tp{plan.tp}-dp{plan.dp}-pp{plan.pp}-mb{plan.micro_batch}"
            f"-gb{r.workload.global_batch}"
        )
        rows.append(
            {
                "id": name,
                "kind": "calibration" if i in fitted else "holdout",
                "quantity": "seconds_per_step",
                "measured": r.seconds,
                "predicted": seconds,
                "error": seconds / r.seconds - 1,
                "assumptions": list(ASSUMPTIONS),
                "chip": cluster.chip.name,
                "stack": STACK,
                "reason": "",
                "source": str(path),
                "tp": r.plan.tp,
            }
        )
    result = {
        "rows": rows,
        **scores(rows),
        "host_op_s": value,
        "evaluation_s": evaluation,
        "constants": None,
        "cross_validated": None,
        "rotation": None,
    }
    result["by_tensor_parallel"] = {
        tp: sum(abs(r["error"]) for r in rows if r["tp"] == tp) / sum(r["tp"] == tp for r in rows)
        for tp in sorted({r["tp"] for r in rows})
    }
    if rotation:
        errors = [e for _, e in rotation]
        result["rotation"] = {
            "mean": sum(errors) / 10,
            "low": min(errors),
            "high": max(errors),
            "host_op_s": [v for v, _ in rotation],
        }
    return result


def summary(result: dict) -> str:
    """The outcome of a table in a few lines (it is too long to print whole)."""
    text = [
        f"{len(result['rows'])} measured iterations; assumed: {'; '.join(ASSUMPTIONS)}",
        f"mean absolute error, {result['count_holdout']} holdout rows: {100 * result['mape_holdout']:.2f}%   worst: "
        f"{100 * result['worst_holdout']:.1f}% ({result['worst_row']})",
        f"one scalar: host time per operator {1e6 * result['host_op_s']:.1f} µs, on {result['count_calibration']} rows "
        f"({_percent(result['mape_calibration'])})",
        f"all rows evaluated in {result['evaluation_s']:.2f} s",
        "by tensor parallelism: "
        + "  ".join(f"{tp}: {100 * e:.1f}%" for tp, e in result["by_tensor_parallel"].items()),
    ]
    if result["rotation"]:
        r = result["rotation"]
        text.append(
            f"each tenth fitted in turn: {100 * r['mean']:.2f}% on the other nine "
            f"({100 * r['low']:.2f} to {100 * r['high']:.2f}%)"
        )
    return "\n".join(text)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"
