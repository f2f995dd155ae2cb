"""Two comparisons, each side at learning rates of its own: experts against a dense twin, Muon against AdamW.

A way is a model with an optimiser. Its two rates, of the matrices and of all else, are swept on one seed that is not
judged; the best pair is then trained on five others, all ways on the same text and for the same steps. What is told is
the difference of two ways seed by seed, with the 95% t-interval of its mean.

`data/reference/twins.csv` has a row for each training; `python -m minglm.course.labs.record twins` makes it again.
The dense twin has as many parameters at work on a token as the model with experts, so fewer in all.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.course.labs import toy
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.evals.statistics import mean_interval
from minglm.records import read_rows

SWEEP_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
STEPS, ROWS, LENGTH = 300, 8, 64
RATES, OTHER_RATES = (0.005, 0.01, 0.02), (0.01, 0.02, 0.04, 0.08)  # of the matrices, of all else
COLUMNS = ("way", "seed", "lr", "adam_lr", "active_weights", "weights", "loss", "floor")


@dataclass(frozen=True)
class Way:
    """A model and whether Muon trains its matrices."""

    config: ModelConfig
    muon: bool = True


def dense_twin(config: ModelConfig) -> ModelConfig:
    """The same layers without experts, with a feed-forward as wide as keeps the parameters at work on a token."""
    layers = config.num_hidden_layers
    twin = toy.config(first_k_dense_replace=layers)
    more = config.num_active_params() - twin.num_active_params()  # may be negative: three matrices in every layer
    return toy.config(
        first_k_dense_replace=layers,
        intermediate_size=twin.intermediate_size + round(more / (3 * layers * twin.hidden_size)),
    )


EXPERTS, DENSE, ADAMW = "experts, Muon", "dense twin, Muon", "experts, AdamW alone"
WAYS = {
    EXPERTS: Way(toy.config()),
    DENSE: Way(dense_twin(toy.config())),
    ADAMW: Way(toy.config(), muon=False),
}
PAIRS = {"dense twin less experts": (DENSE, EXPERTS), "AdamW alone less Muon": (ADAMW, EXPERTS)}


def run(way: str, seed: int, lr: float, adam_lr: float) -> dict[str, Any]:
    """One training: what a row holds beside way, seed and rates."""
    config, muon = WAYS[way].config, WAYS[way].muon
    rows = TinyWorldLoader(ROWS, LENGTH, seed)
    setting = toy.Setting(lr=lr, adam_lr=adam_lr, muon=muon)
    trained = toy.train(config, map(rows.batch, range(STEPS)), STEPS, setting, seed)
    return {
        "active_weights": config.num_active_params(),
        "weights": config.num_params(),
        "loss": round(toy.unseen_loss(trained.model), 5),
        "floor": round(toy.floor(), 5),
    }


def best_rates(rows: list[dict], way: str) -> tuple[float, float]:
    """(lr, adam_lr) with the least loss of a way's sweep."""
    row = min((r for r in rows if r["way"] == way and r["seed"] == SWEEP_SEED), key=lambda r: r["loss"])
    return row["lr"], row["adam_lr"]


def recorded() -> Path:
    """The recorded rows' file."""
    return datafiles.data("reference", "twins.csv")


def read(path: Path | None = None) -> list[dict]:
    """The rows of a recording (default: the recorded one), numbers as numbers."""
    return read_rows(path or recorded(), _row, "minglm.course.labs.record twins")


def _row(line: dict[str, str]) -> dict:
    whole = {key: int(line[key]) for key in ("seed", "active_weights", "weights")}
    return {"way": line["way"]} | whole | {key: float(line[key]) for key in ("lr", "adam_lr", "loss", "floor")}


def difference(rows: list[dict], pair: str) -> tuple[list[float], float, float]:
    """(difference for each seed in nats a token, mean, half width of its 95% t-interval) of one of `PAIRS`."""
    loss = {(r["way"], r["seed"]): r["loss"] for r in rows}
    one, other = PAIRS[pair]
    found = [loss[one, seed] - loss[other, seed] for seed in SEEDS]
    return found, *mean_interval(found)


def at_shared_rates(rows: list[dict], pair: str) -> list[float]:
    """Difference of a pair in nats a token at each pair of rates of the sweep, given to both sides; smallest first."""
    loss = {(r["way"], r["lr"], r["adam_lr"]): r["loss"] for r in rows if r["seed"] == SWEEP_SEED}
    one, other = PAIRS[pair]
    return sorted(loss[one, *rates] - loss[other, *rates] for way, *rates in loss if way == one)


def table(rows: list[dict]) -> str:
    """The ways at their best rates, then the differences."""
    lines = [f"{'way':24}{'lr':>7}{'adam_lr':>9}{'at work':>10}{'in all':>10}{'above the floor, mean':>24}"]
    for way in WAYS:
        own = [r for r in rows if r["way"] == way and r["seed"] in SEEDS]
        lr, adam_lr = best_rates(rows, way)
        ends = lr in (RATES[0], RATES[-1]) or adam_lr in (OTHER_RATES[0], OTHER_RATES[-1])
        above = statistics.fmean(r["loss"] - r["floor"] for r in own)
        lines.append(
            f"{way:24}{lr:7g}{adam_lr:9g}{own[0]['active_weights']:10,}{own[0]['weights']:10,}{above:24.3f}"
            + ends * " (edge of the sweep)"
        )
    for pair in PAIRS:
        found, mean, half = difference(rows, pair)
        seeds = " ".join(f"{d:+.3f}" for d in found)
        lines.append(f"{pair:24} {mean:+.3f} nats a token (95% ±{half:.3f}); by seed {seeds}")
        shared = at_shared_rates(rows, pair)
        lines.append(f"{'':24} at one pair of rates for both: {shared[0]:+.3f} to {shared[-1]:+.3f}, one seed")
    return "\n".join(lines)
