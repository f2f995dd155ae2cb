"""Operators, memory and the closed form against sums over single queries, matrices and micro-batches."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from minglm.errors import InputError
from sim.base.figure import figure
from sim.cost.closed_form import exposed_reduction, loads, step_time
from sim.cost.layer import LayerEstimator
from sim.cost.memory import (
    _back_on_the_chip,
    _changes,
    _more_chips,
    check_fits,
    gathered_bytes,
    in_flight,
    layer_activations,
    peak,
    saved_activations,
    state_bytes,
)
from sim.cost.operators import Op, OperatorTrace, ParallelContext, Style, activation, norm, residual, vocabulary
from sim.cost.operators_attention import core_attention, gqa, mla
from sim.cost.optimizer import optimizer_ops
from sim.cost.stacks import load_stack
from sim.cost.step import estimate
from sim.spec.hardware import load_cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import Plan, Workload
from sim.training.schedules import orders

LLAMA = ModelSpec("llama", layers=4, hidden=1024, heads=16, kv_heads=4, head_dim=64, ffn=2816, vocab=1000)
SPARSE = ModelSpec(
    "sparse",
    layers=4,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=48,
    ffn=1024,
    vocab=1000,
    attention="mla",
    q_lora=96,
    kv_lora=64,
    nope=32,
    rope=16,
    v_dim=24,
    index_topk=40,
    index_heads=6,
    index_dim=20,
    indexer_full_layers=4,
)
SEQ = 100


def named(ops: list[Op], name: str) -> Op:
    (op,) = [op for op in ops if op.name == name]
    return op


@pytest.fixture(scope="module")
def sparse() -> OperatorTrace:
    trace = OperatorTrace(Style())
    mla(trace, ParallelContext(1, SEQ), SPARSE)
    return trace


def test_the_indexer_scores_every_visible_key_by_every_head(sparse):
    # q·k is a multiply and an add for each of the head's values; the ReLU is weighed and added: two more
    per_pair = 6 * (2 * 20 + 2)
    assert named(sparse.forward, "index scores").flops == sum(per_pair * (query + 1) for query in range(SEQ))
    assert named(sparse.forward, "index q").flops == 2 * SEQ * 96 * 6 * 20
    assert named(sparse.forward, "index k").flops == 2 * SEQ * 512 * 20
    assert named(sparse.forward, "index w").flops == 2 * SEQ * 512 * 6


def test_sparse_attention_makes_scores_and_values_of_the_chosen_keys(sparse):
    chosen = [min(query + 1, 40) for query in range(SEQ)]
    scores, values = (sum(8 * keys * 2 * width for keys in chosen) for width in (64 + 16, 64))
    one = named(sparse.forward, "sparse attention")
    assert one.flops == pytest.approx(scores + values)
    # bytes: a row of 80 bf16 values for each chosen key, queries in and values out of 8 heads
    assert one.bytes == pytest.approx(sum(chosen) * 80 * 2 + 2 * SEQ * 8 * 64 * 2)
    back = named(sparse.backward_input, "sparse attention.backward")
    assert back.flops == pytest.approx(2.5 * one.flops)  # five products for two
    # the rows again, and their gradient in fp32; of the heads, queries, output and its gradient come in, two go out
    rows, heads = sum(chosen) * 80, SEQ * 8 * 64
    assert back.bytes == pytest.approx(2 * rows + 4 * rows + 2 * (3 + 2) * heads)
    assert back.kernels == 3  # what the softmax needs, the gradients, queries' gradient in bf16
    assert named(sparse.forward, "absorb q").flops == 2 * SEQ * 8 * 32 * 64
    assert named(sparse.forward, "absorb v").flops == 2 * SEQ * 8 * 64 * 24


def test_as_many_keys_as_there_are_leave_attention_dense():
    trace = OperatorTrace(Style())
    mla(trace, ParallelContext(1, 40), SPARSE)
    flash = named(trace.forward, "flash")
    assert flash.flops == sum(8 * (query + 1) * 2 * (48 + 24) for query in range(40))
    assert not [op for op in trace.forward if op.name == "sparse attention"]


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_keys_and_values_of_the_whole_sequence_come_from_the_other_ranks(cp):
    trace = OperatorTrace(Style(cp="gather"))
    gqa(trace, ParallelContext(3, SEQ, cp=cp), LLAMA)
    sent = [m for m in trace.messages if m.group == "cp"]
    keys, values = (3 * SEQ * 4 * 64 * 2 for _ in range(2))  # 3 sequences, 4 heads of 64, bf16
    assert [m.bytes for m in sent] == [keys + values] * (3 if cp > 1 else 0)
    # forward a gather; backward one more for the products again, and the gradients' sums go home
    assert sorted((m.kind, m.phase) for m in sent) == (
        [("all_gather", "backward_input"), ("all_gather", "forward"), ("reduce_scatter", "backward_input")]
        if cp > 1
        else []
    )


def test_unfused_attention_goes_back_by_two_products_for_each_of_its_two():
    """Scores q·kᵀ: the queries' gradient sums over the keys. Values p·v: that of p sums over the values' width."""
    trace = OperatorTrace(Style(attention="unfused"))
    core_attention(trace, ParallelContext(2, SEQ), 16, 4, 48, 24)
    for name, left in (("scores", (SEQ, 48, SEQ)), ("values", (SEQ, SEQ, 24))):
        there, a, b = (
            named(ops, n)
            for ops, n in (
                (trace.forward, name),
                (trace.backward_input, f"{name}.backward.a"),
                (trace.backward_input, f"{name}.backward.b"),
            )
        )
        assert (a.m, a.n, a.k) == left
        assert there.flops == a.flops == b.flops == 2 * 16 * 2 * SEQ * SEQ * (48 if name == "scores" else 24)


@pytest.mark.parametrize("window", [0, 1, 16, 100, 400])
def test_a_window_limits_what_each_query_sees(window):
    trace = OperatorTrace(Style())
    gqa(trace, ParallelContext(2, SEQ), LLAMA, window)
    seen = sum(min(query + 1, window or SEQ) for query in range(SEQ))
    flash = named(trace.forward, "flash")
    assert flash.flops == pytest.approx(2 * 16 * seen * (2 * 64 + 2 * 64))
    assert named(trace.backward_input, "flash.backward").flops == pytest.approx(2.5 * flash.flops)


@pytest.mark.parametrize("fused", [True, False])
def test_bytes_of_a_linear_layer_and_its_gradients(fused):
    trace = OperatorTrace(Style(accumulate_fused=fused))
    trace.linear("one", "linear", 300, 64, 96)
    rows, weight = 300 * (64 + 96) * 2, 64 * 96
    assert named(trace.forward, "one").bytes == rows + 2 * weight
    assert named(trace.backward_input, "one.dgrad").bytes == rows + 2 * weight
    gradient = [(op.name, op.bytes, op.flops) for op in trace.backward_weight]
    flops = 2 * 300 * weight
    if fused:  # the fp32 sum is read and written inside the product
        assert gradient == [("one.wgrad", rows + (4 + 4) * weight, flops)]
    else:  # the product writes bf16; another kernel reads it, and reads and writes the fp32 sum
        assert gradient == [("one.wgrad", rows + 2 * weight, flops), ("one.accumulate", (2 + 4 + 4) * weight, 0.0)]


@pytest.mark.parametrize("side", [256, 1024])
def test_newton_schulz_is_five_iterations_of_three_products(side):
    count = 7
    square = 2 * side**3  # X Xᵀ, A A, and (b A + c A²) X
    ops = optimizer_ops(count * side**2, "muon", side, 4)
    assert named(ops, "newton-schulz").flops == 5 * 3 * square * count
    # fp32 weight and moment read and written, fp32 gradient read twice, the update written and read, bf16 weight
    assert named(ops, "muon").bytes == count * side**2 * (8 + 8 + 2 * 4 + 8 + 2)


@pytest.mark.parametrize(
    "zero, each",  # bytes of weights, gradients and optimiser states a parameter, of 8 replicas
    [(0, (2, 4, 12)), (1, (2, 4, 12 / 8)), (2, (2, 4 / 8, 12 / 8)), (3, (4 / 8, 4 / 8, 8 / 8))],
)
def test_states_of_adam_by_zero_stage(zero, each):
    got = state_bytes(Plan(dp=8, zero=zero), load_stack("generic"), 1000.0, 0.0, 8, 1, zero)
    assert got == pytest.approx(tuple(1000 * part for part in each))


def test_experts_are_cut_by_their_own_replicas():
    got = state_bytes(Plan(dp=8, zero=1), load_stack("generic"), 1000.0, 600.0, 8, 2, 1)
    assert got == pytest.approx((3200.0, 6400.0, 12 * (1000 / 8 + 600 / 2)))


def test_zero_three_gathers_the_layer_at_work_and_the_next_one():
    layer = 1024 * 64 * (16 + 2 * 4) + 16 * 64 * 1024 + 3 * 1024 * 2816 + 2 * 1024
    plan, stack = Plan(dp=8, zero=3), load_stack("generic")
    assert gathered_bytes(LLAMA, plan, stack) == pytest.approx(2 * 2 * layer + 4 * layer, rel=1e-3)
    wide = dataclasses.replace(LLAMA, vocab=128 * 1000)  # a table larger than any layer
    assert gathered_bytes(wide, plan, stack) == (2 * 2 + 4) * 128_000 * 1024


def most_held(schedule: str, ranks: int, micro_batches: int, chunks: int, rank: int) -> float:
    """Most forwards without their backward that the rank's own order leaves open, in stages of a whole rank."""
    held = most = 0
    for op in orders(schedule, ranks, micro_batches, chunks)[rank]:
        held += {"F": 1, "B": -1, "I": -1}.get(op.kind, 0)
        most = max(most, held)
    return most / chunks


