"""`minglm quantize`: fewer bits per weight, with what it saves and what it costs."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minglm.errors import InputError
from minglm.runtime.arguments import COUNT
from minglm.runtime.terminal import json_text

if TYPE_CHECKING:  # --help needs no torch
    from minglm.data.tokenizer import Tokenizer
    from minglm.model.model import Model
    from minglm.quant.formats import Spec

TEXT = "store a run's weights in fewer bits; say what it saves and what it costs"
EXAMPLES = """minglm quantize runs/demo/sft --format int4 --out runs/int4 --eval
minglm quantize runs/demo/sft --format fp8 --out runs/fp8 --hf runs/fp8-hf
minglm quantize runs/demo/sft --format w4a8 --out runs/w4a8 --eval --record data/reference/quantize_demo.csv
minglm generate --checkpoint runs/int4 --chat --prompt "What is 2 + 3?"
minglm train tiny_sft --init-from runs/demo/sparse --run runs/qat --set qat=int4    # then quantize runs/qat"""


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="run folder or checkpoint folder")
    p.add_argument("--format", required=True, help="int4, fp8 or w4a8")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder to write; `minglm generate --checkpoint DIR` runs it"
    )
    p.add_argument(
        "--group",
        type=COUNT,
        help="int4, w4a8: inputs that share a scale (default 32, or what the run was trained with)",
    )
    p.add_argument(
        "--block", type=COUNT, default=128, help="fp8: edge of a block that shares a scale (default 128, as published)"
    )
    p.add_argument("--weights-only", action="store_true", help="fp8, w4a8: leave activations as they are")
    p.add_argument(
        "--eval", action="store_true", help="validation loss, needle accuracy and rollout mismatch, before and after"
    )
    p.add_argument(
        "--questions", type=COUNT, default=4, help="with --eval: needle questions in each of 20 cells (default 4)"
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


def main(args: argparse.Namespace) -> int:
    from minglm.quant.formats import Spec
    from minglm.runtime import extras

    spec = Spec(args.format, 32 if args.group is None else args.group, args.block, not args.weights_only)
    if args.record and not args.eval:
        raise InputError(f"--record {args.record}: there is nothing to record without --eval; add it")
    extras.require("train")
    from minglm.evals import quantization, quantization_report
    from minglm.inference.load import load_model
    from minglm.interop import compressed_tensors
    from minglm.interop.hf_tokenizer import export_tokenizer
    from minglm.quant import checkpoint as quantised
    from minglm.quant.modules import pack

    if quantised.is_quantised(args.run):
        raise InputError(
            f"{args.run}: already quantised to {quantised.read_note(args.run)['spec'].format}; "
            "rounding twice only adds error, give the run it was made from"
        )
    model, tokenizer, source = load_model(args.run)
    spec = _as_trained(spec, args.group, source.state.get("recipe"), args.run)
    packed = pack(copy.deepcopy(model), spec)
    sizes = {"before": quantization.sizes(model), "after": quantization.sizes(packed)}
    report = {"run": str(args.run), "format": spec.format, **sizes}
    if args.eval:
        report |= _evaluate(args, model, packed, tokenizer)
    written = [quantised.save(packed, tokenizer, args.out, str(args.run), {"sizes": sizes})]
    for target, plain in ((args.hf, False), (args.hf_plain, True)):
        if target:
            written.append(compressed_tensors.write(packed, target, plain))
            export_tokenizer(tokenizer, model.config, target)
    report["written"] = [str(path) for path in written]
    if args.record:
        quantization_report.record(report, Path(args.record))
        written.append(Path(args.record))
    if args.json:
        print(json_text(report, indent=1))
    else:
        print(
            quantization_report.table(report), _kept(spec.format), *(f"{path}: written" for path in written), sep="\n"
        )
    return 0


def _kept(format: str) -> str:
    """Which parts stay in high precision, and why."""
    from minglm.quant.formats import ABSORBED, MODULES_TO_NOT_CONVERT, VECTORS

    kept = {part.strip("."): why for part, why in MODULES_TO_NOT_CONVERT.items()} | {"vectors": VECTORS}
    if format == "w4a8":
        kept["kv_b_proj"] = ABSORBED
    return "\n".join(["kept in high precision:", *(f"  {part:<13} {why}" for part, why in kept.items())])


def _as_trained(spec: Spec, group: int | None, recipe: dict | None, run: str) -> Spec:
    """The group that QAT used, when the run was trained so; another one would be another model."""
    trained = (recipe or {}).get("qat_group") if (recipe or {}).get("qat") else None
    if trained is None or spec.format == "fp8":
        return spec
    if group not in (None, trained):
        raise InputError(
            f"--group {group}: {run} was trained with qat_group={trained}, another group undoes that training; "
            "leave --group out"
        )
    return dataclasses.replace(spec, group=trained)


def _evaluate(args: argparse.Namespace, model: Model, packed: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Loss, needles and rollout mismatch, before and after."""
    from minglm.evals import quantization
    from minglm.evals.needle import needle_test
    from minglm.tools.demo import SIZES

    batches = quantization.validation_batches(args.run, tokenizer, model.config)
    plan = SIZES["mini" if model.config.max_position_embeddings >= 1024 else "nano"]
    losses, needles = [], []
    for which, what in ((model, "before"), (packed, "after")):
        print(f"measuring {what}", file=sys.stderr, flush=True)
        losses.append(quantization.loss(which, batches))
        needles.append(needle_test(which, tokenizer, plan.lengths, plan.depths, args.questions, progress=False))
    prompts = [row[:96] for row in batches[0].tokens.tolist()]
    return {
        "loss": losses,
        "needle": [needle["with_context"] for needle in needles],
        "mismatch": quantization.rollout_mismatch(model, packed, prompts),
        "questions": needles[0]["questions"],
    }
