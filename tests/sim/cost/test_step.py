"""Step costs: what the simulator receives is complete, consistent and moves the right way."""

from __future__ import annotations

import dataclasses

import pytest

from minglm.errors import InputError
from sim.cost.closed_form import step_time
from sim.cost.layer import LayerEstimator
from sim.cost.stacks import list_stacks, load_stack, resolve, with_changes
from sim.cost.step import build, estimate
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload

DGX, H100, ATLAS = load_cluster("dgx_a100"), load_cluster("dgx_h100"), load_cluster("atlas_800t_a2")
GPT, DSV3, LLAMA = load_model("gpt3_175b"), load_model("deepseek_v3"), load_model("llama3_8b")


def seconds(model, cluster, plan, work, precision="bf16", stack=None) -> float:
    return step_time(build(model, cluster, plan, work, precision, stack), plan.schedule).total_s


def test_shape_of_the_hand_over():
    plan = Plan(tp=8, pp=8, vpp=3, dp=2, zero=1)
    costs = build(GPT, DGX, plan, Workload(128, 2048))
    assert costs.ranks == 8 and all(len(row) == 3 for row in costs.chunks)
    assert costs.micro_batches == 64 and costs.replicas == 2 and costs.chips_per_rank == 8
    assert costs.tokens == 128 * 2048
    assert costs.p2p_bytes == 2048 * GPT.hidden * 2 / 8
    for row in costs.chunks:
        for chunk in row:
            assert min(chunk.forward_s, chunk.backward_input_s, chunk.backward_weight_s) > 0
            assert chunk.forward_comm_s == 0.0
    assert costs.grad_reduce_s > 0 and costs.param_gather_s > 0 and costs.optimizer_s > 0


def test_classes_add_up_to_the_busiest_rank():
    made = estimate(
        GPT, DGX, Plan(tp=8, pp=8), Workload(64, 2048), stack=with_changes(load_stack("generic"), graphs="full")
    )
    busiest = max(sum(c.forward_s + c.backward_s for c in row) for row in made.costs.chunks)
    assert sum(made.classes.values()) == pytest.approx(busiest, rel=1e-6)