@pytest.mark.parametrize(
    "schedule, chunks", [("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("interleaved", 2), ("interleaved", 4)]
)
@pytest.mark.parametrize("ranks, m", [(2, 4), (4, 8), (4, 32), (8, 8)])
def test_activations_held_are_those_of_the_schedules_order(schedule, chunks, ranks, m):
    plan = Plan(pp=ranks, vpp=chunks, schedule=schedule)
    for rank in range(ranks):
        held = in_flight(plan, rank, m)
        assert held[0] == pytest.approx(most_held(schedule, ranks, m, chunks, rank))


@pytest.mark.parametrize("reduce", [0.001, 0.5, 1.7, 30.0])
@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.9])
def test_a_reduction_never_hides_whole(reduce, hidden):
    """What overlaps is a share of the last backward (1.7 s); the last of eight buckets has nothing to hide under."""
    work = loads([1.0] * 4, [1.1] * 4, [0.6] * 4, [0.0] * 4, 1)
    left = exposed_reduction(work, 16, reduce, 1.0, hidden)
    assert left == pytest.approx(max(reduce - hidden * 1.7, reduce / 8 * (1 - hidden)))
    assert left > 0 and (hidden or left == pytest.approx(reduce))


def test_interleaving_hides_early_chunks_under_later_ones():
    # two chunks: the first one's half has 4 micro-batches' backward of the second (0.85 s each) to hide under
    work = loads([1.0] * 4, [1.1] * 4, [0.6] * 4, [0.0] * 4, 2)
    early = 10 / 2 - 0.5 * 4 * 0.85
    assert exposed_reduction(work, 16, 10.0, 1.0, 0.5) == pytest.approx(early + 10 / 2 - 0.5 * 0.85)
    assert exposed_reduction(work, 2, 10.0, 1.0, 0.5) == pytest.approx(early + 0.5 * 2 * 0.85 + 10 / 2 - 0.5 * 0.85)


