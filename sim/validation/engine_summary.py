"""What the simulator misses of measured engines: TPOT and TTFT by whole groups, and how often the intervals hold.

Rows, uses and predictions: `sim.validation.engine_rows`. A group's interval is made of the other groups of its kind.
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
    """How many rows lie in the interval that the other groups of their kind give, by kind and level.

    The interval of a group: quantiles of measured over predicted among the rows of all other groups of its kind, each
    group with the same weight, around the prediction.
    """
    by_group: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    kinds: dict[tuple[str, str, str], str] = {}
    for row, ratio in compared:
        by_group[row.group].append(1.0 / ratio)
        kinds[row.group] = row.kind
    result: dict[str, dict[str, float]] = {}
    for kind in sorted(set(kinds.values())):
        groups = [g for g in by_group if kinds[g] == kind]
        inside, total, widths = {50: 0, 80: 0}, 0, []
        for group in groups:
            others = [by_group[g] for g in groups if g != group]
            total += len(by_group[group])
            for level in inside:
                low, high = weighted_quantiles(others, (0.5 - level / 200, 0.5 + level / 200))
                inside[level] += sum(low <= truth <= high for truth in by_group[group])
                if level == 80:
                    widths.append(high / low)
        result[kind] = {
            "rows": total,
            "within_50": inside[50] / total,
            "within_80": inside[80] / total,
            "high_over_low_80": statistics.median(widths),
        }
    return result


def weighted_quantiles(groups: Sequence[Sequence[float]], shares: Sequence[float]) -> list[float]:
    """Quantiles of the values of several groups, each group with the same weight; (1, 1) of nothing.

    That is CDF pooling of two layers (Dunn, Wasserman and Ramdas, arXiv 1809.07441), right as groups get
    many; the rule with a guarantee for few (Lee, Barber and Willett, arXiv 2306.06342) gives the group that is asked
    about a weight of its own beyond either end, and is the wider the fewer there are.
    """
    weighted = sorted((value, 1.0 / len(group)) for group in groups for value in group)
    if not weighted:
        return [1.0 for _ in shares]
    total, found = sum(w for _, w in weighted), []
    for share in shares:
        below = 0.0
        quantile = weighted[-1][0]
        for value, weight in weighted:
            below += weight
            if below >= share * total:
                quantile = value
                break
        found.append(quantile)
    return found


def measured_intervals() -> dict[str, tuple[float, float]]:
    """(low, high) of measured over predicted seconds that holds 80% of the supported rows, by kind.

    `data/serving/intervals.yaml` keeps them, so that an answer need not predict every row; a test compares.
    """
    by_kind: dict[str, dict[tuple[str, str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in load():
        if use_of(row)[0] != "unsupported":
            by_kind[row.kind][row.group].append(row.tpot_ms / predict_ms(row))
    result = {}
    for kind, groups in by_kind.items():
        low, high = weighted_quantiles(list(groups.values()), (0.1, 0.9))
        result[kind] = (low, high)
    return result


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
    lines.append("intervals from the other groups of a kind: rows inside the 50% and the 80% interval, high / low")
    for kind, c in result["coverage"].items():
        lines.append(
            f"  {kind:<52} {c['rows']:>5} {c['within_50']:>7.0%} {c['within_80']:>7.0%} {c['high_over_low_80']:>7.2f}"
        )
    lines += ["", "not compared", *(f"  {n:>5}  {why}" for why, n in result["unsupported"].items())]
    return "\n".join(lines)
