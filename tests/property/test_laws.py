"""Laws of the whole that docs/laws.md lists beside those of single rooms: chips, bandwidth, tokens, money, sharding."""

import dataclasses

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.base.figure import figure
from sim.cost import memory, money
from sim.cost.closed_form import step_time
from sim.cost.step import estimate
from sim.scenario.launch.megatron import read
from sim.scenario.launch.read import scenario_of
from sim.spec.hardware import load_cluster
from sim.spec.model import from_config
from sim.trace.chakra_node import COLL, COMP, Node
from sim.trace.replay import run as replay
from sim.training.campaign import run as run_campaign
from tests.property.test_costs_monotone import cases, seconds, times
from tests.property.test_events_campaign import campaigns

FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
LESS = 1 + 1e-9
STARTS_S = 1e-4  # of a few collectives


def without_communication(cluster):
    """The same chips, joined by links that cost nothing."""
    return dataclasses.replace(
        cluster,
        tiers=tuple(
            dataclasses.replace(t, bytes_per_s=times(t.bytes_per_s, 1e12), latency_s=times(t.latency_s, 0.0))
            for t in cluster.tiers
        ),
    )


@FEW
@given(cases(), st.sampled_from([2, 4]))
def test_more_replicas_without_communication_are_never_slower(case, factor):
    """Twice the replicas share the same batch: each has half of the micro-batches. Without what the hosts add: the
    start of a collective, which a single replica has not, and the slowest of more hosts."""
    model, cluster, plan, work, precision, stack = case
    plan = dataclasses.replace(plan, dp=2 * plan.dp)
    work = dataclasses.replace(work, global_batch=2 * work.global_batch)
    assume(work.global_batch % (plan.dp * plan.micro_batch * factor) == 0)
    wider = dataclasses.replace(plan, dp=plan.dp * factor)
    try:
        free = without_communication(cluster)
        more, few = (
            step_time(estimate(model, free, p, work, precision, stack).costs, p.schedule) for p in (wider, plan)
        )
    except InputError:
        assume(False)
    assert more.total_s - more.fixed_s <= (few.total_s - few.fixed_s) * LESS + STARTS_S


@FEW
@given(cases(), st.data())
def test_half_the_bandwidth_is_never_faster(case, data):
    cluster = case[1]
    which = data.draw(st.integers(-1, len(cluster.tiers) - 1), "tier, or -1 for the chip's memory")
    if which < 0:
        chip = dataclasses.replace(cluster.chip, memory_bytes_per_s=times(cluster.chip.memory_bytes_per_s, 0.5))
        slower = dataclasses.replace(cluster, chip=chip)
    else:
        tiers = list(cluster.tiers)
        tiers[which] = dataclasses.replace(tiers[which], bytes_per_s=times(tiers[which].bytes_per_s, 0.5))
        slower = dataclasses.replace(cluster, tiers=tuple(tiers))
    assert seconds(case, slower) * LESS >= seconds(case)


@FEW
@given(cases(), st.sampled_from([2, 4]))
def test_sharding_further_never_holds_more(case, factor):
    """On one stage: of several, the fullest may be another one after sharding, with more of its own."""
    model, _, plan, work, precision, stack = case
    plan, held = dataclasses.replace(plan, pp=1, vpp=1, schedule="1f1b"), []
    for stage in (0, 1, 2, 3):
        need = memory.peak(model, dataclasses.replace(plan, zero=stage), work, precision, stack)
        held.append(need.weights + need.gradients + need.optimizer)
    assert all(after <= before * LESS for before, after in zip(held, held[1:], strict=False)), held
    wide = dataclasses.replace(plan, dp=plan.dp * factor, zero=3)
    many = dataclasses.replace(work, global_batch=work.global_batch * factor)
    need = memory.peak(model, wide, many, precision, stack)
    assert need.weights + need.gradients + need.optimizer <= held[3] * LESS