@pytest.mark.parametrize("loss, chunks", [("torch", 1), ("fused", 1), ("chunked", 8), ("liger", 32)])
def test_a_chunked_loss_does_the_same_products_and_holds_one_chunk_of_logits(loss, chunks):
    """Llama 3 8B at 8,192 tokens: Liger cuts ⌈128,256/4,096⌉ = 32 chunks of 256."""
    tokens, hidden, vocab = 8192, 4096, 128_256
    trace = OperatorTrace(Style(loss=loss))
    vocabulary(trace, ParallelContext(1, tokens), hidden, vocab)
    logits, gradient = named(trace.forward, "logits"), named(trace.backward_weight, "logits.wgrad")
    assert logits.flops == gradient.flops == 2 * tokens * hidden * vocab
    # each chunk reads the table; hidden states and logits cross memory once
    assert logits.bytes == chunks * 2 * hidden * vocab + 2 * tokens * (hidden + vocab)
    assert logits.kernels == chunks
    model = ModelSpec("llama3", 32, hidden, 32, 8, 128, 14336, vocab)
    stack = dataclasses.replace(load_stack("generic"), loss=loss)
    peak = saved_activations(model, Plan(dp=8), Workload(8, tokens), stack).loss
    each = {"torch": 14, "fused": 4, "chunked": 14, "liger": 4}[loss]
    collected = 2 * tokens * hidden if chunks > 1 else 0
    assert peak == tokens / chunks * vocab * each + collected


