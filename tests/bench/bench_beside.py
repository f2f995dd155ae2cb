"""What another busy program costs: training on both cores, alone and beside a process that keeps one core busy.

`make bench ONLY=beside`. The threads of torch wait by spinning; `minglm/__init__.py` lets them spin for less long than
libgomp's default. Each figure comes from a process of its own, default and ours in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from minglm.training import metrics

NAME = "beside"
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(400, 400)\nwhile True: a = (a @ a).clamp(-1, 1)"
WAYS = {"libgomp's default": "300000", "ours": None}  # GOMP_SPINCOUNT; None: what minglm sets
ROUNDS = 3


def trained(spin: str | None, steps: int) -> float:
    """Tokens per second of a few steps of `mini`, the median of all but the first."""
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | (
        {"GOMP_SPINCOUNT": spin} if spin else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "minglm",
            "train",
            "pretrain",
            "--run",
            str(run),
            "--set",
            f"steps={steps}",
            "--set",
            "val_every=1000",
            "--set",
            "corpus_max_bytes=400000",
        ]
        subprocess.run(command, env=env, check=True, capture_output=True)
        speeds = [row["tokens_per_s"] for row in metrics.read(run / "metrics.csv") if row["tokens_per_s"]]
    return statistics.median(speeds[1:])


def run() -> list[dict]:
    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, spin in WAYS.items():
            alone[way].append(trained(spin, 12))
    busy = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
    try:
        beside = {way: trained(spin, 4) for way, spin in WAYS.items()}
    finally:
        busy.kill()
        busy.wait()
    default, ours = WAYS
    cost = statistics.median(a / b for a, b in zip(alone[ours], alone[default], strict=False))
    gain = beside[ours] / beside[default]
    return [
        _row("alone, libgomp's default", statistics.median(alone[default])),
        _row("alone, ours", statistics.median(alone[ours]), cost, ">= 0.9 x default", cost >= 0.9),
        _row("beside a busy program, libgomp's default", beside[default]),
        _row("beside a busy program, ours", beside[ours], gain, ">= 1 x default", gain >= 1),
    ]


def _row(name, value, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": "tokens/s", "ratio": ratio, "target": target, "met": met}
