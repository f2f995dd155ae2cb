"""Published serving figures: the rows, their prediction, and the one scalar that a (chip, stack) may have from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from minglm import datafiles
from minglm.errors import InputError
from sim.base.documents import read_document
from sim.base.row_kinds import row_kind
from sim.serving.deployment import Deployment, memory
from sim.serving.stacks import load_stack
from sim.serving.step_time import decode_step, largest_batch, prefill, tpot

# What a row is a figure of: decoding alone, prefill alone, both with queues between, or something else.
GROUPS = {
    "decode": ("decode", "decode_limit", "stream"),
    "prefill": ("prefill",),
    "end to end": ("closed", "mixed"),
    "other": ("gain", "arithmetic"),
}


@functools.lru_cache(maxsize=1)
def rows() -> tuple[Mapping, ...]:
    """The rows of `data/serving/published.yaml`, checked."""
    found = tuple(read_document(datafiles.data("serving", "published.yaml"))["rows"])
    check_rows(found)
    return found


def check_rows(found) -> None:
    """At most one calibration row per (chip, stack), on at most a third of that chip's countable rows.

    Raises:
        InputError: a row without source, or too much fitting.
    """
    chips: dict[str, list[str]] = {}
    fitted: set[tuple[str, str]] = set()
    for row in found:
        if not row.get("source"):
            raise InputError(f"serving row {row.get('id')!r}: has no source; say where the figure is printed")
        row_kind(row.get("use"), f"serving row {row['id']!r}: use")
        if row["use"] == "unsupported":
            continue
        chips.setdefault(row["chip"], []).append(row["use"])
        if row["use"] == "calibration":
            key = (row["chip"], row["deployment"]["stack"])
            if key in fitted:
                raise InputError(
                    f"serving row {row['id']!r}: a second calibration row for {key[0]} with {key[1]}; one scalar has one row"
                )
            fitted.add(key)
    for chip, uses in chips.items():
        if uses.count("calibration") > len(uses) / 3:
            raise InputError(
                f"serving rows of {chip}: {uses.count('calibration')} of {len(uses)} are fitted; at most a third may be"
            )


def _deployment(values: Mapping, stack: Mapping | None = None, scale: float | None = None) -> Deployment:
    values = dict(values)
    base = load_stack(values.pop("stack"))
    if stack:
        base = base.changed("published", "condition of the row", **stack)
    if scale is not None:
        base = base.changed("fitted", "data/serving/published.yaml", scale=scale)
    return Deployment.of(values.pop("model"), values.pop("cluster"), values.pop("chips"), stack=base, **values)


@functools.lru_cache(maxsize=64)
def fitted_scale(chip: str, stack: str) -> tuple[float, str] | None:
    """(time factor, row id) fitted for this chip and stack, or None: found by bisection, for a limit moves the batch too.

    `chip` is a name as in the rows or of a die or bin of it ('910C-die' is a 910C).
    """
    for row in rows():
        if row["use"] == "calibration" and row["deployment"]["stack"] == stack and chip.upper().startswith(row["chip"]):
            low, high = 0.2, 5.0
            for _ in range(50):
                middle = math.sqrt(low * high)
                slow = predict(row, scale=middle)[0] < row["measured"]
                if slow != (row["kind"] == "stream"):  # too few tokens/s: the factor is too large; ms the other way
                    high = middle
                else:
                    low = middle
            return math.sqrt(low * high), row["id"]
    return None


def fitted(d: Deployment) -> Deployment:
    """The deployment with the scalar of its chip and stack, where one is fitted."""
    found = fitted_scale(d.cluster.chip.name, d.stack.name)
    if not found or "scale" in dict(d.stack.constants):
        return d
    return d.with_(stack=d.stack.changed("fitted", f"on {found[1]} of data/serving/published.yaml", scale=found[0]))


def predict(row: Mapping, scale: float | None = None) -> tuple[float, dict]:
    """(figure in the unit of `measured`, details). `scale` overrides the fitted scalar."""
    kind = row["kind"]
    if kind == "arithmetic":
        return _margin(row["money"]), {}
    if scale is None:
        found = fitted_scale(row["chip"], row["deployment"]["stack"])
        scale = found[0] if found else 1.0
    d, per = _deployment(row["deployment"], row.get("stack"), scale), row.get("per", 1)
    if kind == "decode":
        requests = row["batch"] / per * d.attention_tp
        step = decode_step(d, requests, row["context"])
        return step.tokens_per_s / d.chips * per, {"tpot_ms": 1e3 * step.total_s / d.tokens_per_step}
    if kind == "decode_limit":
        batch = largest_batch(d, row["context"], row["tpot_ms"] / 1e3)
        if not batch:
            return 0.0, {"batch": 0}
        step = decode_step(d, batch, row["context"])
        return step.tokens_per_s / d.chips * per, {"batch": batch, "tpot_ms": 1e3 * step.total_s / d.tokens_per_step}
    if kind == "prefill":
        cached = row.get("cached", 0)
        step = prefill(d, row["prompt"], cached, row["prompts"])
        return step.tokens_per_s * row["prompt"] / (row["prompt"] - cached) / d.chips * per, {}
    if kind == "stream":
        return 1e3 * tpot(d, 1, row["context"]), {}
    if kind == "gain":
        other = dict(row["against"])
        changed = other.pop("stack", {})
        against = d.with_(stack=d.stack.changed(**changed), **other)
        requests = row["batch"] / per * d.attention_tp
        return tpot(against, requests, row["context"]) / tpot(d, requests, row["context"]), {}
    if kind == "mixed":
        return _mixed(row, d, _deployment(row["prefill"], None, scale), per)
    if kind == "closed":
        from sim.serving.simulate import Fleet, ServingWorkload, simulate

        users = row["concurrency"]
        work = ServingWorkload(
            concurrency=users, requests=max(60, 5 * users), prompt=row["prompt"], output=row["output"]
        )
        result = simulate(Fleet(decode=d, max_batch=4 * users), work, seed=0)
        rate = result.output_tokens_per_s + (result.input_tokens_per_s if row["count"] == "total" else 0.0)
        return rate / d.chips * per, {"tpot_ms": 1e3 * result.tpot_s["mean"]}
    raise InputError(f"serving row {row['id']!r}: kind {kind!r} is not known")


def _mixed(row: Mapping, d: Deployment, p: Deployment, per: int) -> tuple[float, dict]:
    """Output tokens/s per unit when prompts and outputs of one workload share units, by a fixed split or as the load asks."""
    context = row["prompt"] + row["output"] / 2
    batch = largest_batch(d, context, row["tpot_ms"] / 1e3)
    if not batch:
        return 0.0, {"batch": 0, "room": memory(d).requests(context)}
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


def _margin(money: Mapping) -> float:
    """Profit over cost of a day's tokens."""
    hit = money["input_tokens"] * money["hit_share"]
    revenue = (
        hit * money["hit_price"]
        + (money["input_tokens"] - hit) * money["miss_price"]
        + money["output_tokens"] * money["output_price"]
    ) / 1e6
    return revenue / (money["nodes"] * money["gpus_per_node"] * 24 * money["rent"]) - 1.0


@functools.lru_cache(maxsize=1)
def error_band() -> tuple[float, float]:
    """(lowest, highest) true time over modelled time among the holdout decode rows: the band around a prediction."""
    ratios = []
    for row in rows():
        if row["use"] == "holdout" and row["kind"] in GROUPS["decode"]:
            ratio = predict(row)[0] / row["measured"]
            ratios.append(1.0 / ratio if row["kind"] == "stream" else ratio)
    return min(1.0, *ratios), max(1.0, *ratios)