def test_only_dualpipe_is_given_communication_to_hide():
    work = Workload(2048, 4096)
    plain = build(DSV3, H100, Plan(pp=16, dp=16, ep=64 // 4, zero=1), work)
    dual = build(DSV3, H100, Plan(pp=16, dp=16, ep=64 // 4, zero=1, schedule="dualpipe"), work)
    assert all(c.forward_comm_s == 0 for row in plain.chunks for c in row)
    hidden = [c for row in dual.chunks for c in row if c.forward_comm_s > 0]
    assert hidden and all(c.forward_comm_s < c.forward_s and c.backward_comm_s < c.backward_s for c in hidden)


def test_full_recomputation_adds_a_forward_to_the_backward():
    graphs = with_changes(load_stack("generic"), graphs="full")
    none, full = (
        build(GPT, DGX, Plan(tp=8, pp=8, recompute=r), Workload(64, 2048), stack=graphs).chunks[3][0]
        for r in ("none", "full")
    )
    assert full.backward_input_s - none.backward_input_s == pytest.approx(none.forward_s, rel=1e-6)
    assert full.forward_s == none.forward_s and full.backward_weight_s == none.backward_weight_s


def test_recomputing_some_layers_lies_between():
    times = [
        seconds(GPT, DGX, Plan(tp=8, pp=8, recompute="full", recompute_layers=n), Workload(64, 2048))
        for n in (0, 6, 12)
    ]
    assert times[0] < times[1] < times[2]
    assert times[0] == pytest.approx(seconds(GPT, DGX, Plan(tp=8, pp=8), Workload(64, 2048)))


@pytest.mark.parametrize("change", [dict(overlap_tp=True), dict(overlap_all_to_all=True)])
def test_overlap_saves_time(change):
    plan = Plan(tp=2, pp=4, dp=16, ep=32, zero=1)
    work = Workload(512, 4096)
    assert seconds(DSV3, H100, dataclasses.replace(plan, **change), work) < seconds(DSV3, H100, plan, work)


def test_one_copy_per_node_relieves_the_network():
    plan, work = Plan(pp=4, dp=64, ep=64, zero=1), Workload(512, 4096)
    stack = load_stack("generic")
    assert seconds(DSV3, H100, plan, work, stack=with_changes(stack, dedup=True)) < seconds(
        DSV3, H100, plan, work, stack=stack
    )


def test_fp8_speeds_up_the_h100_and_not_the_a100():
    plan, work = Plan(dp=8, zero=3), Workload(64, 8192)
    assert seconds(LLAMA, H100, plan, work, "fp8") < 0.85 * seconds(LLAMA, H100, plan, work, "bf16")
    assert seconds(LLAMA, DGX, plan, work, "fp8") >= seconds(LLAMA, DGX, plan, work, "bf16")


def test_small_layers_are_bound_by_their_host_and_graphs_free_them():
    small = load_model("gpt2")
    plan, work = Plan(dp=8, zero=1), Workload(8, 1024)
    stack = with_changes(load_stack("generic"), fixed_s=0.0)
    assert seconds(small, H100, plan, work, stack=with_changes(stack, graphs="full")) < 0.75 * seconds(
        small, H100, plan, work, stack=stack
    )


def test_partial_graphs_leave_the_experts_to_the_host():
    stack, plan, work = load_stack("megatron-bridge-25.11"), Plan(dp=8, ep=8, zero=1), Workload(8, 1024)
    none, partial, full = (
        seconds(load_model("qwen3_30b_a3b"), H100, plan, work, stack=with_changes(stack, graphs=g))
        for g in ("none", "partial", "full")
    )
    assert full < partial < none


def test_what_a_partial_graph_replays_waits_for_nobody():
    """Where the host waits for token counts, each operator that it issues takes the longer of device and host time; a
    replayed one its device time."""
    stack = with_changes(load_stack("megatron-bridge-25.11"), graphs="partial")
    plan, model = Plan(dp=8, ep=8, zero=1), load_model("qwen3_30b_a3b")
    layer = LayerEstimator(model, H100, plan, Workload(8, 1024), "bf16", stack)
    trace = layer.trace("moe")
    issued = [op for op in trace.forward if op.group in ("expert", "permutation")]
    late = sum(max(stack.host_op_s * op.kernels - layer.kernels.time(op), 0.0) for op in issued)
    waits, runs_ahead = (layer.compute(trace, sync=sync).forward_s for sync in (True, False))
    assert waits - runs_ahead == pytest.approx(late) and late > 0


def test_experts_padded_to_a_capacity_wait_for_no_count():
    model, plan = load_model("qwen3_30b_a3b"), Plan(dp=8, ep=8, micro_batch=1, zero=1)
    waits = load_stack("megatron-bridge-25.09")
    ahead = with_changes(waits, expert_sync=False)
    even, padded = Workload(64, 4096, imbalance=1.0), Workload(64, 4096, capacity_factor=1.0)

    def took(work, stack):
        return seconds(model, H100, plan, work, "bf16", stack)

    assert took(padded, waits) == took(padded, ahead) == took(even, ahead) < took(even, waits)
    twice = Workload(64, 4096, capacity_factor=2.0)
    assert took(twice, waits) == took(Workload(64, 4096, imbalance=2.0), ahead) > took(padded, waits)


def test_the_constant_of_a_step_is_the_slowest_hosts():
    stack = load_stack("generic")
    assert stack.overhead_s(8) == stack.fixed_s
    # hosts that each take an exponential time: the largest of N has the mean H(N), here against 1 + ln N
    harmonic = sum(1 / n for n in range(1, 1025))
    assert stack.overhead_s(8 * 1024) == pytest.approx(stack.fixed_s * harmonic, rel=0.06)


def test_zero_three_pays_for_its_gathers():
    work = Workload(64, 4096)
    assert (
        seconds(LLAMA, DGX, Plan(dp=64, zero=3), work)
        > seconds(LLAMA, DGX, Plan(dp=64, zero=1, overlap_grad_reduce=True), work) * 0.9
    )
    near, far = (seconds(LLAMA, DGX, Plan(dp=64, zero=3, hsdp=h), work) for h in (8, 64))
    assert near < far


def test_tensor_parallelism_over_two_chips_of_the_hccs_mesh_is_dear():
    def share(tp):
        made = estimate(GPT, ATLAS, Plan(tp=tp, pp=8), Workload(64, 2048))
        return made.classes["tp communication"] / sum(made.classes.values())

    # half the traffic of TP8 per chip-FLOP, but one link of seven
    assert share(2) > 0.5 * share(8)


def test_same_inputs_same_costs():
    args = (
        DSV3,
        H100,
        Plan(pp=8, vpp=4, dp=8, ep=32, tp=4, zero=1),
        Workload(64 * 8, 4096),
        "fp8",
        "megatron-bridge-25.11",
    )
    assert build(*args) == build(*args)


def test_every_listed_stack_loads_and_unlisted_ones_stand_on_a_relative():
    for name in list_stacks():
        assert load_stack(name).name == name
    chip = H100.chip
    assert resolve("Megatron-Bridge 25.07", chip)[1][0].count("taken as megatron-bridge-25.09")
    assert "taken as fsdp" in resolve("PyTorch FSDP 2.3", chip)[1][0]
    assert "taken as ascend" in resolve("MindSpeed-MM", ATLAS.chip)[1][0]
    assert "taken as generic" in resolve("Somebody's trainer", chip)[1][0]
    assert "not named" in resolve(None, chip)[1][0]


def test_unknown_stacks_and_options_name_the_nearest():
    with pytest.raises(InputError, match="did you mean 'megatron-bridge-25.11'"):
        load_stack("megatron-bridge-25.1111")
    with pytest.raises(InputError, match="did you mean 'fusion'"):
        with_changes(load_stack("generic"), fusions="eager")
