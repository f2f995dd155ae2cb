"""`clustersim validate --local`: this machine's own toy training, predicted from its probe alone.

The probe (`minglm probe`) has matmuls, attention, memory copies and the time to issue an operation, and no step of any
model. The toy's step is timed in a process of its own (`minglm.tools.toy_step`) after it has been predicted.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.cost.closed_form import step_time
from sim.cost.stacks import Stack, load_stack
from sim.cost.step import estimate
from sim.spec.hardware import Chip, chip_from, cluster_from
from sim.spec.model import from_config
from sim.spec.plan import Plan, Workload

# Operators of a toy's step that no list of operators has: views, casts and modules around each; Newton-Schulz a weight.
MODULES = 2.5  # operations issued for one that is counted (assumed; range 2 to 3)
MUON_OPS, WEIGHTS_A_LAYER = 30, 12


def torch_here() -> Stack:
    """PyTorch in eager mode on a processor: each operation runs when it is issued."""
    return dataclasses.replace(
        load_stack("generic"),
        name="torch on this machine",
        attention="sdpa",
        fusion="eager",
        loss="torch",
        grouped="loop",
        fixed_s=0.0,
        jitter=0.0,
        host_norm=1.0,
    )


def predict(chip: Chip, config: ModelConfig, batch: int, seq: int) -> float:
    """Seconds of a training step of the toy on one chip, dense attention, without the prediction module."""
    spec = dataclasses.replace(from_config(config, "toy"), index_topk=0)
    cluster = cluster_from({"like": "dgx_a100", "name": "here", "chip": chip, "chips_per_node": 1, "chips": 1})
    if chip.host_op_s:
        issue = dataclasses.replace(chip.host_op_s, value=MODULES * chip.host_op_s.value)
        cluster = dataclasses.replace(cluster, chip=dataclasses.replace(chip, host_op_s=issue))
    plan = Plan(micro_batch=batch, sp=False, recompute="none", zero=0, optimizer="muon")
    costs = estimate(spec, cluster, plan, Workload(batch, seq, mtp=False, imbalance=1.0), "bf16", torch_here()).costs
    optimizer = chip.host_op_s.value * MUON_OPS * WEIGHTS_A_LAYER * spec.layers if chip.host_op_s else 0.0
    return step_time(costs, "1f1b").total_s + optimizer


def compare(chip_file: str | Path | None = None, model: str = "mini") -> dict[str, Any]:
    """Predicted and measured steps of the toy.

    Returns: chip, rows (sequences, length, predicted, measured, error), error (the mean absolute one).

    Raises:
        InputError: no probe there.
    """
    path = Path(chip_file) if chip_file else datafiles.runs() / "probe" / "chip.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such probe; make it with minglm probe (3 minutes with --quick)")
    chip, config = chip_from(str(path)), ModelConfig.named(model)
    done = subprocess.run(
        [sys.executable, "-m", "minglm.tools.toy_step", model], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(
            f"the toy's step could not be timed: {done.stderr.strip().splitlines()[-1:]}; run minglm doctor"
        )
    rows = []
    for batch, seq, measured in json.loads(done.stdout)["steps"]:
        predicted = predict(chip, config, batch, seq)
        rows.append(
            {
                "sequences": batch,
                "length": seq,
                "predicted": predicted,
                "measured": measured,
                "error": predicted / measured - 1.0,
            }
        )
    return {"chip": chip.name, "rows": rows, "error": sum(abs(row["error"]) for row in rows) / len(rows)}


def text(result: Mapping[str, Any]) -> str:
    """The comparison as a table."""
    lines = [
        f"toy on {result['chip']}: a step predicted from the probe alone, then timed",
        f"{'batch':>12} {'predicted':>11} {'measured':>11} {'error':>7}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['sequences']:>4} × {row['length']:<5} {row['predicted']:>10.3f}s {row['measured']:>10.3f}s "
            f"{row['error']:>+7.0%}"
        )
    return "\n".join([*lines, f"mean absolute error {result['error']:.0%}"])
