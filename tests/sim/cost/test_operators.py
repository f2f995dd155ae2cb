"""Operators: the FLOPs of a recorded layer are the model's own count, and sharding only divides them."""

from __future__ import annotations

import dataclasses

import pytest

from sim.cost.operators import OperatorTrace, ParallelContext, Style, vocabulary
from sim.cost.operators_attention import core_attention
from sim.cost.operators_layer import record_layer
from sim.cost.operators_moe import expected_places, moe_ffn
from sim.cost.optimizer import optimizer_ops
from sim.cost.parameters import layer_params
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model

GPT = ModelSpec(
    "gpt",
    layers=4,
    hidden=1024,
    heads=16,
    kv_heads=16,
    head_dim=64,
    ffn=4096,
    vocab=51200,
    gated_ffn=False,
    positions=2048,
)
LLAMA = ModelSpec("llama", layers=4, hidden=1024, heads=16, kv_heads=4, head_dim=64, ffn=2816, vocab=32000)
MOE = dataclasses.replace(LLAMA, experts=16, experts_per_token=2, moe_ffn=512, shared_experts=1)


def record(model: ModelSpec, ctx: ParallelContext, style: Style | None = None, kind: str = "dense") -> OperatorTrace:
    return record_layer(style or Style(), ctx, model, kind)


def flops(ops) -> float:
    return sum(op.flops for op in ops)


@pytest.mark.parametrize(
    "model, kind", [(GPT, "dense"), (LLAMA, "dense"), (MOE, "moe"), (load_model("deepseek_v3"), "moe")]
)
def test_forward_flops_are_the_models_own_count(model, kind):
    seq, one = 2048, record(model, ParallelContext(1, 2048), kind=kind)
    parts = model.flops_breakdown(seq)
    head = 2.0 * model.vocab * model.hidden
    if model.experts and model.dense_layers:
        # compare the expert layers alone: take the dense ones out of the model's count
        dense = (
            model.dense_ffn_layers
            * 2.0
            * (model.attention_matmul_params() + model.ffn_matrices * model.hidden * model.ffn)
        )
        linear = (parts["linear"] - head - dense) / model.moe_layers
    else:
        linear = (parts["linear"] - head) / model.layers
    expected = seq * (linear + parts["attention"] / model.layers)
    assert flops(one.forward) == pytest.approx(expected, rel=2e-3)


def test_backward_of_the_linear_layers_costs_two_forwards():
    trace = record(LLAMA, ParallelContext(2, 1024))
    linear = [op for op in trace.forward if op.kind == "matmul"]
    assert flops(op for op in trace.backward_input if op.kind == "matmul") == pytest.approx(flops(linear))
    assert flops(trace.backward_weight) == pytest.approx(flops(linear))


def test_flash_attention_does_half_of_the_square_and_unfused_all_of_it():
    half = flops(op for op in record(GPT, ParallelContext(1, 2048)).forward if op.group == "attention")
    whole = flops(
        op
        for op in record(GPT, ParallelContext(1, 2048), Style(attention="unfused")).forward
        if op.group == "attention"
    )
    assert whole / half == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_ranks_share_the_flops(tp):
    whole, part = record(GPT, ParallelContext(1, 1024)), record(GPT, ParallelContext(1, 1024, tp=tp, sp=True))
    assert flops(part.forward) * tp == pytest.approx(flops(whole.forward))


def test_sequence_parallelism_turns_all_reduces_into_gathers_and_scatters_of_the_same_size():
    plain = [m for m in record(GPT, ParallelContext(1, 1024, tp=8)).messages if m.phase == "forward"]
    split = [m for m in record(GPT, ParallelContext(1, 1024, tp=8, sp=True)).messages if m.phase == "forward"]
    assert [m.kind for m in plain] == ["all_reduce", "all_reduce"]
    assert [m.kind for m in split] == ["all_gather", "reduce_scatter"] * 2
    assert {m.bytes for m in plain + split} == {1024 * 1024 * 2}


