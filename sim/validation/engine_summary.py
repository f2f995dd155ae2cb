"""What the simulator misses of measured engines: TPOT and TTFT by whole groups, and how often the intervals hold.

Rows, uses and predictions: `sim.validation.engine_rows`. A group's interval is made of the other groups.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sim.validation.engine_row import EngineRow
from sim.validation.engine_rows import (
    first_token_compared,
    load,
    predict_ms,
    predict_ttft_ms,
    use_of,
)

LEAST_GROUP = 5  # rows from which a group's error counts as one


def _bracket(value: float, edges: tuple[int, ...]) -> str:
    """'up to 16' of the first edge that holds the value."""
    return next((f"up to {edge:,}" for edge in edges if value <= edge), f"over {edges[-1]:,}")


# What rows are told apart by: name → its text for a row.
BY: dict[str, Callable[[EngineRow], str]] = {
    "chip": lambda row: row.chip,
    "engine": lambda row: row.engine,
    "model": lambda row: row.model,
    "kind": lambda row: row.kind,
    "mode": lambda row: row.mode,
    "chips": lambda row: f"{row.layout.chips:2} chips",
    "cut": lambda row: "attention DP" if row.layout.groups > 1 else "EP" if row.ep > 1 else "TP",
    "batch": lambda row: _bracket(row.running, (4, 16, 64)),
    "context": lambda row: _bracket(row.prompt + row.output / 2, (2048, 6144)),
}


def summary() -> dict[str, Any]:
    """Errors of every supported row by use, by what `BY` tells apart and by group; coverage of the left-out intervals.

    Returns: rows, unsupported (reason → rows), all, by_use, by_… (name → rows, mean, median, bias), groups, coverage,
    and ttft with all, by_use and by_engine of the rows whose prompts seldom wait.
    """
    compared = [(row, predict_ms(row) / row.tpot_ms) for row in load() if use_of(row)[0] != "unsupported"]
    first = [(row, predict_ttft_ms(row) / row.ttft_ms) for row in load() if first_token_compared(row)]
    reasons = Counter(reason for row in load() if (reason := use_of(row)[1]))
    return {
        "rows": len(compared),
        "unsupported": dict(reasons),
        **_split(compared, BY),
        "groups": [
            {"group": " · ".join(group), **_errors(q for r, q in compared if r.group == group)}
            for group in sorted({r.group for r, _ in compared})
        ],
        "coverage": coverage(compared),
        "ttft": _split(first, {"engine": BY["engine"]}),
    }


def _split(compared: Sequence[tuple[EngineRow, float]], by: Mapping[str, Callable[[EngineRow], str]]) -> dict[str, Any]:
    """Errors of all, by use, and by each of `by`."""
    parts: dict[str, Any] = {"all": _errors(ratio for _, ratio in compared)}
    for name, text in {"use": lambda row: use_of(row)[0], **by}.items():
        of: dict[str, list[float]] = defaultdict(list)
        for row, ratio in compared:
            of[text(row)].append(ratio)
        parts[f"by_{name}"] = {one: _errors(of[one]) for one in sorted(of)}
    return parts


def _errors(ratios: Iterable[float]) -> dict[str, float]:
    """Of predicted over measured: rows, mean and median of the absolute relative error, median ratio less one."""
    some = list(ratios)
    if not some:
        return {"rows": 0, "mean": math.nan, "median": math.nan, "bias": math.nan}
    off = [abs(q - 1.0) for q in some]
    return {
        "rows": len(some),
        "mean": statistics.mean(off),
        "median": statistics.median(off),
        "bias": statistics.median(some) - 1.0,
    }


def coverage(compared: Sequence[tuple[EngineRow, float]]) -> dict[str, dict[str, float]]:
    """How many rows lie in the interval that the other groups give (`known_groups`), by kind and over all.

    Returns: kind → rows, within_50 and within_80 (shares of the rows), groups_within_80 (each group with the same
    weight, which is what the rule promises), high_over_low_80 (median).
    """
    by_kind = _factors((row, 1.0 / ratio) for row, ratio in compared)
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for kind, groups in by_kind.items():
        for group, truths in groups.items():
            known = known_groups(by_kind, kind, without=group)
            half, most = conformal_interval(known, 0.5), conformal_interval(known, 0.8)
            in_half, in_most = (sum(low <= truth <= high for truth in truths) for low, high in (half, most))
            width = most[1] / most[0] if most[0] else math.inf
            found.setdefault(kind, []).append((len(truths), in_half, in_most, width))
    parts = {kind: found[kind] for kind in sorted(found)}
    parts["all"] = [one for some in found.values() for one in some]
    return {
        kind: {
            "rows": (rows := sum(n for n, *_ in some)),
            "within_50": sum(inside for _, inside, _, _ in some) / max(rows, 1),
            "within_80": sum(inside for _, _, inside, _ in some) / max(rows, 1),
            "groups_within_80": sum(inside / n for n, _, inside, _ in some) / max(len(some), 1),
            "high_over_low_80": statistics.median(width for *_, width in some) if some else math.nan,
        }
        for kind, some in parts.items()
    }


_Groups = dict[tuple[str, str, str], list[float]]  # (model, chip, engine) → measured over predicted seconds


def _factors(rows: Iterable[tuple[EngineRow, float]]) -> dict[str, _Groups]:
    """Measured over predicted seconds by kind and group."""
    by_kind: dict[str, _Groups] = defaultdict(lambda: defaultdict(list))
    for row, factor in rows:
        by_kind[row.kind][row.group].append(factor)
    return by_kind


def known_groups(
    by_kind: Mapping[str, _Groups], kind: str, without: tuple[str, str, str] | None = None
) -> list[list[float]]:
    """All groups, their factors as far from 1 as they would be were the group of `kind`.

    Kinds are known unequally well, and most have too few groups for intervals of their own: so what is taken to be
    exchangeable is a factor's logarithm over its kind's `scale` (normalised conformal prediction).
    """
    known = {k: {g: f for g, f in some.items() if g != without} for k, some in by_kind.items()}
    if not any(known.values()):
        return []
    spread = _spreads(known)
    return [
        [factor ** (spread[kind] / spread[k]) for factor in factors]
        for k, some in known.items()
        for factors in some.values()
    ]


def _spreads(by_kind: Mapping[str, _Groups]) -> dict[str, float]:
    """Root mean square of log factors by kind, each group weighing the same, with all kinds' as one group more (a prior
    that is worth one observation): a kind without groups has that of all."""
    squares = {
        kind: [statistics.mean(math.log(f) ** 2 for f in factors) for factors in some.values()]
        for kind, some in by_kind.items()
    }
    every = statistics.mean(square for some in squares.values() for square in some)
    return {kind: max(math.sqrt((sum(some) + every) / (len(some) + 1)), 1e-6) for kind, some in squares.items()}


def conformal_interval(groups: Sequence[Sequence[float]], level: float) -> tuple[float, float]:
    """(low, high) that hold a row of a new group with probability `level` at least, where groups are exchangeable.

    Hierarchical conformal prediction (Lee, Barber and Willett, arXiv 2306.06342), half of the rest on either side:
    every group has the same weight whatever its rows, and so has the group that is asked about, which may lie beyond
    either end. With K groups that holds for `level` of new groups at least and for 2 / (K + 1) more at most; below
    K = 2 / (1 - level) - 1 nothing is known of an end, and the interval is (0, inf).
    """
    tail = (1.0 - level) / 2
    return 1.0 / _upper([[1.0 / v for v in group] for group in groups], tail), _upper(groups, tail)


def _upper(groups: Sequence[Sequence[float]], tail: float) -> float:
    """The value that has at most `tail` of the weight of K + 1 groups above it, the last of them above all values."""
    weighted = sorted(((value, 1.0 / len(group)) for group in groups for value in group), reverse=True)
    above, found = 1.0, math.inf
    for value, weight in weighted:
        if above > tail * (len(groups) + 1) + 1e-9:
            break
        found = value
        above += weight
    return found


def measured_intervals() -> dict[str, tuple[float, float]]:
    """(low, high) of measured over predicted seconds that holds 80% of new groups, by kind.

    `data/serving/intervals.yaml` keeps them, so that an answer need not predict every row; a test compares.
    """
    by_kind = _factors((row, row.tpot_ms / predict_ms(row)) for row in load() if use_of(row)[0] != "unsupported")
    return {kind: conformal_interval(known_groups(by_kind, kind), 0.8) for kind in by_kind}


def summary_text(result: dict[str, Any]) -> str:
    """The summary as tables."""

    def line(name: str, e: dict[str, float]) -> str:
        return f"  {name:<52} {e['rows']:>5} {e['mean']:>7.1%} {e['median']:>7.1%} {e['bias']:>+7.1%}"

    def lines_of(part: dict[str, Any]) -> list[str]:
        return [line("all", part["all"]), *(line(use, e) for use, e in part["by_use"].items())]

    head = f"  {'':<52} {'rows':>5} {'mean':>7} {'median':>7} {'bias':>7}"
    lines = ["TPOT of inference engines, predicted against measured (data/serving/engines.csv.gz)", head]
    lines += lines_of(result)
    for key in BY:
        lines += ["", f"by {key}", *(line(name, e) for name, e in result[f"by_{key}"].items())]
    worst = sorted((g for g in result["groups"] if g["rows"] >= LEAST_GROUP), key=lambda g: -g["mean"])[:8]
    lines += ["", "worst groups", *(line(g["group"], g) for g in worst), ""]
    first = result["ttft"]
    lines += ["TTFT where prompts seldom wait for each other", head, *lines_of(first)]
    lines += [*(line(name, e) for name, e in first["by_engine"].items()), ""]
    lines.append(
        "intervals from the other groups, as wide as errors of the kind are: rows inside the 50% and the 80% interval,"
    )
    lines.append("groups inside the 80% interval, high / low")
    for kind, c in result["coverage"].items():
        lines.append(
            f"  {kind:<52} {c['rows']:>5} {c['within_50']:>7.0%} {c['within_80']:>7.0%} "
            f"{c['groups_within_80']:>7.0%} {c['high_over_low_80']:>7.2f}"
        )
    lines += ["", "not compared", *(f"  {n:>5}  {why}" for why, n in result["unsupported"].items())]
    return "\n".join(lines)