@FEW
@given(
    st.sampled_from(["nano", "mini", "glm5"]),
    st.sampled_from([16, 64, 129, 512]),
    st.booleans(),
    st.booleans(),
    st.integers(2, 8),
)
def test_both_halves_count_alike(name, seq, sparse, mtp, layers):
    config = ModelConfig.named(name, num_hidden_layers=layers, first_k_dense_replace=1, indexer_types=())
    spec = from_config(config)
    assert spec.total_params(mtp=mtp) == pytest.approx(config.num_params(mtp=mtp), rel=1e-12)
    assert spec.train_flops_per_token(seq, sparse=sparse, mtp=mtp) == pytest.approx(
        config.train_flops_per_token(seq, sparse=sparse, mtp=mtp), rel=1e-9
    )


@FEW
@given(campaigns(), st.integers(0, 99))
def test_a_campaign_trains_the_tokens_of_its_segments(inp, seed):
    result = run_campaign(inp, seed)
    whole = sum(segment.tokens for segment in inp.segments)
    assert result.tokens <= whole * LESS
    if result.finished:
        assert result.tokens == pytest.approx(whole, rel=1e-9)


@FEW
@given(st.integers(1, 10_000), st.floats(0.1, 10_000.0), st.floats(0.01, 2.0), st.floats(1.01, 5.0))
def test_money_is_at_least_its_electricity_and_grows_with_what_it_pays_for(chips, hours, price, factor):
    cluster = load_cluster("dgx_h100")

    def cost(chips=chips, hours=hours, price=price):
        held = money.Range(hours, hours, hours, "h", "")
        prices = {"electricity_usd_per_kwh": figure(price, "money_per_kwh", "price")}
        return money.costs(dataclasses.replace(cluster, num_chips=chips), held, prices)

    base = cost()
    assert base["own"].value >= base["energy"].value * price * (1 - 1e-9)
    assert base["own"].low <= base["own"].value <= base["own"].high
    for more in (cost(hours=hours * factor), cost(chips=chips * 2)):
        for key in ("own", "rent", "energy", "carbon"):
            assert more[key].value >= base[key].value
    assert cost(price=price * factor)["own"].value > base["own"].value
    assert cost(price=price * factor)["energy"].value == pytest.approx(base["energy"].value)


@FEW
@given(st.data())
def test_a_longer_node_never_ends_a_trace_sooner(data):
    """Ranks with some work each, then a collective that waits for all, then more work."""
    ranks = data.draw(st.integers(1, 5))
    files = []
    for _ in range(ranks):
        us = data.draw(st.lists(st.integers(1, 1000), min_size=2, max_size=2))
        wait = Node(1, "all_reduce", COLL, [0], duration_us=50, attrs={"comm_type": 0, "comm_size": 8})
        files.append([Node(0, "a", COMP, duration_us=us[0]), wait, Node(2, "b", COMP, [1], duration_us=us[1])])
    before = replay(files, {}).step_us
    slowest = max(f[0].duration_us for f in files) + 50 + max(f[2].duration_us for f in files)
    assert before == slowest  # by hand: the collective ends for all together
    late = data.draw(st.integers(0, ranks - 1))
    files[late][data.draw(st.sampled_from([0, 2]))].duration_us += data.draw(st.integers(1, 500))
    assert replay(files, {}).step_us >= before


ARGUMENTS = {
    "num-layers": "8",
    "hidden-size": "1024",
    "num-attention-heads": "16",
    "seq-length": "2048",
    "max-position-embeddings": "2048",
    "tensor-model-parallel-size": "2",
    "pipeline-model-parallel-size": "2",
    "micro-batch-size": "1",
    "global-batch-size": "32",
    "bf16": True,
    "swiglu": True,
    "sequence-parallel": True,
    "nproc-per-node": "8",
}


@FEW
@given(st.permutations(sorted(ARGUMENTS)), st.sampled_from(["lr", "save", "log-interval", "wandb-project", "seed"]))
def test_the_order_of_arguments_changes_nothing(order, harmless):
    base = scenario_of(read(ARGUMENTS, "launch"), "launch")
    other = read({harmless: "7", **{name: ARGUMENTS[name] for name in order}}, "launch")
    assert scenario_of(other, "launch") == base and other.ignored == [f"--{harmless}"]
