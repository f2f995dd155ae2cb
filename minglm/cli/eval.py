"""`minglm eval`: the scorecard, pass@k on the small tasks, the needle test, and an arena of checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from minglm.runtime.arguments import COUNT, LENGTH, SEED, number
from minglm.runtime.terminal import json_text

TEXT = "scorecard, pass@k on small tasks, needle test, or an arena between checkpoints, each with intervals"
EXAMPLES = """minglm eval scorecard --checkpoint runs/demo/sft
minglm eval pass --checkpoint runs/demo/sft --temperature 0.8 --samples 8
minglm eval needle --checkpoint runs/demo/sft --facts 4 --lengths 256 512 --per-cell 4
minglm eval arena runs/demo/sft runs/demo/sparse --votes 400"""


def add(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    p = sub.add_parser(
        "scorecard", help="recall, skills, stories and unseen text of a tiny-world model, with baselines"
    )
    p.add_argument("--checkpoint", required=True, metavar="RUN")
    p.add_argument("--problems", type=COUNT, default=64, help="questions of each line (default 64)")
    p.add_argument("--length", type=LENGTH, default=512, help="tokens of a recall passage (default 512)")
    p.add_argument("--seed", type=SEED, default=1)
    p.add_argument("--json", action="store_true")
    p = sub.add_parser(
        "pass", help="pass@k on the skills of the model's corpus and on lookup (a fact hidden in a passage)"
    )
    p.add_argument("--checkpoint", required=True, metavar="RUN")
    p.add_argument("--problems", type=COUNT, default=16, help="problems of each task")
    p.add_argument("--samples", type=COUNT, default=8, help="answers to each problem")
    p.add_argument("--temperature", type=number(minimum=0), default=0.8)
    p.add_argument("--seed", type=SEED, default=1)
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("needle", help="is a hidden fact found, by length and depth")
    p.add_argument("--checkpoint", required=True, metavar="RUN")
    p.add_argument("--lengths", type=LENGTH, nargs="+", default=[128, 256])
    p.add_argument("--depths", type=number(minimum=0, maximum=1), nargs="+", default=[0.1, 0.5, 0.9])
    p.add_argument("--per-cell", type=COUNT, default=4)
    p.add_argument("--facts", type=COUNT, default=4, help="facts in a passage (default 4)")
    p.add_argument("--form", default="plain", help="plain; tiny world also: several, hop, absent (default plain)")
    p.add_argument("--seed", type=SEED, default=7)
    p.add_argument("--json", action="store_true")
    p = sub.add_parser("arena", help="votes between checkpoints on the same problems, ratings with intervals")
    p.add_argument("checkpoints", nargs="+", metavar="RUN")
    p.add_argument("--votes", type=COUNT, default=400)
    p.add_argument("--problems", type=COUNT, default=16)
    p.add_argument("--seed", type=SEED, default=1)
    p.add_argument("--json", action="store_true")


def main(args: argparse.Namespace) -> int:

    result = {"scorecard": _scorecard, "pass": _pass, "needle": _needle, "arena": _arena}[args.what](args)
    print(json_text(result, indent=1) if args.json else result["table"])
    return 0


def _scorecard(args: argparse.Namespace) -> dict:
    import sys

    from minglm.evals.scorecard import scorecard, table
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(args.checkpoint)
    result = scorecard(
        args.checkpoint,
        model,
        tokenizer,
        args.problems,
        args.length,
        args.seed,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return {**result, "table": table(result)}


def _pass(args: argparse.Namespace) -> dict:
    from minglm.evals import statistics
    from minglm.evals.passk import ask, problems
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(args.checkpoint)
    ks = [k for k in (1, 2, 4, 8, 16, 32) if k <= args.samples]
    tasks, lines = {}, ["task        " + "".join(f"{f'pass@{k}':>9}" for k in ks) + "   pass@1, 95%"]
    for task, questions in problems(args.problems, args.seed, tokenizer).items():
        right = [sum(row) for row in ask(model, tokenizer, questions, args.samples, args.temperature, args.seed)]
        rates = {k: sum(statistics.pass_at_k(args.samples, c, k) for c in right) / len(right) for k in ks}
        low, high = statistics.wilson(round(sum(c / args.samples for c in right)), len(right))
        tasks[task] = {"right": right, "pass_at": rates, "interval": [low, high]}
        lines.append(f"{task:12}" + "".join(f"{rates[k]:9.1%}" for k in ks) + f"   {low:.0%} to {high:.0%}")
    return {"samples": args.samples, "temperature": args.temperature, "tasks": tasks, "table": "\n".join(lines)}


def _needle(args: argparse.Namespace) -> dict:
    from minglm.evals import statistics
    from minglm.evals.needle import needle_test
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(args.checkpoint)
    result = needle_test(
        model,
        tokenizer,
        tuple(args.lengths),
        tuple(args.depths),
        args.per_cell,
        args.seed,
        facts=args.facts,
        form=args.form,
    )
    low, high = statistics.wilson(round(result["with_context"] * result["questions"]), result["questions"])
    lines = ["depth \\ length " + "".join(f"{n:>8}" for n in args.lengths)]
    lines += [
        f"{d:<15}" + "".join(f"{v:8.0%}" for v in row) for d, row in zip(args.depths, result["accuracy"], strict=True)
    ]
    rules = ", ".join(f"{name} {share:.0%}" for name, share in result["rules"].items())
    lines += [
        f"whole sentence right {result['with_context']:.0%} ({low:.0%} to {high:.0%}) of {result['questions']}, "
        f"{result['facts']} fact{'s' * (result['facts'] > 1)} in a passage",
        f"without the fact {result['without_context']:.0%}; rules that read no question: {rules}",
        f"parts: name {result['name_right']:.0%}, code {result['code_right']:.0%}",
    ]
    return {**result, "interval": [low, high], "table": "\n".join(lines)}


def _arena(args: argparse.Namespace) -> dict:
    from minglm.errors import InputError
    from minglm.evals import statistics
    from minglm.evals.passk import ask, better, problems
    from minglm.inference.load import load_model

    if len(set(args.checkpoints)) < 2:
        raise InputError(
            f"{len(set(args.checkpoints))} different checkpoints: an arena needs two or more; name another run"
        )
    answers: dict[str, Sequence[bool]] = {}
    questions = None
    for run in dict.fromkeys(args.checkpoints):
        model, tokenizer, _ = load_model(run)
        # the same texts for all, whatever their tokens
        questions = questions or problems(args.problems, args.seed, tokenizer)
        answers[run] = [row[0] for part in questions.values() for row in ask(model, tokenizer, part, 1, 0.0, args.seed)]
    votes = statistics.arena(answers, lambda a, b, _: better(bool(a), bool(b)), args.votes, args.seed)
    ratings, intervals = statistics.bradley_terry(votes), statistics.bootstrap(votes, seed=args.seed)
    ranks = statistics.ranks(intervals)
    lines = ["rank  rating  95%            checkpoint"]
    lines += [
        f"{ranks[p]:>4}  {r:6.0f}  {intervals[p][0]:6.0f} to {intervals[p][1]:.0f}  {p}" for p, r in ratings.items()
    ]
    return {
        "votes": len(votes),
        "ratings": ratings,
        "intervals": {p: list(v) for p, v in intervals.items()},
        "ranks": ranks,
        "table": "\n".join(lines),
    }
