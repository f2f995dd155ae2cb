"""What engines keep beside weights and cache, and what a token's cache takes: sums by hand."""

import pytest

from sim.serving.cache import cache_ways, kv_row_bytes, request_bytes
from sim.serving.deployment import Deployment
from sim.serving.engine_memory import (
    ACTIVATION_COPIES,
    ENGINES,
    GIB,
    MIB,
    forward_values,
    is_large,
    pass_tokens,
    profile_bytes,
    workspace_bytes,
)
from sim.serving.memory import chip_memory
from sim.spec.model import ModelSpec

DENSE = ModelSpec("d", layers=4, hidden=1024, heads=16, kv_heads=4, head_dim=64, ffn=2816, vocab=32_000, max_seq=65_536)
EXPERTS = ModelSpec(
    "e",
    layers=4,
    hidden=1024,
    heads=16,
    kv_heads=4,
    head_dim=64,
    ffn=2816,
    vocab=1000,
    experts=8,
    experts_per_token=2,
    moe_ffn=704,
    dense_layers=1,
)


def test_sglang_keeps_a_chunk_its_graphs_and_buffers_free():
    """1.5 MiB a token of a chunk, 512 MiB, an eighth of a GiB a tensor rank."""
    large = 80 * GIB
    assert ENGINES["sglang"].default_share(large, 8) == pytest.approx(1 - (12 + 0.5 + 1) / 80)
    assert ENGINES["sglang"].default_share(24 * GIB, 1) == pytest.approx(1 - (3 + 0.5 + 0.125) / 24)
    assert ENGINES["sglang"].default_share(4 * GIB, 8) == 0.5  # never less than half
    assert ENGINES["vllm"].default_share(large, 8) == ENGINES["vllm-v0"].default_share(24 * GIB, 1) == 0.9


@pytest.mark.parametrize(
    "engine, large, given, context, tokens",
    [
        ("vllm", True, None, 131_072, 8192),
        ("vllm", False, None, 131_072, 2048),
        ("vllm", False, 4096, 131_072, 4096),
        ("vllm-v0", False, None, 29_000, 29_000),  # V0 profiles a whole prompt …
        ("vllm-v0", False, None, 1024, 2048),
        ("vllm-v0", True, None, 32_768, 32_768),
        ("vllm-v0", True, None, 32_769, 512),  # … up to 32,768 tokens
    ],
)
def test_tokens_of_the_profiling_pass(engine, large, given, context, tokens):
    assert pass_tokens(ENGINES[engine], large, given, context) == tokens


def test_the_widest_layer_of_a_pass():
    """Residual and input, then gate, up and their product; or queries beside attention's output."""
    assert forward_values(DENSE, 1, 1) == 2 * 1024 + 3 * 2816
    assert forward_values(DENSE, 4, 1) == 2 * 1024 + 3 * 2816 / 4
    wide = ModelSpec("w", layers=1, hidden=64, heads=16, kv_heads=16, head_dim=64, ffn=64, vocab=10)
    assert forward_values(wide, 2, 1) == 2 * 64 + 2 * 16 * 64 / 2
    routed = 2 * (3 * 704 / 4 + 1024)  # each of two experts has its own copy of the input
    assert forward_values(EXPERTS, 1, 4) == 2 * 1024 + max(3 * 2816, routed)
    assert forward_values(EXPERTS, 8, 4) == 2 * 1024 + max(3 * 2816 / 8, routed)
    # experts whose rows lie in a workspace of their own: the dense layer is the widest
    assert forward_values(EXPERTS, 8, 4, experts=False) == 2 * 1024 + 3 * 2816 / 8 < 2 * 1024 + routed


def test_the_profile_is_the_larger_of_pass_and_sampler():
    vllm = ENGINES["vllm"]
    forward = ACTIVATION_COPIES * 2 * 2048 * (2 * 1024 + 3 * 2816)
    assert profile_bytes(vllm, DENSE, 2048, 16, 1, 1) == pytest.approx(forward)
    assert profile_bytes(vllm, DENSE, 2048, 1024, 1, 1) == 30 * 1024 * 32_000
    assert profile_bytes(vllm, DENSE, 512, 1024, 1, 1) == 30 * 512 * 32_000  # no more rows than tokens


@pytest.mark.parametrize(
    "stack, cluster, chips, tp, runtime",
    [
        ("vllm", "dgx_h100", 8, 8, 2.6),
        ("vllm", "dgx_h100", 1, 1, 1.2),
        ("vllm-0.19", "dgx_h100", 8, 8, 2.1),
        ("vllm-0.19", "dgx_h100", 1, 1, 0.25),
        ("vllm-v0", "dgx_h100", 8, 8, 3.3),
        ("vllm", "pcie_4090", 8, 8, 0.25),
        ("vllm", "pcie_4090", 1, 1, 0.2),
    ],
)
def test_the_runtime_by_release_size_and_number_of_chips(stack, cluster, chips, tp, runtime):
    cards = {"like": "dgx_a100", "chip": {"name": "CARD-24", "peak_flops": {"bf16": "71 TFLOPS"}}}
    cards["chip"] |= {"memory_bytes": "24 GiB", "memory_bytes_per_s": "936 GB/s"}
    where = cards if cluster == "pcie_4090" else cluster
    from sim.spec.hardware import cluster_from

    d = Deployment.of(DENSE, cluster_from(where), chips, attention_tp=tp, precision="bf16", kv="bf16", stack=stack)
    m = chip_memory(d)
    assert m.engine_parts["runtime"] == pytest.approx(runtime * GIB)
    assert m.free_bytes == pytest.approx(0.9 * m.capacity_bytes - m.weights_bytes - sum(m.engine_parts.values()))
    assert is_large(m.capacity_bytes) == (cluster == "dgx_h100")


def test_rows_that_expert_kernels_keep():
    """Each token's copies, as wide as the model and as gate and up, in two bytes; the pass counts them once."""
    newest, older = ENGINES["vllm-2026"], ENGINES["vllm-2025"]
    assert workspace_bytes(newest, EXPERTS, 2048, 4) == 2 * 2048 * 2 * (1024 + 2 * 704 / 4)
    assert workspace_bytes(older, EXPERTS, 2048, 4) == workspace_bytes(newest, DENSE, 2048, 4) == 0
    dense_layer = ACTIVATION_COPIES * 2 * 2048 * (2 * 1024 + 3 * 2816)
    assert profile_bytes(newest, EXPERTS, 2048, 16, 1, 1) == pytest.approx(dense_layer)


def test_a_token_of_the_cache():
    assert kv_row_bytes(DENSE, "bf16") == 2 * 4 * 64 * 2  # keys and values of four heads
    assert kv_row_bytes(DENSE, "fp8") == 2 * 4 * 64
    latent = ModelSpec(
        "m", 4, 1024, 16, 16, 96, 2816, 1000, attention="mla", q_lora=512, kv_lora=512, nope=128, rope=64, v_dim=128
    )
    assert kv_row_bytes(latent, "bf16") == 2 * (512 + 64)
    assert kv_row_bytes(latent, "fp8") == 656  # FlashMLA's own figure
    assert cache_ways(DENSE, 2) == 2 and cache_ways(DENSE, 8) == 4 and cache_ways(latent, 8) == 1
    assert request_bytes(DENSE, "bf16", 17) == 32 * 4 * 1024  # two blocks of sixteen, four layers
    assert MIB * 1024 == GIB