@pytest.mark.parametrize("tp, sp", [(1, False), (8, False), (8, True)])
def test_saved_activations_follow_the_recompute_papers_formula(tp, sp):
    # arXiv 2205.05198: sbh(34 + 5as/h); /t inside the tensor-parallel part; 10 + 24/t + 5as/ht without sequence
    # parallelism
    s, b, h, a = 2048, 4, GPT.hidden, GPT.heads
    trace = record(GPT, ParallelContext(b, s, tp=tp, sp=sp), Style(attention="unfused", dropout=True))
    outside = 10 / tp if sp else 10
    expected = s * b * h * (outside + 24 / tp + 5 * a * s / h / tp)
    assert sum(trace.saved.values()) == pytest.approx(expected, rel=1e-6)


def test_expert_rows_are_tokens_times_choices_wherever_the_experts_live():
    alone = [op for op in record(MOE, ParallelContext(2, 1024), kind="moe").forward if op.group == "expert"]
    spread = [op for op in record(MOE, ParallelContext(2, 1024, ep=8), kind="moe").forward if op.group == "expert"]
    assert flops(alone) == pytest.approx(flops(spread))
    up = next(op for op in spread if op.name == "experts up")
    assert up.batch == 2 and up.m * up.batch == 2 * 1024 * 2


def test_imbalance_stretches_the_experts_and_the_all_to_all():
    even, skewed = (record(MOE, ParallelContext(1, 1024, ep=4), Style(imbalance=i), "moe") for i in (1.0, 1.5))
    for pick in (
        lambda t: flops(op for op in t.forward if op.group == "expert"),
        lambda t: sum(m.bytes for m in t.messages if m.group == "ep"),
    ):
        assert pick(skewed) == pytest.approx(1.5 * pick(even))


def test_node_limit_bounds_the_copies_that_cross_the_network():
    assert expected_places(1, 8, 0) == 1.0
    assert expected_places(8, 8, 0) == pytest.approx(8 * (1 - (7 / 8) ** 8))
    assert expected_places(8, 8, 4) == 4
    trace = OperatorTrace(Style(dedup=True))
    moe_ffn(trace, ParallelContext(1, 4096, ep=64, nodes=8), load_model("deepseek_v3"))
    # groups of DeepSeek-V3: at most 4 nodes, 32 chips, of which 8 experts fall on 7.2
    chips = 32 * (1 - (31 / 32) ** 8)
    sent = [m for m in trace.messages if m.group == "ep"]
    assert [m.dedup for m in sent] == pytest.approx([4 / chips] * 4)
    assert [m.bytes for m in sent] == pytest.approx([4096 * chips * 7168 * 2] * 4)


def test_a_copying_dispatcher_sends_one_copy_a_chip():
    """Eight of 128 experts on 8 chips lie on 8 (1 − (7/8)^8) = 5.25 of them; the plain all-to-all sends all eight."""
    sent = {}
    for dedup in (False, True):
        trace = OperatorTrace(Style(dedup=dedup))
        moe_ffn(trace, ParallelContext(1, 1024, ep=8), load_model("qwen3_30b_a3b"))
        sent[dedup] = [m.bytes for m in trace.messages if m.group == "ep"]
    assert sent[False] == [1024 * 8 * 2048 * 2] * 4
    assert sent[True] == pytest.approx([1024 * 8 * (1 - (7 / 8) ** 8) * 2048 * 2] * 4)


def test_biases_of_experts_pass_their_output_through_fp32():
    """b·p is written in fp32, added, the pieces put together, cast back: 4 + 10 + 8 + 6 bytes a value forward."""
    trace = OperatorTrace(Style())
    moe_ffn(trace, ParallelContext(1, 1024), load_model("gpt_oss_120b"))
    (bias,) = [op for op in trace.forward if op.name == "expert bias"]
    assert bias.bytes == (4 + (2 + 4 + 4) + (4 + 4) + (4 + 2)) * 1024 * 4 * 2880
    plain = OperatorTrace(Style())
    moe_ffn(plain, ParallelContext(1, 1024), load_model("qwen3_30b_a3b"))
    assert not [op for op in plain.forward if op.name == "expert bias"]


