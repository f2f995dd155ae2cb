"""The pruned search finds what brute force finds: the same list by estimate, and the fastest plan as events."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.cost.evaluate import in_closed_form
from sim.cost.stacks import load_stack
from sim.planner.candidates import PlanCosts
from sim.planner.refine import FINALISTS, refine
from sim.planner.search import search
from sim.planner.space import default_space, every
from sim.planner.stages import Units, balanced
from sim.spec.hardware import load_cluster
from sim.spec.model_loader import load_model
from sim.spec.plan import Workload, check
from sim.training import schedules
from sim.training.evaluate import evaluate

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


PINNED = {
    "dense": {"overlap_tp": [None, True], "offload": False},
    "experts": {"activation_offload": False},
    "large": {},  # memory is tight: what waits in host memory is among what is found
}


def estimate(costs, plan, load):
    """Closed form, and for interleaving what chunks that differ add: by the plain functions, one plan at a time."""
    costed, _, seconds, slow = in_closed_form(costs.model, costs.cluster, plan, load, costs.precision, costs.stack)
    if plan.schedule == "interleaved" and plan.pp > 1:
        rows, v = costed.costs.chunks, plan.vpp
        rounds = sum(max(r[k].forward_s + r[v - 1 - k].backward_s for r in rows) for k in range(v))
        busy = max(sum(c.forward_s + c.backward_s for c in r) for r in rows)
        seconds += plan.micro_batches(load) * slow * max(rounds - busy, 0.0)
    return seconds


def brute(costs, space, chips, batch):
    """Every plan that each rule, checked one at a time by the plain functions, lets through: (seconds a token, chips,
    candidate). What waits in host memory costs time or none, so a plan with it counts where none with less of it fits.
    """
    away = [{k for k in ("activation_offload", "offload") if s.get(k)} for s in costs.switches]
    others = [{k: v for k, v in s.items() if k not in ("activation_offload", "offload")} for s in costs.switches]
    places, fitting, fit = range(len(away)), [], set()
    less = [[j for j in places if away[j] < away[i] and others[j] == others[i]] for i in places]
    for c in every(space, costs.model, chips, batch):
        plan, load = costs.plan(c), costs.load(c)
        if any(c._replace(switches=s) in fit for s in less[c.switches]):  # those with less come first
            continue
        check(plan, costs.model, load, chips)
        schedules.check(c.schedule, c.pp, plan.micro_batches(load), plan.vpp)
        try:
            seconds = estimate(costs, plan, load)
        except ValueError as err:
            assert "GiB" in str(err)
            continue
        fitting.append((seconds / load.tokens, c.num_chips, c))
        fit.add(c)
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
    cluster = dataclasses.replace(cluster, num_chips=chips)
    space = default_space(
        model,
        cluster,
        2048,
        batch,
        tolerance=tolerance,
        fixed=PINNED[name],
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
    value = {c: each * (used if objective == "cost" else 1) for each, used, c in fitting}
    assert [f.value(objective) for f in found.best] == pytest.approx(sorted(value.values())[:top_k], rel=1e-9)
    for f in found.best:
        assert value[f.candidate] == pytest.approx(f.value(objective), rel=1e-9)
    assert found.floor <= min(value.values()) * (1 + 1e-9)


def small_space(name, chips, batch):
    model, where = SMALL[name]
    cluster = dataclasses.replace(load_cluster(where), num_chips=chips)
    space = default_space(model, cluster, 2048, batch)
    space = dataclasses.replace(
        space, micro_batch=(1,), recompute=("none",), zero=(1,), pp=tuple(p for p in space.pp if p <= 4), ep=(1,)
    )
    space = dataclasses.replace(space, pipelines=tuple((s, v) for s, v in space.pipelines if v <= 2))
    return PlanCosts(model, cluster, Workload(batch, 2048), "bf16", load_stack("generic"), space.switches), space


@pytest.mark.parametrize("name, chips", [("dense", 4), ("dense", 8), ("experts", 4)])
def test_the_answer_is_the_fastest_of_all_plans_as_events(name, chips):
    """Search, estimates, bound and refinement together: no plan of a small space is faster when all are simulated."""
    batch = 16
    costs, space = small_space(name, chips, batch)
    found = refine(costs, search(costs, space, chips, batch, top_k=FINALISTS), "tokens", 1, pinned_stages=True)
    seconds = []
    for c in every(space, costs.model, chips, batch):
        try:
            p = evaluate(costs.model, costs.cluster, costs.plan(c), costs.load(c), "bf16", costs.stack)
        except InputError:
            continue
        seconds.append(p.result.step_s)
    assert len(seconds) > 8
    assert found.best[0].step_s == pytest.approx(min(seconds), rel=1e-9)


@pytest.mark.parametrize("pp", [2, 3, 4])
def test_stages_are_balanced_as_well_as_any_partition(pp):
    """Against every way to cut ten layers into stages."""
    for dense, layer, fixed in (
        (0.5, 1.0, (0.3, 0.0, 0.0, 2.6)),
        (1.0, 1.0, (0.0, 0.0, 0.0, 0.0)),
        (0.2, 0.7, (0.1, 0, 0, 9.0)),
    ):
        ends = (fixed[0], *fixed[1 : pp - 1], fixed[3])
        units, ranks = Units(dense, layer, 3, 10, ends), [(r,) for r in range(pp)]
        cuts = [
            [b - a for a, b in itertools.pairwise((0, *cut, 10))]
            for cut in itertools.combinations_with_replacement(range(11), pp - 1)
        ]
        best = min(max(units.loads(stages, ranks)) for stages in cuts)
        stages = balanced(units, ranks)
        assert sum(stages) == 10 and max(units.loads(stages, ranks)) == pytest.approx(best)


@pytest.mark.parametrize("ranks", [[(0, 2), (1, 3)], [(0, 3), (1, 2)], [(0, 3, 6), (1, 4, 7), (2, 5, 8)]])
def test_layers_dealt_to_several_chunks_are_balanced_too(ranks):
    """Equal layers dealt one by one: no other deal has a lighter busiest rank."""
    n = sum(map(len, ranks))
    units = Units(1.0, 1.0, 0, 11, (0.4, *(0.0,) * (n - 3), 1.3, 2.2))
    fixed = [sum(units.fixed_s[c] for c in chunks) for chunks in ranks]
    best = min(
        max(f + k for f, k in zip(fixed, counts, strict=True))
        for counts in itertools.product(range(12), repeat=len(ranks))
        if sum(counts) == 11
    )
    assert max(units.loads(balanced(units, ranks), ranks)) == pytest.approx(best)


def test_keeping_all_skips_nothing():
    model, where = SMALL["dense"]
    space = default_space(model, dataclasses.replace(load_cluster(where), num_chips=8), 2048, 8)
    costs = PlanCosts(model, load_cluster(where), Workload(8, 2048), "bf16", load_stack("generic"), space.switches)
    whole, short = search(costs, space, 8, 8, top_k=None), search(costs, space, 8, 8, top_k=5)
    assert whole.bounded == 0 and short.bounded > 0
    assert [f.step_s for f in short.best] == [f.step_s for f in whole.best[:5]]
    assert len(whole.best) == whole.evaluated
