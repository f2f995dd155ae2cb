"""The capstone: a model, its tokens, a cluster and a plan, under a budget and a deadline.

A design is a YAML file with two parts. `cluster` is a scenario, as `clustersim run` takes it: model, tokens, chips and
plan (`{auto: true}` lets the planner choose). It passes when it fits into memory, and when 95 of 100 draws of what is
uncertain meet budget and deadline. What passes is ranked by the loss that a published law gives for its active
parameters and tokens; that law is of dense models on other text, so the rank is a rule of the game and not a forecast.
`toy` is an entry of the speedrun: the same decision, trained for real (`minglm.course.labs.speedrun`).

`python -m sim.planner.capstone FILE` grades a design; `--template` prints one to begin with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minglm import datafiles
from minglm.errors import InputError, Parser, nearest
from minglm.evals import scaling_law
from sim.base.documents import read_mapping
from sim.planner.planner import complete
from sim.scenario.training import resolve
from sim.study import projection

PARTS = ("name", "why", "cluster", "toy")
LAW = "besiroglu_2024"  # ranks; the others are shown beside it


@dataclass(frozen=True)
class Task:
    """What is asked for. Money is what renting the whole cluster costs, US dollars; days are of wall-clock time."""

    budget_usd: float = 10e6
    deadline_days: float = 50.0
    most_chips: int = 2048

    def __str__(self) -> str:
        return (
            f"${self.budget_usd / 1e6:g}M of rent, {self.deadline_days:g} days, {self.most_chips:,} chips at most; "
            "19 of 20 draws must meet both"
        )


TASK = Task()


@dataclass(frozen=True)
class Grade:
    """What a design comes to: days and rent as (middle, 5%, 95%), active parameters, tokens, the loss by each law, the
    share of the fullest chip's memory, MFU, and what keeps it from passing."""

    name: str
    days: tuple[float, float, float]
    rent_usd: tuple[float, float, float]
    weights: float
    tokens: float
    losses: Mapping[str, float]
    memory: float
    mfu: float
    faults: tuple[str, ...]

    @property
    def loss(self) -> float:
        """By the law that ranks."""
        return self.losses[scaling_law_name()]


def scaling_law_name() -> str:
    """The law that ranks, as tables show it."""
    return scaling_law.name(LAW)


def folder() -> Path:
    """Where the course's own designs lie."""
    return datafiles.data("recipes", "capstone")


def designs() -> list[Path]:
    """The course's own designs, in the order in which they were tried."""
    return list(datafiles.catalogue(folder(), ".yaml").values())


def read(path: Path) -> dict[str, Any]:
    """A design file.

    Raises:
        InputError: no such file, no mapping, an unknown part, or no scenario in it.
    """
    document = read_mapping(path)
    for part in document:
        if part not in PARTS:
            raise InputError(f"{path}: part {part!r}: not one of {', '.join(PARTS)}{nearest(str(part), PARTS)}")
    if not isinstance(document.get("cluster"), dict):
        raise InputError(f"{path}: has no 'cluster'; python -m sim.planner.capstone --template prints a design")
    return document


def grade(cluster: Mapping[str, Any], name: str = "design", task: Task = TASK) -> Grade:
    """Simulate a design's scenario and hold it against the task.

    Raises:
        InputError: a scenario that cannot be read, cannot run or does not fit into memory.
    """
    document = {"version": 1, **cluster}
    if (document.get("plan") or {}).get("auto"):
        document = complete(document)
    scenario = resolve(document, name)
    result = projection.project(scenario, what_ifs=False)
    days, rent = result["days"], result["cost"]["rent"]
    weights, tokens = float(result["model"]["active_params"]), float(result["tokens"])
    return Grade(
        name,
        (days["value"], days["low"], days["high"]),
        (rent["value"], rent["low"], rent["high"]),
        weights,
        tokens,
        {law: fit.loss(weights, tokens) for law, fit in scaling_law.published().items()},
        result["memory"]["share"],
        result["answer"]["mfu"],
        held_against(task, scenario.cluster.num_chips, days["high"], rent["high"]),
    )


def held_against(task: Task, chips: int, days: float, rent_usd: float) -> tuple[str, ...]:
    """What keeps a design from passing; `days` and `rent_usd` are those that 19 of 20 draws do not exceed.

    >>> held_against(Task(1e6, 10, 8), 8, 11, 2e6)
    ('11.0 days in the worst of 20 draws: at most 10', '$2.00M in the worst of 20 draws: at most $1M')
    """
    rules = (
        (chips > task.most_chips, f"{chips:,} chips: at most {task.most_chips:,}"),
        (days > task.deadline_days, f"{days:.1f} days in the worst of 20 draws: at most {task.deadline_days:g}"),
        (
            rent_usd > task.budget_usd,
            f"${rent_usd / 1e6:.2f}M in the worst of 20 draws: at most ${task.budget_usd / 1e6:g}M",
        ),
    )
    return tuple(text for broken, text in rules if broken)


def table(grades: list[Grade]) -> str:
    """Designs as Markdown: those that pass first, by their loss."""
    ordered = sorted(grades, key=lambda g: (bool(g.faults), g.loss))
    lines = [
        "| design | loss by the law | active parameters | tokens | days (90% of draws) | rent, $M (90% of draws) | |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for g in ordered:
        days, rent = (f"{v:.1f} ({low:.1f} to {high:.1f})" for v, low, high in (
            g.days, tuple(x / 1e6 for x in g.rent_usd)))  # fmt: skip
        lines.append(
            f"| {g.name} | {g.loss:.3f} | {g.weights / 1e9:.1f}B | {g.tokens / 1e12:.2f}T | {days} | {rent} | "
            f"{'; '.join(g.faults) or 'passes'} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Grade design files; returns the exit code: 1 when one does not pass."""
    p = Parser(
        prog="python -m sim.planner.capstone",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("designs", nargs="*", type=Path, help="YAML files (default the course's own designs)")
    p.add_argument("--template", action="store_true", help="print a design to begin with")
    args = p.parse_args(argv)
    if args.template:
        print(designs()[0].read_text(encoding="utf-8"), end="")
        return 0
    grades = []
    for path in args.designs or designs():
        document = read(path)
        grades.append(grade(document["cluster"], str(document.get("name", path.stem))))
    print(f"{TASK}\n\n{table(grades)}")
    return 1 if any(g.faults for g in grades) and args.designs else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