def both_ways(trace: OperatorTrace, name: str) -> tuple[float, float]:
    """Bytes of a kernel forward and backward."""
    return tuple(
        sum(op.bytes for op in ops if op.name.startswith(name)) for ops in (trace.forward, trace.backward_input)
    )


@pytest.mark.parametrize("kv_heads", [1, 4, 16])
def test_rotary_position_turns_queries_and_keys(kv_heads):
    """Bytes grow with heads of both: as many as a model of 16 + kv heads, whatever the kernel reads of each."""

    def size(kv):
        trace = OperatorTrace(Style())
        gqa(trace, ParallelContext(1, SEQ), dataclasses.replace(LLAMA, kv_heads=kv))
        return both_ways(trace, "rope")

    for got, full in zip(size(kv_heads), size(16), strict=True):
        assert got / full == pytest.approx((16 + kv_heads) / 32)


def test_dropout_reads_and_writes_a_byte_of_mask_for_each_value():
    """Forward the mask is written; backward it is read, and the residual's gradient passes once more."""
    made = {}
    for dropout in (False, True):
        trace = OperatorTrace(Style(dropout=dropout))
        residual(trace, ParallelContext(1, SEQ), 64)
        made[dropout] = trace
    values = SEQ * 64
    more = [a - b for a, b in zip(both_ways(made[True], "residual"), both_ways(made[False], "residual"), strict=True)]
    assert more == pytest.approx([values, values + 2 * values])
    assert sum(made[True].saved.values()) - sum(made[False].saved.values()) == pytest.approx(values)


def test_dense_latent_attention_keeps_its_latent_for_the_backward_pass():
    """The input of the matrix that makes keys and values of it: kv_lora values of 2 bytes for each token."""
    trace = OperatorTrace(Style())
    mla(trace, ParallelContext(1, SEQ), dataclasses.replace(SPARSE, index_topk=0, index_heads=0, index_dim=0))
    half = OperatorTrace(Style())
    mla(
        half, ParallelContext(1, SEQ), dataclasses.replace(SPARSE, kv_lora=32, index_topk=0, index_heads=0, index_dim=0)
    )
    kept = sum(trace.saved.values()) - sum(half.saved.values())
    assert kept >= SEQ * 32 * 2 and kept <= 3 * SEQ * 32 * 2  # once as the matrix's input; norms of it beside


def test_the_memory_is_the_sum_of_its_parts():
    plan, work = Plan(dp=2, zero=1), Workload(4, SEQ)
    need = peak(LLAMA, plan, work, "bf16", load_stack("generic"))
    parts = need.breakdown()
    assert need.total_bytes == pytest.approx(sum(parts.values())) and min(parts.values()) >= 0
    assert parts["weights"] > 0 and parts["activations"] > 0


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_offloaded_activations_leave_two_layers_and_wait_for_a_slow_host(recompute):
    """A host link so slow that copies are all there is: out and back once for each layer's kept bytes."""
    work, base = Workload(8, 4096), Plan(dp=8, recompute=recompute)
    away, stack = dataclasses.replace(base, activation_offload=True), load_stack("generic")
    near, far = (peak(LLAMA, plan, work, "bf16", stack) for plan in (base, away))
    saved = LayerEstimator(LLAMA, load_cluster("dgx_h100"), base, work, "bf16", stack).layer("dense", "none").saved
    layer = 4096 * LLAMA.hidden * 2 if recompute == "full" else sum(size for _, size in saved)
    assert near.activations - far.activations == pytest.approx((LLAMA.layers - 2) * layer)

    def seconds(plan, gb_per_s):
        cluster = load_cluster("dgx_h100")
        cluster = dataclasses.replace(cluster, host_bytes_per_s=figure(f"{gb_per_s} GB/s", "bytes_per_s", "host"))
        return step_time(estimate(LLAMA, cluster, plan, work, "bf16", stack).costs, "1f1b").total_s

    assert seconds(away, 1e6) == pytest.approx(seconds(base, 1e6))  # copies hide under the passes
    slow, slower = seconds(away, 0.01), seconds(away, 0.005)
    assert slower - slow == pytest.approx(2 * LLAMA.layers * layer * (1 / 5e6 - 1 / 1e7), rel=1e-6)


def test_offloading_with_a_recomputation_in_between_is_refused():
    with pytest.raises(InputError, match="set recompute=full"):
        Plan(recompute="selective", activation_offload=True)


