"""Fit the long-run speed of each chip family on its `calibration` rows, and predict every row with its stack left out.

    python -m sim.validation.fit            # print the fitted values beside those in data/fitted.yaml
    python -m sim.validation.fit --write    # write them there; then `python -m sim.validation.coverage --write`
    python -m sim.validation.fit --check    # exit 1 when they differ

The scalar is `sustained` (`sim.cost.stacks.sustained`): speed of matmuls in a long run over that of short ones. On each
row it is found by bisection (the prediction grows with it); a family's is the median over its stacks of the median over
a stack's rows, so that one bad row moves nothing. A chip that brings its own figure is not fitted.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minglm import atomic, datafiles
from sim.base.row_kinds import CALIBRATION
from sim.cost.stacks import Stack, family_of, read_fitted
from sim.validation.predict import predict, speed_error
from sim.validation.rows import MeasuredRow, read_rows

LOW, HIGH = 0.2, 2.5
UNMOVED = ("bubble", "memory_gib")  # quantities that no speed moves


class IdealRow(NamedTuple):
    """A row with the scalar at which it would be predicted exactly."""

    row: MeasuredRow
    family: str
    scale: float


def with_scale(row: MeasuredRow, value: float) -> Stack:
    """The row's stack with `value` as its scalar."""
    return dataclasses.replace(row.run.stack, scale=value)


def ideal_scale(row: MeasuredRow) -> float | None:
    """The scalar at which this row would be predicted exactly; None for rows that it does not move (bubble, memory)."""
    if row.quantity in UNMOVED:
        return None
    sign = -1.0 if row.quantity == "seconds_per_step" else 1.0
    low, high = LOW, HIGH
    for _ in range(18):
        middle = math.sqrt(low * high)
        if sign * speed_error(row, predict(row, with_scale(row, middle))) < 0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def ideal_rows(rows: Iterable[MeasuredRow]) -> list[IdealRow]:
    """The calibration rows of chips without a figure of their own, each with its scalar."""
    out = []
    for row in rows:
        chip = row.run.cluster.chip
        if row.kind == CALIBRATION and not chip.sustained and (scale := ideal_scale(row)) is not None:
            out.append(IdealRow(row, family_of(chip), scale))
    return out


def middle(rows: Iterable[IdealRow]) -> float | None:
    """The median over stacks of the median over a stack's rows; None without any."""
    stacks: dict[str, list[float]] = {}
    for one in rows:
        stacks.setdefault(one.row.run.stack.name, []).append(one.scale)
    return statistics.median(map(statistics.median, stacks.values())) if stacks else None


def fitted(rows: Iterable[MeasuredRow]) -> dict[str, tuple[float, list[str]]]:
    """Family → (scalar, ids of the rows it was fitted on)."""
    some = ideal_rows(rows)
    families = sorted({one.family for one in some})
    out = {}
    for family in families:
        value = middle(one for one in some if one.family == family)
        assert value is not None
        out[family] = value, [one.row.id for one in some if one.family == family]
    return out


def left_out_scale(row: MeasuredRow, calibration: list[IdealRow], without: str) -> float:
    """The scalar that a row gets when nothing of its `stack`, its `chip` family or the `row` itself was fitted.

    0 for a chip with a figure of its own: nothing is fitted, so nothing can be left out.
    """
    chip = row.run.cluster.chip
    if chip.sustained:
        return 0.0
    family = family_of(chip)
    others = [one for one in calibration if not _leaves_out(one, row, family, without)]
    value = middle(one for one in others if one.family == family)
    if value is None:  # as an unknown chip: the middle of the other families
        values = [middle(one for one in others if one.family == f) for f in {one.family for one in others}]
        value = statistics.median([v for v in values if v is not None] or [1.0])
    return value


def _leaves_out(one: IdealRow, row: MeasuredRow, family: str, without: str) -> bool:
    if without == "stack":
        return one.row.run.stack.name == row.run.stack.name
    return one.family == family if without == "chip" else one.row.id == row.id


def cross_validate(rows: list[MeasuredRow]) -> dict[str, Any]:
    """Mean absolute error of rows without themselves, without their stack, without their chip; and each row's.

    Returns: leave_row_out, leave_stack_out, leave_chip_out (means), rows (their number), errors (id → predicted over
    measured − 1 with its stack left out). Rows that no speed moves (memory, bubble) are not in it.
    """
    moved = [row for row in rows if row.quantity not in UNMOVED]
    calibration = ideal_rows(moved)
    errors: dict[str, dict[str, float]] = {"row": {}, "stack": {}, "chip": {}}
    known: dict[tuple[str, float], float] = {}
    for row in moved:
        for without, some in errors.items():
            scale = left_out_scale(row, calibration, without)
            if (row.id, scale) not in known:
                known[row.id, scale] = speed_error(row, predict(row, with_scale(row, scale)))
            some[row.id] = known[row.id, scale]
    means = {
        f"leave_{without}_out": sum(map(abs, some.values())) / len(some) if some else None
        for without, some in errors.items()
    }
    return {**means, "rows": len(moved), "errors": errors["stack"]}


def as_text(scalars: Mapping[str, tuple[float, list[str]]], stacks: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of data/fitted.yaml; `stacks` are constants fitted elsewhere (single-node data), left as they are."""
    lines = [
        "# Speed of matmuls in a long run over the short runs of data/measured (power, clocks), one a chip family.",
        "# Written by `python -m sim.validation.fit --write` from the rows marked `calibration`; do not edit by hand.",
        "chips:",
    ]
    lines += [f"  {f}: {{value: {v:.4f}, rows: [{', '.join(ids)}]}}" for f, (v, ids) in sorted(scalars.items())]
    lines.append("stacks:")
    for name, chips in sorted(stacks.items()):
        lines.append(f"  {name}:")
        for chip, entry in chips.items():
            rows = ", ".join(map(str, entry["rows"]))
            lines.append(f"    {chip}: {{name: {entry['name']}, value: {entry['value']}, rows: [{rows}]}}")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Fit, print, and with --write or --check write or compare. Returns 1 where --check finds a difference."""
    argv = sys.argv[1:] if argv is None else argv
    scalars = fitted(row for row in read_rows() if isinstance(row, MeasuredRow))
    have = read_fitted()
    differing = 0
    for family, (value, ids) in sorted(scalars.items()):
        old = (have.get("chips") or {}).get(family) or {}
        same = bool(old) and abs(float(old["value"]) / value - 1) < 2e-3
        differing += not same
        print(
            f"{family:10} sustained {value:.4f}  on {', '.join(ids)}"
            + ("" if same else f"   (file: {old.get('value')})")
        )
    if "--write" in argv:
        path = datafiles.data("fitted.yaml")
        atomic.write_text(path, as_text(scalars, have.get("stacks") or {}))
        print(f"wrote {path}")
        return 0
    return 1 if "--check" in argv and differing else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
