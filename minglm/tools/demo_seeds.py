"""The demo's training and scorecard over seeds, recorded: `python -m minglm.tools.demo_seeds`.

Each seed draws other weights and other texts and goes through the demo's five stages; the questions are the same for
all. `--summary data/reference/scorecard.csv` prints the record: one line for each question, a column for each seed, and
the best rule that needs no skill. A call goes on where the last one was killed, as training does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from minglm import datafiles
from minglm.errors import InputError, nearest
from minglm.evals import parts
from minglm.evals.scorecard import scorecard
from minglm.inference.load import load_model, model_of
from minglm.records import read_rows
from minglm.runtime.arguments import COUNT, SEED
from minglm.tools import recorder
from minglm.tools.demo import SIZES, STAGES
from minglm.training import recipe
from minglm.training.loop import train

COLUMNS = ("seed", "group", "name", "value", "low", "high", "questions", "rule", "rule_value")


def measure(seed: int, runs: Path, size: str = "mini", problems: int = 64) -> list[dict]:
    """Train what is not trained yet and answer the scorecard; rows of the CSV."""
    previous: Path | None = None
    for stage in STAGES:
        settings = dataclasses.replace(recipe.load(SIZES[size].prefix + stage), seed=seed)
        train(settings, runs / f"seed_{seed}" / stage, init_from=previous)
        previous = runs / f"seed_{seed}" / stage
    assert previous is not None
    model, tokenizer, _ = model_of(previous)
    card = scorecard(previous, model, tokenizer, problems, SIZES[size].card_length)
    reader = load_model(runs / f"seed_{seed}" / STAGES[-2])[0]  # the last one that read text
    beside = parts.rows(model, reader, tokenizer, min(problems, parts.TEXTS), SIZES[size].card_length)
    rounded = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in beside)
    return [{"seed": seed, **row} for row in (*_rows(card), *rounded)]


def _rows(card: dict) -> Iterator[dict]:
    """The lines of a scorecard; rates in 0..1, losses in nats a token."""
    for row in card["rows"]:
        rule, share = max(row["rules"].items(), key=lambda item: item[1])
        low, high = row["interval"]
        yield {
            "group": row["group"],
            "name": row["name"],
            "value": round(row["rate"], 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "questions": row["total"],
            "rule": rule,
            "rule_value": round(share, 4),
        }
    counts = card["counts"]
    rule, table = max(((n, q) for n, q in counts.items() if n != "model"), key=lambda item: item[1]["accuracy"])
    yield {
        "group": "unseen text",
        "name": "next token right",
        "value": round(counts["model"]["accuracy"], 4),
        "rule": rule,
        "rule_value": round(table["accuracy"], 4),
    }
    for name, part in card["floor"].items():
        yield {"group": "nats above the floor", "name": name, "value": round(part["above"], 4)}


def read(path: Path | None = None) -> list[dict]:
    """The rows of a CSV that this command wrote (default: the recorded one), numbers as numbers or None."""
    return read_rows(path or datafiles.data("reference", "scorecard.csv"), _row, "minglm.tools.demo_seeds")


def _row(line: dict[str, str]) -> dict:
    return {
        **{key: line[key] for key in ("group", "name", "rule")},
        **{key: float(line[key]) if line[key] else None for key in ("value", "low", "high", "rule_value")},
        "seed": int(line["seed"]),
        "questions": int(line["questions"]) if line["questions"] else None,
    }


def table(rows: list[dict]) -> str:
    """One line for each question: its rate (or loss) with each seed, and the best rule that needs no skill."""
    seeds = sorted({row["seed"] for row in rows})
    wide = 2 + max(len(row["name"]) for row in rows)
    lines = [f"{'':{wide}}" + "".join(f"{f'seed {s}':>8}" for s in seeds) + "  best rule without the skill"]
    shown = ""
    for group, name in dict.fromkeys((row["group"], row["name"]) for row in rows):
        own = {row["seed"]: row for row in rows if (row["group"], row["name"]) == (group, name)}
        nats = group.startswith("nats")
        cells = "".join(f"{own[s]['value']:8.3f}" if nats else f"{own[s]['value']:8.0%}" for s in seeds if s in own)
        first = next(iter(own.values()))
        rule = f"  {first['rule']} {first['rule_value']:.0%}" if first["rule"] else ""
        if group != shown:
            lines.append(group)
        lines.append(f"  {name:{wide - 2}}{cells}{rule}")
        shown = group
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = recorder.parser("minglm.tools.demo_seeds", __doc__)
    p.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2, 3], help="(default 0 1 2 3)")
    p.add_argument("--size", default="mini", help=f"of {', '.join(SIZES)} (default mini)")
    p.add_argument("--problems", type=COUNT, default=64, help="questions of each line (default 64)")
    p.add_argument("--runs", type=Path, default=datafiles.runs("seeds"), help="(default runs/seeds)")
    return recorder.run(p, argv, "scorecard.csv", read, table, _record)


def _record(args: argparse.Namespace) -> None:
    if args.size not in SIZES:
        raise InputError(f"--size {args.size!r}: not one of {', '.join(SIZES)}{nearest(args.size, SIZES)}")

    def one(seed: int) -> list[dict]:
        return measure(seed, args.runs, args.size, args.problems)

    recorder.by_seed(args, COLUMNS, read, table, one)


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