def test_fp8_experts_in_a_loop_are_quantised_one_by_one():
    """16 experts a chip: half an operator's host time for each, beside one for all; one kernel needs two."""
    for grouped, casts in (("loop", 1 + 16 / 2), ("fused", 2)):
        trace = OperatorTrace(Style(fp8=True, grouped=grouped))
        moe_ffn(trace, ParallelContext(1, 1024, ep=8), load_model("qwen3_30b_a3b"))
        assert [op.kernels for op in trace.forward if op.name == "experts up.cast"] == [casts]


def test_joined_experts_need_no_pass_for_activation_and_bias():
    names = {}
    for grouped in ("fused", "joined"):
        trace = OperatorTrace(Style(fp8=True, grouped=grouped))
        moe_ffn(trace, ParallelContext(1, 1024, ep=8), load_model("gpt_oss_120b"))
        names[grouped] = {op.name for op in trace.forward}
    assert names["fused"] - names["joined"] == {"expert activation", "expert bias"}


def test_sparse_attention_costs_less_than_dense_at_long_sequences_only():
    glm = load_model("glm5")
    dense = dataclasses.replace(glm, index_topk=0, index_heads=0, indexer_full_layers=0)

    def attention(model, seq):
        return flops(
            op for op in record(model, ParallelContext(1, seq)).forward if op.group in ("attention", "indexer")
        )

    assert attention(glm, 131072) < 0.6 * attention(dense, 131072)
    assert attention(glm, 2048) >= attention(dense, 2048)


def test_fp8_touches_linear_layers_and_not_attention_router_or_logits():
    trace = record(MOE, ParallelContext(1, 1024), Style(fp8=True), "moe")
    vocabulary(trace, ParallelContext(1, 1024), MOE.hidden, MOE.vocab)
    low = {op.name for op in trace.forward if op.low}
    assert {"qkv", "proj", "experts up", "experts down"} <= low
    assert not low & {"router", "logits", "flash"}


def test_parameters_of_a_layer_add_up_to_the_model():
    for model in (LLAMA, MOE, load_model("llama3_405b"), load_model("deepseek_v3")):
        dense, moe = layer_params(model, "dense", 1, 1, 1), layer_params(model, "moe", 1, 1, 1)
        total = model.dense_ffn_layers * sum(dense) + model.moe_layers * sum(moe) + 2 * model.vocab * model.hidden
        assert total == pytest.approx(model.total_params(), rel=2e-3)


def test_optimizers_move_the_bytes_their_states_have():
    adam = optimizer_ops(1e9, "adam", LLAMA.hidden, LLAMA.layers)
    assert sum(op.bytes for op in adam) == 1e9 * (8 + 16 + 8 + 2)
    muon = optimizer_ops(1e9, "muon", LLAMA.hidden, LLAMA.layers)
    assert sum(op.flops for op in muon) > 0 and not sum(op.flops for op in adam)


def test_muon_takes_fixed_seconds_by_who_repeats_the_work():
    def seconds(muon, shards):
        ops = optimizer_ops(1e9 / shards, "muon", 1024.0, 4, shards, muon=muon)
        return sum(op.flops for op in ops)

    repeated, distributed, owned = (seconds(who, 32) for who in ("repeated", "distributed", "owned"))
    # 632, 356 and 157 ms on 32 GB300
    assert distributed / repeated == pytest.approx(356 / 632, rel=0.01)
    assert owned / repeated == pytest.approx(157 / 632, rel=0.01)
    assert seconds("owned", 1) == seconds("repeated", 1)  # nobody to share with


