"""What the commands that take a training scenario share: its arguments, and the scenario that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minglm.errors import InputError
from minglm.runtime.arguments import SEED
from sim.base.documents import parse_text

if TYPE_CHECKING:
    from sim.scenario.training import Scenario


def scenario_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The scenario and what the command line changes of it."""
    parser.add_argument(
        "scenario", nargs=None if required else "?", help="a scenario file, or the name of one in data/scenarios"
    )
    parser.add_argument(
        "--model", help="another model: a name, a Hugging Face config.json, a YAML of dimensions, or '{layers: 32, …}'"
    )
    parser.add_argument("--cluster", help="another cluster: a name in data/clusters")
    parser.add_argument("--chip", help="another chip: a name in data/chips, or a file such as minglm probe writes")
    parser.add_argument("--chips", help="another number of chips in the cluster")
    parser.add_argument("--seed", type=SEED, help="seed of everything random")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value, such as plan.tp=4; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def load_open(args: argparse.Namespace) -> dict[str, Any]:
    """The scenario's document with the command line's changes; its plan may be automatic. Without a scenario the
    flags are all of it."""
    from sim.scenario.training import load_document

    if args.scenario is None and args.model is None:
        raise InputError("neither a scenario nor --model is given; give one, such as --model glm5 --chip h100")

    changes = {name: name_or_mapping(getattr(args, name), f"--{name}") for name in ("model", "cluster", "chip")}
    return load_document(args.scenario, args.set, **changes, chips=args.chips, seed=args.seed)


def load(args: argparse.Namespace) -> Scenario:
    """The scenario with the command line's changes; an automatic plan is searched first.

    Raises:
        InputError: one line; also where neither a scenario nor a model is given.
    """
    from sim.cli._progress import progress_bar
    from sim.planner.planner import complete
    from sim.scenario.training import resolve

    document, name = load_open(args), Path(args.scenario or "the question").stem
    if (document.get("plan") or {}).get("auto"):
        with progress_bar("groups of plans", quiet=args.json) as report:
            document = complete(document, name, report)
    return resolve(document, name)


def name_or_mapping(text: str | None, name: str) -> Any:
    """A name as it is, or the mapping that `{…}` writes out; `name` is the argument's, for errors."""
    return parse_text(text, name) if text and text.lstrip().startswith("{") else text
