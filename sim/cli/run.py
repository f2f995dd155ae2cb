"""`clustersim run`: a scenario to its projection."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path

TEXT = "project a scenario: memory, step, throughput, MFU, days, money, what-ifs"
EXAMPLES = """clustersim run glm5_100k_910b
clustersim run glm5_100k_910b --json
clustersim run glm5_100k_910b --set global_tokens=128M --set plan.ep=16
clustersim run my.yaml --model some/config.json --chips 4096
clustersim run glm5_100k_910b --trace step.json    (open in ui.perfetto.dev)"""


def arguments(parser, required: bool = True) -> None:
    """Arguments that all commands with a scenario share."""
    parser.add_argument(
        "scenario", nargs=None if required else "?", help="a scenario file, or the name of one in data/scenarios"
    )
    parser.add_argument(
        "--model", help="another model: a name, a Hugging Face config.json, a YAML of dimensions, or '{layers: 32, …}'"
    )
    parser.add_argument("--cluster", help="another cluster: a name in data/clusters")
    parser.add_argument("--chip", help="another chip: a name in data/chips")
    parser.add_argument("--chips", help="another number of chips in the cluster")
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value, such as plan.tp=4; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def load(args):
    """The scenario with the command line's changes."""
    from sim.base.documents import parse_text
    from sim.scenario.training import load_scenario

    given = {
        name: parse_text(value, f"--{name}") if value and value.lstrip().startswith("{") else value
        for name, value in (("model", args.model), ("cluster", args.cluster), ("chip", args.chip))
    }
    return load_scenario(args.scenario, args.set, **given, chips=args.chips, seed=args.seed)


@contextlib.contextmanager
def waiting(text: str):
    """A line with the elapsed time in the terminal for work of unknown length, from its third second on."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def tick() -> None:
        if done.wait(2.0):
            return
        with tqdm(desc=text, bar_format="{desc} {elapsed}", file=sys.stderr, leave=False) as bar:
            while not done.wait(0.5):
                bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def add(parser) -> None:
    arguments(parser)
    parser.add_argument(
        "--out", help="folder for config, versions and metrics (default: runs/<name>; 'none' writes nothing)"
    )
    parser.add_argument("--trace", metavar="FILE", help="also write the step as a Perfetto trace (Chrome JSON)")
    parser.add_argument("--no-what-if", action="store_true", help="leave the what-ifs out")


def main(args) -> int:
    from sim.report.projection import save, table_text
    from sim.study.projection import project
    from sim.trace.perfetto import StepTrace

    scenario = load(args)
    played = scenario.plan.dp if scenario.jitter else 1
    with (
        waiting(f"playing {played:,} replicas of {scenario.plan.pp} stages")
        if not args.json
        else contextlib.nullcontext()
    ):
        recorder = StepTrace() if args.trace else None
        result = project(scenario, recorder, what_ifs=not args.no_what_if)
    if recorder:
        recorder.write(args.trace)
    folder = None if args.out == "none" else save(result, scenario, Path(args.out) if args.out else None)
    if args.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        print(table_text(result))
        if folder:
            print(f"\nwritten: {folder}/metrics.json, config.json, versions.json   (page: clustersim report {folder})")
    return 0
