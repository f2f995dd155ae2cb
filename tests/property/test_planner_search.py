"""The pruned search finds what brute force finds: the same list, the same front, the same best of each schedule."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.evaluate import in_closed_form
from sim.cost.stacks import load_stack
from sim.planner.candidates import PlanCosts
from sim.planner.search import search
from sim.planner.space import default_space, every
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Workload, check
from sim.training import schedules

SMALL = {
    "dense": (
        load_model(
            {
                "name": "small dense",
                "layers": 12,
                "hidden": 4096,
                "heads": 32,
                "kv_heads": 8,
                "ffn": 14336,
                "vocab": 64000,
            }
        ),
        "dgx_a100",
    ),
    "large": (load_model("llama2_70b"), "dgx_a100"),
    "experts": (
        load_model(
            {
                "name": "small experts",
                "layers": 10,
                "hidden": 2048,
                "heads": 16,
                "kv_heads": 16,
                "ffn": 8192,
                "vocab": 64000,
                "experts": 16,
                "experts_per_token": 2,
                "moe_ffn": 2048,
            }
        ),
        "atlas_800t_a2",
    ),
}


def brute(costs, space, chips, batch):
    """Every plan that each rule, checked one at a time by the plain functions, lets through: (seconds a token, chips,
    candidate)."""
    fitting = []
    for c in every(space, costs.model, chips, batch):
        plan, load = costs.plan(c), costs.load(c)
        check(plan, costs.model, load, chips)
        schedules.check(c.schedule, c.pp, plan.micro_batches(load), plan.vpp)
        try:
            seconds = in_closed_form(costs.model, costs.cluster, plan, load, costs.precision, costs.stack)[2]
        except ValueError as err:
            assert "GiB" in str(err)
            continue
        fitting.append((seconds / load.tokens, c.num_chips, c))
    return fitting


@settings(max_examples=5)
@given(
    st.sampled_from(sorted(SMALL)),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([8, 12]),
    st.sampled_from(["tokens", "cost"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([3, 40]),
)
def test_search_equals_brute_force(name, chips, batch, objective, tolerance, top_k):
    model, where = SMALL[name]
    cluster = load_cluster(where)
    if name == "large":
        chips *= 8
    space = default_space(
        model,
        cluster,
        chips,
        2048,
        batch,
        tolerance=tolerance,
        fixed={"overlap_tp": [None, True]} if name == "dense" else {},
    )
    space = dataclasses.replace(
        space,
        micro_batch=(1, 2),
        recompute=("none", "full"),
        zero=(1, 3) if name != "experts" else (0, 1),
        pp=tuple(p for p in space.pp if p <= 4),
        ep=tuple(e for e in space.ep if e in (1, 4)),
    )
    costs = PlanCosts(model, cluster, Workload(batch, 2048), "bf16", load_stack("generic"), space.switches)
    found = search(costs, space, chips, batch, objective, top_k)
    fitting = brute(costs, space, chips, batch)
    assert found.combinations == sum(1 for _ in every(space, model, chips, batch))
    value = {c: each * (used if objective == "cost" else 1) for each, used, c in fitting}
    assert [f.value(objective) for f in found.best] == pytest.approx(sorted(value.values())[:top_k], rel=1e-9)
    for f in found.best:
        assert value[f.candidate] == pytest.approx(f.value(objective), rel=1e-9)
    front = {used: min(e for e, u, _ in fitting if u <= used) for _, used, _ in fitting}
    steps = [
        (used, each)
        for used, each in sorted(front.items())
        if all(e > each * (1 + 1e-9) for u, e in front.items() if u < used)
    ]
    assert [f.num_chips for f in found.front] == [u for u, _ in steps]
    assert [f.value("time") for f in found.front] == pytest.approx([e for _, e in steps], rel=1e-9)
    for schedule, f in found.by_schedule.items():
        assert f.value(objective) == pytest.approx(min(v for c, v in value.items() if c.schedule == schedule), rel=1e-9)
    assert set(found.by_schedule) == {c.schedule for c in value}


def test_keeping_all_skips_nothing():
    model, where = SMALL["dense"]
    space = default_space(model, load_cluster(where), 8, 2048, 8)
    costs = PlanCosts(model, load_cluster(where), Workload(8, 2048), "bf16", load_stack("generic"), space.switches)
    whole, short = search(costs, space, 8, 8, top_k=None), search(costs, space, 8, 8, top_k=5)
    assert whole.bounded == 0 and short.bounded > 0 and whole.combinations == short.combinations
    assert [f.step_s for f in short.best] == [f.step_s for f in whole.best[:5]]
    assert len(whole.best) == whole.evaluated
