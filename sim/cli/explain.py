"""`clustersim explain`: where a step's time goes, and what one plan has that another has not."""

from __future__ import annotations

import argparse
from pathlib import Path

from minglm.runtime.terminal import json_text
from sim.cli._scenario import load, scenario_arguments

TEXT = "where a step's time goes as a tree that adds up, the largest operators, and two plans term by term"
EXAMPLES = """clustersim explain glm5_100k_910b
clustersim explain glm5_100k_910b --set plan=auto
clustersim explain glm5_100k_910b --against auto           (the plan that is searched for the same question)
clustersim explain glm5_100k_910b --against deepseek_v3_h800 --json"""


def add(parser: argparse.ArgumentParser) -> None:
    scenario_arguments(parser)
    parser.add_argument(
        "--against", help="another scenario, or auto: the best plan for the same question; its step term by term"
    )


def main(args: argparse.Namespace) -> int:
    from sim.scenario.training import Scenario
    from sim.study.answer import point
    from sim.study.explain import difference, roofline_text, rooflines, step_tree, text

    def tree_of(s: Scenario) -> dict:
        return step_tree(s, point(s, jitter=None))

    scenario = load(args)
    tree = tree_of(scenario)
    result = {"name": scenario.name, "tree": tree, "operators": rooflines(scenario)}
    lines = [scenario.name, "", *text(tree), "", *roofline_text(scenario)]
    if args.against:
        if args.against == "auto":
            args.set.append("plan=auto")
        else:
            args.scenario = args.against
        other = load(args)
        there = tree_of(other)
        rows = difference(there, tree)
        names = ("term", "theirs_s", "here_s", "more_s")
        name = other.name if args.against != "auto" else "the plan found"
        result["against"] = {
            "name": name,
            "document": dict(other.document),
            "tree": there,
            "terms": [dict(zip(names, row, strict=True)) for row in rows],
        }
        lines += ["", *_against(name, tree, there, rows)]
    print(json_text(result, indent=1) if args.json else "\n".join(lines))
    return 0


def _against(name: str, here: dict, there: dict, rows: list) -> list[str]:
    gap = there["seconds"] - here["seconds"]
    out = [
        f"{Path(name).stem}: a step of {there['seconds']:.4f} s against {here['seconds']:.4f} s, {gap:+.4f} s "
        f"({gap / here['seconds']:+.1%})",
        f"{'term':60}{'there':>10}{'here':>10}{'more':>10}",
    ]
    out += [f"{term:60}{a:>10.4f}{b:>10.4f}{more:>+10.4f}" for term, a, b, more in rows if abs(more) > 1e-4 * abs(gap)]
    return [*out, f"{'sum':60}{there['seconds']:>10.4f}{here['seconds']:>10.4f}{gap:>+10.4f}"]
