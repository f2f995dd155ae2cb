"""The one table of `minglm bench`: what was measured beside what is asked, over all benches.

`tests/bench/targets.csv` lists each work with its unit, what it must reach and what it aims at. A row of a bench that
answers one of them carries `work` (its name there), `measured` and, where it was repeated, `spread` (least and most);
`answer` makes these. A work that no result answers is printed as not measured.
"""

from __future__ import annotations

import csv
import json
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minglm.errors import InputError

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Target:
    """One row of the table; `must` and `goal` read "<= 1.5", or are empty; `measured_by` names the bench."""

    work: str
    unit: str
    must: str
    goal: str
    measured_by: str


def answer(work: str, measured: float | None, spread: Sequence[float] = ()) -> dict:
    """The part of a bench's row that answers a target; `spread` holds every repetition, of which the ends are kept."""
    return {"work": work, "measured": measured, "spread": [min(spread), max(spread)] if spread else None}


def median_ratio(work: str, above: Sequence[float], below: Sequence[float]) -> dict:
    """As `answer`: the median of the ratios of neighbours in time, so that a slow moment hits both."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return answer(work, statistics.median(ratios), ratios)


def read_targets(folder: Path) -> list[Target]:
    """The targets of a folder of benches.

    Raises:
        InputError: a must or a goal that does not compare with a number.
    """
    path = folder / "targets.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        targets = [Target(**row) for row in csv.DictReader(file)]
    for target in targets:
        for text in (target.must, target.goal):
            if text:
                _bound(text, path)
    return targets


def _bound(text: str, path: Path | str = "targets.csv") -> tuple[str, float]:
    sign, _, number = text.partition(" ")
    try:
        return (sign, float(number)) if sign in COMPARISONS else _refuse(text, path)
    except ValueError:
        return _refuse(text, path)


def _refuse(text: str, path: Path | str) -> tuple[str, float]:
    raise InputError(f"{path}: {text!r}: must be a comparison and a number; write <= 1.5")


def reached(bound: str, measured: float | None) -> bool | None:
    """Whether a figure keeps a bound; None where either is missing."""
    if not bound or measured is None:
        return None
    sign, number = _bound(bound)
    return bool(COMPARISONS[sign](measured, number))


def read_rows(folder: Path) -> list[dict]:
    """All rows that benches left in a folder: `NAME.json`, or `bench_NAME.json` as they are committed."""
    rows: list[dict] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows += [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
    return rows


def summarise(targets: Sequence[Target], rows: Sequence[Mapping]) -> list[dict]:
    """Each target with what was measured for it, JSON-ready; the last row that answers it counts."""
    answers = {row["work"]: row for row in rows if row.get("work")}
    out = []
    for target in targets:
        found = answers.get(target.work, {})
        measured, machine = found.get("measured"), found.get("machine") or {}
        out.append(
            {
                "work": target.work,
                "measured": measured,
                "spread": found.get("spread"),
                "unit": target.unit,
                "must": target.must,
                "goal": target.goal,
                "must_met": reached(target.must, measured),
                "goal_met": reached(target.goal, measured),
                "bench": target.measured_by,
                "load": machine.get("load_before"),
                "date": machine.get("date"),
            }
        )
    return out


def table(summary: Sequence[Mapping], rows: Sequence[Mapping] = ()) -> str:
    """The summary as text, and below it the machine's own rates as the rows found them."""
    head = ("work", "measured", "least..most", "must", "", "goal", "", "bench", "load", "date")
    yes = {True: "yes", False: "NO", None: "-"}
    cells = [head]
    for line in summary:
        measured = "not measured" if line["measured"] is None else f"{line['measured']:.4g} {line['unit']}"
        spread = "..".join(f"{x:.4g}" for x in line["spread"]) if line["spread"] else "-"
        must, goal = (f"{line[k]} {line['unit']}" if line[k] else "-" for k in ("must", "goal"))
        load = "-" if line["load"] is None else f"{line['load']:g}"
        verdicts = (must, yes[line["must_met"]], goal, yes[line["goal_met"]])
        cells.append((line["work"], measured, spread, *verdicts, line["bench"], load, line["date"] or "-"))
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    rule = "-" * max(map(len, lines))
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, *_rates(rows)])


def _rates(rows: Sequence[Mapping]) -> list[str]:
    """What the machine itself did while the benches ran: ranges over them."""
    machines = [row["machine"] for row in rows if row.get("machine")]
    out = []
    for key, text in (
        ("matmul_gflops_fp32", "matrix products, fp32: {} GFLOP/s"),
        ("memory_gb_per_s", "memory, read and written by a copy: {} GB/s"),
        ("load_before", "load before each bench: {}"),
    ):
        values = [m[key] for m in machines if m.get(key) is not None]
        if values:
            out.append(text.format(f"{min(values):g} to {max(values):g}"))
    return out
