"""Measured inference engines against the model: TPOT of 1,970 closed loops on seven chips, by whole groups.

Rows of `data/serving/engines.csv.gz` (ai-dynamo/aiconfigurator 095f58a51, Apache-2.0): a closed loop of `concurrency`
requests on one deployment. Groups of one (model, chip, engine) are calibration (H200: the engines' constants in
`data/serving/stacks.yaml` come from them), holdout, or unsupported with a reason.

    >>> rows = load()
    >>> len(rows), use_of(rows[0])[0] in ("calibration", "holdout", "unsupported")
    (1970, True)
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minglm import datafiles
from sim.serving.deployment import Deployment
from sim.serving.error import kind_of
from sim.serving.step_time import decode_step, prefill
from sim.spec.hardware import cluster_from
from sim.spec.model_loader import load_model

MODELS = {
    "Qwen3-235B-A22B-FP8": "qwen3_235b_a22b",
    "Qwen3-32B": "qwen3_32b",
    "Qwen3-32B-NVFP4": "qwen3_32b",
    "DeepSeek-R1": "deepseek_v3",
    "DeepSeek-V3": "deepseek_v3",
    "DeepSeek-R1-NVFP4": "deepseek_v3",
    "Llama-3.1-70B": "llama3_70b",
    "Llama-3.1-8B-Instruct": "llama3_8b",
    "Llama-3.1-8B-Instruct-FP8": "llama3_8b",
    "Kimi-K2.5": "kimi_k2",
    "gpt-oss-120b": "gpt_oss_120b",
    "GLM-5": "glm5",
}
CLUSTERS = {
    "h100": "dgx_h100",
    "h200": "dgx_h200",
    "b200": "dgx_b200",
    "b300": "dgx_b300",
    "gb200": "gb200_nvl72",
    "gb300": "gb300_nvl72",
}
STACKS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
PRECISIONS = {"fp4": "nvfp4", "int4": "awq"}
LONGEST_QUEUE_MS = 3000.0  # a first token after seconds is a queue before a full cache: no kernel is measured by it
SHORTEST_OUTPUT = 400  # with fewer tokens out, how many requests ran at once is not known from the concurrency
LEAST_GROUP = 5  # rows from which a group's error counts as one


@dataclass(frozen=True)
class EngineRow:
    """One measured closed loop. Lengths in tokens, latencies in milliseconds."""

    model: str
    chip: str
    engine: str
    version: str
    precision: str
    prompt: int
    output: int
    concurrency: int
    tp: int
    dp: int
    ep: int
    ttft_ms: float
    tpot_ms: float
    drafts: bool

    @property
    def group(self) -> tuple[str, str, str]:
        """(model, chip, engine): what is calibrated, held out or left out whole."""
        return self.model, self.chip, self.engine

    @property
    def kind(self) -> str:
        """Of question, for the interval: dense, or mixture of experts with grouped-query or latent attention."""
        return kind_of(load_model(MODELS[self.model]))


@functools.cache
def load() -> tuple[EngineRow, ...]:
    """The rows of the shipped table."""
    text = gzip.decompress(datafiles.data("serving", "engines.csv.gz").read_bytes()).decode("utf-8")
    return tuple(
        EngineRow(
            model=r["model"],
            chip=r["chip"],
            engine=r["engine"],
            version=r["version"],
            precision=r["precision"],
            prompt=int(r["prompt"]),
            output=int(r["output"]),
            concurrency=int(r["concurrency"]),
            tp=int(r["tp"]),
            dp=int(r["dp"]),
            ep=int(r["ep"]),
            ttft_ms=float(r["ttft_ms"] or "nan"),
            tpot_ms=float(r["tpot_ms"]),
            drafts=r["drafts"] == "1",
        )
        for r in csv.DictReader(io.StringIO(text))
    )


@functools.cache
def _contradicted() -> frozenset[EngineRow]:
    """Rows at least a quarter faster than the same deployment with no more requests: drafts that nobody printed."""
    alike: dict[tuple[object, ...], list[EngineRow]] = defaultdict(list)
    for r in load():
        alike[(*r.group, r.precision, r.tp, r.dp, r.ep, r.prompt, r.output)].append(r)
    return frozenset(
        r
        for some in alike.values()
        for r in some
        if any(o.concurrency <= r.concurrency and 0.75 * o.tpot_ms > r.tpot_ms for o in some)
    )


def use_of(row: EngineRow) -> tuple[str, str]:
    """(use, reason) of a row: calibration, holdout, or unsupported and why."""
    if row.model not in MODELS:
        return "unsupported", "linear attention is not modelled"
    if row.drafts:
        return "unsupported", "drafts whose acceptance is not printed"
    if row.tp * row.dp > 8:
        return "unsupported", "more chips than the machine has: the source multiplies its widths"
    if row.ttft_ms > LONGEST_QUEUE_MS:
        return "unsupported", "seconds to the first token: a queue before a full cache"
    if row.output < SHORTEST_OUTPUT:
        return "unsupported", "short outputs: the running batch is not known"
    if row in _contradicted():
        return "unsupported", "faster than the same deployment with fewer requests: drafts that are not printed"
    return ("calibration" if row.chip == "h200" else "holdout"), ""


def cache_format(row: EngineRow) -> str:
    """Of the key-value cache, which the source does not print: as the engines' recipes of the time set it."""
    spec = load_model(MODELS[row.model])
    if row.precision == "bf16" or (row.engine == "sglang" and spec.attention != "mla"):
        return "bf16"
    if row.model == "gpt-oss-120b":
        return "bf16" if row.chip in ("h100", "h200") else "fp8"
    return "fp8"


