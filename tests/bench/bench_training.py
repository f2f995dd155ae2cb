"""Does the architecture pay? Mixture of experts against a dense model of equal active parameters, and sparse attention
against dense attention continued, each on the same tokens.

(a) `mini` and a dense model with the same active parameters (all layers dense, FFN width solved for), three seeds.
(b) From one dense checkpoint with a warmed-up indexer: the sparse stage, and dense attention for the same steps.

MINGLM_BENCH_SHARE (0..1, default 1) shortens both for development; the rows say how many tokens were used.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

NAME = "training"
SEEDS = (0, 1, 2)
STEPS, BATCH, SEQ = 300, 16, 128  # (a), per seed and model
SPARSE_STEPS, SPARSE_SEQ = 60, 512  # (b), each of warm-up, sparse and dense
MOE_MARGIN, SPARSE_MARGIN = 0.0, 0.02  # nats of validation loss


def equal_active_dense(config) -> dict:
    """Config keys of the dense model: experts gone, FFN width such that active parameters are as close as it goes."""
    from minglm.config import ModelConfig

    def dense(width: int) -> dict:
        return {"first_k_dense_replace": config.num_hidden_layers, "intermediate_size": width}

    def off(width: int) -> int:
        return abs(
            ModelConfig.from_dict({**config.to_dict(), **dense(width)}).num_active_params() - config.num_active_params()
        )

    return dense(min(range(32, 4 * config.hidden_size * config.num_experts_per_tok, 1), key=off))


def run() -> list[dict]:
    from minglm.config import ModelConfig
    from minglm.training.loop import train
    from minglm.training.recipe import Recipe

    share = float(os.environ.get("MINGLM_BENCH_SHARE", "1"))
    steps, sparse_steps = max(4, round(STEPS * share)), max(4, round(SPARSE_STEPS * share))
    config = ModelConfig.named("mini")
    dense = equal_active_dense(config)
    dense_config = ModelConfig.named("mini", **dense)
    common = dict(
        model="mini",
        batch_size=BATCH,
        seq_len=SEQ,
        steps=steps,
        lr=0.004,
        adam_lr=0.015,
        warmup_steps=max(1, steps // 10),
        val_every=steps,
        val_batches=16,
        checkpoint_every=steps,
        bias_rate=0.003,
        mtp_weight=0.0,
    )
    rows, losses = [], {"moe": [], "dense": []}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for seed in SEEDS:  # interleaved, so that both meet the same machine
            for kind, changes in (("moe", {}), ("dense", dense)):
                out = train(
                    Recipe(**common, seed=seed, model_changes=changes),
                    home / f"{kind}-{seed}",
                    progress=False,
                    device="cpu",
                )
                losses[kind].append(out["val_loss"])
        gaps = [d - m for d, m in zip(losses["dense"], losses["moe"], strict=False)]
        tokens = steps * BATCH * SEQ
        rows.append(_row("mini: active parameters", config.num_active_params(), "parameters"))
        rows.append(
            _row(
                "dense twin: active parameters",
                dense_config.num_active_params(),
                "parameters",
                ratio=dense_config.num_active_params() / config.num_active_params(),
            )
        )
        for kind in losses:
            rows.append(
                _row(
                    f"{kind}: validation loss after {tokens:,} tokens, mean of {len(SEEDS)} seeds",
                    statistics.mean(losses[kind]),
                    "nats",
                )
            )
        rows.append(
            _row(
                "dense minus mini, smallest of the seeds",
                min(gaps),
                "nats",
                target=MOE_MARGIN,
                met=min(gaps) > MOE_MARGIN,
            )
        )
        rows += _sparse_against_dense(home, common, sparse_steps)
    return rows


def _sparse_against_dense(home: Path, common: dict, steps: int) -> list[dict]:
    from minglm.training.loop import train
    from minglm.training.recipe import Recipe

    late = {
        **common,
        "seq_len": SPARSE_SEQ,
        "batch_size": BATCH * SEQ // SPARSE_SEQ,
        "steps": steps,
        "val_every": steps,
        "checkpoint_every": steps,
        "warmup_steps": max(1, steps // 10),
    }
    start = home / f"moe-{SEEDS[0]}"
    train(
        Recipe(**{**late, "stage": "dsa_warmup", "lr": 0.01, "adam_lr": None}),
        home / "warmup",
        init_from=start,
        progress=False,
        device="cpu",
    )
    adapted = {**late, "lr": 0.003, "adam_lr": 0.0015}
    sparse = train(
        Recipe(**{**adapted, "stage": "sparse"}),
        home / "sparse",
        init_from=home / "warmup",
        progress=False,
        device="cpu",
    )
    dense = train(
        Recipe(**{**adapted, "stage": "long_context"}),
        home / "dense",
        init_from=home / "warmup",
        progress=False,
        device="cpu",
    )
    gap = sparse["val_loss"] - dense["val_loss"]
    return [
        _row(f"dense attention, {steps} more steps of {SPARSE_SEQ} tokens: validation loss", dense["val_loss"], "nats"),
        _row(
            "sparse attention (32 keys), the same steps: validation loss, attending sparsely",
            sparse["val_loss"],
            "nats",
        ),
        _row("sparse minus dense", gap, "nats", target=SPARSE_MARGIN, met=gap <= SPARSE_MARGIN),
    ]


def _row(name: str, value: float, unit: str, ratio=None, target=None, met=None) -> dict:
    return {"name": name, "value": value, "unit": unit, "ratio": ratio, "target": target, "met": met}