def test_ring_attention_runs_at_the_length_of_a_ranks_rows_and_merges_its_steps():
    S, cp, heads, kv, width = 32_768, 4, 8.0, 2.0, 128.0

    def traced(kind, cp=cp):
        trace = OperatorTrace(Style(cp=kind))
        core_attention(trace, ParallelContext(1, S, cp=cp), heads, kv, width, width)
        return trace

    ring, gather = traced("ring"), traced("gather")
    assert ring.forward[0].flops == gather.forward[0].flops  # the causal half either way
    assert (ring.forward[0].m, gather.forward[0].m) == (S / cp, pytest.approx(S, rel=1e-4))
    assert ring.forward[0].kernels == cp and len(gather.forward) == 1
    assert (ring.backward_input[0].kernels, gather.backward_input[0].kernels) == (3 * cp, 3)  # three a step
    merge, back = ring.forward[1], ring.backward_input[1]
    rows = S / cp
    assert merge.bytes == 0.75 * (cp - 1) * rows * heads * width * 6  # read a piece, read and write the sum, bf16
    assert back.bytes == 0.75 * (cp - 1) * rows * (heads + 2 * kv) * width * 6  # gradients of queries, keys, values
    assert [op.name for op in traced("ring", 1).forward] == ["flash"]


def test_counts_and_gates_travel_apart_where_the_framework_sends_the_rows():
    """512 tokens to 2 of 16 experts on 4 chips: 16 counts of 8 bytes from each, 1,024 gates of 4 bytes each way."""
    ctx = ParallelContext(1, 512, ep=4)
    plain, apart = (record(MOE, ctx, Style(counts_apart=counts), "moe") for counts in (False, True))
    more = [m for m in apart.messages if m not in plain.messages]
    assert [(m.kind, m.bytes, m.phase) for m in more] == [
        ("all_gather", 8 * 16 * 4, "forward"),
        ("all_to_all", 4 * 1024, "forward"),
        ("all_to_all", 4 * 1024, "backward_input"),
    ]
    assert sum(op.kernels for op in apart.forward) - sum(op.kernels for op in plain.forward) == 12
    alone = ParallelContext(1, 512)
    for other, dedup in ((ctx, True), (alone, False)):  # a dispatcher packs them; nothing to send
        names = {m.name for m in record(MOE, other, Style(counts_apart=True, dedup=dedup), "moe").messages}
        assert not names & {"ep.counts", "ep.gates"}


def test_a_router_that_is_not_fused_issues_more_operators():
    fused, not_fused = (record(MOE, ParallelContext(1, 512), Style(router_fused=f), "moe") for f in (True, False))
    count = [sum(op.kernels for op in trace.forward if op.name == "routing") for trace in (fused, not_fused)]
    assert count == [10, 20]


def test_norms_of_queries_and_keys_and_around_a_block_pass_over_memory():
    """Counted as parameters, they are also work: read once, written once forward; a step more backward (by hand)."""
    plain, tokens, width = record(LLAMA, ParallelContext(2, 512)), 1024, 2

    def more(**changes):
        other = record(dataclasses.replace(LLAMA, **changes), ParallelContext(2, 512))
        passes = [sum(op.bytes for op in ops) for ops in (other.forward, other.backward_input)]
        launches = sum(op.kernels for op in other.forward) - sum(op.kernels for op in plain.forward)
        saved = sum(dict(other.saved).values()) - sum(dict(plain.saved).values())
        before = [sum(op.bytes for op in ops) for ops in (plain.forward, plain.backward_input)]
        return [after - b for after, b in zip(passes, before, strict=True)], launches, saved

    heads = tokens * (16 + 4) * 64 * width  # queries and keys
    assert more(qk_norm=True) == ([2 * heads, 3 * heads], 2, heads)
    block = tokens * 1024 * width
    assert more(norms_per_layer=4) == ([4 * block, 6 * block], 2, 2 * block)
