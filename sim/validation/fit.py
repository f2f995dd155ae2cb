"""Fit the one scalar of each (chip, software stack) on its `calibration` rows, and cross-validate.

    python -m sim.validation.fit            # print the fitted values beside those in data/fitted.yaml
    python -m sim.validation.fit --write    # write them there
    python -m sim.validation.fit --check    # exit 1 when they differ

The scalar is `scale`: kernel speed over modelled speed. It is found by bisection on each row (the prediction grows with
it) and the geometric mean over the stack's calibration rows is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys

from minglm import datafiles
from sim.cost.scales import expected
from sim.cost.stacks import Stack, product_of
from sim.validation.rows import Row

LOW, HIGH = 0.2, 2.5


def with_scale(row: Row, value: float) -> Stack:
    return dataclasses.replace(row.stack, fitted={row.chip: {"name": "scale", "value": value, "rows": []}})


@functools.lru_cache(maxsize=4096)
def _solve(row_id: str, holder: _Holder) -> float:
    from sim.validation.predict import predict, speed_error

    row = holder.row
    sign = -1.0 if row.quantity == "seconds_per_step" else 1.0
    low, high = LOW, HIGH
    for _ in range(24):
        middle = math.sqrt(low * high)
        if sign * speed_error(row, predict(row, with_scale(row, middle))) < 0:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


class _Holder:
    """A hashable handle on a row (a row holds mappings)."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __hash__(self) -> int:
        return hash(self.row.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder) and other.row is self.row


def ideal_scale(row: Row) -> float | None:
    """The scalar at which this row would be predicted exactly; None for rows that it does not move (bubble, memory)."""
    if row.kind == "unsupported" or row.quantity in ("bubble", "memory_gib") or row.plan is None:
        return None
    return _solve(row.id, _Holder(row))


def _geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def fitted(rows: list[Row]) -> dict[tuple[str, str], tuple[float, list[str]]]:
    """(stack, chip) → (scalar, ids of the rows it was fitted on)."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == "calibration":
            groups.setdefault((row.stack.name, row.chip), []).append(row)
    return {key: (_geometric([ideal_scale(r) for r in some]), [r.id for r in some]) for key, some in groups.items()}


def _error(row: Row, value: float) -> float:
    from sim.validation.predict import predict, speed_error

    return abs(speed_error(row, predict(row, with_scale(row, value))))


def cross_validate(rows: list[Row]) -> dict:
    """Mean absolute error of rows predicted without themselves, without their stack, without their chip.

    Row left out: the scalar is refitted on the other rows of its (stack, chip); alone there, it is what `sim.cost.scales` expects
    from the other pairs. Stack left out: that expectation without the pair. Chip left out: without every pair of the chip.
    """
    usable = [r for r in rows if ideal_scale(r) is not None]
    scale = {r.id: ideal_scale(r) for r in usable}
    pairs: dict[tuple[str, str], list[Row]] = {}
    for r in usable:
        pairs.setdefault((r.stack.name, r.chip), []).append(r)
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
    return {**{key: (sum(v) / len(v) if v else None) for key, v in out.items()}, "rows": len(usable)}


def as_text(found: dict[tuple[str, str], tuple[float, list[str]]], kept: dict) -> str:
    """The content of data/fitted.yaml; `kept` are entries of another kind (single-node data), left as they are."""
    lines = [
        "# The one fitted scalar of each software stack on each chip: `scale` is kernel speed over modelled speed.",
        "# Written by `python -m sim.validation.fit --write` from the rows marked `calibration`; do not edit by hand.",
        "fitted:",
    ]
    names = sorted({stack for stack, _ in found} | set(kept))
    for name in names:
        lines.append(f"  {name}:")
        for (stack, chip), (value, ids) in sorted(found.items()):
            if stack == name:
                lines.append(f"    {chip}: {{name: scale, value: {value:.4f}, rows: [{', '.join(ids)}]}}")
        for chip, entry in (kept.get(name) or {}).items():
            if (name, chip) not in found:
                lines.append(
                    f"    {chip}: {{name: {entry['name']}, value: {entry['value']}, rows: [{', '.join(map(str, entry['rows']))}]}}"
                )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    from sim.cost.stacks import _read_fitted
    from sim.validation.training import read_rows

    argv = sys.argv[1:] if argv is None else argv
    rows = read_rows()
    found = fitted(rows)
    have = _read_fitted()
    bad = 0
    for (stack, chip), (value, ids) in sorted(found.items()):
        old = (have.get(stack) or {}).get(chip) or {}
        same = bool(old) and abs(float(old["value"]) / value - 1) < 2e-3
        bad += not same
        print(
            f"{stack:36} {chip:10} scale {value:.4f}  on {', '.join(ids)}"
            + ("" if same else f"   (file: {old.get('value')})")
        )
    if "--write" in argv:
        kept = {s: {c: e for c, e in chips.items() if e.get("name") != "scale"} for s, chips in have.items()}
        path = datafiles.data("fitted.yaml")
        path.write_text(as_text(found, {s: c for s, c in kept.items() if c}), encoding="utf-8")
        print(f"wrote {path}")
        return 0
    return 1 if "--check" in argv and bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
