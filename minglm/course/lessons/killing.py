"""Kill a training run for real: another process trains, and is ended without warning, as by a power cut."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from minglm.runtime import run_folder
from minglm.training import checkpoint, metrics

CHILD = """
import json, sys, torch
from minglm.training.recipe import Recipe
from minglm.training.loop import train
recipe, run_dir, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
train(Recipe.from_dict(recipe), run_dir, resume=False, progress=False)
"""


def train_and_kill(recipe, run_dir: Path, after_step: int, timeout_s: float = 300.0) -> tuple[int, int]:
    """Train in another process and kill it (SIGKILL; TerminateProcess on Windows) once `after_step` rows are logged.

    Returns the last step that it logged and the step of the last checkpoint it left (0 for none).

    Raises:
        RuntimeError: the process ended by itself, with what it wrote last.
    """
    import torch

    log = run_dir / "metrics.csv"
    run_folder.set_aside(run_dir, "train")
    arguments = json.dumps([recipe.to_dict(), str(run_dir), torch.get_num_threads()])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    deadline = time.monotonic() + timeout_s
    try:
        while _last_step(log) < after_step:
            if child.poll() is not None:
                stderr = child.stderr.read() if child.stderr else ""
                raise RuntimeError(f"the training process ended by itself (code {child.returncode}): {stderr[-500:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step {after_step} within {timeout_s:.0f} s")
            time.sleep(0.01)
    finally:
        child.kill()
        child.communicate()
    kept = checkpoint.latest(run_dir)
    return _last_step(log), kept.step if kept else 0


def _last_step(log: Path) -> int:
    try:
        rows = metrics.read(log)
    except OSError:
        return 0
    return rows[-1]["step"] if rows else 0
