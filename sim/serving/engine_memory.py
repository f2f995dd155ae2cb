"""What an inference engine keeps beside weights and cache: the profiling pass, the sampler, the runtime.

vLLM takes `gpu_memory_utilization` of a chip and finds out what is left for the cache by running one pass at its limits
(`max_num_batched_tokens` prompt tokens; then `max_num_seqs` rows through the sampler). SGLang's `mem_fraction_static`
holds weights and cache alone, so its activations come from the rest. Figures of logs are in
`tests/sim/serving/test_memory_receipts.py`, each with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.spec.model import ModelSpec

GIB, MIB = 2.0**30, 2.0**20
LARGE_CHIP_BYTES = 70 * GIB  # published: from here on vLLM's defaults for tokens and requests of a pass are larger
# measured: peak of the profiling pass over the widest layer's values (vllm issues 10517, 13061)
ACTIVATION_COPIES = 1.2
# measured: CUDA context, libraries, and the buffers of collectives, from vLLM's own "non_torch_memory" lines
RUNTIME_BYTES = {  # (large chip, several chips)
    (True, True): 3.3 * GIB,  # 3.58 in vllm pull 10511; 2.6-3.6 follow from issues 6746 and 21348
    (True, False): 1.7 * GIB,  # 1.79 in vllm pull 10511; 1.7 follows from issue 23278
    (False, True): 0.25 * GIB,  # 0.20-0.25 in vllm issues 13061 and pull 14447 (24 GiB cards without NVLink)
    (False, False): 0.2 * GIB,
}


def is_large(capacity_bytes: float) -> bool:
    """Whether engines take their defaults for large chips."""
    return capacity_bytes >= LARGE_CHIP_BYTES


@dataclass(frozen=True)
class EngineMemory:
    """How one engine accounts for a chip's memory.

    share: of the chip that it takes; None: all but a reserve (`default_share`).
    activations_inside: whether the profiling pass comes out of that share.
    sampler_bytes: of the sampler's peak per logit (logits in fp32, sorted values and indices, probabilities).
    """

    share: float | None
    activations_inside: bool
    sampler_bytes: float
    max_num_seqs: tuple[int, int]  # on a small chip, on a large chip
    max_num_batched_tokens: tuple[int, int]
    chunked_prefill: bool = True
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


ENGINES = {
    "vllm": EngineMemory(
        0.9,
        True,
        30.0,
        (256, 1024),
        (2048, 8192),
        source="vLLM V1 defaults (2025); 786 MiB for 1,024 fp32 rows of GPT-OSS's vocabulary in issue 27508",
    ),
    "vllm-v0": EngineMemory(
        0.9,
        True,
        41.0,
        (256, 256),
        (2048, 2048),
        False,
        "vLLM V0 (2024): no chunked prefill up to 32,768 tokens of context, 512 a pass beyond; pull 10511, issue 8185",
    ),
    "sglang": EngineMemory(
        None,
        False,
        30.0,
        (256, 1024),
        (2048, 8192),
        source="SGLang's mem_fraction_static: weights and cache alone; issue 21348 of vLLM compares both",
    ),
}
LONG_CONTEXT_V0 = 32_768  # published: V0 switched to chunks of 512 beyond this context


def pass_tokens(engine: EngineMemory, large: bool, given: int | None, max_model_len: int) -> int:
    """Tokens of the profiling pass: as given, else the engine's default for a context of `max_model_len`."""
    if given:
        return given
    default = engine.max_num_batched_tokens[large]
    if engine.chunked_prefill:
        return default
    return max(default, max_model_len) if max_model_len <= LONG_CONTEXT_V0 else 512


def forward_values(model: ModelSpec, tp: int, expert_ways: int) -> float:
    """Values that a token holds in the widest layer of a pass: residual, input, and the feed-forward between."""
    widest = 3.0 * model.ffn / tp if model.dense_ffn_layers else 0.0
    if model.experts:
        widest = max(widest, model.experts_per_token * (3.0 * model.moe_ffn / expert_ways + model.hidden))
    attention = 2.0 * model.heads * max(model.qk_dim, model.value_dim) / tp
    return 2.0 * model.hidden + max(widest, attention)


def profile_bytes(engine: EngineMemory, model: ModelSpec, tokens: int, seqs: int, tp: int, expert_ways: int) -> float:
    """Peak of the profiling pass: the larger of the forward pass over `tokens` and of sampling `seqs` rows of logits.

    The sampler sees the whole vocabulary on every chip, so tensor parallelism does not make it smaller.
    """
    forward = ACTIVATION_COPIES * 2.0 * tokens * forward_values(model, tp, expert_ways)
    return max(forward, engine.sampler_bytes * min(seqs, tokens) * model.vocab)
