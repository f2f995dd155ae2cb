"""`clustersim validate --summary` and `--coverage`: what the simulator misses by where it was told nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.cost.stacks import read_fitted
from sim.validation.coverage import KINDS, LeftOut, all_left_out, coverage, held_rows
from sim.validation.rows import MeasuredRow, read_rows

FEWEST = 3  # rows that make a group


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _errors(rows: Iterable[LeftOut]) -> list[float]:
    return [abs(row.error) for row in rows]


def summary() -> dict[str, Any]:
    """Left-out errors of the published rows and of those held out, by group and kind, with the coverage.

    Returns: left_out and held_out (mean absolute errors, stack left out), rows, held_out_rows, held_out_files
    (file → rows, error), groups and held_out_groups (stack on chip → rows, error; `FEWEST` rows at least, worst first),
    kinds (kind → rows, error), coverage (see `sim.validation.coverage`), scalars (family → value, rows fitted on),
    seconds.
    """
    begun = time.perf_counter()
    own = {row.id for row in read_rows() if isinstance(row, MeasuredRow)}
    rows = all_left_out()
    published, held = ([row for row in rows if (row.id in own) is ours] for ours in (True, False))
    files = {row.id: name for name, some in held_rows().items() for row in some}
    return {
        "left_out": _mean(_errors(published)),
        "rows": len(published),
        "held_out": _mean(_errors(held)),
        "held_out_rows": len(held),
        "held_out_files": {
            name: {"rows": len(some), "error": _mean(_errors(some))}
            for name in sorted(set(files.values()))
            if (some := [row for row in held if files.get(row.id) == name])
        },
        "groups": _groups(published),
        "held_out_groups": _groups(held),
        "kinds": {
            kind: {"rows": len(some), "error": _mean(_errors(some))}
            for kind in KINDS
            if (some := [row for row in published if row.kind == kind])
        },
        "coverage": coverage(rows),
        "scalars": {
            family: {"value": fit["value"], "rows": list(fit["rows"])}
            for family, fit in (read_fitted().get("chips") or {}).items()
        },
        "seconds": time.perf_counter() - begun,
    }


def by_group(rows: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """Stack on chip → its rows, of groups of `FEWEST` rows and more, the worst mean first."""
    by_name: dict[str, list[LeftOut]] = {}
    for row in rows:
        by_name.setdefault(f"{row.stack} on {row.chip}", []).append(row)
    groups = {name: some for name, some in by_name.items() if len(some) >= FEWEST}
    return dict(sorted(groups.items(), key=lambda item: -(_mean(_errors(item[1])) or 0.0)))


def _groups(rows: Iterable[LeftOut]) -> dict[str, dict[str, Any]]:
    return {name: {"rows": len(some), "error": _mean(_errors(some))} for name, some in by_group(rows).items()}


def coverage_text(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The coverage as a table."""
    lines = [
        "How often an interval made without a row's software stack holds the row",
        f"{'kind of question':24} {'rows':>5} {'50% holds':>10} {'80% holds':>10} {'width of 80%':>13} {'stacks':>7} "
        f"{'80%, a stack once':>18}",
    ]
    lines += [
        f"{kind:24} {one['rows']:>5} {one['inside_50']:>10.0%} {one['inside_80']:>10.0%} {one['width_80']:>13.0%} "
        f"{one['stacks']:>7} {one['stacks_80']:>18.0%}"
        for kind, one in table.items()
    ]
    return "\n".join(lines)


def summary_text(result: Mapping[str, Any]) -> str:
    """The summary as text."""
    lines = [
        f"stack left out, {result['rows']} published rows: mean absolute error {result['left_out']:.2%}",
        f"stack left out, {result['held_out_rows']} rows held out of every fit: {result['held_out']:.2%}",
        "  by file: " + "  ".join(f"{k} {v['error']:.1%} ({v['rows']})" for k, v in result["held_out_files"].items()),
        "",
        "by kind: " + "  ".join(f"{k} {v['error']:.1%} ({v['rows']})" for k, v in result["kinds"].items()),
        "",
        f"groups of {FEWEST} rows and more, worst first",
    ]
    for title, groups in (("published", result["groups"]), ("held out", result["held_out_groups"])):
        lines += [f"  {title:10} {name:48} {one['rows']:>3} rows {one['error']:>7.1%}" for name, one in groups.items()]
    lines += ["", coverage_text(result["coverage"]), "", "fitted scalars (long-run speed of matmuls by chip family):"]
    lines += [f"  {f:8} {one['value']:.3f} on {', '.join(one['rows'])}" for f, one in result["scalars"].items()]
    lines.append(f"all of it took {result['seconds']:.1f} s")
    return "\n".join(lines)
