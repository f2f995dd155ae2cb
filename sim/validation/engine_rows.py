"""Measured inference engines against the model: rows of closed loops on seven chips, and what is predicted of each.

Rows of `data/serving/engines.csv.gz` (ai-dynamo/aiconfigurator 095f58a51, Apache-2.0): a closed loop of `concurrency`
requests on one deployment. Groups of one (model, chip, engine) are calibration (H200: the engines' constants in
`data/serving/stacks.yaml` come from them), holdout, or unsupported with a reason; `sim.validation.engine_summary`
compares.

    >>> rows = load()
    >>> len(rows), use_of(rows[0])[0] in ("calibration", "holdout", "unsupported")
    (1920, True)
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from minglm import datafiles
from sim.serving.deployment import Deployment
from sim.serving.error import kind_of
from sim.serving.first_token import together_s, unqueued_s
from sim.serving.memory import chip_memory
from sim.serving.step_time import decode_step, prefill
from sim.spec.hardware import cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.validation.engine_recipes import cache_format, pass_tokens, poll_steps, waited_steps

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
NODE = 8  # chips of a machine
LONGEST_QUEUE_MS = 3000.0  # a first token after seconds is a queue before a full cache: no kernel is measured by it
SHORTEST_OUTPUT = 400  # with fewer tokens out, how many requests ran at once is not known from the concurrency
# InferenceMAX draws prompts and outputs from 0.8 of the nominal length to all of it (RANDOM_RANGE_RATIO in its README),
# and sends ten times as many requests as run at once, the first of them together.
MEAN_LENGTH, WAVES = 0.9, 10
IDLE_PREFILL = 0.25  # share of the time in which prompts are read, up to which a prompt seldom waits for another


@dataclass(frozen=True)
class EngineRow:
    """One measured closed loop. Lengths in tokens, latencies in milliseconds.

    concurrency: requests of one attention group, as the source counts a batch. in_flight: of the client, 0 where it is
    not printed. mode: agg, or disagg (decoding has chips of its own; the widths are theirs).
    """

    model: str
    chip: str
    engine: str
    version: str
    precision: str
    mode: str
    prompt: int
    output: int
    concurrency: int
    in_flight: int
    tp: int
    dp: int
    ep: int
    ttft_ms: float
    tpot_ms: float
    harness: str

    @property
    def group(self) -> tuple[str, str, str]:
        """(model, chip, engine): what is calibrated, held out or left out whole."""
        return self.model, self.chip, self.engine

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return load_model(MODELS[self.model])

    @property
    def kind(self) -> str:
        """Of question, for the interval: dense, or mixture of experts with grouped-query or latent attention."""
        return kind_of(self.spec)

    @property
    def mean_prompt(self) -> float:
        """Tokens, as the harness draws them."""
        return self.prompt * (MEAN_LENGTH if self.harness == "inferencemax" else 1.0)

    @property
    def mean_output(self) -> float:
        """Tokens, as the harness draws them."""
        return self.output * (MEAN_LENGTH if self.harness == "inferencemax" else 1.0)

    @property
    def running(self) -> float:
        """Requests of one attention group: `concurrency`, or its share of them where that is the client's."""
        shared = self.in_flight == self.concurrency and self.mode == "agg"
        return max(self.concurrency / (self.layout.groups if shared else 1), 1.0)

    @property
    def layout(self) -> Layout:
        """The chips, with widths undone that the source multiplied with each other.

        A machine of 8 with TP8 and EP8 stands in the source as 64 wide (and of 4 as 16), as does one of attention DP.
        """
        width, root = self.tp * self.dp, math.isqrt(self.tp * self.dp)
        if width <= NODE and not (self.ep == width * width and self.dp > 1):
            return Layout(width, self.dp)
        if root * root == width and self.ep in (root, width):
            return Layout(root, root if self.dp > 1 else 1)
        return Layout(width, self.dp)


class Layout(NamedTuple):
    """Chips of a deployment and the attention groups that they form."""

    chips: int
    groups: int


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
        )
        for r in csv.DictReader(io.StringIO(text))
    )
    return tuple(dict.fromkeys(rows))


@functools.cache
def _contradicted() -> frozenset[EngineRow]:
    """Rows at least a quarter faster than the same chips, cut alike, with no more requests: unprinted drafts.

    Spreading experts whole instead of sliced over the same chips is no other cut here: it cannot save a quarter.
    """
    alike: dict[tuple[object, ...], list[EngineRow]] = defaultdict(list)
    for r in load():
        shape = MODELS.get(r.model, r.model)
        alike[shape, r.chip, r.engine, r.precision, r.mode, r.layout, r.prompt, r.output].append(r)
    return frozenset(
        r
        for some in alike.values()
        for r in some
        if any(o.concurrency <= r.concurrency and 0.75 * o.tpot_ms > r.tpot_ms for o in some)
    )


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
    if row in _repeated():
        return "the same run under another name or with multiplied widths"
    if row in _contradicted():
        return "faster than the same deployment with fewer requests: drafts that are not printed"
    memory = chip_memory(deployment_of(row))
    return "weights larger than the chips that are printed" if memory.weights_bytes > memory.capacity_bytes else ""


@functools.cache
def _deployment(model: str, chip: str, engine: str, precision: str, kv: str, layout: Layout) -> Deployment:
    stored = "mxfp4" if model == "gpt-oss-120b" else PRECISIONS.get(precision, precision)
    return Deployment.of(
        MODELS[model],
        cluster_from(CLUSTERS[chip]),
        layout.chips,
        stack=STACKS[engine],
        precision=stored,
        kv=kv,
        attention_tp=layout.chips // layout.groups,
    )


def deployment_of(row: EngineRow) -> Deployment:
    """The deployment of a row."""
    return _deployment(row.model, row.chip, row.engine, row.precision, cache_format(row), row.layout)


def _step_s(row: EngineRow) -> float:
    return decode_step(deployment_of(row), row.running, row.mean_prompt + row.mean_output / 2).total_s


def predict_ms(row: EngineRow) -> float:
    """TPOT in milliseconds of the closed loop in its steady state.

    A step decodes the running batch; while a request's tokens come, the prompts of all others are prefilled once each,
    unless other chips do that.
    """
    prefill_s = prefill(deployment_of(row), row.mean_prompt, 0, 1).total_s if row.mode == "agg" else 0.0
    return 1e3 * (_step_s(row) + (row.running - 1.0) * prefill_s / row.mean_output)


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
