"""Measured inference engines against the model: rows of closed loops on seven chips, and what is predicted of each.

Rows of `data/serving/engines.csv.gz` (ai-dynamo/aiconfigurator 095f58a51, Apache-2.0): a closed loop of `concurrency`
requests on one deployment. Groups of one (model, chip, engine) are calibration (H200: the engines' constants in
`data/serving/stacks.yaml` come from them), holdout, or unsupported with a reason; `sim.validation.engine_summary`
compares.

    >>> rows = load()
    >>> len(rows), use_of(rows[0])[0] in ("calibration", "holdout", "unsupported")
    (1931, True)
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
from collections import defaultdict

from minglm import datafiles
from sim.serving.deployment import Deployment
from sim.serving.first_token import together_s, unqueued_s
from sim.serving.memory import chip_memory
from sim.serving.step_time import added_s, decode_step, prefill
from sim.spec.hardware import cluster_from
from sim.validation.engine_recipes import (
    cache_format,
    completed,
    drafted,
    pass_tokens,
    poll_steps,
    waited_steps,
    weights_format,
)
from sim.validation.engine_row import MODELS, NODE, EngineRow, Layout

CLUSTERS = {
    "h100": "dgx_h100",
    "h200": "dgx_h200",
    "b200": "dgx_b200",
    "b300": "dgx_b300",
    "gb200": "gb200_nvl72",
    "gb300": "gb300_nvl72",
}
STACKS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
# shares of another run's time that no run without drafts goes below: with as few requests, and at the very same point
FEWER_REQUESTS, ANOTHER_RUN = 0.75, 0.9
LONGEST_QUEUE_MS = 3000.0  # a first token after seconds is a queue before a full cache: no kernel is measured by it
PRECISE = 1e-3  # share of the requests in flight to which those that decode are found
SHORTEST_OUTPUT = 400  # with fewer tokens out, how many requests ran at once is not known from the concurrency
WAVES = 10  # InferenceMAX sends ten times as many requests as run at once, the first of them together
IDLE_PREFILL = 0.25  # share of the time in which prompts are read, up to which a prompt seldom waits for another


@functools.cache
def load() -> tuple[EngineRow, ...]:
    """The rows of the shipped table, each once (the source dumps some runs again and again)."""
    text = gzip.decompress(datafiles.data("serving", "engines.csv.gz").read_bytes()).decode("utf-8")
    rows = (
        EngineRow(
            model=r["model"],
            chip=r["chip"],
            engine=r["engine"],
            version=r["version"],
            precision=r["precision"],
            mode=r["mode"],
            prompt=int(r["prompt"]),
            output=int(r["output"]),
            concurrency=int(r["concurrency"]),
            in_flight=int(r["in_flight"] or 0),
            tp=int(r["tp"]),
            dp=int(r["dp"]),
            ep=int(r["ep"]),
            ttft_ms=float(r["ttft_ms"] or "nan"),
            tpot_ms=float(r["tpot_ms"]),
            harness=r["harness"],
            date=r["date"],
        )
        for r in csv.DictReader(io.StringIO(text))
    )
    return tuple(dict.fromkeys(completed(row) for row in rows))


@functools.cache
def _contradicted() -> frozenset[EngineRow]:
    """Rows at least a quarter faster than the same chips, cut alike, with no more requests: unprinted drafts.

    Spreading experts whole instead of sliced over the same chips is no other cut here: it cannot save a quarter. Of two
    runs of one day and image at the same point, a tenth apart, the faster had drafts too.
    """
    alike: dict[tuple[object, ...], list[EngineRow]] = defaultdict(list)
    for r in load():
        shape = MODELS.get(r.model, r.model)
        alike[shape, r.chip, r.engine, r.precision, r.mode, r.layout, r.prompt, r.output].append(r)
    return frozenset(r for some in alike.values() for r in some if any(_drafts_beside(r, o) for o in some))


def _drafts_beside(row: EngineRow, other: EngineRow) -> bool:
    """Whether `row` must have had drafts, beside another of the same deployment."""
    twice = (row.date, row.version, row.concurrency, row.ep) == (other.date, other.version, other.concurrency, other.ep)
    most = ANOTHER_RUN if twice and row.version else FEWER_REQUESTS
    return other.concurrency <= row.concurrency and most * other.tpot_ms > row.tpot_ms


@functools.cache
def _repeated() -> frozenset[EngineRow]:
    """Rows whose latencies stand in the source before: under another name of the shape, or under other widths."""
    seen: set[tuple[object, ...]] = set()
    again: set[EngineRow] = set()
    for r in load():
        latencies = tuple(f"{ms:.3g}" for ms in (r.ttft_ms, r.tpot_ms))
        deployed = (MODELS.get(r.model, r.model), r.chip, r.engine, r.precision, r.mode, r.layout.chips)
        one = (*deployed, r.prompt, r.output, r.in_flight or r.concurrency, *latencies)
        if one in seen:
            again.add(r)
        seen.add(one)
    return frozenset(again)


@functools.cache
def use_of(row: EngineRow) -> tuple[str, str]:
    """(use, reason) of a row: calibration, holdout, or unsupported and why."""
    reason = _unsupported(row)
    return ("unsupported", reason) if reason else ("calibration" if row.chip in ("h200",) else "holdout", "")


def _unsupported(row: EngineRow) -> str:
    """Why a row is not compared; '' for one that is."""
    if row.model not in MODELS:
        return "linear attention is not modelled"
    if row.mode == "agg" and row.layout.chips > NODE:
        return "more chips than a machine has: the source multiplies its widths"
    if row.mode == "agg" and row.ttft_ms > LONGEST_QUEUE_MS:
        return "seconds to the first token: a queue before a full cache"
    if row.output < SHORTEST_OUTPUT:
        return "short outputs: the running batch is not known"
    if row.mode == "disagg" and not row.in_flight:
        return "the requests in flight are not printed, so that the batch may be what was planned"
    if row.mode == "agg" and row.harness == "aiconfigurator" and row.in_flight not in (0, row.concurrency):
        return "the batch and the requests in flight that are printed contradict each other"
    if drafted(row):
        return "drafts by the recipe of the run, which are not printed"
    if row in _repeated():
        return "the same run under another name or with multiplied widths"
    if row in _contradicted():
        return "faster than the same deployment with fewer requests: drafts that are not printed"
    memory = chip_memory(deployment_of(row))
    return "weights larger than the chips that are printed" if memory.weights_bytes > memory.capacity_bytes else ""


@functools.cache
def _deployment(
    model: str, chip: str, engine: str, stored: str, kv: str, layout: Layout, whole_experts: bool
) -> Deployment:
    return Deployment.of(
        MODELS[model],
        cluster_from(CLUSTERS[chip]),
        layout.chips,
        stack=STACKS[engine],
        precision=stored,
        kv=kv,
        attention_tp=layout.chips // layout.groups,
        whole_experts=whole_experts,
    )


def deployment_of(row: EngineRow) -> Deployment:
    """The deployment of a row."""
    return _deployment(
        row.model,
        row.chip,
        row.engine,
        weights_format(row),
        cache_format(row),
        row.layout,
        row.ep > 1 and row.spec.experts > 0,
    )


def _step_s(row: EngineRow) -> float:
    return decode_step(deployment_of(row), decoding(row), row.mean_prompt + row.mean_output / 2).total_s


@functools.cache
def decoding(row: EngineRow) -> float:
    """Requests of an attention group that decode at once.

    Where other chips prefill, those in flight that still wait for their first token do not (Little's law): of each
    request's time, TTFT as measured and its steps as predicted.
    """
    if row.mode == "agg" or math.isnan(row.ttft_ms):
        return row.running
    d, context = deployment_of(row), row.mean_prompt + row.mean_output / 2
    few, many = 0.0, row.running
    while many - few > PRECISE * row.running:
        requests = (few + many) / 2
        decode_s = row.mean_output * decode_step(d, max(requests, 1.0), context).total_s
        if requests * (row.ttft_ms / 1e3 + decode_s) > row.running * decode_s:
            many = requests
        else:
            few = requests
    return max((few + many) / 2, 1.0)


def predict_ms(row: EngineRow) -> float:
    """TPOT in milliseconds of the closed loop in its steady state.

    A step decodes the running batch; while a request's tokens come, the prompts of all others are prefilled once each,
    unless other chips do that.
    """
    step_s = _step_s(row)
    prompt_s = added_s(prefill(deployment_of(row), row.mean_prompt, 0, 1), step_s) if row.mode == "agg" else 0.0
    return 1e3 * (step_s + (row.running - 1.0) * prompt_s / row.mean_output)


def first_token_compared(row: EngineRow) -> bool:
    """Whether a row's TTFT is a prompt's own time: one harness, prompts that seldom wait for each other.

    TensorRT-LLM's recipes with attention DP let a prompt wait for those of other groups (up to 60 steps): not compared.
    """
    if use_of(row)[0] == "unsupported" or row.mode != "agg" or row.harness != "inferencemax" or math.isnan(row.ttft_ms):
        return False
    if row.engine == "trtllm" and row.layout.groups > 1:
        return False
    busy_s = (row.running - 1.0) * prefill(deployment_of(row), row.mean_prompt, 0, 1).total_s
    return busy_s <= IDLE_PREFILL * row.mean_output * _step_s(row)


def predict_ttft_ms(row: EngineRow) -> float:
    """TTFT in milliseconds: that of a prompt that waits for no other (`sim.serving.first_token`), and the first wave.

    All requests in flight arrive together once in `WAVES`: then a prompt waits for those before it, and for those of
    its own pass.
    """
    d, requests, step_s = deployment_of(row), max(1, round(row.running)), _step_s(row)
    d = d.with_changes(stack=d.stack.with_changes("published", "recipe of the row", poll_steps=poll_steps(row)))
    alone_s = unqueued_s(d, row.mean_prompt, step_s) + waited_steps(row) * (1.0 - 1.0 / WAVES) * step_s
    wave_s = together_s(d, row.mean_prompt, requests, pass_tokens(row))
    return 1e3 * (alone_s + (wave_s - prefill(d, row.mean_prompt, 0, 1).total_s) / WAVES)
