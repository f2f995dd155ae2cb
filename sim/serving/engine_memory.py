"""What an inference engine keeps beside weights and cache: the profiling pass, the sampler, the runtime.

vLLM takes `gpu_memory_utilization` of a chip and finds out what is left for the cache by running one pass at its limits
(`max_num_batched_tokens` prompt tokens; then `max_num_seqs` rows through the sampler). SGLang's `mem_fraction_static`
holds weights and cache alone, so its activations come from the rest. Figures of logs are in
`tests/sim/serving/test_memory_receipts.py`, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.spec.model import ModelSpec

GIB, MIB = 2.0**30, 2.0**20
LARGE_CHIP_BYTES = 70 * GIB  # published: from here on vLLM's defaults for tokens and requests of a pass are larger
# measured: peak of the profiling pass over the widest layer's values (vllm issues 10517, 13061)
ACTIVATION_COPIES = 1.2
LLM_D = "vLLM on one H100, llm-d/llm-d-benchmark 25933486 and llm-d-incubation/llm-d-planner 2d557dca, 875a4fd6"


def is_large(capacity_bytes: float) -> bool:
    """Whether engines take their defaults for large chips."""
    return capacity_bytes >= LARGE_CHIP_BYTES


@dataclass(frozen=True)
class EngineMemory:
    """How one engine accounts for a chip's memory.

    share: of the chip that it takes; None: all but a reserve (`default_share`).
    activations_inside: whether the profiling pass comes out of that share.
    sampler_bytes: of the sampler's peak per logit (logits in fp32, sorted values and indices, probabilities).
    runtime_bytes: of libraries and of the buffers of collectives, by (large chip, several chips that work together).
    expert_workspace: whether the expert kernels keep their rows of a pass beside everything else.
    """

    share: float | None
    activations_inside: bool
    sampler_bytes: float
    max_num_seqs: tuple[int, int]  # on a small chip, on a large chip
    max_num_batched_tokens: tuple[int, int]
    runtime_bytes: Mapping[tuple[bool, bool], float]
    chunked_prefill: bool = True
    expert_workspace: bool = False
    source: str = ""

    def default_share(self, capacity_bytes: float, tp: int) -> float:
        """Share of a chip that the engine takes when nothing is said.

        SGLang leaves a reserve for one chunk of prefill, its graphs and the buffers of tensor parallelism.
        """
        if self.share is not None:
            return self.share
        tokens = self.max_num_batched_tokens[is_large(capacity_bytes)]
        reserve = 1.5 * MIB * tokens + 512 * MIB + GIB * tp / 8  # published: SGLang's server_args, 2025
        return max(0.5, 1.0 - reserve / capacity_bytes)


def _runtime(alone: float, together: float) -> dict[tuple[bool, bool], float]:
    """Bytes from GiB on a large chip; small cards without NVLink hold 0.20-0.25 GiB (vllm issue 13061, pull 14447)."""
    return {
        (True, True): together * GIB,
        (True, False): alone * GIB,
        (False, True): 0.25 * GIB,
        (False, False): 0.2 * GIB,
    }


ENGINES = {
    "vllm": EngineMemory(
        0.9,
        True,
        30.0,
        (256, 1024),
        (2048, 8192),
        _runtime(1.2, 2.6),
        expert_workspace=True,
        source="where nobody says which release runs: between the two below, on the side of less room",
    ),
    "vllm-2026": EngineMemory(
        0.9,
        True,
        15.3,
        (256, 1024),
        (2048, 8192),
        _runtime(0.25, 2.1),
        expert_workspace=True,
        source="0.17 on: 1.89, 2.21, 2.87 and 3.6 GiB for 1,024 rows of 128,256, 151,936, 201,088 and 256,000 logits; "
        + LLM_D,
    ),
    "vllm-2025": EngineMemory(
        0.9,
        True,
        38.5,
        (256, 1024),
        (2048, 8192),
        # 0.55 GiB with two chips in 0.15, where what NCCL took before was not counted; about 2 before (issue 21348)
        _runtime(0.13, 2.0),
        source="V1 to 0.16: 4.76, 5.6 and 7.38 GiB for 1,024 rows of 128,256, 151,936 and 201,088 logits; " + LLM_D,
    ),
    "vllm-v0": EngineMemory(
        0.9,
        True,
        41.0,
        (256, 256),
        (2048, 2048),
        # "non_torch_memory" of its logs, the CUDA context with it: 1.79 and 3.58 GiB (pull 10511)
        _runtime(1.7, 3.3),
        False,
        source="vLLM V0 (2024): no chunked prefill up to 32,768 tokens of context, 512 a pass beyond; pull 10511, "
        "issue 8185",
    ),
    "sglang": EngineMemory(
        None,
        False,
        30.0,
        (256, 1024),
        (2048, 8192),
        _runtime(0.25, 2.1),
        source="SGLang's mem_fraction_static: weights and cache alone; issue 21348 of vLLM compares both",
    ),
}
# releases of vLLM by minor version: (from, how they count)
VLLM_RELEASES = ((17, "vllm-2026"), (8, "vllm-2025"), (0, "vllm-v0"))
LONG_CONTEXT_V0 = 32_768  # published: V0 switched to chunks of 512 beyond this context


def pass_tokens(engine: EngineMemory, large: bool, given: int | None, max_model_len: int) -> int:
    """Tokens of the profiling pass: as given, else the engine's default for a context of `max_model_len`."""
    if given:
        return given
    default = engine.max_num_batched_tokens[large]
    if engine.chunked_prefill:
        return default
    return max(default, max_model_len) if max_model_len <= LONG_CONTEXT_V0 else 512


def forward_values(model: ModelSpec, tp: int, expert_ways: int, experts: bool = True) -> float:
    """Values that a token holds in the widest layer of a pass: residual, input, and the feed-forward between."""
    widest = 3.0 * model.ffn / tp if model.dense_ffn_layers else 0.0
    if model.experts and experts:
        widest = max(widest, model.experts_per_token * (3.0 * model.moe_ffn / expert_ways + model.hidden))
    attention = 2.0 * model.heads * max(model.qk_dim, model.value_dim) / tp
    return 2.0 * model.hidden + max(widest, attention)


def profile_bytes(engine: EngineMemory, model: ModelSpec, tokens: int, seqs: int, tp: int, expert_ways: int) -> float:
    """Peak of the profiling pass: the larger of the forward pass over `tokens` and of sampling `seqs` rows of logits.

    The sampler sees the whole vocabulary on every chip, so tensor parallelism does not make it smaller.
    """
    values = forward_values(model, tp, expert_ways, not engine.expert_workspace)
    forward = ACTIVATION_COPIES * 2.0 * tokens * values
    return max(forward, engine.sampler_bytes * min(seqs, tokens) * model.vocab)


def workspace_bytes(engine: EngineMemory, model: ModelSpec, tokens: int, expert_ways: int) -> float:
    """Rows that the expert kernels keep for a pass: each token's copies, as wide as the model and as gate and up.

    0.44 GiB for Qwen3-30B-A3B and DeepSeek-V2-Lite, by which their peaks exceed a sampler's (0.47 and 0.44).
    """
    if not engine.expert_workspace or not model.experts:
        return 0.0
    return 2.0 * tokens * model.experts_per_token * (model.hidden + 2.0 * model.moe_ffn / expert_ways)