SHARDED = ["options.zero=1", "recompute=full", "options.zero=3", "options.zero=3 recompute=full"]
STATES, AWAY = "options.optimizer_offload=true", "options.activation_offload=true"


@pytest.mark.parametrize(
    "plan, seq, offered",
    [
        # 4 layers: two or four stages; 16 query heads share 4 of keys: tp 2 and 4; 8 does not divide the 4
        (
            dict(tp=1, pp=1, dp=8, micro_batch=2, zero=0, recompute="none"),
            4096,
            ["micro_batch=1", *SHARDED]
            + [f"plan.{w} recompute=full" for w in ("pp=2 plan.dp=4", "pp=4 plan.dp=2")]
            + [f"plan.{w} recompute=full" for w in ("tp=2 plan.dp=4", "tp=4 plan.dp=2")]
            + [STATES, AWAY, "plan.cp=2 plan.dp=4"],
        ),
        # an odd sequence is not cut in two, nor are 9 replicas
        (dict(tp=4, pp=4, dp=2, micro_batch=1, zero=1, recompute="full"), 4095, ["options.zero=3", STATES, AWAY]),
        (dict(tp=1, pp=1, dp=9, micro_batch=1, zero=3, recompute="full"), 4096, [STATES, AWAY]),
        # chunks count as stages do: 2 ranks of 2 chunks hold one layer each
        (
            dict(tp=2, pp=2, vpp=2, dp=2, micro_batch=1, zero=3, recompute="full", offload=True),
            4096,
            ["plan.tp=4 plan.dp=1 recompute=full", AWAY, "plan.cp=2 plan.dp=1"],
        ),
        (dict(tp=1, pp=1, dp=1, micro_batch=1, zero=0, recompute="none", cp=2), 4096, ["recompute=full", STATES, AWAY]),
    ],
)  # fmt: skip
def test_changes_that_save_memory_keep_the_chips_and_cut_what_can_be_cut(plan, seq, offered):
    plan, work = Plan(**plan), Workload(seq=seq, global_batch=64)
    found = list(_changes(plan, LLAMA, work))
    assert [words for words, _, _ in found] == offered
    assert {changed.num_chips for _, changed, _ in found} == {plan.num_chips}
    assert {w for _, _, w in found} <= {work}


@pytest.mark.parametrize("away", [dict(activation_offload=True), dict(offload=True)])
def test_host_memory_must_hold_what_is_offloaded(away):
    """By hand: all layers' kept bytes but two; fp32 weights and two moments. A host of less is refused, and each change
    that is named is a plan that runs."""
    plan, work = Plan(dp=8, recompute="none", zero=1, **away), Workload(8, 4096)
    cluster, stack = load_cluster("dgx_h100"), load_stack("generic")
    estimator = LayerEstimator(LLAMA, cluster, plan, work, "bf16", stack)
    layer = sum(size for _, size in estimator.layer("dense", "none").saved)
    weights = (LLAMA.total_params() + 24 * 1024) / 8  # the vocabulary is padded to 1,024 rows
    by_hand = (LLAMA.layers - 2) * layer if plan.activation_offload else weights * 12
    need = peak(LLAMA, plan, work, "bf16", stack)
    assert need.host == pytest.approx(by_hand, rel=1e-3)
    assert peak(LLAMA, Plan(dp=8, recompute="none", zero=1), work, "bf16", stack).host == 0
    for share, over in ((1.01, False), (0.99, True)):
        room = dataclasses.replace(cluster, host_memory_bytes=figure(share * by_hand, "bytes", "host"))
        if not over:
            assert check_fits(LLAMA, room, plan, work, "bf16", stack) == need
            continue
        with pytest.raises(InputError, match=r"host memory .* GiB over .* DGX H100; set options\.") as refusal:
            check_fits(LLAMA, room, plan, work, "bf16", stack)
        said = str(refusal.value).split("; set ")[1].split(" or ")
        changes = {
            words: changed for words, changed, _ in (*_back_on_the_chip(plan, work), *_changes(plan, LLAMA, work))
        }
        for words in said:
            assert check_fits(LLAMA, room, changes[words], work, "bf16", stack).host <= room.host_memory_bytes.value


