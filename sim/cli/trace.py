"""`clustersim trace`: one step as a timeline, for people and for other simulators."""

from __future__ import annotations

import json
from pathlib import Path

from sim.cost import evaluate

TEXT = "write one training step as a Perfetto trace, a timeline page or Chakra traces; name its critical path"
EXAMPLES = """clustersim trace glm5_100k_910b --out step.json            (open in ui.perfetto.dev)
clustersim trace deepseek_v3_h800 --out step.json --set jitter.noise=0.02
clustersim trace glm5_mini_smoke --timeline step.html
clustersim trace llama3_405b_16k_h100 --chakra traces/     (MLCommons Chakra, for ASTRA-sim)
clustersim trace --replay traces/                           (read Chakra traces back and play them)"""


def add(parser) -> None:
    from sim.cli.run import arguments

    arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE", help="Perfetto trace to write (Chrome JSON); the default, step.json")
    parser.add_argument("--timeline", metavar="FILE", help="the step as a picture (.html)")
    parser.add_argument("--chakra", metavar="FOLDER", help="one execution trace per distinct rank")
    parser.add_argument(
        "--replay", metavar="FOLDER", help="replay the Chakra traces in a folder instead of simulating a scenario"
    )


def main(args) -> int:
    from minglm.errors import InputError

    if args.replay:
        from sim.trace.replay import replay

        result = replay(args.replay)
        answer = {"step_s": result.step_s, "files": len(result.ends_us), "nodes": sum(map(len, result.ends_us))}
        print(
            json.dumps(answer)
            if args.json
            else f"replayed {answer['nodes']:,} nodes of {answer['files']} files: {answer['step_s']:.6f} s"
        )
        return 0
    if args.scenario is None:
        raise InputError("clustersim trace: give a scenario, or --replay FOLDER; see clustersim trace --help")
    from sim.cli.run import load
    from sim.study import projection
    from sim.trace.perfetto import StepTrace
    from sim.training.sensitivity import what_to_buy

    s = load(args)
    out = args.out or (None if args.timeline or args.chakra else "step.json")
    for name, given in (("--out", out), ("--timeline", args.timeline)):
        if given and (Path(given).is_dir() or not Path(given).resolve().parent.is_dir()):
            raise InputError(
                f"{name} {given}: not a file in an existing folder; give for example {name} step.{'json' if name == '--out' else 'html'}"
            )
    recorder = StepTrace() if out else None
    p = projection.point(s, recorder=recorder)
    if recorder:
        recorder.write(out)
    costs = evaluate.scale_compute(p.estimate.costs, p.straggler)
    written = [out] if out else []
    if args.timeline:
        from sim.report.projection import write_figure
        from sim.trace.timeline import figure

        written.append(str(write_figure(figure(p.result, f"{s.name}: one step"), Path(args.timeline))))
    if args.chakra:
        from sim.trace import chakra

        chakra.write(costs, s.plan.schedule, args.chakra, seed=s.seed)
        written.append(args.chakra)
    answer = {
        "written": written,
        "step_s": p.result.step_s,
        "bubble_share": p.result.bubble_share,
        "critical_path": projection.path_facts(p),
        "faster": {what: saved / p.result.step_s for what, saved in what_to_buy(costs, s.plan.schedule) if saved > 0},
    }
    if args.json:
        print(json.dumps(answer, indent=1))
    else:
        print(
            f"written: {', '.join(written)}   step {p.result.step_s:.3f} s, bubble {p.result.bubble_share:.1%} of rank time"
        )
        print("critical path: " + ", ".join(f"{cause} {share:.0%}" for cause, share in answer["critical_path"].items()))
        print(
            "twice as good would save: " + ", ".join(f"{what} {share:.1%}" for what, share in answer["faster"].items())
        )
    return 0
