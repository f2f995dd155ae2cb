"""What the commands that take a question in flags share: its arguments, and what they say to the one builder."""

from __future__ import annotations

import argparse
from typing import Any

from minglm.errors import InputError
from minglm.settings import uncommented
from sim.base.documents import parse_text
from sim.base.units import parse


def question_arguments(parser: argparse.ArgumentParser, model_required: bool = True) -> None:
    """Arguments of the training run that is planned: `compare` asks it of several chips."""
    parser.add_argument(
        "--model",
        required=model_required,
        help="a name in data/models, a Hugging Face config.json, or '{layers: 32, …}'",
    )
    parser.add_argument("--seq", help="tokens of a sequence (default: 4096, or the model's if shorter)")
    parser.add_argument("--batch", help="sequences of a step, kept exactly")
    parser.add_argument(
        "--batch-tokens", help="tokens of a step, met within the tolerance (default 16M, or as the model's report says)"
    )
    parser.add_argument(
        "--batch-tolerance", help="share by which the batch may differ (default: 0, or 2%% with --batch-tokens)"
    )
    parser.add_argument("--tokens", help="tokens of the whole run (default 1T, or as the model's report says)")
    parser.add_argument("--attention", help="dense | sparse (with the model's indexer; default dense)")
    parser.add_argument("--phases", help="glm5: the phases of the GLM-5 report instead of one of --tokens")
    parser.add_argument(
        "--objective", help="what the best plan is best at: tokens (throughput) | time | cost | energy (default tokens)"
    )
    parser.add_argument("--precision", help="bf16 | fp16 | fp8 (default bf16)")
    parser.add_argument("--schedules", help="comma-separated, such as 1f1b,interleaved (default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="pin a field of the plan (tp=8, stages=[…], optimizer=muon), search some of its values (ep=[8, 16]), or "
        "change any key of a scenario (failures.level=high)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def question_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `sim.planner.question.question` that `question_arguments` hold, without the model."""
    fixed = {}
    for text in args.set:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {text!r}: must be KEY=VALUE, such as --set tp=8")
        fixed[key.strip()] = parse_text(uncommented(value), f"--set {key}")
    tolerance = (
        None if args.batch_tolerance is None else parse(args.batch_tolerance, "ratio", "--batch-tolerance", high=0.49)
    )
    schedules = None if args.schedules is None else tuple(s.strip() for s in args.schedules.split(","))
    return {
        "seq": args.seq,
        "batch": args.batch,
        "batch_tokens": args.batch_tokens,
        "tolerance": tolerance,
        "tokens": args.tokens,
        "attention": args.attention,
        "phases": args.phases,
        "objective": args.objective,
        "precision": args.precision,
        "schedules": schedules,
        "fixed": fixed,
    }
