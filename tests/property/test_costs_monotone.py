"""Costs on generated models, chips, networks and plans: finite, positive, and never worse with better hardware."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.base.figure import Figure
from sim.cost import collectives, memory
from sim.cost.closed_form import step_time
from sim.cost.stacks import list_stacks, load_stack
from sim.cost.step import estimate
from sim.spec.hardware import cluster_from, load_cluster
from sim.spec.model import ModelSpec
from sim.spec.plan import SCHEDULES, Plan, Workload

SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
CLUSTERS = [
    load_cluster(name)
    for name in ("dgx_a100", "dgx_h100", "atlas_800t_a2", "atlas_900_a2_podc", "llama3_meta", "gb200_nvl72")
]
WIDTHS = st.sampled_from([1, 2, 4, 8])


@st.composite
def models(draw) -> ModelSpec:
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    hidden = heads * draw(st.sampled_from([64, 128]))
    common = dict(
        name="generated",
        layers=draw(st.integers(2, 96)),
        hidden=hidden,
        heads=heads,
        kv_heads=draw(st.sampled_from([8, heads])),
        head_dim=hidden // heads,
        ffn=draw(st.sampled_from([2, 4])) * hidden,
        vocab=draw(st.sampled_from([32000, 50257, 151936])),
        gated_ffn=draw(st.booleans()),
    )
    if draw(st.booleans()):
        common |= dict(
            experts=draw(st.sampled_from([8, 64])),
            experts_per_token=draw(st.sampled_from([1, 2, 6])),
            moe_ffn=hidden // 2,
            shared_experts=draw(st.sampled_from([0, 1])),
            dense_layers=draw(st.sampled_from([0, 1])),
        )
    if draw(st.booleans()):
        common |= dict(
            attention="mla",
            q_lora=draw(st.sampled_from([0, 512])),
            kv_lora=256,
            nope=64,
            rope=32,
            v_dim=64,
            head_dim=96,
            kv_heads=heads,
        )
    return ModelSpec(**common).check()


@st.composite
def cases(draw):
    model, cluster = draw(models()), draw(st.sampled_from(CLUSTERS))
    schedule = draw(st.sampled_from(SCHEDULES))
    plan = dict(
        tp=draw(WIDTHS),
        pp=draw(WIDTHS),
        dp=draw(WIDTHS),
        cp=draw(st.sampled_from([1, 2])),
        micro_batch=draw(st.sampled_from([1, 2])),
        zero=draw(st.integers(0, 3)),
        recompute=draw(st.sampled_from(["none", "selective", "selective_ops", "full"])),
        schedule=schedule,
        vpp=draw(st.sampled_from([2, 3])) if schedule == "interleaved" else 1,
    )
    if model.experts:
        plan["ep"] = draw(st.sampled_from([1, 2, 4, 8]))
    work = Workload(
        plan["dp"] * plan["micro_batch"] * 2 * plan["pp"] * draw(st.sampled_from([1, 2])),
        draw(st.sampled_from([512, 2048, 8192])),
    )
    precision = draw(st.sampled_from(["bf16", "fp8"]))
    stack = load_stack(draw(st.sampled_from(list_stacks())))
    try:
        made = Plan(**plan)
        estimate(model, cluster, made, work, precision, stack)
    except InputError as error:
        assert "\n" not in str(error)
        assume(False)
    return model, cluster, made, work, precision, stack


def seconds(case, cluster=None) -> float:
    model, first, plan, work, precision, stack = case
    return step_time(estimate(model, cluster or first, plan, work, precision, stack).costs, plan.schedule).total_s


def times(figure: Figure, factor: float) -> Figure:
    return dataclasses.replace(figure, value=figure.value * factor, low=figure.low * factor, high=figure.high * factor)


@SETTINGS
@given(cases())
def test_everything_is_finite_and_not_negative(case):
    model, cluster, plan, work, precision, stack = case
    made = estimate(model, cluster, plan, work, precision, stack)
    numbers = [
        made.costs.grad_reduce_s,
        made.costs.param_gather_s,
        made.costs.optimizer_s,
        made.costs.p2p_s,
        *made.classes.values(),
    ]
    for row in made.costs.chunks:
        for chunk in row:
            numbers += [
                chunk.forward_s,
                chunk.backward_input_s,
                chunk.backward_weight_s,
                chunk.forward_comm_s,
                chunk.backward_comm_s,
            ]
            assert chunk.forward_comm_s <= chunk.forward_s + 1e-12 and chunk.backward_comm_s <= chunk.backward_s + 1e-12
    step = step_time(made.costs, plan.schedule)
    numbers += list(step._asdict().values())
    need = memory.peak(model, plan, work, precision, stack)
    numbers += list(need.breakdown().values())
    assert all(math.isfinite(x) and x >= -1e-12 for x in numbers)
    # no chip does more than its peak
    flops = work.tokens * 3 * 2 * (model.active_params(head=False) - model.params()["norms"] * 2)
    peak = max(cluster.chip.peak("bf16").value, cluster.chip.peak(precision).value)
    assert flops / step.total_s / plan.num_chips < peak


@SETTINGS
@given(cases(), st.floats(1.01, 8.0))
def test_more_network_bandwidth_is_never_slower(case, factor):
    cluster = case[1]
    faster = dataclasses.replace(
        cluster, tiers=tuple(dataclasses.replace(t, bytes_per_s=times(t.bytes_per_s, factor)) for t in cluster.tiers)
    )
    assert seconds(case, faster) <= seconds(case) * (1 + 1e-9)


@SETTINGS
@given(cases(), st.floats(1.01, 8.0))
def test_more_memory_bandwidth_is_never_slower(case, factor):
    cluster = case[1]
    chip = dataclasses.replace(cluster.chip, memory_bytes_per_s=times(cluster.chip.memory_bytes_per_s, factor))
    assert seconds(case, dataclasses.replace(cluster, chip=chip)) <= seconds(case) * (1 + 1e-9)


@SETTINGS
@given(cases(), st.floats(1.01, 4.0))
def test_lower_latency_is_never_slower(case, factor):
    cluster = case[1]
    nearer = dataclasses.replace(
        cluster, tiers=tuple(dataclasses.replace(t, latency_s=times(t.latency_s, 1 / factor)) for t in cluster.tiers)
    )
    assert seconds(case, nearer) <= seconds(case) * (1 + 1e-9)


@SETTINGS
@given(cases())
def test_a_longer_batch_takes_longer_and_recomputation_saves_memory(case):
    model, cluster, plan, work, precision, stack = case
    double = dataclasses.replace(work, global_batch=2 * work.global_batch)
    assert seconds((model, cluster, plan, double, precision, stack)) > seconds(case)
    full, none = (
        memory.peak(model, dataclasses.replace(plan, recompute=r), work, precision, stack).activations
        for r in ("full", "none")
    )
    assert full <= none * (1 + 1e-9)


@SETTINGS
@given(
    st.sampled_from(CLUSTERS),
    st.integers(1, 512),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.floats(1.0, 1e11),
    st.sampled_from(collectives.KINDS),
    st.floats(1.01, 10.0),
)
def test_collectives_grow_with_bytes_and_are_at_least_the_wire(cluster, n, stride, size, kind, factor):
    levels = collectives.place(cluster, n, stride)
    one, more = collectives.time(kind, size, levels), collectives.time(kind, size * factor, levels)
    assert 0 <= one <= more
    if n > 1:
        assert math.prod(level.fan for level in levels) >= n
        best = sum(t.bytes_per_s.value for t in cluster.tiers) * cluster.chips_per_node
        assert one >= size * 0.4 / best * (n - 1) / n * (0 if kind == "p2p" else 1)


@SETTINGS
@given(st.integers(2, 8), st.floats(1e6, 1e10))
def test_a_mesh_group_uses_its_links_and_no_more(n, size):
    atlas = CLUSTERS[2]
    tier = atlas.tiers[0]
    link = tier.bytes_per_s.value * tier.efficiency.value / tier.links
    time = collectives.time("all_gather", size, collectives.place(atlas, n), "ring")
    assert time >= size * (n - 1) / n / ((n - 1) * link)


def test_a_cluster_of_one_tier_works():
    cluster = cluster_from(
        {
            "name": "ring",
            "chip": "a100",
            "chips_per_node": 4,
            "chips": 64,
            "tiers": [{"name": "all", "topology": "switch", "size": 64, "bytes_per_s": "100 GB/s"}],
        }
    )
    assert collectives.time("all_reduce", 1e9, collectives.place(cluster, 64)) > 0
