"""Record the loss curves of five seeds again: `python -m minglm.course.record_curves`, 10 minutes on one core.

What they are for, and the form of the file: `minglm.course.curves`.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minglm import atomic
from minglm.course import curves
from minglm.course.workshop.build import training
from minglm.errors import InputError, Parser, nearest
from minglm.runtime.arguments import SEED
from minglm.training import metrics
from minglm.training.loop import train
from minglm.training.recipe import Recipe

# Stage 1 of notebook learn/05, at full length.
PRETRAIN: dict[str, Any] = dict(
    model="nano",
    model_changes={"vocab_size": 800},
    corpus="tiny_world",
    seq_len=128,
    batch_size=16,
    warmup_steps=10,
    bias_rate=0.01,
    val_every=50,
    val_batches=4,
    checkpoint_every=50,
    steps=300,
    lr=0.01,
)


def pretrain(seed: int) -> list[float]:
    """The losses of stage 1 of notebook learn/05, one a step, with another seed."""
    with tempfile.TemporaryDirectory() as folder:
        train(Recipe(**PRETRAIN, seed=seed), Path(folder) / "run", progress=False)
        return [float(r["lm_loss"] or 0.0) for r in metrics.read(Path(folder) / "run" / "metrics.csv")]


def build(seed: int) -> list[float]:
    """The losses of minglm's own model and optimiser in the loop of notebook learn/build_4, one a step."""
    return training.reference(seed, training.STEPS)


RUNS: dict[str, Callable[[int], list[float]]] = {"build": build, "pretrain": pretrain}


def record(runs: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Train each run with each seed and write the file; runs that are not asked for stay as they are."""
    kept: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [r for r in csv.DictReader(file) if r["run"] not in runs]
    for run in runs:
        found = [curves.windows(RUNS[run](seed)) for seed in seeds]
        for i in range(len(found[0])):
            values = {f"seed_{seed}": round(c[i], 5) for seed, c in zip(seeds, found, strict=True)}
            kept.append({"run": run, "step": (i + 1) * curves.EVERY, **values})
        print(f"{run}: {len(seeds)} seeds, {len(found[0])} rows", flush=True)
    kept.sort(key=lambda r: (r["run"], int(r["step"])))
    atomic.write_csv(path, kept, ("run", "step", *(f"seed_{seed}" for seed in seeds)))


def main(argv: list[str] | None = None) -> int:
    """Record the curves again; returns the exit code."""
    p = Parser(prog="python -m minglm.course.record_curves", description=(__doc__ or "").splitlines()[0])
    p.add_argument("runs", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)} (default all)")
    p.add_argument("--seeds", nargs=5, type=SEED, default=[0, 1, 2, 3, 4], help="five of them (default 0 1 2 3 4)")
    p.add_argument(
        "--out", type=Path, default=curves.recorded(), help="CSV to write (default data/reference/curves.csv)"
    )
    args = p.parse_args(argv)
    for run in args.runs:
        if run not in RUNS:
            raise InputError(f"run {run!r}: not one of {', '.join(RUNS)}{nearest(run, RUNS)}")
    torch.set_num_threads(1)
    record(args.runs, args.seeds, args.out)
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
