"""When does looking back form? Recorded over seeds: `python -m minglm.tools.induction`.

Each setting changes one thing of a training on rows of keys and values (`minglm.data.key_value`). One CSV row for every
fifth step of a (setting, seed); `python -m minglm.tools.induction --summary data/reference/induction.csv` prints the
step at which each formed. A training ends soon after it has formed, or at its last step without.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minglm import atomic, datafiles
from minglm.config import ModelConfig
from minglm.data.key_value import KeyValueRows
from minglm.data.shards import Batch
from minglm.errors import InputError, nearest
from minglm.model.model import Model
from minglm.records import read_rows
from minglm.runtime.arguments import COUNT, SEED
from minglm.tools import recorder
from minglm.training.optim import MuonAdamW

COLUMNS = ("setting", "seed", "step", "tokens", "loss", "formed_at")
EVERY = 5  # steps between rows
AFTER = 15  # steps that a training goes on after it has formed
FORMED_BELOW = 0.5  # nats on repeated values, mean of `FORMED_OVER` steps
FORMED_OVER = 3
EMBEDDING_STD = 0.5
LR, ADAM_LR, WARMUP = 0.01, 0.02, 30  # Muon, AdamW, steps


@dataclass(frozen=True)
class Training:
    """What a training leaves: the model, and the loss of each step on the counted values, nats."""

    model: Model
    losses: list[float]

    @property
    def formed_at(self) -> int | None:
        """The first step whose loss, averaged with the two before, is below `FORMED_BELOW`; None when there is none."""
        for end in range(FORMED_OVER, len(self.losses) + 1):
            if sum(self.losses[end - FORMED_OVER : end]) < FORMED_OVER * FORMED_BELOW:
                return end
        return None


def train(
    config: ModelConfig,
    rows: KeyValueRows,
    steps: int,
    embedding_std: float | None = EMBEDDING_STD,
    seed: int = 0,
    extra_steps: int | None = None,
    rates: float = 1.0,
) -> Training:
    """Train a new model on rows of keys and values with constant learning rates, dense attention and no MTP.

    Args:
        embedding_std: standard deviation of the embedding's first values; None for the model's own.
        seed: of the first weights. extra_steps: end this many steps after it has formed; None trains all `steps`.
        rates: factor of both learning rates.
    """
    torch.manual_seed(seed)
    model = Model(config)
    if embedding_std is not None:
        with torch.no_grad():
            model.embed_tokens.weight.mul_(embedding_std / config.initializer_range)
    learning = [(n, p) for n, p in model.named_parameters() if ".indexer." not in n and not n.startswith("mtp.")]
    optimizer = MuonAdamW(learning, config, lr=rates * LR, adam_lr=rates * ADAM_LR)
    training = Training(model, [])
    for step in range(steps):
        batch = rows.batch(step)
        out = model(batch.tokens, batch.targets, mode="dense", mtp=False)
        optimizer.zero_grad()
        out.lm_loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(min(1.0, (step + 1) / WARMUP))
        model.update_router_bias(out.expert_counts, 0.01)
        training.losses.append(float(out.lm_loss.detach()))
        formed = training.formed_at if extra_steps is not None else None
        if formed is not None and extra_steps is not None and step + 1 >= formed + extra_steps:
            break
    return training


@torch.no_grad()
def loss(model: Model, batch: Batch) -> float:
    """Loss on the counted values of a batch, nats."""
    return float(model(batch.tokens, batch.targets, mode="dense", mtp=False).lm_loss)


@torch.no_grad()
def share_right(model: Model, batch: Batch) -> float:
    """Part of the counted values that are the model's first guess."""
    counted = batch.targets >= 0
    guesses = model(batch.tokens, mode="dense").logits.argmax(-1)
    return float((guesses == batch.targets)[counted].float().mean())


def tiny(config: ModelConfig, rows: KeyValueRows, unused: int = 0) -> ModelConfig:
    """`config` with a vocabulary of the words of `rows` and `unused` others, and no MTP module."""
    return ModelConfig.from_dict(
        {**config.to_dict(), "vocab_size": rows.words + 1 + unused, "num_nextn_predict_layers": 0}
    )


@dataclass(frozen=True)
class Setting:
    """One way to train. `embedding_std` None starts the embedding as every matrix; `unused` words of the table stand in
    no row; `changes` are keys of the model's config; `rates` multiplies both learning rates."""

    special: str
    size: str = "nano"
    embedding_std: float | None = EMBEDDING_STD
    seq_len: int = 32
    batch_size: int = 32
    words: int = 32
    pairs: tuple[int, int] = (2, 4)
    unused: int = 0
    repeated: bool = True
    gap: bool = False
    rates: float = 1.0
    changes: Mapping[str, int] = field(default_factory=dict)


