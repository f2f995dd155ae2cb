"""Rooflines of decoding and prefill: counted against independent formulas, published latencies, and limits."""

import itertools
import math

import pytest

from minglm.errors import InputError
from sim.serving.deployment import Deployment
from sim.serving.memory import weight_bytes
from sim.serving.messages import all_reduce, decode_all_to_all
from sim.serving.operators import most_busy
from sim.serving.stacks import list_stacks, load_stack
from sim.serving.step_time import (
    added_s,
    decode_step,
    flops_per_token,
    largest_batch,
    least_pass_s,
    prefill,
    score_flops_per_token,
    tpot,
    work_s,
)
from sim.spec.hardware import chip_from, cluster_from
from sim.spec.model_loader import load_model


def endless_memory(base: str, **more):
    """A one-chip cluster whose memory is so fast that only arithmetic takes time."""
    chip = chip_from(
        {
            "like": base,
            "name": f"{base} with endless bandwidth",
            "memory_bytes_per_s": 1e24,
            "memory_bytes": 1e16,
            **more,
        }
    )
    return cluster_from({"like": "dgx_h100", "chip": chip, "chips_per_node": 1, "chips": 1, "name": "one chip"})


@pytest.mark.parametrize(
    "model, context",
    [("glm5", 1024), ("glm5", 16384), ("deepseek_v3", 4096), ("llama3_70b", 2048), ("qwen3_30b_a3b", 512)],
)
def test_decode_at_large_batch_is_the_compute_roofline(model, context):
    d = Deployment.of(model, endless_memory("h100"), chips=1, precision="bf16", kv="bf16")
    bf16, fp8 = (d.cluster.chip.peak(kind).value for kind in ("bf16", "fp8"))  # an indexer scores in fp8
    # FLOPs by sim.spec.model, not by the operators of this module
    bound = 1.0 / (flops_per_token(d, context) / bf16 + score_flops_per_token(d, context) / fp8)
    rates = [decode_step(d, batch, context, "roofline").tokens_per_s for batch in (1, 64, 4096, 10**6)]
    assert rates[-1] == pytest.approx(bound, rel=0.01)
    assert all(r <= bound * 1.01 for r in rates) and rates == pytest.approx(sorted(rates), rel=1e-12)


def test_large_batch_approaches_the_roofline_from_memory_bound_decoding():
    d = Deployment.of(
        "deepseek_v3", "h800_deepseek", chips=8, precision="bf16", kv="bf16", attention_tp=1, stack="deepseek-inhouse"
    )
    bound = d.chips * d.cluster.chip.peak("bf16").value / flops_per_token(d, 16)
    shares = [decode_step(d, batch, 16, "roofline").tokens_per_s / bound for batch in (1, 16, 256, 4096, 65536)]
    assert shares == sorted(shares) and shares[0] < 0.05 and 0.8 < shares[-1] <= 1.001


@pytest.mark.parametrize("width, dispatch, combine", [(8, 77, 114), (128, 192, 369), (256, 194, 360)])
def test_all_to_all_of_the_measured_message_takes_the_measured_time(width, dispatch, combine):
    d = Deployment.of("deepseek_v3", "h800_deepseek", chips=width, stack="deepseek-inhouse")
    assert decode_all_to_all(d, 128, True) == pytest.approx((dispatch + combine) * 1e-6, rel=1e-6)
    assert decode_all_to_all(d, 1, True) == pytest.approx(2 * 30e-6, rel=0.1)  # the floor


def test_latency_between_two_widths_lies_between():
    stack = load_stack("deepseek-inhouse")
    low, mid, high = stack.ep_latency(64), stack.ep_latency(90), stack.ep_latency(128)
    assert low[0] < mid[0] < high[0] and low[1] < mid[1] < high[1]


def test_prefill_flops_of_a_dense_model_by_hand():
    d = Deployment.of("llama3_8b", endless_memory("h100"), chips=1, precision="bf16")
    m, n = d.model, 2048
    linear = 2.0 * n * (m.layers * (m.attention_matmul_params() + 3 * m.hidden * m.ffn))
    attention = m.layers * 4.0 * n * (n + 1) / 2 * m.heads * m.head_dim
    head = 2.0 * m.vocab * m.hidden
    step = prefill(d, n, 0, 1, "roofline")
    assert step.total_s == pytest.approx((linear + attention + head) / d.cluster.chip.peak("bf16").value, rel=1e-3)


