"""The search's shared costs give the same step time and memory as the plan-by-plan closed form."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.cost.evaluate import in_closed_form
from sim.cost.stacks import load_stack
from sim.planner.candidates import Candidate, PlanCosts
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import RECOMPUTE, SCHEDULES, Workload, check

SWITCHES = (
    {},
    {"sp": False, "optimizer": "muon"},
    {"overlap_all_to_all": True, "overlap_grad_reduce": False, "offload": True},
    {"overlap_tp": True, "precision_aware_optimizer": True, "hsdp": 2, "overlap_param_gather": False},
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
    )
    plan, load = costs.plan(c), costs.load(c)
    try:
        check(plan, costs.model, load)
    except ValueError:
        assume(False)
    _, need, seconds, _ = in_closed_form(
        costs.model, costs.cluster, plan, load, costs.precision, costs.stack, allow_oom=True
    )
    assert costs.step_s(c) == pytest.approx(seconds, rel=1e-9)
    assert costs.memory_bytes(c) == pytest.approx(need.total_bytes, rel=1e-9)
    assert costs.lower_bound(c) <= seconds * (1 + 1e-9)
