"""Fit the one scalar of each (chip, software stack) on its `calibration` rows, and cross-validate.

    python -m sim.validation.fit            # print the fitted values beside those in data/fitted.yaml
    python -m sim.validation.fit --write    # write them there
    python -m sim.validation.fit --check    # exit 1 when they differ

The scalar is `scale`: kernel speed over modelled speed. It is found by bisection on each row (the prediction grows with
it) and the geometric mean over the stack's calibration rows is kept.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

from minglm import atomic, datafiles
from sim.base.row_kinds import CALIBRATION
from sim.cost.scales import expected
from sim.cost.stacks import Stack, product_of, read_fitted
from sim.validation.predict import predict, speed_error
from sim.validation.rows import MeasuredRow, read_rows

LOW, HIGH = 0.2, 2.5


def with_scale(row: MeasuredRow, value: float) -> Stack:
    """The row's stack with `value` as its scalar."""
    return dataclasses.replace(row.run.stack, fitted={row.chip: {"name": "scale", "value": value, "rows": []}})


def ideal_scale(row: MeasuredRow) -> float | None:
    """The scalar at which this row would be predicted exactly; None for rows that it does not move (bubble, memory)."""
    if row.quantity in ("bubble", "memory_gib"):
        return None
    sign = -1.0 if row.quantity == "seconds_per_step" else 1.0
    low, high = LOW, HIGH
    for _ in range(24):
        middle = math.sqrt(low * high)
        if sign * speed_error(row, predict(row, with_scale(row, middle))) < 0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def fitted(rows: list[MeasuredRow]) -> dict[tuple[str, str], tuple[float, list[str]]]:
    """(stack, chip) → (scalar, ids of the rows it was fitted on)."""
    groups: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in rows:
        scale = ideal_scale(row) if row.kind == CALIBRATION else None
        if scale is not None:
            groups.setdefault((row.run.stack.name, row.chip), []).append((row.id, scale))
    return {key: (_geometric([s for _, s in some]), [name for name, _ in some]) for key, some in groups.items()}


def _error(row: MeasuredRow, value: float) -> float:
    return abs(speed_error(row, predict(row, with_scale(row, value))))


def cross_validate(rows: list[MeasuredRow]) -> dict[str, Any]:
    """Mean absolute error of rows predicted without themselves, without their stack, without their chip.

    Row left out: the scalar is refitted on the other rows of its (stack, chip); alone there, it is what
    `sim.cost.scales` expects from the other pairs. Stack left out: that expectation without the pair. Chip left out:
    without every pair of the chip.
    """
    scale: dict[str, float] = {}
    pairs: dict[tuple[str, str], list[MeasuredRow]] = {}
    for row in rows:
        ideal = ideal_scale(row)
        if ideal is not None:
            scale[row.id] = ideal
            pairs.setdefault((row.run.stack.name, row.chip), []).append(row)
    centre = [
        (chip, product_of(stack)[0], _geometric([scale[r.id] for r in some]), stack)
        for (stack, chip), some in pairs.items()
    ]
    out: dict[str, list[float]] = {"leave_row_out": [], "leave_stack_out": [], "leave_chip_out": []}
    for (stack, chip), some in pairs.items():
        product = product_of(stack)[0]
        without_stack = expected([(c, p, v) for c, p, v, s in centre if (s, c) != (stack, chip)], chip, product)
        without_chip = expected([(c, p, v) for c, p, v, _ in centre if c != chip], chip, product)
        for r in some:
            others = [scale[o.id] for o in some if o is not r]
            out["leave_row_out"].append(_error(r, _geometric(others) if others else without_stack))
            out["leave_stack_out"].append(_error(r, without_stack))
            out["leave_chip_out"].append(_error(r, without_chip))
    return {**{key: (sum(v) / len(v) if v else None) for key, v in out.items()}, "rows": len(scale)}


def as_text(scalars: Mapping[tuple[str, str], tuple[float, list[str]]], kept: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of data/fitted.yaml; `kept` are entries of another kind (single-node data), left as they are."""
    lines = [
        "# The one fitted scalar of each software stack on each chip: `scale` is kernel speed over modelled speed.",
        "# Written by `python -m sim.validation.fit --write` from the rows marked `calibration`; do not edit by hand.",
        "fitted:",
    ]
    names = sorted({stack for stack, _ in scalars} | set(kept))
    for name in names:
        lines.append(f"  {name}:")
        for (stack, chip), (value, ids) in sorted(scalars.items()):
            if stack == name:
                lines.append(f"    {chip}: {{name: scale, value: {value:.4f}, rows: [{', '.join(ids)}]}}")
        for chip, entry in (kept.get(name) or {}).items():
            if (name, chip) not in scalars:
                rows = ", ".join(map(str, entry["rows"]))
                lines.append(f"    {chip}: {{name: {entry['name']}, value: {entry['value']}, rows: [{rows}]}}")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Fit, print, and with --write or --check write or compare. Returns 1 where --check finds a difference."""
    argv = sys.argv[1:] if argv is None else argv
    scalars = fitted([row for row in read_rows() if isinstance(row, MeasuredRow)])
    have = read_fitted()
    differing = 0
    for (stack, chip), (value, ids) in sorted(scalars.items()):
        old = (have.get(stack) or {}).get(chip) or {}
        same = bool(old) and abs(float(old["value"]) / value - 1) < 2e-3
        differing += not same
        print(
            f"{stack:36} {chip:10} scale {value:.4f}  on {', '.join(ids)}"
            + ("" if same else f"   (file: {old.get('value')})")
        )
    if "--write" in argv:
        kept = {s: {c: e for c, e in chips.items() if e.get("name") != "scale"} for s, chips in have.items()}
        path = datafiles.data("fitted.yaml")
        atomic.write_text(path, as_text(scalars, {s: c for s, c in kept.items() if c}))
        print(f"wrote {path}")
        return 0
    return 1 if "--check" in argv and differing else 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
