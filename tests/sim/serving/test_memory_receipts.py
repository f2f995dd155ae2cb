"""Memory as engines count it, against what their logs print: weights, and what is left for the cache.

Each log's figures are the project's own test data, read in the issue or pull request named.
"""

import dataclasses

import pytest

from minglm.errors import InputError
from sim.serving.deployment import Deployment
from sim.serving.memory import GIB, chip_memory, shortfall
from sim.serving.questions import fits
from sim.serving.remedies import require_fit
from sim.serving.scenario import run
from sim.serving.stacks import load_stack
from sim.spec.hardware import cluster_from
from sim.spec.model_loader import load_model

CARD_24 = {
    "like": "dgx_a100",
    "chips_per_node": 1,
    "chip": {
        "name": "CARD-24",
        "peak_flops": {"bf16": "71 TFLOPS"},
        "memory_bytes": "23.58 GiB",
        "memory_bytes_per_s": "936 GB/s",
    },
}
# name: (deployment, GiB of weights a chip, GiB of cache a chip, tokens of cache, source)
LOGS = {
    "Llama-3-8B, one H100": (
        dict(model="llama3_8b", cluster="dgx_h100", chips=1, stack="vllm-v0", precision="bf16", max_model_len=8192),
        14.96,
        53.29,
        None,
        "vllm-project/vllm pull 10511",
    ),
    "Llama-3-8B, two H100": (
        dict(
            model="llama3_8b",
            cluster="dgx_h100",
            chips=2,
            attention_tp=2,
            stack="vllm-v0",
            precision="bf16",
            max_model_len=8192,
        ),
        7.48,
        71.29 - 7.48 - 3.58 - 1.26,
        None,
        "vllm-project/vllm pull 10511",
    ),
    "Llama-3.1-405B FP8 with 16 key-value heads, eight H100": (
        dict(model="llama3_405b", cluster="dgx_h100", chips=8, attention_tp=8, stack="vllm-v0", precision="fp8"),
        57.752,
        None,
        79_392,
        "vllm-project/vllm issue 6746; the checkpoint of July 2024 had 16 heads, mended later (issue 6689)",
    ),
    "Llama-3-8B on 24 GB, contexts of 20,000": (
        dict(model="llama3_8b", cluster=CARD_24, chips=1, stack="vllm-v0", precision="bf16", max_model_len=20_000),
        14.96,
        None,
        31_232,
        "vllm-project/vllm issue 10517",
    ),
    "Qwen3-235B FP8, four H100": (
        dict(model="qwen3_235b_a22b", cluster="dgx_h100", chips=4, attention_tp=4, stack="vllm", precision="fp8"),
        None,
        8.11,
        178_880,
        "vllm-project/vllm issue 21348",
    ),
    "GLM-5.3 FP8, eight H200 (the shape of 5.2)": (
        dict(
            model="glm5_2",
            cluster="dgx_h200",
            chips=8,
            attention_tp=8,
            stack="vllm",
            precision="fp8",
            kv="fp8",
            drafts=1,
        ),
        94.46,
        25.94,
        None,
        "vllm-project/recipes pull 893",
    ),
}
LLM_D = "llm-d-incubation/llm-d-planner 2d557dca and 875a4fd6, docs/accuracy: vLLM 0.15 to 0.19 on H100 at 0.95"
BEFORE = "llm-d/llm-d-benchmark 25933486, config_explorer/empirical-vllm-memory-results.md: vLLM on H100 at 0.90"
# name: (model, chips, fields, GiB of weights, of the profiling pass, of cache; tokens of cache), at a known release
RELEASES = {
    "Llama-3.1-8B, 0.19": (
        "llama3_8b",
        1,
        dict(stack="vllm-0.19", memory_share=0.95),
        14.99,
        1.89,
        58.11,
        476_016,
        LLM_D,
    ),
    "Llama-3.1-8B, two, 0.19": (
        "llama3_8b",
        2,
        dict(stack="vllm-0.19", memory_share=0.95),
        7.51,
        1.89,
        75.23 - 7.51 - 1.89 - 2.07,
        None,
        LLM_D,
    ),
    "Llama-3.1-8B, four, 0.19": (
        "llama3_8b",
        4,
        dict(stack="vllm-0.19", memory_share=0.95),
        3.77,
        1.89,
        75.23 - 3.77 - 1.89 - 2.13,
        None,
        LLM_D,
    ),
    "Llama-3.1-8B with an fp8 cache, 0.19": (
        "llama3_8b",
        1,
        dict(stack="vllm-0.19", memory_share=0.95, kv="fp8"),
        14.99,
        1.89,
        58.11,
        952_032,
        LLM_D,
    ),
    "Qwen3-8B, 0.19": (
        "qwen3_8b",
        1,
        dict(stack="vllm-0.19", memory_share=0.95),
        15.27,
        2.21,
        75.23 - 15.27 - 2.21 - 0.25,
        None,
        LLM_D,
    ),
    "Qwen3-30B-A3B, 0.19": (
        "qwen3_30b_a3b",
        1,
        dict(stack="vllm-0.19", memory_share=0.95),
        56.9,
        2.68,
        75.23 - 56.9 - 2.68 - 0.27,
        None,
        LLM_D,
    ),
    "Llama-3.1-8B, before 0.17": ("llama3_8b", 1, dict(stack="vllm-0.15"), 14.99, 4.76, 51.38, None, BEFORE),
    "Llama-3.3-70B FP8, two": (
        "llama3_70b",
        2,
        dict(stack="vllm-0.15", precision="fp8"),
        33.88,
        4.84,
        32.0,
        None,
        BEFORE,
    ),
    "Qwen3-32B": ("qwen3_32b", 1, dict(stack="vllm-0.15"), 61.03, 5.64, 4.45, None, BEFORE),
    "gpt-oss-120b at 0.95": (
        "gpt_oss_120b",
        1,
        dict(stack="vllm-0.15", precision="mxfp4", memory_share=0.95),
        64.38,
        7.38,
        3.33,
        None,
        BEFORE,
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_receipt_of_a_known_release_within_5_percent(name):
    model, chips, fields, weights, peak, cache, tokens, _ = RELEASES[name]
    fields = {"precision": "bf16", "kv": "bf16", **fields}
    m = chip_memory(Deployment.of(model, "dgx_h100", chips, attention_tp=chips, **fields))
    assert m.weights_bytes / GIB == pytest.approx(weights, rel=0.01)
    kept = m.engine_parts["activations"] + m.engine_parts.get("expert workspace", 0.0)
    assert kept / GIB == pytest.approx(peak, rel=0.03)
    assert m.cache_bytes / GIB == pytest.approx(cache, rel=0.05)
    if tokens:
        assert m.kv_tokens == pytest.approx(tokens, rel=0.005)


def test_a_70b_model_in_fp8_leaves_an_h100_nothing():
    """−1.44 GiB in the log of BEFORE."""
    m = chip_memory(Deployment.of("llama3_70b", "dgx_h100", 1, stack="vllm-0.15", precision="fp8", kv="bf16"))
    assert m.free_bytes / GIB == pytest.approx(-1.44, abs=0.25) and m.requests(16_000) == 0


def test_without_a_release_the_receipt_lies_between_those_of_the_releases():
    def room(stack, share=0.95):
        fields = dict(stack=stack, precision="bf16", kv="bf16", memory_share=share)
        return chip_memory(Deployment.of("qwen3_8b", "dgx_h100", 1, **fields)).cache_bytes

    assert room("vllm-0.10.2") < room("vllm") < room("vllm-v0.17.0") == room("vllm@0.19.1")
    assert load_stack("vllm-0.6.3").engine == "vllm-v0" and load_stack("vllm-1.0").engine == "vllm-2026"
    with pytest.raises(InputError, match="vllm-0.19"):
        load_stack("vllm-0.x")


def deployment(fields):
    fields = {"kv": "bf16", **fields}
    model = load_model(fields.pop("model"))
    if model.name == "llama3_405b":
        model = dataclasses.replace(model, kv_heads=16)
    return Deployment.of(model, cluster_from(fields.pop("cluster")), **fields)


@pytest.mark.parametrize("name", LOGS)
def test_a_receipt_against_the_log_of_vllm(name):
    fields, weights, cache, tokens, _ = LOGS[name]
    m = chip_memory(deployment(fields))
    if weights:
        assert m.weights_bytes / GIB == pytest.approx(weights, rel=0.06)
    if cache:
        assert m.cache_bytes / GIB == pytest.approx(cache, rel=0.11)
    if tokens:
        assert m.kv_tokens == pytest.approx(tokens, rel=0.10)
    receipt = m.receipt()
    taken = sum(size for item, size in receipt.items() if item not in ("chip", "usable", "cache"))
    assert receipt["usable"] - taken == pytest.approx(receipt["cache"])


def test_whole_prompts_of_29000_do_not_fit_24_gb_but_chunks_do():
    whole = deployment({**LOGS["Llama-3-8B on 24 GB, contexts of 20,000"][0], "max_model_len": 29_000})
    assert shortfall(whole, 29_000, 1) > 0  # refused in issue 10517
    assert shortfall(whole.with_changes(max_num_batched_tokens=2048), 29_000, 1) == 0


@pytest.mark.parametrize(("prompt", "held"), [(28_000, False), (19_000, True)])
def test_where_no_software_is_named_the_engine_that_would_refuse_is(prompt, held):
    """The card of issue 10517 without its engine's name: 29,000 tokens fit under one and not under the other."""
    lengths = {"prompt": prompt, "output": 1000}
    document = {
        "model": "llama3_8b",
        "decode": {"cluster": CARD_24, "chips": 1, "precision": "bf16", "kv": "bf16"},
        "workload": {"users": 1, "requests": 2, **lengths},
    }
    document |= {"version": 1, "kind": "serving", "name": "card"}
    said = run(document, simulate_requests=False)
    assert said["memory"]["decode"]["contexts_that_fit"] == 1 + held
    named = [text for text in said["assumptions"] if text.startswith("stack: vllm-v0 would not hold")]
    assert len(named) == (0 if held else 1)
    document["decode"]["stack"] = "vllm-v0"
    document["decode"]["max_model_len"] = prompt + 1000
    if held:
        assert run(document, simulate_requests=False)["assumptions"] == []
    else:
        with pytest.raises(InputError, match="1 context of 29,000 tokens"):
            run(document, simulate_requests=False)


def test_requests_longer_than_the_engines_limit_are_refused_with_one_that_takes_them():
    d = deployment({**LOGS["Llama-3-8B on 24 GB, contexts of 20,000"][0], "max_model_len": 20_000})
    assert require_fit(d, 20_000, 1).requests(20_000) >= 1
    with pytest.raises(InputError, match="max_model_len: 20001 or shorter"):
        require_fit(d, 20_000.5, 1)
    require_fit(d.with_changes(max_model_len=20_001), 20_000.5, 1)


def test_gpt_oss_on_one_h100():
    one = Deployment.of("gpt_oss_120b", "dgx_h100", 1, stack="vllm", precision="mxfp4", kv="bf16")
    m = chip_memory(one)
    assert m.weights_bytes / GIB == pytest.approx(64.38, rel=0.01)  # vllm-project/vllm issue 33155
    assert m.free_bytes < 0  # issue 23278: −2.14 GiB at 0.90
    more = chip_memory(one.with_changes(memory_share=0.95, max_num_batched_tokens=1024))
    assert 1.0 < more.free_bytes / GIB < 4.0  # issue 27508: +1.71 at 0.95


def test_windows_keep_their_window():
    gemma = dataclasses.replace(
        load_model("llama3_70b"), layers=62, kv_heads=16, head_dim=128, window=1024, window_layers=52, max_seq=131_072
    )
    d = Deployment.of(gemma, "dgx_h200", 8, precision="bf16", kv="bf16")
    by_hand = 2 * 16 * 128 * 2 * (10 * 131_008 + 52 * 1024)  # 10 full and 52 windowed layers, blocks of 16 tokens
    assert chip_memory(d).request_bytes(131_000) == by_hand
    assert by_hand / GIB == pytest.approx(10.4, abs=0.01)
    oss = Deployment.of("gpt_oss_120b", "dgx_h200", 1, precision="mxfp4", kv="bf16")
    assert chip_memory(oss).request_bytes(130_000) / GIB == pytest.approx(4.47, abs=0.01)


def test_key_value_heads_are_repeated_beyond_their_number():
    wide = chip_memory(Deployment.of("llama3_8b", "dgx_h100", 16, attention_tp=16, precision="bf16", kv="bf16"))
    kv = 32 * 2 * 4096 * 128  # one head's k_proj and v_proj in 32 layers: a chip cannot hold less
    rest = 32 * (2 * 4096 * 4096 + 3 * 4096 * 14336) / 16
    assert wide.parts["dense"] == pytest.approx(2 * (kv + rest))
    assert wide.kv_bytes_per_token == 32 * 2 * 128 * 2  # one head's cache, too


def test_a_pipeline_cuts_layers_and_adds_hops():
    both = Deployment.of("llama3_70b", "dgx_h100", 8, attention_tp=8, precision="bf16", kv="bf16", stack="vllm")
    piped = both.with_changes(attention_tp=4, pp=2)
    whole, half = chip_memory(both), chip_memory(piped)
    assert half.parts["dense"] == pytest.approx(whole.parts["dense"])  # half the layers, cut half as finely
    assert half.kv_bytes_per_token == pytest.approx(whole.kv_bytes_per_token)
    with pytest.raises(InputError, match="pp=3: must divide chips=8"):
        both.with_changes(pp=3)


@pytest.mark.parametrize("spelt, stored", [("gptq", "awq"), ("int4", "awq"), ("W4A16", "awq"), ("int8", "int8")])
def test_weight_only_formats_by_their_usual_names(spelt, stored):
    d = Deployment.of("llama3_70b", "dgx_h100", 2, attention_tp=2, precision=spelt, kv="bf16")
    assert d.precision == stored
    # 68.45 billion values in layers at 4.16 or 8.125 bits, embedding and head in 16
    layers = (
        80 * (8192 * 8192 * 2 + 8192 * 1024 * 2 + 3 * 8192 * 28_672) * (0.51953125 if stored == "awq" else 1.015625)
    )
    assert chip_memory(d).weights_bytes == pytest.approx((layers + 2 * 2 * 128_256 * 8192) / 2, rel=1e-3)


def test_no_context_beyond_the_models_own():
    answer = fits("llama2_7b", precision="bf16", kv="bf16")
    assert all(max(row["contexts"]) == 4096 for row in answer["rows"] if row["chips"])
    assert "202,752" not in answer["answer"] and "4,096" in answer["answer"]


def test_the_receipt_is_in_the_answer_of_a_scenario():
    scenario = {
        "version": 1,
        "kind": "serving",
        "model": "llama3_8b",
        "decode": {"cluster": CARD_24, "chips": 1, "precision": "bf16", "kv": "bf16", "stack": "vllm-v0"},
        "workload": {"concurrency": 1, "requests": 2, "prompt": 28_000, "output": 1000},
    }
    with pytest.raises(InputError, match=r"activations .* GiB .* would fit"):
        run({**scenario, "decode": {**scenario["decode"], "max_model_len": 29_000}})
    result = run({**scenario, "decode": {**scenario["decode"], "max_num_batched_tokens": 2048}})
    assert result["memory"]["decode"]["receipt_gib"]["activations"] > 0
