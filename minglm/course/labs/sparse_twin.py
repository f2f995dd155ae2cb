"""What reading 32 keys of 512 costs: a sparse stage against as many tokens of dense attention, from one start.

A model learns the tiny world densely, in rows of 512 tokens, and its indexer then learns where its attention looks.
From there two ways go on for the same steps, on the same rows and with the same learning rates: sparse, each query
reading the 32 keys that the indexer chose, and dense. What is told is the loss on unseen rows, read as each was
trained, seed by seed, with the 95% t-interval of the difference.

`data/reference/sparse_twin.csv` has a row for each way and seed; `python -m minglm.course.labs.record sparse` makes it
again.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.evals.statistics import mean_interval
from minglm.records import read_rows
from minglm.training.loop import train
from minglm.training.recipe import Recipe

SEEDS, LENGTH, KEYS, ROWS = (0, 1, 2), 512, 32, 4
START_STEPS, WARMUP_STEPS, STEPS = 200, 40, 60
FRESH = 1000  # added to the seed after the start, so that no row comes again
ALLOWED = 0.02  # nats a token that reading few keys may cost
START, UNTRAINED, DENSE, SPARSE = "start, dense", "sparse, only the indexer trained", "dense", "sparse"
WAYS = (START, UNTRAINED, DENSE, SPARSE)
COLUMNS = ("way", "seed", "loss")


def base(seed: int) -> Recipe:
    """The first stage; the others change its steps and rates."""
    return Recipe(
        model="nano",
        model_changes={"vocab_size": 800, "index_topk": KEYS},
        corpus="tiny_world",
        seq_len=LENGTH,
        batch_size=ROWS,
        steps=START_STEPS,
        lr=0.01,
        adam_lr=0.02,
        embedding_std=0.5,
        warmup_steps=10,
        bias_rate=0.01,
        mtp_weight=0.0,
        val_every=START_STEPS,
        val_batches=8,
        checkpoint_every=START_STEPS,
        seed=seed,
    )


@lru_cache(maxsize=1)
def run(seed: int) -> dict[str, float]:
    """Loss on unseen rows for each way, nats per token."""
    first = base(seed)
    after = dataclasses.replace(first, embedding_std=None, seed=FRESH + seed)
    warm = dataclasses.replace(after, stage="dsa_warmup", steps=WARMUP_STEPS, adam_lr=0.01)
    on = dataclasses.replace(after, steps=STEPS, lr=0.003, adam_lr=0.006)
    with tempfile.TemporaryDirectory() as folder:
        start, warmed, dense, sparse = (Path(folder) / name for name in ("start", "warm", "dense", "sparse"))
        return {
            START: train(first, start, progress=False)["val_loss"],
            UNTRAINED: train(warm, warmed, init_from=start, progress=False)["val_loss"],
            DENSE: train(on, dense, init_from=warmed, progress=False)["val_loss"],
            SPARSE: train(dataclasses.replace(on, stage="sparse"), sparse, init_from=warmed, progress=False)[
                "val_loss"
            ],
        }


def recorded() -> Path:
    """The recorded rows' file."""
    return datafiles.data("reference", "sparse_twin.csv")


def read(path: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a recording (default: the recorded one), numbers as numbers."""
    return read_rows(path or recorded(), _row, "minglm.course.labs.record sparse")


def _row(line: Mapping[str, str]) -> dict[str, Any]:
    return {"way": line["way"], "seed": int(line["seed"]), "loss": float(line["loss"])}


def costs(found: list[dict[str, Any]]) -> list[float]:
    """Sparse less dense after the same tokens, nats a token, a number for each seed."""
    loss = {(r["way"], r["seed"]): r["loss"] for r in found}
    return [loss[SPARSE, seed] - loss[DENSE, seed] for seed in sorted({r["seed"] for r in found})]


def table(found: list[dict[str, Any]]) -> str:
    """The means, then the difference."""
    lines = [f"{'way':36}{'loss on unseen rows, mean':>28}"]
    for way in dict.fromkeys(r["way"] for r in found):
        lines.append(f"{way:36}{statistics.fmean(r['loss'] for r in found if r['way'] == way):28.3f}")
    mean, half = mean_interval(costs(found))
    seeds = " ".join(f"{cost:+.3f}" for cost in costs(found))
    lines.append(f"sparse less dense: {mean:+.3f} nats a token (95% ±{half:.3f}); by seed {seeds}")
    return "\n".join(lines)
