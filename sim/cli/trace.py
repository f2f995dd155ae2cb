"""`clustersim trace`: one step as a timeline, for people and for other simulators."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.errors import InputError
from minglm.runtime.terminal import json_text
from sim.cli._scenario import load, name_or_mapping, scenario_arguments

TEXT = "write one training step as a trace, a timeline page or Chakra traces; replay others' traces, sum up profiles"
EXAMPLES = """clustersim trace glm5_100k_910b --out step.json            (open in ui.perfetto.dev)
clustersim trace deepseek_v3_h800 --out step.json --set jitter.noise=0.02
clustersim trace glm5_mini_smoke --timeline step.html
clustersim trace llama3_405b_16k_h100 --chakra traces/     (MLCommons Chakra, for ASTRA-sim)
clustersim trace --replay traces/                           (read Chakra traces back and simulate them)
clustersim trace --profile kern_sum.csv                     (nsys stats --format csv, its SQLite, PyTorch's profiler)"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE", help="Perfetto trace to write (Chrome JSON); the default, step.json")
    parser.add_argument("--timeline", metavar="FILE", help="the step as a picture (.html)")
    parser.add_argument("--chakra", metavar="FOLDER", help="one execution trace per distinct rank")
    parser.add_argument(
        "--replay",
        metavar="FOLDER",
        help="replay the Chakra traces in a folder instead of simulating a scenario; --cluster times what has no time",
    )
    parser.add_argument("--prefix", metavar="NAME", help="of the traces to replay, where a folder has several")
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="kernels of a measured profile by class (nsys CSV or SQLite, JSON of PyTorch's profiler), idle time, "
        "messages that nothing hid",
    )


def main(args: argparse.Namespace) -> int:
    if args.profile:
        return _profile(args)
    if args.replay:
        return _replay(args)
    if args.scenario is None:
        raise InputError(
            "clustersim trace: give a scenario, --replay FOLDER or --profile FILE; see clustersim trace --help"
        )
    from sim.cost.evaluate import scale_compute
    from sim.report.projection import write_figure
    from sim.study.answer import point
    from sim.study.projection import path_facts
    from sim.trace import chakra
    from sim.trace.perfetto import StepTrace
    from sim.trace.timeline import figure
    from sim.training.sensitivity import step_sensitivity

    scenario = load(args)
    out = args.out or (None if args.timeline or args.chakra else "step.json")
    _check_file("--out", out, "step.json")
    _check_file("--timeline", args.timeline, "step.html")
    recorder = StepTrace() if out else None
    p = point(scenario, recorder=recorder)
    written = []
    if recorder and out:
        recorder.write(out)
        written.append(out)
    costs = scale_compute(p.estimate.costs, p.straggler)
    if args.timeline:
        written.append(str(write_figure(figure(p.result, f"{scenario.name}: one step"), Path(args.timeline))))
    if args.chakra:
        chakra.write(costs, scenario.plan.schedule, args.chakra, seed=scenario.seed)
        written.append(args.chakra)
    saved = step_sensitivity(costs, scenario.plan.schedule)
    answer = {
        "written": written,
        "step_s": p.result.step_s,
        "bubble_fraction": p.result.bubble_fraction,
        "critical_path": path_facts(p),
        "sensitivity": {part: saved_s / p.result.step_s for part, saved_s in saved if saved_s > 0},
    }
    print(json_text(answer, indent=1) if args.json else text(answer))
    return 0


def _profile(args: argparse.Namespace) -> int:
    from sim.trace import profile

    if args.scenario is not None or args.replay:
        raise InputError("--profile: sums up a profile alone; leave the scenario and --replay out")
    summary = profile.read_profile(args.profile)
    print(json_text(summary, indent=1) if args.json else profile.text(summary))
    return 0


def _replay(args: argparse.Namespace) -> int:
    from sim.spec.hardware import cluster_from
    from sim.trace.replay import replay

    cluster = cluster_from(name_or_mapping(args.cluster, "--cluster")) if args.cluster else None
    result = replay(args.replay, args.prefix, cluster)
    answer = {"step_s": result.step_s, "files": len(result.ends_us), "nodes": sum(map(len, result.ends_us))}
    words = f"replayed {answer['nodes']:,} nodes of {answer['files']} files: {answer['step_s']:.6f} s"
    print(json_text(answer) if args.json else words)
    return 0


def _check_file(flag: str, path: str | None, example: str) -> None:
    if path and (Path(path).is_dir() or not Path(path).resolve().parent.is_dir()):
        raise InputError(f"{flag} {path}: not a file in an existing folder; give for example {flag} {example}")


def text(answer: dict) -> str:
    """What was written, the step, its critical path and what would shorten it."""
    shares = {
        key: ", ".join(f"{part} {share:{form}}" for part, share in answer[key].items())
        for key, form in (("critical_path", ".0%"), ("sensitivity", ".1%"))
    }
    return (
        f"written: {', '.join(answer['written'])}   step {answer['step_s']:.3f} s, "
        f"bubble {answer['bubble_fraction']:.1%} of rank time\n"
        f"critical path: {shares['critical_path']}\ntwice as good would save: {shares['sensitivity']}"
    )
