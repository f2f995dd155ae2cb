"""The search's shared costs give the same step time and memory as the plan-by-plan closed form."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.cost.evaluate import in_closed_form
from sim.cost.memory import RUNTIME_BYTES
from sim.cost.stacks import load_stack
from sim.planner.candidate import Candidate
from sim.planner.candidates import PlanCosts
from sim.planner.refine import refined
from sim.planner.search import RankedPlan
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import RECOMPUTE, SCHEDULES, Workload, check
from sim.training import schedules
from sim.training.evaluate import evaluate

SWITCHES = (
    {},
    {"sp": False, "optimizer": "muon"},
    {"overlap_all_to_all": True, "overlap_grad_reduce": False, "offload": True},
    {"overlap_tp": True, "precision_aware_optimizer": True, "hsdp": 2, "overlap_param_gather": False},
    {"activation_offload": True},
)
QUESTIONS = [
    ("gpt3_175b", "dgx_a100", "megatron-lm-2022-05"),
    ("glm5", "atlas_800t_a2", "generic"),
    ("deepseek_v3", "h800_deepseek", "generic"),
    ("gpt_oss_120b", "dgx_h100", "generic"),
]
COSTS = [
    PlanCosts(load_model(m), load_cluster(c), Workload(1, 4096), "bf16", load_stack(s), SWITCHES)
    for m, c, s in QUESTIONS
]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_same_as_one_plan_at_a_time(data):
    costs = data.draw(st.sampled_from(COSTS))

    def pick(*values):
        return data.draw(st.sampled_from(values))

    schedule, pp = pick(*SCHEDULES), pick(1, 2, 4, 8, 16)
    vpp = pick(2, 3) if schedule == "interleaved" else 2 if schedule in ("zb-v", "dualpipe", "dualpipe-v") else 1
    dp, micro = pick(1, 2, 8, 32), pick(1, 2)
    moe = bool(costs.model.experts)
    c = Candidate(
        pick(1, 2, 4, 8),
        pick(1, 2),
        pick(1, 4, 8) if moe else 1,
        pick(1, 2) if moe else 1,
        micro,
        pick(*RECOMPUTE),
        pp,
        vpp,
        schedule,
        dp,
        pick(0, 1, 2, 3),
        dp * micro * pick(16, 33),
        data.draw(st.integers(0, len(SWITCHES) - 1)),
        pick(0, 1) if costs.mtp and pp * (1 if schedule == "dualpipe" else vpp) > 1 else 0,
    )
    try:
        plan, load = costs.plan(c), costs.load(c)
        check(plan, costs.model, load)
        schedules.check(c.schedule, c.pp, plan.micro_batches(load), plan.vpp)
    except ValueError:
        assume(False)
    _, need, seconds, _ = in_closed_form(
        costs.model, costs.cluster, plan, load, costs.precision, costs.stack, allow_oom=True
    )
    assert costs.step_s(c) == pytest.approx(seconds, rel=1e-9)
    assert costs.memory_bytes(c) == pytest.approx(need.total_bytes, rel=1e-9)
    assert costs.lower_bound(c) <= seconds * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "dualpipe"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_no_cut_of_a_pipeline_holds_less_than_its_bound(schedule, recompute):
    """GPT-3 in eight stages and 33 micro-batches: the fullest rank of the even cut is above the bound."""
    costs = COSTS[0]
    vpp = 2 if schedule == "dualpipe" else 1
    c = Candidate(8, 1, 1, 1, 1, recompute, 8, vpp, schedule, 8, 1, 8 * 33, 0, 0)
    assert 0 < costs.least_bytes(c) <= costs.memory_bytes(c)


def test_the_least_of_a_pipeline_fills_all_ranks_alike():
    """Rank r of four holds the activations of 4 - r micro-batches beside its share of the states; with one micro-batch
    every rank holds one, which tells the two sizes apart. States are 18 bytes a weight: bf16 weights, fp32 gradients,
    master weights and two moments."""
    costs = COSTS[0]
    one = Candidate(8, 1, 1, 1, 1, "none", 4, 1, "1f1b", 1, 1, 1, 0, 0)
    states = costs.whole_states(one)
    assert states == pytest.approx(18 * costs.model.total_params() / 8, rel=0.01)
    kept = 4 * (costs.least_bytes(one) - RUNTIME_BYTES) - states
    assert kept > 0.01 * states
    many = costs.least_bytes(one._replace(batch=64)) - RUNTIME_BYTES
    assert many == pytest.approx(1 / sum(1 / (states + kept * flying) for flying in (4, 3, 2, 1)))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_fast_model_is_within_one_percent_of_the_events(data):
    """Random plans, folded, no jitter: what a search ranks by is what the events give."""
    costs = data.draw(st.sampled_from(COSTS))

    def pick(*values):
        return data.draw(st.sampled_from(values))

    schedule, pp = pick(*SCHEDULES), pick(2, 4, 8)
    vpp = pick(2, 3, 5) if schedule == "interleaved" else 2 if schedule in ("zb-v", "dualpipe", "dualpipe-v") else 1
    dp, m = pick(8, 32), pick(16, 20, 33, 60)
    ep, ahead = pick(1, 8) if costs.model.experts else 1, pick(0, 1) if costs.mtp else 0
    c = Candidate(pick(2, 8), 1, ep, 1, 1, "none", pp, vpp, schedule, dp, 1, dp * m, 0, ahead)
    try:
        plan, load = costs.plan(c), costs.load(c)
        check(plan, costs.model, load)
        p = evaluate(costs.model, costs.cluster, plan, load, "bf16", costs.stack, allow_oom=True)
    except ValueError:
        assume(False)
    assert refined(costs, RankedPlan(c, 1.0, 1.0, load.tokens)).step_s == pytest.approx(p.result.step_s, rel=0.01)


def test_a_delay_that_shows_late_is_seen():
    """Two uneven ranks under zb-v: the ramp's slack hides a delay for 21 micro-batches, then each one shows it."""
    costs = COSTS[1]
    c = Candidate(2, 1, 1, 1, 1, "none", 2, 2, "zb-v", 8, 1, 8 * 60, 0, 1)
    plan, load = costs.plan(c), costs.load(c)
    p = evaluate(costs.model, costs.cluster, plan, load, "bf16", costs.stack, allow_oom=True)
    assert refined(costs, RankedPlan(c, 1.0, 1.0, load.tokens)).step_s == pytest.approx(p.result.step_s, rel=1e-9)


@pytest.mark.parametrize("pp, vpp, dp, micro", [(4, 3, 2, 1), (2, 5, 4, 2)])
def test_a_search_ranks_interleaving_by_its_chunks(pp, vpp, dp, micro):
    """34 units in 12 or 10 chunks: in every round a micro-batch waits for the rank whose pair of chunks is longest."""
    costs = PlanCosts(
        load_model("llama3_8b"), load_cluster("dgx_h100"), Workload(1, 4096), "bf16", load_stack("generic"), SWITCHES
    )
    m = 16
    c = Candidate(1, 1, 1, 1, micro, "full", pp, vpp, "interleaved", dp, 1, dp * micro * m, 0, 0)
    rows = costs.chunk_seconds(c)
    rounds = sum(max(row[k][0] + sum(row[vpp - 1 - k][1:]) for row in rows) for k in range(vpp))
    busiest = max(sum(sum(chunk) for chunk in row) for row in rows)
    added = m * (rounds - busiest) * costs.straggler(c.num_chips)
    assert added > 0 and costs.estimate_s(c) - costs.step_s(c) == pytest.approx(added, rel=1e-6)
