"""Two data-parallel processes on two cores against one single-threaded process: tokens/s, same global batch, one run.

The two kinds take turns; each turn is a whole training run of which the first steps are left out. Both use
one thread a process.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NAME = "distributed"
TURNS, STEPS, SKIP = 3, 8, 3
TARGET = 1.5
SETTINGS = {
    "model": "mini",
    "batch_size": 16,
    "seq_len": 256,
    "steps": STEPS,
    "val_every": 1000,
    "val_batches": 1,
    "checkpoint_every": 1000,
    "lookup_share": 0.0,
    "corpus_max_bytes": 2_000_000,
}


def _train(run: Path, world: int) -> float:
    """Median tokens/s of the later steps."""
    from minglm.training import metrics

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "minglm",
        "train",
        "ci_pretrain",
        "--run",
        str(run),
        "--json",
        "--device",
        "cpu",
        *(x for k, v in SETTINGS.items() for x in ("--set", f"{k}={v}")),
    ]
    single = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    ranks = (
        [single]
        if world == 1
        else [
            {
                **single,
                "RANK": str(r),
                "LOCAL_RANK": str(r),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            for r in range(world)
        ]
    )
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for env in ranks
    ]
    errors = [p.communicate(timeout=600)[1] for p in processes]
    if any(p.returncode for p in processes):
        raise RuntimeError(f"training with {world} processes failed: {errors}")
    return statistics.median(row["tokens_per_s"] for row in metrics.read(run / "metrics.csv")[SKIP:])


def run() -> list[dict]:
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for world in speeds:
                speeds[world].append(_train(Path(folder) / f"{world}-{turn}", world))
    one, two = (statistics.median(speeds[world]) for world in (1, 2))
    ratio = statistics.median(b / a for a, b in zip(speeds[1], speeds[2], strict=False))
    shape = f"mini, {SETTINGS['batch_size']} rows of {SETTINGS['seq_len']}"
    return [
        {
            "name": f"one process, one thread ({shape})",
            "value": one,
            "unit": "tokens/s",
            "ratio": 1.0,
            "target": None,
            "met": None,
        },
        {
            "name": f"two processes, data parallel ({shape})",
            "value": two,
            "unit": "tokens/s",
            "ratio": ratio,
            "target": TARGET,
            "met": ratio >= TARGET,
        },
    ]
