"""Published serving figures: the rows, their prediction, and the one scalar that a (chip, stack) may have from them.

A row's `use` is `calibration` (it sets the scalar of its chip and stack), `holdout` (it is predicted) or `unsupported`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.base.row_kinds import row_kind
from sim.serving.deployment import Deployment
from sim.serving.memory import chip_memory
from sim.serving.simulate import Fleet, simulate
from sim.serving.stacks import load_stack
from sim.serving.step_time import EngineStepTime, decode_step, largest_batch, prefill, tpot
from sim.serving.workload import ServingWorkload
from sim.spec.hardware import Chip, cluster_from

Row = Mapping[str, Any]
Prediction = tuple[float, dict[str, float]]  # figure in the unit of the row's `measured`, and details
# What a row is a figure of: decoding alone, prefill alone, both with queues between, or something else.
GROUPS = {
    "decode": ("decode", "decode_limit", "stream"),
    "prefill": ("prefill",),
    "end to end": ("closed", "mixed"),
    "other": ("gain", "arithmetic"),
}


@functools.lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """The rows of `data/serving/published.yaml`, checked."""
    document: Any = read_document(datafiles.data("serving", "published.yaml"))
    published = tuple(document["rows"])
    check_rows(published)
    return published


def check_rows(published: Iterable[Row]) -> None:
    """At most one calibration row per (chip, stack), on at most a third of that chip's countable rows.

    Raises:
        InputError: a row without source, or too much fitting.
    """
    uses_by_chip: dict[str, list[str]] = {}
    calibrated: set[tuple[str, str]] = set()
    for row in published:
        if not row.get("source"):
            raise InputError(f"serving row {row.get('id')!r}: has no source; say where the figure is printed")
        row_kind(row.get("use"), f"serving row {row['id']!r}: use")
        if row["use"] == "unsupported":
            continue
        uses_by_chip.setdefault(row["chip"], []).append(row["use"])
        if row["use"] == "calibration":
            chip, stack = row["chip"], row["deployment"]["stack"]
            if (chip, stack) in calibrated:
                raise InputError(
                    f"serving row {row['id']!r}: a second calibration row for {chip} with {stack}; "
                    "one scalar has one row"
                )
            calibrated.add((chip, stack))
    for chip, uses in uses_by_chip.items():
        if uses.count("calibration") > len(uses) / 3:
            raise InputError(
                f"serving rows of {chip}: {uses.count('calibration')} of {len(uses)} are fitted; at most a third may be"
            )


def chip_of(row: Row) -> Chip:
    """The chip of a row's deployment."""
    return cluster_from(row["deployment"]["cluster"]).chip


@functools.lru_cache(maxsize=64)
def fitted_scale(chip: str, stack: str) -> tuple[float, str] | None:
    """(time factor, row id) fitted for this chip and stack, or None: by a bracket, for a limit moves the batch too.

    Args:
        chip: its file in data/chips (`Chip.file`).
    """
    for row in rows():
        if row["use"] == "calibration" and row["deployment"]["stack"] == stack and chip == chip_of(row).file:
            sign = 1.0 if row["kind"] == "stream" else -1.0  # milliseconds grow with the factor, tokens/s fall

            def too_large(log_scale: float, row: Row = row, sign: float = sign) -> float:
                share = predict(row, scale=math.exp(log_scale))[0] / row["measured"]  # 0 where nothing meets the limit
                return sign * math.log(max(share, 1e-9))

            return math.exp(_crossing(too_large, math.log(0.2), math.log(5.0))), row["id"]
    return None


def _crossing(f: Callable[[float], float], low: float, high: float, within: float = 1e-13) -> float:
    """Where f, rising from low to high, crosses zero, jumps or not: ITP (Oliveira and Takahashi, ACM TOMS 47, 2020),
    which takes one step more than halving at most, and where f is smooth a fifth of them."""
    at_low, at_high = f(low), f(high)
    if at_low >= 0.0 or at_high <= 0.0:
        return low if at_low >= 0.0 else high
    slack, pull = within * 2.0 ** (math.ceil(math.log2((high - low) / (2.0 * within))) + 1), 0.2 / (high - low)
    while high - low > 2.0 * within:
        middle, span = (low + high) / 2, high - low
        straight = (at_high * low - at_low * high) / (at_high - at_low)  # the chord's own zero
        towards = math.copysign(1.0, middle - straight)
        step = pull * span * span
        x = straight + towards * step if step <= abs(middle - straight) else middle
        room = slack - span / 2
        if abs(x - middle) > room:
            x = middle - towards * room
        y = f(x)
        if y > 0.0:
            high, at_high = x, y
        elif y < 0.0:
            low, at_low = x, y
        else:
            return x
        slack /= 2
    return (low + high) / 2


def fitted(d: Deployment) -> Deployment:
    """The deployment with the scalar of its chip and stack, where one is fitted."""
    scalar = fitted_scale(d.cluster.chip.file, d.stack.name)
    if not scalar or "scale" in dict(d.stack.constants):
        return d
    scale, row_id = scalar
    return d.with_changes(
        stack=d.stack.with_changes("fitted", f"on {row_id} of data/serving/published.yaml", scale=scale)
    )


@functools.lru_cache(maxsize=1)
def error_band() -> tuple[float, float]:
    """(lowest, highest) true time over modelled time among the holdout decode rows: the band around a prediction."""
    ratios = []
    for row in rows():
        if row["use"] == "holdout" and row["kind"] in GROUPS["decode"]:
            ratio = predict(row)[0] / row["measured"]
            ratios.append(1.0 / ratio if row["kind"] == "stream" else ratio)
    return min(1.0, *ratios), max(1.0, *ratios)