def test_a_cached_prefix_is_cheaper_and_longer_contexts_cost_more():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    assert prefill(d, 8192, 6144, 1).total_s < prefill(d, 8192, 0, 1).total_s
    times = [tpot(d, 4, c) for c in (512, 4096, 65536, 202752)]
    assert times == sorted(times)


def test_sparse_attention_stops_growing_where_dense_does_not():
    """Beyond index_topk keys the core attention of DSA reads no more; only the indexer grows."""
    d = Deployment.of("deepseek_v3_2", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    short, long = decode_step(d, 8, 4096), decode_step(d, 8, 131072)
    assert long.parts["attention"] == pytest.approx(short.parts["attention"], rel=1e-9)
    assert long.parts["indexer"] > short.parts["indexer"]
    dense = Deployment.of("deepseek_v3", "dgx_h200", chips=8, attention_tp=8, stack="sglang-tp")
    assert decode_step(dense, 8, 131072).parts["attention"] > 10 * decode_step(dense, 8, 4096).parts["attention"]


def test_drafts_help_a_single_stream_and_two_batches_hide_messages():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", stack="sglang-tp")
    assert tpot(d.with_changes(drafts=3, accept_length=2.76), 1, 8192) < tpot(d, 1, 8192)
    assert tpot(d.with_changes(drafts=3, accept_length=1.0), 1, 8192) > tpot(d, 1, 8192)  # rejected drafts only cost
    ep = Deployment.of("deepseek_v3", "h800_deepseek", chips=128, stack="deepseek-inhouse")
    one = ep.with_changes(stack=ep.stack.with_changes(two_batch=0))
    assert (
        decode_step(ep, 128, 4096).overlapped
        and decode_step(ep, 128, 4096).total_s < decode_step(one, 128, 4096).total_s
    )


def test_parts_add_up_and_largest_batch_is_the_largest():
    d = Deployment.of("glm5", "dgx_h200", chips=8, attention_tp=8, kv="fp8", drafts=1, stack="sglang-tp")
    step = decode_step(d, 16, 4096)
    assert math.fsum(step.parts.values()) == pytest.approx(step.total_s) and min(step.parts.values()) >= 0
    batch = largest_batch(d, 4096, 0.02)
    assert tpot(d, batch, 4096) <= 0.02 < tpot(d, batch + 1, 4096)
    assert largest_batch(d, 4096, 1e-6) == 0


def test_every_stack_is_complete_and_every_constant_has_a_label_and_a_source():
    for name in list_stacks():
        stack = load_stack(name)
        assert tpot(Deployment.of("deepseek_v3", "dgx_h200", chips=16, stack=name), 8, 1024) > 0
        for row in stack.describe():
            assert row["label"] in ("measured", "published", "fitted", "assumed") and len(row["source"]) > 10, (
                name,
                row,
            )


def test_what_another_chip_inherits_is_only_assumed():
    assert load_stack("cloudmatrix-infer").label("attention_compute") == "measured"
    assert load_stack("ascend-a2").label("attention_compute") == "assumed"
    on = Deployment.of("glm5", "dgx_b200", chips=8, stack="sglang-tp").stack
    assert on["sparse_compute"] == pytest.approx(0.156) and load_stack("sglang-tp")["sparse_compute"] == pytest.approx(
        0.415
    )


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: load_stack("sglangg-tp"), "did you mean 'sglang-tp'"),
        (lambda: load_stack({"like": "sglang-tp", "host": 1}), "did you mean 'host_s'"),
        (lambda: load_stack({"like": "sglang-tp", "attention_compute": 1.2}), "share between 0 and 1"),
        (lambda: load_stack({}), "needs 'like'"),
        (lambda: load_stack({"like": "sglang-tp", "imbalance": 0.5}), "give 1 or more"),
        (lambda: load_stack({"like": "sglang-tp", "host_s": {"value": "1 ms", "label": "guessed"}}), "guessed"),
        (lambda: decode_step(Deployment.of("glm5", "dgx_h200", chips=8), 0, 10), "more than 0 requests"),
        (lambda: decode_step(Deployment.of("glm5", "dgx_h200", chips=8), 1, 10, "exact"), "mode 'exact'"),
        (lambda: prefill(Deployment.of("glm5", "dgx_h200", chips=8), 10, 10), "more than 0 new tokens"),
    ],
)
def test_bad_input_is_one_line(call, says):
    with pytest.raises(InputError) as refusal:
        call()
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_models_are_read_by_name():
    assert load_model("deepseek_v3").experts == 256