SETTINGS = {
    "wide": Setting("embedding starts at 0.5; the others differ in one thing from this one"),
    "narrow": Setting("embedding starts at 0.02, as every matrix", embedding_std=None),
    "wider": Setting("embedding starts at 2", embedding_std=2.0),
    "control": Setting("no value is repeated", repeated=False),
    "shallow": Setting("one layer", changes={"num_hidden_layers": 1, "first_k_dense_replace": 0}),
    "two": Setting("two layers", changes={"num_hidden_layers": 2}),
    "slow": Setting("a third of both learning rates", rates=1 / 3),
    "gap": Setting("in half of the rows one same word stands between key and value", gap=True),
    "long": Setting("rows of 128 tokens, 8 in a batch, 3 to 8 pairs", seq_len=128, batch_size=8, pairs=(3, 8)),
    "many": Setting("256 words", words=256),
    "unused": Setting("a table of 2,048 words, most in no row", unused=2015),
    "mini": Setting("the demo's size, 64 words", size="mini", words=64),
}


def measure(name: str, seed: int, steps: int) -> list[dict]:
    """Train one setting; rows as in `COLUMNS`, `formed_at` None where it did not form."""
    s = SETTINGS[name]
    rows = KeyValueRows(s.batch_size, s.seq_len, s.words, s.pairs, seed, s.repeated, s.gap)
    config = tiny(ModelConfig.named(s.size, **s.changes), rows, s.unused)
    training = train(config, rows, steps, s.embedding_std, seed, AFTER, s.rates)
    return [
        {
            "setting": name,
            "seed": seed,
            "step": step,
            "tokens": step * s.seq_len * s.batch_size,
            "loss": round(loss, 4),
            "formed_at": training.formed_at,
        }
        for step, loss in enumerate(training.losses, 1)
        if step % EVERY == 0 or step == len(training.losses)
    ]


def read(path: Path | None = None) -> list[dict]:
    """The rows of a CSV that this command wrote (default: the recorded one), numbers as numbers."""
    return read_rows(path or datafiles.data("reference", "induction.csv"), _row, "minglm.tools.induction")


def _row(line: dict[str, str]) -> dict:
    if line["setting"] not in SETTINGS:
        raise ValueError(f"setting {line['setting']!r} is none of {', '.join(SETTINGS)}")
    return {
        "setting": line["setting"],
        "loss": float(line["loss"]),
        "formed_at": int(line["formed_at"]) if line["formed_at"] else None,
        **{key: int(line[key]) for key in ("seed", "step", "tokens")},
    }


def table(rows: list[dict]) -> str:
    """One line for each setting: the step at which each seed formed, or its loss at the last step."""
    lines = [f"{'setting':<9}{'step formed, or loss at the end':<33}what is special"]
    for name in dict.fromkeys(r["setting"] for r in rows):
        ends = {r["seed"]: r for r in rows if r["setting"] == name}  # the last row of each seed
        cells = [f"{r['formed_at']}" if r["formed_at"] else f"no, {r['loss']:.2f}" for r in ends.values()]
        lines.append(f"{name:<9}{'; '.join(cells):<33}{SETTINGS[name].special}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = recorder.parser("minglm.tools.induction", __doc__)
    p.add_argument("--settings", nargs="+", default=list(SETTINGS), help=f"of {', '.join(SETTINGS)} (default all)")
    p.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="(default 0 1 2)")
    p.add_argument("--steps", type=COUNT, default=400, help="at most (default 400)")
    return recorder.run(p, argv, "induction.csv", read, table, _record)


def _record(args: argparse.Namespace) -> None:
    for name in args.settings:
        if name not in SETTINGS:
            raise InputError(f"setting {name!r}: not one of {', '.join(SETTINGS)}{nearest(name, SETTINGS)}")
    torch.set_num_threads(1)
    rows = read(args.out) if args.out.is_file() else []
    for name in args.settings:
        for seed in args.seeds:
            rows = [r for r in rows if (r["setting"], r["seed"]) != (name, seed)]
            rows += measure(name, seed, args.steps)
            rows.sort(key=lambda r: (list(SETTINGS).index(r["setting"]), r["seed"], r["step"]))
            atomic.write_csv(args.out, rows, COLUMNS)
            print(table([r for r in rows if r["setting"] == name]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