@functools.cache
def _deployment(model: str, chip: str, engine: str, precision: str, kv: str, tp: int, dp: int) -> Deployment:
    stored = "mxfp4" if model == "gpt-oss-120b" else PRECISIONS.get(precision, precision)
    return Deployment.of(
        MODELS[model],
        cluster_from(CLUSTERS[chip]),
        tp * dp,
        stack=STACKS[engine],
        precision=stored,
        kv=kv,
        attention_tp=tp,
    )


def deployment_of(row: EngineRow) -> Deployment:
    """The deployment of a row."""
    return _deployment(row.model, row.chip, row.engine, row.precision, cache_format(row), row.tp, row.dp)


def predict_ms(row: EngineRow) -> float:
    """TPOT in milliseconds of the closed loop in its steady state.

    A step decodes the running batch; while a request's tokens come, the prompts of all others are prefilled once each.
    """
    d = deployment_of(row)
    running = max(row.concurrency / row.dp, 1.0)
    step_s = decode_step(d, running, row.prompt + row.output / 2).total_s
    prefill_s = prefill(d, row.prompt, 0, 1).total_s
    return 1e3 * (step_s + (running - 1.0) * prefill_s / row.output)


# ------------------------------------------------------------------ errors, groups, intervals


def summary() -> dict[str, Any]:
    """Errors of every supported row by use, by model, chip, engine and by group; coverage of the left-out intervals."""
    compared = [(row, predict_ms(row) / row.tpot_ms) for row in load() if use_of(row)[0] != "unsupported"]
    reasons = Counter(reason for row in load() if (reason := use_of(row)[1]))
    return {
        "rows": len(compared),
        "unsupported": dict(reasons),
        "all": _errors(ratio for _, ratio in compared),
        "by_use": {use: _errors(q for r, q in compared if use_of(r)[0] == use) for use in ("calibration", "holdout")},
        **{
            f"by_{key}": {
                name: _errors(q for r, q in compared if getattr(r, key) == name)
                for name in sorted({getattr(r, key) for r, _ in compared})
            }
            for key in ("model", "chip", "engine", "kind")
        },
        "groups": [
            {"group": " · ".join(group), **_errors(q for r, q in compared if r.group == group)}
            for group in sorted({r.group for r, _ in compared})
        ],
        "coverage": coverage(compared),
    }


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
    """Quantiles of the values of several groups, each group with the same weight; (1, 1) of nothing."""
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

    head = f"  {'':<52} {'rows':>5} {'mean':>7} {'median':>7} {'bias':>7}"
    lines = ["TPOT of inference engines, predicted against measured (data/serving/engines.csv.gz)", head]
    lines += [line("all", result["all"]), *(line(use, e) for use, e in result["by_use"].items())]
    for key in ("chip", "engine", "model", "kind"):
        lines += ["", f"by {key}", *(line(name, e) for name, e in result[f"by_{key}"].items())]
    worst = sorted((g for g in result["groups"] if g["rows"] >= LEAST_GROUP), key=lambda g: -g["mean"])[:8]
    lines += ["", "worst groups", *(line(g["group"], g) for g in worst), ""]
    lines.append("intervals from the other groups of a kind: rows inside the 50% and the 80% interval, high / low")
    for kind, c in result["coverage"].items():
        lines.append(
            f"  {kind:<52} {c['rows']:>5} {c['within_50']:>7.0%} {c['within_80']:>7.0%} {c['high_over_low_80']:>7.2f}"
        )
    lines += ["", "not compared", *(f"  {n:>5}  {why}" for why, n in result["unsupported"].items())]
    return "\n".join(lines)
