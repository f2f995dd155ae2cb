"""The long-context stage against equal tokens of short rows, over seeds: `python -m minglm.tools.long_rows`.

From one pre-trained model two runs read the same number of tokens of the same mixture, with the same new `rope_theta`
and the same learning rates: one in the stage's long rows, one in rows as long as those of pre-training. Beside them
stands the pre-trained model itself, as it is and with the new theta. All are asked for unseen documents that are longer
than a short row; loss above the language's floor, by how far into its document a token stands.

`--starts` are runs as `python -m minglm.tools.demo_seeds` makes them. `--summary data/reference/long_rows.csv` prints
the record: means and the 95% t-interval of the difference over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import torch

from minglm import datafiles
from minglm.data.shards import IGNORE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.evals import next_token
from minglm.evals.statistics import mean_interval
from minglm.inference.load import load_model
from minglm.model.model import Model
from minglm.records import read_rows
from minglm.runtime.arguments import COUNT, SEED
from minglm.tools import recorder
from minglm.training import recipe
from minglm.training.loop import train
from minglm.training.tiny_world import VALIDATION_SEED

COLUMNS = ("seed", "way", "first", "end", "above_floor", "tokens")
STAGE, BEFORE = "tiny_long_context", "tiny_pretrain"
LONG, SHORT = "long rows", "short rows, equal tokens"
PLACES = ((0, 264), (264, 512), (512, 1024))  # tokens into the document
DOCUMENTS = {"chronicle": 1.0}  # those that are longer than a short row
TOKENS = 32_768  # that each model is asked for


def short_rows(seed: int) -> recipe.Recipe:
    """The stage's recipe in rows of pre-training's length: the same tokens in an update and in all, within a row."""
    long, before = recipe.load(STAGE), recipe.load(BEFORE)
    batch_size = round(long.batch_size * long.seq_len / before.seq_len)
    steps = round(long.steps * long.batch_size * long.seq_len / (batch_size * before.seq_len))
    return dataclasses.replace(long, seq_len=before.seq_len, batch_size=batch_size, steps=steps, seed=seed)


def measure(seed: int, starts: Path, folder: Path, tokens: int = TOKENS) -> list[dict]:
    """Train what is not trained yet and read the unseen documents; rows of the CSV."""
    before, long = starts / f"seed_{seed}" / "pretrain", starts / f"seed_{seed}" / "long_context"
    short = folder / f"short_{seed}"
    train(dataclasses.replace(recipe.load(STAGE), seed=seed), long, init_from=before)
    train(short_rows(seed), short, init_from=before)
    trained, reached = load_model(before)[0], load_model(long)[0]
    turned = Model(reached.config).eval()
    turned.load_state_dict(trained.state_dict())
    models = {
        "pre-trained": trained,
        "pre-trained, new theta": turned,
        SHORT: load_model(short)[0],
        LONG: reached,
    }
    return [
        {"seed": seed, "way": way, **row}
        for way, model in models.items()
        for row in by_place(model, PLACES[-1][1], tokens)
    ]


def by_place(model, length: int, tokens: int) -> list[dict]:
    """Nats a token above the floor, for each part of `PLACES`; `tokens` of unseen documents in rows of `length`."""
    rows = TinyWorldLoader(1, length, VALIDATION_SEED, DOCUMENTS, validation=True)
    batches = max(1, tokens // length)
    nats, _ = next_token.losses(model, rows, batches, mode="dense")
    places, floors = [], []
    for step in range(batches):
        _, targets, start = rows.batch(step)
        counted = targets != IGNORE
        places.append((torch.arange(length) - start)[counted])
        floors.append(rows.floor(step).nats[counted])
    place, above = torch.cat(places), nats - torch.cat(floors)
    out = []
    for first, end in PLACES:
        here = above[(place >= first) & (place < end)]
        if len(here):
            out.append({"first": first, "end": end, "above_floor": round(float(here.mean()), 4), "tokens": len(here)})
    return out


def read(path: Path | None = None) -> list[dict]:
    """The rows of a CSV that this command wrote (default: the recorded one), numbers as numbers."""
    return read_rows(path or datafiles.data("reference", "long_rows.csv"), _row, "minglm.tools.long_rows")


def _row(line: dict[str, str]) -> dict:
    whole = {key: int(line[key]) for key in ("seed", "first", "end", "tokens")}
    return {"way": line["way"], "above_floor": float(line["above_floor"])} | whole


def difference(rows: list[dict], first: int) -> tuple[float, float]:
    """Long rows less short rows at a place, nats a token: (mean over seeds, half width of its 95% t-interval)."""
    loss = {(r["way"], r["seed"]): r["above_floor"] for r in rows if r["first"] == first}
    return mean_interval([loss[LONG, seed] - loss[SHORT, seed] for seed in sorted({r["seed"] for r in rows})])


def table(rows: list[dict]) -> str:
    """Means over seeds, a line for each way and a column for each place; below, what long rows add."""
    places = sorted({(r["first"], r["end"]) for r in rows})
    lines = [f"{'nats a token above the floor':30}" + "".join(f"{f'{a} to {b}':>18}" for a, b in places)]
    for way in dict.fromkeys(r["way"] for r in rows):
        own = [r for r in rows if r["way"] == way]
        cells = (statistics.fmean(r["above_floor"] for r in own if r["first"] == first) for first, _ in places)
        lines.append(f"{way:30}" + "".join(f"{cell:18.3f}" for cell in cells))
    if len({r["seed"] for r in rows}) > 1:
        found = [difference(rows, first) for first, _ in places]
        lines.append(f"{'long less short':30}" + "".join(f"{f'{mean:+.3f} (±{half:.3f})':>18}" for mean, half in found))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = recorder.parser("minglm.tools.long_rows", __doc__)
    p.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="(default 0 1 2)")
    p.add_argument("--starts", type=Path, default=datafiles.runs("seeds"), help="(default runs/seeds)")
    p.add_argument("--runs", type=Path, default=datafiles.runs("long_rows"), help="(default runs/long_rows)")
    p.add_argument("--tokens", type=COUNT, default=TOKENS, help=f"of unseen documents (default {TOKENS})")
    return recorder.run(p, argv, "long_rows.csv", read, table, _record)


def _record(args: argparse.Namespace) -> None:
    def one(seed: int) -> list[dict]:
        return measure(seed, args.starts, args.runs, args.tokens)

    recorder.by_seed(args, COLUMNS, read, table, one)


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