def test_the_chip_with_most_of_the_chosen_experts_ends_last():
    """Four experts a chip, two chips, each expert in use with probability 0.3: all 2^8 cases counted out."""
    share, mean = 0.3, 0.0
    for used in itertools.product((0, 1), repeat=8):
        chance = math.prod(share if one else 1 - share for one in used)
        mean += chance * max(sum(used[:4]), sum(used[4:]))
    assert most_busy(4, share, 2) == pytest.approx(mean)
    assert most_busy(4.5, share, 2) == pytest.approx((most_busy(4, share, 2) + most_busy(5, share, 2)) / 2)
    assert most_busy(4, share, 1) == pytest.approx(1.2)  # alone: the mean
    deployment = dict(cluster="dgx_h200", chips=8, stack="tensorrt-llm", precision="fp8", attention_tp=8)
    whole, sliced = (
        decode_step(Deployment.of("deepseek_v3", **deployment, whole_experts=w), 4, 1024) for w in (True, False)
    )
    assert whole.parts["experts"] > 1.2 * sliced.parts["experts"]  # 32 choices: few of 32 experts a chip, unevenly
    assert whole.parts["all-reduce"] == pytest.approx(sliced.parts["all-reduce"])  # tokens are everywhere either way


def test_messages_inside_one_fast_domain_are_those_measured_there():
    """128 tokens of 7,168 values to 8 experts over 8 GB200 (data/measured/deepep): 26.86 us out in fp8, 36.23 back, of
    which 16.57 and 18.13 are there for a single token."""
    rack = dict(cluster="gb200_nvl72", chips=32, attention_tp=1, stack="vllm")
    leaving = (31 / 32) / (7 / 8)
    for precision, width in (("fp8", 1.0), ("bf16", 2.0)):
        by_hand = 16.57 + (26.86 - 16.57) * leaving * width + 18.13 + (36.23 - 18.13) * leaving
        d = Deployment.of("deepseek_v3", **rack, precision=precision)
        assert decode_all_to_all(d, 128, True) == pytest.approx(by_hand * 1e-6, rel=1e-6)
    # over 8 chips engines gather all tokens and reduce the results, each in one shot, where that is faster
    node = Deployment.of("deepseek_v3", "gb200_nvl72", 8, attention_tp=1, stack="vllm", precision="fp8")
    size = 2 * 8 * 8 * 7168 * 7 / 8
    assert decode_all_to_all(node, 8, True) == pytest.approx(2 * (9e-6 + size / 720e9))


def test_checkpoints_in_four_bits_keep_different_parts_in_bf16():
    m = load_model("deepseek_v3")
    experts_alone, more = (weight_bytes(m, precision, mtp=False) for precision in ("nvfp4", "nvfp4-mlp"))
    shared, dense, output = 58 * 3 * 7168 * 2048, 3 * 3 * 7168 * 18432, 61 * 128 * 128 * 7168
    saved = (shared + dense + output) * (2 - 0.5 - 1 / 16)
    assert experts_alone["dense"] - more["dense"] == pytest.approx(saved)
    assert experts_alone["experts"] == more["experts"]


def test_a_pass_that_the_host_issues_holds_the_running_step_too():
    d = Deployment.of("llama3_70b", "dgx_h200", 8, stack="tensorrt-llm", precision="fp8", kv="fp8", attention_tp=8)
    short, long = (prefill(d, prompt) for prompt in (512, 16384))
    assert short.total_s == pytest.approx(least_pass_s(d)) and work_s(short) < short.total_s
    assert added_s(short, 0.0) == short.total_s
    assert added_s(short, 1.0) == work_s(short)
    assert added_s(long, 0.001) == long.total_s == work_s(long)  # chips bound it


def test_one_shot_does_not_leave_a_fast_domain():
    """A 16-wide all-reduce over two machines takes the network's time at least: two crossings of its latency."""
    inside, across = (
        Deployment.of("deepseek_v3", "dgx_h100", chips=n, attention_tp=n, stack="tensorrt-llm") for n in (8, 16)
    )
    network_s = across.cluster.tiers[1].latency_s.value
    assert all_reduce(inside, 1, True) < 1.2 * inside.stack["one_shot_s"]
    assert all_reduce(across, 1, True) > 2 * network_s > all_reduce(inside, 1, True)
