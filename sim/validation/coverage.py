"""The simulator's own error for a question of a kind: what it missed by where a whole software stack was left out.

A question's kind is the first that fits of `KINDS`. Its interval is conformal: the quantiles of measured over simulated
time of the rows of that kind, each predicted with its stack left out of every fit (`sim.validation.fit`); a kind with
few rows takes all rows. A stack's rows err alike, and a question is of a stack not seen: so one with many rows speaks
with `MOST` of them, evenly spaced in order. A kind of fewer than `FEW_STACKS` stacks does not know which way the next
one errs, nor how far: its factors count both ways, as themselves and inverted, and their logarithms are stretched as
Student's prediction interval of a new member is over the normal one (`widened`). `coverage` tells how often such an
interval, made without a row's stack, holds the row.

    python -m sim.validation.coverage --write    # data/left_out.yaml, which intervals are read from
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from minglm import atomic, datafiles
from minglm.errors import InputError
from minglm.evals.statistics import t_quantile
from sim.base.documents import read_mapping
from sim.scenario.build import Run
from sim.spec.hardware import Chip
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan
from sim.validation.fit import UNMOVED, cross_validate
from sim.validation.rows import MeasuredRow, read_rows

ALONE = "experts, few tokens"  # they wait for their hosts, which no other kind tells of, nor they of others
KINDS = ("ascend", "more than 4,096 chips", "long context", ALONE, "moe", "fp8", "dense")
FEW = 10  # rows under which a kind's own errors say too little
MOST = 12  # rows that one stack speaks with in an interval
FEW_STACKS = 7  # stacks under which what has been seen of a kind says too little of the next stack
LONG, MANY = 32_768, 4_096
FEW_TOKENS = 2_048  # of a micro-batch on one chip: an expert layer's kernels are then about as short as their issue
SHARES = (0.5, 0.8)


class LeftOut(NamedTuple):
    """A row predicted with its stack left out.

    factor: measured over simulated time. error: predicted over measured − 1 in the row's unit, as `validate` has it.
    """

    id: str
    kind: str
    stack: str
    chip: str
    factor: float
    error: float


def kind_of(chip: Chip, model: ModelSpec, plan: Plan, seq: int, precision: str) -> str:
    """The kind of a question about training."""
    if chip.family == KINDS[0]:
        return KINDS[0]
    if plan.num_chips > MANY:
        return KINDS[1]
    if seq >= LONG:
        return KINDS[2]
    if model.experts:
        return ALONE if plan.micro_batch * seq / (plan.tp * plan.cp) <= FEW_TOKENS else KINDS[4]
    return KINDS[5] if precision == "fp8" else KINDS[6]


def kind_of_run(run: Run) -> str:
    """The kind of a run: `kind_of` its chip, model, plan, sequence and precision."""
    return kind_of(run.cluster.chip, run.model, run.plan, run.workload.seq, run.precision)


def left_out(rows: Iterable[MeasuredRow]) -> list[LeftOut]:
    """Every row that a speed moves, predicted with its stack left out; one that cannot run is passed over."""
    some = [row for row in rows if row.quantity not in UNMOVED]
    out = []
    for row, error in zip(some, map(cross_validate(some)["errors"].get, (r.id for r in some)), strict=True):
        if error is None:
            continue
        ratio = 1.0 + error  # predicted over measured, in the row's unit
        factor = 1.0 / ratio if row.quantity == "seconds_per_step" else ratio
        out.append(LeftOut(row.id, kind_of_run(row.run), row.run.stack.name, row.chip, factor, error))
    return out


def held_rows() -> dict[str, list[MeasuredRow]]:
    """The rows of each file of data/published_runs/held_out: nothing is fitted on them."""
    files = datafiles.catalogue("published_runs/held_out", ".yaml").items()
    return {name: [row for row in read_rows([file]) if isinstance(row, MeasuredRow)] for name, file in files}


def all_rows() -> list[MeasuredRow]:
    """The rows of data/published_runs and of its held_out folder."""
    own = [row for row in read_rows() if isinstance(row, MeasuredRow)]
    return [*own, *(row for rows in held_rows().values() for row in rows)]


@functools.cache
def all_left_out() -> tuple[LeftOut, ...]:
    """`left_out` of `all_rows`, found once in a process (about five seconds)."""
    return tuple(left_out(all_rows()))


def interval(factors: Sequence[float], share: float) -> tuple[float, float]:
    """(low, high) that hold `share` of further factors: conformal quantiles, half of the rest on either side."""
    ordered, n = sorted(factors), len(factors)
    if not n:
        return 0.0, math.inf
    outside = (1.0 - share) / 2
    low, high = math.floor((n + 1) * outside), math.ceil((n + 1) * (1.0 - outside))
    return ordered[max(low, 1) - 1], ordered[min(high, n) - 1]


def spoken(rows: Iterable[LeftOut]) -> list[float]:
    """The factors that an interval is made of: of each stack all, or `MOST` evenly spaced in order."""
    by_stack: dict[str, list[float]] = {}
    for row in rows:
        by_stack.setdefault(row.stack, []).append(row.factor)
    out = []
    for factors in by_stack.values():
        ordered, n = sorted(factors), len(factors)
        out += ordered if n <= MOST else [ordered[(2 * i + 1) * n // (2 * MOST)] for i in range(MOST)]
    return out


def widened(factors: Sequence[float], stacks: int) -> list[float]:
    """The factors of a kind for a stack that is not among the `stacks` seen; the same from `FEW_STACKS` on.

    With mean and spread estimated from K members, 80% of new ones lie within t(K−1)·√(1 + 1/K) spreads, not z.
    """
    if stacks >= FEW_STACKS:
        return list(factors)
    known = max(stacks, 2)
    stretch = t_quantile(known - 1, SHARES[1]) * math.sqrt(1.0 + 1.0 / known)
    stretch /= statistics.NormalDist().inv_cdf(0.5 + SHARES[1] / 2)
    return [one**power for one in factors for power in (stretch, -stretch)]


def of_kind(rows: Sequence[LeftOut], kind: str) -> list[float]:
    """The factors of a kind, or of all but `ALONE` where a kind beside it has fewer than `FEW` rows."""
    own = [row for row in rows if row.kind == kind]
    if kind != ALONE and len(own) < FEW:
        return spoken(row for row in rows if row.kind != ALONE)
    return widened(spoken(own), len({row.stack for row in own}))


def coverage(rows: Sequence[LeftOut]) -> dict[str, Any]:
    """How often the 50% and the 80% interval hold a row whose stack they know nothing of, by kind and over all.

    Returns: kind → rows, inside 50%, inside 80% (shares), width (mean of high/low − 1 of the 80% interval), stacks, and
    the share inside 80% where every stack counts once: what the next stack may expect, whoever has most rows.
    """
    by_kind: dict[str, list[tuple[bool, bool, float, str]]] = {}
    for row in rows:
        known = of_kind([other for other in rows if other.stack != row.stack], row.kind)
        half, most = (interval(known, share) for share in SHARES)
        inside = [low <= row.factor <= high for low, high in (half, most)]
        by_kind.setdefault(row.kind, []).append((inside[0], inside[1], most[1] / most[0] - 1.0, row.stack))
    by_kind["all"] = [one for some in by_kind.values() for one in some]
    return {
        kind: {
            "rows": len(some),
            "inside_50": sum(a for a, _, _, _ in some) / len(some),
            "inside_80": sum(b for _, b, _, _ in some) / len(some),
            "width_80": sum(w for _, _, w, _ in some) / len(some),
            "stacks": len({stack for _, _, _, stack in some}),
            "stacks_80": _mean_over_stacks([(stack, b) for _, b, _, stack in some]),
        }
        for kind in (*KINDS, "all")
        if (some := by_kind.get(kind))
    }


def _mean_over_stacks(rows: Sequence[tuple[str, bool]]) -> float:
    """The mean over stacks of the share of a stack's rows that are inside."""
    by_stack: dict[str, list[bool]] = {}
    for stack, inside in rows:
        by_stack.setdefault(stack, []).append(inside)
    return sum(sum(some) / len(some) for some in by_stack.values()) / len(by_stack)


