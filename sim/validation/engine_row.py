"""One row of measured engines: a closed loop of requests on a deployment, as the source prints it and as it was run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sim.serving.error import kind_of
from sim.spec.model import ModelSpec
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
NODE = 8  # chips of a machine
MEAN_LENGTH = 0.9  # InferenceMAX draws 0.8 to all of the nominal tokens (RANDOM_RANGE_RATIO in its README)


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
    date: str = ""

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

        A machine of 8 with TP8 and EP8 stands in the source as 64 wide (of 4 as 16, two chips as 4), as does one of
        attention DP: no recipe spreads experts over fewer chips than attention.
        Widths of disaggregated decoding stand as they are: batch × dp × instances are the requests in flight.
        """
        width, root = self.tp * self.dp, math.isqrt(self.tp * self.dp)
        if self.mode == "disagg":
            return Layout(width, self.dp)
        multiplied = root * root == width > 1 and self.ep == root
        if width <= NODE and not multiplied and not (self.ep == width * width and self.dp > 1):
            return Layout(width, self.dp)
        if multiplied or (root * root == width and self.ep == width):
            return Layout(root, root if self.dp > 1 else 1)
        return Layout(width, self.dp)


class Layout(NamedTuple):
    """Chips of a deployment and the attention groups that they form."""

    chips: int
    groups: int
