"""Rounding after training against rounding inside it, over seeds: `python -m minglm.tools.qat_vs_ptq`.

From one pre-trained run, every seed trains stage sft twice, plainly and with `qat: int4`, on the same data in the same
order; each result is measured unquantised and quantised on the same validation batches and needles. One CSV row for
each (seed, training, format); `python -m minglm.tools.qat_vs_ptq --summary data/reference/quantization.csv` prints
means and spread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

from minglm import atomic, datafiles
from minglm.evals import quantization
from minglm.evals.needle import needle_test
from minglm.inference.load import load_model
from minglm.quant.formats import Spec
from minglm.quant.modules import pack
from minglm.records import read_rows
from minglm.runtime.arguments import COUNT, SEED
from minglm.tools import recorder
from minglm.tools.demo import SIZES
from minglm.training import recipe as recipes
from minglm.training.loop import train

RECIPE = "tiny_sft"  # the demo's chat stage
COLUMNS = ("seed", "training", "format", "bits_per_weight", "bytes", "val_loss", "loss_added", "needles", "questions")
AFTER = {"plain": ("none", "int4", "fp8", "w4a8"), "qat": ("none", "int4")}


def compare(  # noqa: PLR0913 (what is varied, what is measured: each is one choice of the experiment)
    base: str | Path,
    folder: str | Path,
    seeds: list[int],
    recipe_name: str = RECIPE,
    changes: dict | None = None,
    batches: int = 16,
    questions: int = 4,
    needles: bool = True,
    say=print,
) -> list[dict]:
    """Rows as in `COLUMNS`. `base`: run that stage sft starts from. `folder`: where the runs are kept and resumed.

    `loss_added` is the loss above the plainly trained, unquantised model of the same seed, in nats per token.
    """
    rows: list[dict] = []
    for seed in seeds:
        reference = None
        for training, formats in AFTER.items():
            recipe = recipes.load(
                recipe_name, {**(changes or {}), "seed": seed, "qat": "int4" if training == "qat" else None}
            )
            run = Path(folder) / f"{training}-{seed}"
            say(f"seed {seed}: {training}")
            train(recipe, run, base, progress=False, device="cpu")
            model, tokenizer, _ = load_model(run)
            held = quantization.validation_batches(run, tokenizer, model.config, batches)
            plan = SIZES["mini" if model.config.max_position_embeddings >= 1024 else "nano"]
            for name in formats:
                which = model if name == "none" else pack(copy.deepcopy(model), Spec(name, recipe.qat_group))
                size, loss = quantization.sizes(which), quantization.loss(which, held)
                reference = loss if reference is None else reference
                needle = (
                    needle_test(which, tokenizer, plan.lengths, plan.depths, questions, progress=False)
                    if needles
                    else None
                )
                rows.append(
                    {
                        "seed": seed,
                        "training": training,
                        "format": name,
                        "bits_per_weight": round(size["bits_per_weight"], 3),
                        "bytes": size["bytes"],
                        "val_loss": round(loss, 5),
                        "loss_added": round(loss - reference, 5),
                        "needles": needle and round(needle["with_context"], 4),
                        "questions": needle and needle["questions"],
                    }
                )
                say(f"  {name}: loss {loss:.4f}" + (f", needles {needle['with_context']:.1%}" if needle else ""))
    return rows


def write(rows: list[dict], path: Path) -> None:
    """The rows as CSV, in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_csv(path, rows, COLUMNS)


def read(path: Path | None = None) -> list[dict]:
    """The rows of a CSV that `write` made (default: the recorded one), numbers as numbers."""
    return read_rows(path or datafiles.data("reference", "quantization.csv"), _row, "minglm.tools.qat_vs_ptq")


def _row(line: dict[str, str]) -> dict:
    values: dict = {c: float(line[c]) if line[c] else None for c in COLUMNS if c not in ("training", "format")}
    return {"training": line["training"], "format": line["format"]} | values | {"seed": int(line["seed"])}


def summary(rows: list[dict]) -> list[dict]:
    """Mean and range over seeds of each (training, format)."""
    out = []
    for training, name in dict.fromkeys((r["training"], r["format"]) for r in rows):
        part = [r for r in rows if (r["training"], r["format"]) == (training, name)]
        added = [r["loss_added"] for r in part]
        needles = [r["needles"] for r in part if r["needles"] is not None]
        out.append(
            {
                "training": training,
                "format": name,
                "seeds": len(part),
                "bits_per_weight": part[0]["bits_per_weight"],
                "val_loss": statistics.mean(r["val_loss"] for r in part),
                "loss_added": statistics.mean(added),
                "least": min(added),
                "most": max(added),
                "needles": statistics.mean(needles) if needles else None,
            }
        )
    return out


def table(rows: list[dict]) -> str:
    """`summary` as aligned text, one line for each (training, format)."""
    lines = [
        f"{'training':<9}{'format':<8}{'bits/weight':>12}{'loss':>9}{'added':>10}{'range over seeds':>22}{'needles':>9}"
    ]
    for r in summary(rows):
        needles = "-" if r["needles"] is None else f"{r['needles']:.1%}"
        lines.append(
            f"{r['training']:<9}{r['format']:<8}{r['bits_per_weight']:>12.2f}{r['val_loss']:>9.4f}{r['loss_added']:>+10.4f}"
            f"{r['least']:>+12.4f} …{r['most']:>+8.4f}{needles:>9}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    p = recorder.parser("minglm.tools.qat_vs_ptq", __doc__)
    p.add_argument("base", nargs="?", help="run that stage sft starts from (default runs/demo/sparse)")
    p.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], help="(default 0 1 2)")
    p.add_argument("--runs", help="where the runs are kept (default runs/quantization)")
    p.add_argument("--steps", type=COUNT, help="updates of the stage (default the recipe's)")
    p.add_argument("--questions", type=COUNT, default=4, help="needle questions in each of 20 cells (default 4)")
    return recorder.run(p, argv, "quantization.csv", read, table, _record)


def _record(args: argparse.Namespace) -> None:
    base, kept = args.base or datafiles.runs("demo", "sparse"), args.runs or datafiles.runs("quantization")
    others = [r for r in read(args.out) if r["seed"] not in args.seeds] if args.out.is_file() else []
    changes = {"steps": args.steps} if args.steps else {}
    found = compare(base, kept, args.seeds, changes=changes, questions=args.questions)
    rows = sorted(others + found, key=lambda r: r["seed"])
    write(rows, args.out)
    print(table(rows))
    print(f"{args.out}: written")


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
