"""`clustersim catalogue`: what a row or a scenario may name."""

from __future__ import annotations

import argparse

from minglm.runtime.terminal import json_text

TEXT = "names of stacks, chips, clusters, models and options"
EXAMPLES = """clustersim catalogue
clustersim catalogue stacks
clustersim catalogue chips --json"""
KINDS = ("chips", "clusters", "models", "stacks", "options")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS, help="one kind; all without it")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    from sim.cost.stacks import list_stacks, load_stack
    from sim.scenario.fields import OPTIONS
    from sim.spec.hardware import list_chips, list_clusters
    from sim.spec.model_loader import list_models

    options = {one.name: one.doc + (f": {', '.join(one.choices)}" if one.choices else "") for one in OPTIONS.fields}
    lists = {
        "chips": dict.fromkeys(list_chips(), ""),
        "clusters": dict.fromkeys(list_clusters(), ""),
        "models": dict.fromkeys(list_models(), ""),
        "stacks": {name: load_stack(name).title for name in list_stacks()},
        "options": options,
    }
    shown = {args.kind: lists[args.kind]} if args.kind else lists
    if args.json:
        print(json_text(shown, indent=1))
        return 0
    for kind, names in shown.items():
        print(kind)
        print("\n".join(f"  {name:34} {text}".rstrip() for name, text in names.items()))
    return 0
