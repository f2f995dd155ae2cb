"""Record a laboratory's runs: `python -m minglm.course.labs.record scaling`, `data`, `speedrun`, `twins` or `sparse`.

Rows are written as they come, and runs that the file holds already are not trained again: a stopped recording goes on.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from minglm import atomic
from minglm.course.labs import cleaning, scaling, sparse_twin, speedrun, toy, twins
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.errors import InputError, Parser, nearest

Row = dict[str, Any]
Planned = tuple[Row, Callable[[], Row]]  # what names a row, and the training that fills it


def add_rows(path: Path, columns: tuple[str, ...], keys: tuple[str, ...], runs: Iterable[Planned]) -> None:
    """Write each run's row as it comes; one whose `keys` the file holds is left out."""
    rows: list[Row] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    have = {tuple(str(r[k]) for k in keys) for r in rows}
    for name, train in runs:
        if tuple(str(name[k]) for k in keys) in have:
            continue
        rows.append({**name, **train()})
        atomic.write_csv(path, rows, columns)
        print(", ".join(f"{k} {rows[-1][k]}" for k in columns), flush=True)


def _scaling(_: Path) -> Iterator[Planned]:
    grid = [(lr, w, s) for lr in (scaling.RATE, scaling.TOO_SMALL) for s in scaling.STEPS for w in scaling.WIDTHS]
    for lr, width, steps in [(scaling.RATE, *scaling.LARGEST), *grid]:
        config = scaling.config(width)

        def train(lr=lr, config=config, steps=steps) -> Row:
            rows = TinyWorldLoader(scaling.ROWS, scaling.LENGTH)
            trained = toy.train(config, map(rows.batch, range(steps)), steps, toy.Setting(lr=lr, adam_lr=lr))
            return {
                "weights": scaling.weights(config),
                "tokens": steps * scaling.ROWS * scaling.LENGTH,
                "loss": round(toy.unseen_loss(trained.model), 5),
                "floor": round(toy.floor(), 5),
            }

        yield {"lr": lr, "width": width, "steps": steps}, train


def _data(_: Path) -> Iterator[Planned]:
    for seed in cleaning.SEEDS:
        for experiment, texts in cleaning.EXPERIMENTS.items():
            for name, pages in texts(seed).items():

                def train(pages=pages, seed=seed) -> Row:
                    loss = cleaning.trained_loss(pages, seed)
                    return {"pages": len(pages), "loss": round(loss, 5), "floor": round(toy.floor(), 5)}

                yield {"experiment": experiment, "text": name, "seed": seed}, train


def _speedrun(_: Path) -> Iterator[Planned]:
    for entry in speedrun.entries():
        for seed in speedrun.SEEDS:

            def train(entry=entry, seed=seed) -> Row:
                return speedrun.row(entry, speedrun.run(entry, seed))

            yield {"entry": entry.name, "seed": seed}, train


def _twins(path: Path) -> Iterator[Planned]:
    def planned(way: str, seed: int, lr: float, adam_lr: float) -> Planned:
        name = {"way": way, "seed": seed, "lr": lr, "adam_lr": adam_lr}
        return name, lambda: twins.run(way, seed, lr, adam_lr)

    for way in twins.WAYS:
        for lr, adam_lr in itertools.product(twins.RATES, twins.OTHER_RATES):
            yield planned(way, twins.SWEEP_SEED, lr, adam_lr)
        lr, adam_lr = twins.best_rates(twins.read(path), way)  # of the sweep that is written by now
        for seed in twins.SEEDS:
            yield planned(way, seed, lr, adam_lr)


def _sparse(_: Path) -> Iterator[Planned]:
    for seed in sparse_twin.SEEDS:
        for way in sparse_twin.WAYS:

            def train(way=way, seed=seed) -> Row:
                return {"loss": round(sparse_twin.run(seed)[way], 5)}

            yield {"way": way, "seed": seed}, train


def record(lab: str, path: Path | None = None) -> Path:
    """Train what a laboratory's file still lacks.

    Raises:
        InputError: no such laboratory.
    """
    if lab not in LABS:
        raise InputError(f"laboratory {lab!r}: not one of {', '.join(LABS)}{nearest(lab, LABS)}")
    default, columns, keys, runs = LABS[lab]
    path = path or default()
    add_rows(path, columns, keys, runs(path))
    return path


LABS: dict[str, tuple[Callable[[], Path], tuple[str, ...], tuple[str, ...], Callable[[Path], Iterator[Planned]]]] = {
    "scaling": (scaling.recorded, scaling.COLUMNS, ("lr", "width", "steps"), _scaling),
    "data": (cleaning.recorded, cleaning.COLUMNS, ("experiment", "text", "seed"), _data),
    "speedrun": (speedrun.recorded, speedrun.COLUMNS, ("entry", "seed"), _speedrun),
    "sparse": (sparse_twin.recorded, sparse_twin.COLUMNS, ("way", "seed"), _sparse),
    "twins": (twins.recorded, twins.COLUMNS, ("way", "seed", "lr", "adam_lr"), _twins),
}


def main(argv: list[str] | None = None) -> int:
    """Record a laboratory's runs; returns the exit code."""
    p = Parser(prog="python -m minglm.course.labs.record", description=(__doc__ or "").splitlines()[0])
    p.add_argument("lab", help=f"one of {', '.join(LABS)}")
    p.add_argument("--out", type=Path, help="CSV to write or go on with (default the recorded one)")
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    print(record(args.lab, args.out))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