@functools.cache
def left_out_factors(kind: str) -> tuple[float, ...]:
    """Measured over simulated time of the left-out rows of a kind, from data/left_out.yaml: an answer's own error.

    Raises:
        InputError: a kind that there is not.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
    table = read_mapping(datafiles.data("left_out.yaml"))
    factors = {name: [float(v) for v in table.get(name) or ()] for name in KINDS}
    if kind != ALONE and len(factors[kind]) < FEW:
        return tuple(v for name, some in factors.items() if name != ALONE for v in some)
    return tuple(widened(factors[kind], int(table["stacks"][kind])))


def as_text(rows: Iterable[LeftOut]) -> str:
    """The content of data/left_out.yaml."""
    rows = list(rows)
    by_kind = {kind: spoken(row for row in rows if row.kind == kind) for kind in KINDS}
    stacks = {kind: len({row.stack for row in rows if row.kind == kind}) for kind in KINDS}
    lines = [
        "# Measured over simulated step time of rows whose software stack was left out of every fit, by kind.",
        f"# A stack with more than {MOST} rows of a kind speaks with {MOST} of them, evenly spaced in order.",
        "# Written by `python -m sim.validation.coverage --write`; do not edit by hand.",
        f"stacks: {{{', '.join(f'{kind!r}: {n}' for kind, n in stacks.items())}}}",
    ]
    lines += [f"{kind}: [{', '.join(f'{v:.4f}' for v in sorted(some))}]" for kind, some in by_kind.items()]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the coverage; with --write write the left-out errors."""
    argv = sys.argv[1:] if argv is None else argv
    rows = all_left_out()
    for kind, one in coverage(rows).items():
        print(f"{kind:24} {one['rows']:4} rows  50%: {one['inside_50']:.0%}  80%: {one['inside_80']:.0%}")
    if "--write" in argv:
        atomic.write_text(datafiles.data("left_out.yaml"), as_text(rows))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
