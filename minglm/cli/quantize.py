"""`minglm quantize`: fewer bits per weight, with what it saves and what it costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from minglm.errors import InputError

TEXT = "store a run's weights in fewer bits; say what it saves and what it costs"
EXAMPLES = (
    "minglm quantize runs/demo/sft --format int4 --out runs/int4 --eval\n"
    "minglm quantize runs/demo/sft --format fp8 --out runs/fp8 --hf runs/fp8-hf\n"
    "minglm quantize runs/demo/sft --format w4a8 --out runs/w4a8 --eval --record data/reference/quantize_demo.csv\n"
    'minglm generate --checkpoint runs/int4 --chat --prompt "What is 2 + 3?"\n'
    "minglm train sft --init-from runs/demo/sparse --run runs/qat --set qat=int4    # then quantize runs/qat"
)


def add(p) -> None:
    p.add_argument("run", metavar="RUN", help="run folder or checkpoint folder")
    p.add_argument("--format", required=True, help="int4, fp8 or w4a8")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write; `minglm generate --checkpoint DIR` runs it"
    )
    p.add_argument(
        "--group", type=int, help="int4, w4a8: inputs that share a scale (default 32, or what the run was trained with)"
    )
    p.add_argument(
        "--block", type=int, default=128, help="fp8: edge of a block that shares a scale (default 128, as published)"
    )
    p.add_argument("--weights-only", action="store_true", help="fp8, w4a8: leave activations as they are")
    p.add_argument(
        "--eval", action="store_true", help="validation loss, needle accuracy and rollout mismatch, before and after"
    )
    p.add_argument(
        "--questions", type=int, default=4, help="with --eval: needle questions in each of 20 cells (default 4)"
    )
    p.add_argument(
        "--hf",
        metavar="DIR",
        help="write it for transformers as well (fp8 needs accelerate there, int4 and w4a8 compressed-tensors)",
    )
    p.add_argument(
        "--hf-plain",
        metavar="DIR",
        help="the same multiplied out: rounded values in ordinary tensors, loads everywhere",
    )
    p.add_argument(
        "--record",
        metavar="CSV",
        help="with --eval: keep the figures as a row of this file, one for each run and format",
    )
    p.add_argument("--json", action="store_true", help="print the figures as JSON")


def main(args) -> int:
    from minglm.quant.formats import MODULES_TO_NOT_CONVERT, VECTORS, Spec
    from minglm.runtime import extras

    spec = Spec(args.format, args.group or 32, args.block, not args.weights_only)
    if args.eval and args.questions < 1:
        raise InputError(f"--questions {args.questions}: at least 1 in each cell; the default is 4")
    if args.record and not args.eval:
        raise InputError(f"--record {args.record}: there is nothing to record without --eval; add it")
    extras.require("train")
    import copy

    from minglm.evals import quantization
    from minglm.interop import compressed_tensors
    from minglm.quant import checkpoint as quantised
    from minglm.quant.modules import pack

    if quantised.is_quantised(args.run):
        raise InputError(
            f"{args.run}: already quantised to {quantised.read_note(args.run)['spec'].format}; rounding twice only adds error, give the run it was made from"
        )
    from minglm.inference.load import load_model

    model, tokenizer, found = load_model(args.run)
    spec = _as_trained(spec, args.group, found.state.get("recipe"), args.run)
    small = pack(copy.deepcopy(model), spec)
    before, after = quantization.sizes(model), quantization.sizes(small)
    report = {"run": str(args.run), "format": spec.format, "before": before, "after": after}
    if args.eval:
        report |= _evaluate(args, model, small, tokenizer, spec)
    folder = quantised.save(small, tokenizer, args.out, str(args.run), {"sizes": {"before": before, "after": after}})
    written = [folder]
    for target, plain in ((args.hf, False), (args.hf_plain, True)):
        if target:
            written.append(compressed_tensors.write(small, target, plain))
            tokenizer.save(Path(target) / "tokenizer.json")
    report["written"] = [str(w) for w in written]
    if args.record:
        _record(report, Path(args.record))
        written.append(Path(args.record))
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    print(_table(report))
    print("kept in high precision:")
    for part, why in MODULES_TO_NOT_CONVERT.items():
        print(f"  {part.strip('.'):<13} {why}")
    print(f"  {'vectors':<13} {VECTORS}")
    if spec.format == "w4a8":
        from minglm.quant.formats import ABSORBED

        print(f"  {'kv_b_proj':<13} {ABSORBED}")
    print("\n".join(f"{w}: written" for w in written))
    return 0


def _as_trained(spec, asked: int | None, recipe: dict | None, run: str):
    """The group that QAT used, when the run was trained so; another one would be another model."""
    from dataclasses import replace

    trained = (recipe or {}).get("qat_group") if (recipe or {}).get("qat") else None
    if trained is None or spec.format == "fp8":
        return spec
    if asked not in (None, trained):
        raise InputError(
            f"--group {asked}: {run} was trained with qat_group={trained}, another group undoes that training; leave --group out"
        )
    return replace(spec, group=trained)


def _evaluate(args, model, small, tokenizer, spec) -> dict:
    from minglm.evals import quantization
    from minglm.evals.needle import needle_test
    from minglm.tools.demo import SIZES

    batches = quantization.validation_batches(args.run, tokenizer, model.config)
    plan = SIZES["mini" if model.config.max_position_embeddings >= 1024 else "nano"]
    out: dict = {"loss": [], "needle": []}
    for which, what in ((model, "before"), (small, "after")):
        print(f"measuring {what}", file=sys.stderr, flush=True)
        out["loss"].append(quantization.loss(which, batches))
        found = needle_test(which, tokenizer, plan["lengths"], plan["depths"], args.questions, progress=False)
        out["needle"].append(found["with_context"])
    prompts = [b[:96] for b in batches[0].tokens.tolist()]
    out["mismatch"] = quantization.rollout_mismatch(model, small, prompts)
    out["questions"] = found["questions"]
    return out


RECORDED = (
    "run",
    "format",
    "bytes_before",
    "bytes_after",
    "bits_per_weight",
    "loss_before",
    "loss_after",
    "needles_before",
    "needles_after",
    "questions",
    "mean_abs_log_ratio",
    "largest_ratio",
    "masked_share",
    "tokens",
)


def _record(report: dict, path: Path) -> None:
    """The figures of one evaluation as a row of a CSV; the row of the same run and format is replaced."""
    import csv
    import os

    row = dict(
        zip(
            RECORDED,
            (
                report["run"],
                report["format"],
                report["before"]["bytes"],
                report["after"]["bytes"],
                round(report["after"]["bits_per_weight"], 3),
                *(round(v, 5) for v in report["loss"]),
                *(round(v, 4) for v in report["needle"]),
                report["questions"],
                *(round(report["mismatch"][k], 6) for k in ("mean_abs_log_ratio", "largest_ratio", "masked_share")),
                report["mismatch"]["tokens"],
            ),
        )
    )
    rows = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = [r for r in table if (r.get("run"), r.get("format")) != (row["run"], row["format"])]
            if tuple(table.fieldnames or ()) != RECORDED:
                raise InputError(f"{path}: not a file that --record wrote; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, RECORDED, lineterminator="\n")
        table.writeheader()
        table.writerows([*rows, row])
    os.replace(partial, path)


def _table(report: dict) -> str:
    before, after = report["before"], report["after"]
    rows = [
        ("", "before", report["format"]),
        ("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}"),
        ("bits per weight, all", f"{before['bits_per_weight']:.2f}", f"{after['bits_per_weight']:.2f}"),
        ("bits per weight, quantised matrices", "", f"{after['quantised_bits_per_weight']:.2f}"),
        ("part of the weights quantised", "", f"{after['quantised_weights'] / after['weights']:.1%}"),
    ]
    if "loss" in report:
        rows += [
            ("validation loss, nats per token", *(f"{v:.4f}" for v in report["loss"])),
            (f"needles found, of {report['questions']}", *(f"{v:.1%}" for v in report["needle"])),
        ]
        m = report["mismatch"]
        rows += [
            ("mean |log ratio| of its own rollout's tokens", "", f"{m['mean_abs_log_ratio']:.5f}"),
            ("largest ratio to the unquantised policy", "", f"{m['largest_ratio']:.3f}"),
            ("tokens that IcePop (β = 2) would mask", "", f"{m['masked_share']:.2%} of {m['tokens']}"),
        ]
    widths = [max(len(r[i]) for r in rows) for i in range(3)]
    return "\n".join(f"{r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}".rstrip() for r in rows)