def predict(row: Row, scale: float | None = None) -> Prediction:
    """(figure in the unit of `measured`, details). `scale` overrides the fitted scalar.

    Raises:
        InputError: a kind that is not known.
    """
    kind = row["kind"]
    if kind == "arithmetic":
        return _margin(row["money"]), {}
    if kind not in _PREDICTIONS:
        raise InputError(f"serving row {row['id']!r}: kind {kind!r} is not known")
    if scale is None:
        scalar = fitted_scale(chip_of(row).file, row["deployment"]["stack"])
        scale = scalar[0] if scalar else 1.0
    return _PREDICTIONS[kind](row, _deployment(row["deployment"], row.get("stack"), scale), row.get("per", 1))


def _deployment(values: Row, stack: Mapping[str, float] | None = None, scale: float | None = None) -> Deployment:
    fields = dict(values)
    base = load_stack(fields.pop("stack"))
    if stack:
        base = base.with_changes("published", "condition of the row", **stack)
    if scale is not None:
        base = base.with_changes("fitted", "data/serving/published.yaml", scale=scale)
    return Deployment.of(fields.pop("model"), fields.pop("cluster"), fields.pop("chips"), stack=base, **fields)


# ------------------------------------------------------------------ one function for each kind of row
# d: the row's deployment; per: chips in the unit of `measured`.


def _decode(row: Row, d: Deployment, per: int) -> Prediction:
    """Output tokens/s at a batch."""
    step = decode_step(d, row["batch"] / per * d.attention_tp, row["context"])
    return step.tokens_per_s / d.chips * per, {"tpot_ms": _tpot_ms(step, d)}


def _decode_limit(row: Row, d: Deployment, per: int) -> Prediction:
    """Output tokens/s at the largest batch within a TPOT."""
    batch = largest_batch(d, row["context"], row["tpot_ms"] / 1e3)
    if not batch:
        return 0.0, {"batch": 0}
    step = decode_step(d, batch, row["context"])
    return step.tokens_per_s / d.chips * per, {"batch": batch, "tpot_ms": _tpot_ms(step, d)}


def _prefill(row: Row, d: Deployment, per: int) -> Prediction:
    """Input tokens/s, cached ones included."""
    cached = row.get("cached", 0)
    step = prefill(d, row["prompt"], cached, row["prompts"])
    return step.tokens_per_s * row["prompt"] / (row["prompt"] - cached) / d.chips * per, {}


def _stream(row: Row, d: Deployment, per: int) -> Prediction:
    """Milliseconds per output token of one request."""
    return 1e3 * tpot(d, 1, row["context"]), {}


def _gain(row: Row, d: Deployment, per: int) -> Prediction:
    """How many times faster than another configuration."""
    fields = dict(row["against"])
    constants = fields.pop("stack", {})
    against = d.with_changes(stack=d.stack.with_changes(**constants), **fields)
    requests = row["batch"] / per * d.attention_tp
    return tpot(against, requests, row["context"]) / tpot(d, requests, row["context"]), {}


def _closed(row: Row, d: Deployment, per: int) -> Prediction:
    """Tokens/s of a simulated closed loop."""
    concurrency = row["concurrency"]
    work = ServingWorkload(
        concurrency=concurrency, requests=max(60, 5 * concurrency), prompt=row["prompt"], output=row["output"]
    )
    result = simulate(Fleet(decode=d, max_batch=4 * concurrency), work, seed=0)
    rate = result.output_tokens_per_s + (result.input_tokens_per_s if row["count"] == "total" else 0.0)
    return rate / d.chips * per, {"tpot_ms": 1e3 * result.tpot_s["mean"]}


def _mixed(row: Row, d: Deployment, per: int) -> Prediction:
    """Output tokens/s when prompts and outputs of one workload share units, by a fixed split or as the load asks."""
    p = _deployment(row["prefill"], None, d.stack["scale"])
    context = row["prompt"] + row["output"] / 2
    batch = largest_batch(d, context, row["tpot_ms"] / 1e3)
    if not batch:
        return 0.0, {"batch": 0, "contexts_that_fit": chip_memory(d).requests(context)}
    decode = decode_step(d, batch, context).tokens_per_s / d.chips * per
    prompts = max(1, round(16384 / row["prompt"]))
    if row.get("ttft_ms"):  # wait for half a batch on average, then one's own
        while prompts > 1 and 2.0 * prefill(p, row["prompt"], 0, prompts).total_s > row["ttft_ms"] / 1e3:
            prompts -= 1
    fill = prefill(p, row["prompt"], 0, prompts).tokens_per_s / p.chips * per * row["output"] / row["prompt"]
    details = {"batch": batch, "decode_per_unit": decode, "prefill_prompts": prompts, "prefill_per_unit": fill}
    if row.get("split"):
        a, b = row["split"]
        return min(a * fill, b * decode) / (a + b), details
    return 1.0 / (1.0 / decode + 1.0 / fill), details


_PREDICTIONS: dict[str, Callable[[Row, Deployment, int], Prediction]] = {
    "decode": _decode,
    "decode_limit": _decode_limit,
    "prefill": _prefill,
    "stream": _stream,
    "gain": _gain,
    "mixed": _mixed,
    "closed": _closed,
}


def _tpot_ms(step: EngineStepTime, d: Deployment) -> float:
    return 1e3 * step.total_s / d.tokens_per_step


def _margin(money: Mapping[str, float]) -> float:
    """Profit over cost of a day's tokens."""
    hit = money["input_tokens"] * money["hit_share"]
    revenue = (
        hit * money["hit_price"]
        + (money["input_tokens"] - hit) * money["miss_price"]
        + money["output_tokens"] * money["output_price"]
    ) / 1e6
    return revenue / (money["nodes"] * money["gpus_per_node"] * 24 * money["rent"]) - 1.0
