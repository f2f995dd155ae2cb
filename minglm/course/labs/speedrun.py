"""The speedrun of the toy: how far below can the loss be brought with so many FLOPs, on two cores?

An entry is a YAML of settings (`data/recipes/speedrun`): the model's shape, the batch, the optimiser. The FLOPs decide
the number of steps, so a larger model takes fewer. `python -m minglm.course.labs.speedrun my.yaml` trains an entry with
three seeds and puts it beside the recorded ones; `data/reference/speedrun.csv` holds those with seed, commit and curve.

You may choose by the text that `toy.unseen_loss` reads; an entry is judged by another, `JUDGED_BY`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minglm import datafiles, plots
from minglm.config import ModelConfig
from minglm.course.labs import toy
from minglm.data.tiny_world.documents import MIXTURE
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.errors import InputError, Parser
from minglm.records import read_rows
from minglm.settings import BaseSettings, nonzero, read_yaml, setting

FLOPS = 3e10  # training FLOPs of every entry; about ten seconds on one core
SEEDS = (0, 1, 2)
JUDGED_BY = 2  # seed of the text that entries are judged by
POINTS = 20  # of a recorded curve
COLUMNS = ("entry", "seed", "steps", "tokens", "loss", "floor", "commit", "curve")
CLOSE = 0.02  # nats between a recorded run and the same run on another machine, whose sums round differently


@dataclass(frozen=True)
class Entry(BaseSettings):
    """One way to spend the FLOPs. Raises InputError for any value that breaks a rule."""

    KIND = "speedrun entry"

    name: str = setting("mine", "what it is called")
    why: str = setting("", "what is changed, and why it should help")
    hidden_size: int = setting(64, "width of the model", "", 8, 512)
    num_hidden_layers: int = setting(3, "layers", "", 1, 16)
    num_attention_heads: int = setting(4, "heads", "", 1, 32)
    intermediate_size: int = setting(160, "width of the dense layer's feed-forward", "", 8, 4096)
    moe_intermediate_size: int = setting(32, "width of one expert", "", 4, 2048)
    n_routed_experts: int = setting(8, "experts", "", 1, 64)
    num_experts_per_tok: int = setting(2, "experts that a token takes", "", 1, 64)
    first_k_dense_replace: int = setting(1, "first layers without experts", "", 0, 16)
    batch_size: int = setting(8, "rows of a batch", "", 1, 512)
    seq_len: int = setting(64, "tokens of a row", "tokens", 8, 512)
    documents: dict = setting({}, "share of each kind of document; {} for the language's own mixture")
    lr: float = setting(0.01, "peak learning rate of Muon", "", 0.0, 1.0, check=nonzero)
    adam_lr: float = setting(0.01, "peak learning rate of AdamW", "", 0.0, 1.0, check=nonzero)
    warmup_steps: int = setting(10, "updates over which the learning rate rises", "steps", 1)
    final_lr_fraction: float = setting(0.1, "learning rate at the end, as a part of the peak", "", 0.0, 1.0)
    weight_decay: float = setting(0.1, "decoupled weight decay", "", 0.0, 10.0)
    bias_rate: float = setting(0.01, "step of the router's balance bias", "", 0.0, 1.0)
    muon: bool = setting(True, "false leaves every matrix to AdamW")
    embedding_std: float | None = setting(None, "standard deviation of the embedding's first values", "", 0.0, 10.0)

    def config(self) -> ModelConfig:
        """The model of this entry.

        Raises:
            InputError: more experts per token than experts, or no dense and no expert layer.
        """
        shape = {
            key: getattr(self, key)
            for key in (
                "hidden_size num_hidden_layers num_attention_heads intermediate_size moe_intermediate_size "
                "n_routed_experts num_experts_per_tok first_k_dense_replace"
            ).split()
        }
        return toy.config(**shape)

    def steps(self) -> int:
        """Updates that the FLOPs pay for.

        Raises:
            InputError: not even one.
        """
        step = self.config().train_flops_per_token(self.seq_len, sparse=False) * self.batch_size * self.seq_len
        if step > FLOPS:
            raise InputError(
                f"{self.name}: one step takes {step:.2g} FLOPs and there are {FLOPS:.0e}; take a smaller batch or model"
            )
        return int(FLOPS // step)

    def setting(self) -> toy.Setting:
        """The optimiser of this entry."""
        return toy.Setting(
            lr=self.lr,
            adam_lr=self.adam_lr,
            warmup=self.warmup_steps,
            end=self.final_lr_fraction,
            weight_decay=self.weight_decay,
            bias_rate=self.bias_rate,
            muon=self.muon,
            embedding_std=self.embedding_std,
        )


@dataclass(frozen=True)
class Result:
    """Of one training: its seed, updates and tokens, the loss on the judging text, and the loss of each step."""

    seed: int
    steps: int
    tokens: int
    loss: float
    losses: list[float]


def read(path: str | Path) -> Entry:
    """An entry from a YAML file, or one of `data/recipes/speedrun` by its name; of a capstone's design its part `toy`.

    Raises:
        InputError: no such file, or a key or value that breaks a rule.
    """
    values = read_yaml(path, folder(), "speedrun entry")
    toy_part = values.get("toy", values)
    if not isinstance(toy_part, dict):
        raise InputError(f"{path}: toy: {toy_part!r}: must be a mapping such as {{hidden_size: 32}}")
    return Entry.from_dict(toy_part)


def folder() -> Path:
    """Where the recorded entries' settings lie."""
    return datafiles.data("recipes", "speedrun")


