"""`clustersim run`: a scenario to its projection."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.runtime.terminal import json_text
from sim.cli._progress import elapsed
from sim.cli._scenario import load, scenario_arguments

TEXT = "project a scenario: memory, step, throughput, MFU, days, money, what-ifs"
EXAMPLES = """clustersim run glm5_100k_910b
clustersim run glm5_100k_910b --json
clustersim run glm5_100k_910b --set global_tokens=128M --set plan.ep=16
clustersim run my.yaml --model some/config.json --chips 4096
clustersim run glm5_100k_910b --trace step.json    (open in ui.perfetto.dev)"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser)
    parser.add_argument(
        "--out", help="folder for config, versions and metrics (default: runs/<name>; 'none' writes nothing)"
    )
    parser.add_argument("--trace", metavar="FILE", help="also write the step as a Perfetto trace (Chrome JSON)")
    parser.add_argument(
        "--corners", action="store_true", help="ranges from all uncertain inputs at their good, and at their bad end"
    )
    parser.add_argument("--explain", action="store_true", help="also where the step's time goes, as clustersim explain")
    parser.add_argument("--no-what-if", action="store_true", help="leave the what-ifs out")


def main(args: argparse.Namespace) -> int:
    from sim.report.projection import save, table_text
    from sim.study.answer import point
    from sim.study.explain import step_tree
    from sim.study.explain import text as tree_text
    from sim.study.projection import project
    from sim.trace.perfetto import StepTrace

    scenario = load(args)
    replicas = scenario.plan.dp if scenario.jitter else 1
    recorder = StepTrace() if args.trace else None
    with elapsed(f"simulating {replicas:,} replicas of {scenario.plan.pp} stages", quiet=args.json):
        result = project(scenario, recorder, what_ifs=not args.no_what_if, corners=args.corners)
        if args.explain:
            result["explain"] = step_tree(scenario, point(scenario, jitter=None))
    if recorder:
        recorder.write(args.trace)
    folder = None if args.out == "none" else save(result, scenario, Path(args.out) if args.out else None)
    if args.json:
        print(json_text(result, indent=1))
    else:
        print(table_text(result))
        if args.explain:
            print("\n".join(["", *tree_text(result["explain"])]))
        if folder:
            print(f"\nwritten: {folder}/metrics.json, config.json, versions.json   (page: clustersim report {folder})")
    return 0
