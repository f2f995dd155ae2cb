"""What `plan` and `compare` share: the arguments of the training run that is planned."""

from __future__ import annotations

import argparse

from minglm.errors import InputError
from minglm.settings import uncommented
from sim.base.documents import parse_text
from sim.base.units import parse


def question_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the training run that is planned: `compare` asks it of several chips."""
    parser.add_argument(
        "--model", required=True, help="a name in data/models, a Hugging Face config.json, or '{layers: 32, …}'"
    )
    parser.add_argument("--seq", help="tokens of a sequence (default: 4096, or the model's if shorter)")
    parser.add_argument("--batch", help="sequences of a step, kept exactly")
    parser.add_argument("--batch-tokens", help="tokens of a step, met within the tolerance (default 16M)")
    parser.add_argument(
        "--batch-tolerance", help="share by which the batch may differ (default: 0, or 2%% with --batch-tokens)"
    )
    parser.add_argument("--tokens", default="1T", help="tokens of the whole run, for days and cost (default 1T)")
    parser.add_argument(
        "--objective",
        default="tokens",
        help="what the best plan is best at: tokens (throughput) | time | cost (default tokens)",
    )
    parser.add_argument("--precision", default="bf16", help="bf16 | fp16 | fp8 (default bf16)")
    parser.add_argument("--schedules", help="comma-separated, such as 1f1b,interleaved (default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="pin an axis (tp=8, ep=[8, 16]) or a plan field (optimizer=muon)",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def question_options(args: argparse.Namespace) -> dict:
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
        "objective": args.objective,
        "precision": args.precision,
        "schedules": schedules,
        "fixed": fixed,
    }
