"""`clustersim trace`: one step as a timeline."""
from __future__ import annotations

import json

TEXT = "write one training step as a Perfetto trace and name its critical path"
EXAMPLES = """clustersim trace glm5_100k_910b --out step.json    (open in ui.perfetto.dev)
clustersim trace deepseek_v3_h800 --out step.json --set jitter.noise=0.02"""


def add(parser) -> None:
    from sim.cli_run import arguments
    arguments(parser)
    parser.add_argument("--out", default="step.json", help="file to write (Chrome JSON)")


def main(args) -> int:
    from pathlib import Path

    from minglm.errors import InputError
    from sim import project
    from sim.cli_run import load
    s = load(args)
    if Path(args.out).is_dir() or not Path(args.out).resolve().parent.is_dir():
        raise InputError(f"--out {args.out}: not a file in an existing folder; give for example --out step.json")
    p = project.point(s, trace=args.out)
    path = critical(p.result.critical_path)
    answer = {"trace": args.out, "step_s": p.result.step_s, "bubble_share": p.result.bubble_share, "critical_path": path}
    if args.json:
        print(json.dumps(answer, indent=1))
    else:
        print(f"written: {args.out}   step {p.result.step_s:.3f} s, bubble {p.result.bubble_share:.1%} of rank time")
        print("critical path: " + ", ".join(f"{kind} {share:.0%}" for kind, share in path.items()))
    return 0


def critical(segments) -> dict[str, float]:
    """Share of the critical path by kind of work, largest first."""
    total: dict[str, float] = {}
    for segment in segments:
        total[segment.cause] = total.get(segment.cause, 0.0) + (segment.end_s - segment.start_s)
    whole = sum(total.values()) or 1.0
    return {k: v / whole for k, v in sorted(total.items(), key=lambda item: -item[1])}