def entries() -> list[Entry]:
    """The recorded entries, in the order in which they were tried."""
    return [read(path) for path in datafiles.catalogue(folder(), ".yaml").values()]


def run(entry: Entry, seed: int = 0, judged_by: int = JUDGED_BY, most_steps: int | None = None) -> Result:
    """Train one entry once, with all the FLOPs, or with those of `most_steps` steps for a first look."""
    steps = min(entry.steps(), most_steps or entry.steps())
    rows = TinyWorldLoader(entry.batch_size, entry.seq_len, seed, entry.documents or MIXTURE)
    trained = toy.train(entry.config(), map(rows.batch, range(steps)), steps, entry.setting(), seed)
    loss = toy.unseen_loss(trained.model, judged_by)
    return Result(seed, steps, steps * entry.batch_size * entry.seq_len, loss, trained.losses)


def row(entry: Entry, result: Result) -> dict[str, Any]:
    """A result as it is recorded; the curve holds `POINTS` means of equal parts of the run."""
    size = max(1, len(result.losses) // POINTS)
    parts = [result.losses[i : i + size] for i in range(0, size * min(POINTS, len(result.losses)), size)]
    return {
        "entry": entry.name,
        "steps": result.steps,
        "tokens": result.tokens,
        "loss": round(result.loss, 5),
        "floor": round(toy.floor(JUDGED_BY), 5),
        "commit": commit(),
        "curve": " ".join(f"{statistics.mean(part):.3f}" for part in parts),
    }


def commit() -> str:
    """The commit that this code stands at, "" where there is none to be had."""
    root = datafiles.root()
    try:
        done = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if root and done.returncode == 0 else ""


def recorded() -> Path:
    """The leaderboard's file."""
    return datafiles.data("reference", "speedrun.csv")


@dataclass(frozen=True)
class Recorded:
    """A recorded training: nats above the floor, updates, and its curve, means of equal parts of the run."""

    above: float
    steps: int
    curve: list[float]


@dataclass(frozen=True)
class Standing:
    """An entry on the leaderboard: nats above the floor, mean over its seeds, the least and the most of them."""

    entry: str
    above: float
    low: float
    high: float
    steps: int
    curve: list[float]


def standings(path: Path | None = None) -> list[Standing]:
    """The recorded entries in the order in which they were tried.

    Raises:
        InputError: no such file, or a row that is none.
    """
    seeds: dict[str, list[Recorded]] = {}
    for name, one in read_rows(path or recorded(), _recorded, "minglm.course.labs.record"):
        seeds.setdefault(name, []).append(one)
    return [standing(name, some) for name, some in seeds.items()]


def _recorded(line: Mapping[str, Any]) -> tuple[str, Recorded]:
    curve = [float(x) for x in line["curve"].split()]
    return line["entry"], Recorded(float(line["loss"]) - float(line["floor"]), int(line["steps"]), curve)


def standing(name: str, seeds: Sequence[Recorded]) -> Standing:
    """The recorded trainings of one entry as its place on the leaderboard."""
    above = [one.above for one in seeds]
    return Standing(name, statistics.mean(above), min(above), max(above), seeds[0].steps, seeds[0].curve)


def table(places: Sequence[Standing]) -> str:
    """The leaderboard as Markdown, in the order given, the best marked."""
    best = min(place.above for place in places)
    lines = ["| entry | nats above the floor | least and most of its seeds | steps | |", "|---|---:|---|---:|---|"]
    for p in places:
        mark = "record" if p.above == best else ""
        lines.append(f"| {p.entry} | {p.above:.3f} | {p.low:.3f} to {p.high:.3f} | {p.steps:,} | {mark} |")
    return "\n".join(lines)


def chart(places: Sequence[Standing]) -> tuple[Any, str]:
    """The curve of each entry's first seed over the share of the FLOPs that are spent."""
    fig = plots.figure("The same FLOPs, spent in other ways", "FLOPs spent (percent)", "training loss (nats)")
    for i, p in enumerate(places):
        share = [100 * (k + 1) / len(p.curve) for k in range(len(p.curve))]
        plots.line(fig, share, p.curve, p.entry, i)
    best = min(places, key=lambda p: p.above)
    return fig, (
        f"Line chart. Of {len(places)} entries {best.entry} ends best, {best.above:.2f} nats above the floor; "
        f"{places[0].entry} ends {places[0].above:.2f} above it."
    )


def main(argv: list[str] | None = None) -> int:
    """Train an entry and show the leaderboard with it; returns the exit code."""
    p = Parser(prog="python -m minglm.course.labs.speedrun", description=(__doc__ or "").splitlines()[0])
    p.add_argument("entry", nargs="?", help="YAML of settings, or a recorded entry's name; none shows the leaderboard")
    p.add_argument("--keys", action="store_true", help="print the keys of an entry with their meanings")
    args = p.parse_args(argv)
    if args.keys:
        print(Entry().explained(), end="")
        return 0
    places = standings()
    if args.entry:
        entry = read(args.entry)
        entry.steps()
        torch.set_num_threads(1)
        rows = []
        for seed in SEEDS:
            rows.append(row(entry, run(entry, seed)))
            print(f"seed {seed}: {rows[-1]['loss'] - rows[-1]['floor']:.3f} above the floor", flush=True)
        before = [p for p in places if p.entry == entry.name]
        mine = standing(entry.name, [_recorded(line)[1] for line in rows])
        if before:
            same = abs(mine.above - before[0].above) <= CLOSE
            print(f"recorded: {before[0].above:.3f}; {'reproduced' if same else 'not reproduced'}")
            return 0 if same else 1
        places = [*places, mine]
    print(table(places))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