def test_what_is_missing_is_said_in_gib():
    """What is needed, what is over and what the card has, of one just too small and one of 0.5 GiB."""
    plan, work = Plan(micro_batch=1, zero=0, recompute="full", offload=True), Workload(seq=16384, global_batch=1)
    need = peak(LLAMA, plan, work).total_bytes
    for gib in (need / 2**30 - 0.25, 0.5):
        chip = dataclasses.replace(load_cluster("dgx_h100").chip, memory_bytes=figure(gib * 2**30, "bytes", "memory"))
        cluster = dataclasses.replace(load_cluster("dgx_h100"), chip=chip, num_chips=1)
        with pytest.raises(InputError) as refusal:
            check_fits(LLAMA, cluster, plan, work)
        numbers = [float(x) for x in re.findall(r"([\d.]+) GiB", str(refusal.value))]
        assert numbers[:3] == pytest.approx([need / 2**30, need / 2**30 - gib, gib], abs=0.051)
        assert numbers[3:] in ([], [math.ceil(need / 2**30)])


def test_more_chips_are_offered_in_doublings_of_tensor_and_pipeline_parallelism():
    """Tensor parallelism up to 8; with experts their own width is said; a plan with stages of its own gets none."""
    words = [w for w, _ in _more_chips(Plan(tp=2, pp=2, dp=3))]
    rest = "plan.dp=3 recompute=full micro_batch=1"
    wider = [(2, 24), (4, 48)]
    right = [
        line
        for n, chips in wider
        for line in (f"chips={chips} plan.tp={2 * n} {rest}", f"chips={chips} plan.pp={2 * n} {rest}")
    ]
    right += [f"chips={12 * n} plan.pp={2 * n} {rest}" for n in (8, 16, 32, 64, 128, 256)]
    assert words == right
    experts = [w for w, _ in _more_chips(Plan(tp=8, pp=1, dp=8, ep=8, etp=1))]
    assert experts[0] == "chips=128 plan.pp=2 plan.dp=8 recompute=full micro_batch=1 plan.etp=1"
    for words, changed in _more_chips(Plan(tp=1, pp=1, dp=2)):
        assert f"chips={changed.num_chips} " in words and changed.micro_batch == 1 and changed.recompute == "full"
    assert list(_more_chips(Plan(pp=2, stages=(3, 1)))) == []


def test_without_recomputation_no_layer_is_run_again():
    """Both kinds of layers hold what they saved, in every micro-batch in flight, and nothing beside it."""
    plan = {again: Plan(pp=2, micro_batch=1, recompute=again) for again in ("none", "full")}
    work, stack = Workload(seq=4096, global_batch=8), load_stack("generic")
    need = {again: peak(LLAMA, plan[again], work) for again in plan}
    *_, whole = layer_activations(LLAMA, plan["none"], work, stack, "dense")
    short, _, again = layer_activations(LLAMA, plan["full"], work, stack, "dense")
    assert short < whole == again
    held = 2 * in_flight(plan["none"], 0, 8)[0]  # layers of a stage, times micro-batches
    assert need["none"].activations - need["full"].activations == pytest.approx(held * (whole - short))
    assert need["full"].buffers - need["none"].buffers == pytest.approx(whole)  # the layer that is run again


@pytest.mark.parametrize(
    "fusion, kind, there, back",
    [("fused", "rms", 2, 3), ("fused", "layer", 2, 3), ("compiled", "rms", 2, 3), ("eager", "layer", 2, 4)],
)
def test_a_norm_passes_over_its_values_so_often(fusion, kind, there, back):
    """x in, y out; back x and dy in, dx out. LayerNorm's own kernel reads once more for its weights."""
    trace = OperatorTrace(Style(fusion=fusion))
    norm(trace, ParallelContext(1, SEQ), 64, kind)
    assert both_ways(trace, "norm") == (there * SEQ * 64 * 2, back * SEQ * 64 * 2)


@pytest.mark.parametrize("fusion", ["fused", "compiled", "eager"])
@pytest.mark.parametrize("gated", [True, False])
def test_an_activation_reads_its_halves_and_writes_their_product(fusion, gated):
    """Gated: gate and up in, product out; back they and dy in, two gradients out. Eager: SiLU has its own pass."""
    trace = OperatorTrace(Style(fusion=fusion))
    activation(trace, SEQ, 96, gated)
    apart = gated and fusion == "eager"
    passes = (5, 8) if apart else (3, 5) if gated else (2, 3)
    assert both_ways(trace, "activation") == pytest.approx(tuple(n * SEQ * 96 * 2 for n in passes))
