"""Generated steps: folding is exact, nothing deadlocks, better hardware is never slower."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.plan import SCHEDULES
from sim.training import schedules
from sim.training.jitter import Jitter
from sim.training.step import simulate

time_s = st.floats(0.0, 3.0, allow_nan=False)


@st.composite
def steps(draw):
    """(costs, schedule) that the schedule accepts, with uneven stages."""
    schedule = draw(st.sampled_from(SCHEDULES))
    ranks = draw(st.integers(1, 6))
    chunks = schedules.CHUNKS[schedule] or draw(st.integers(2, 3))
    m = draw(st.integers(1, 8))
    if schedule == "dualpipe":
        ranks, chunks = ranks + ranks % 2, draw(st.sampled_from([1, 2]))
        m = 2 * m
    m += {"interleaved": ranks, "zb-v": 2 * ranks, "dualpipe": 2 * ranks, "dualpipe-v": 2 * ranks}.get(schedule, 0)

    def chunk():
        fm, bm = draw(time_s), draw(time_s)
        return ChunkCost(draw(time_s) + fm, draw(time_s) + bm, draw(time_s), fm, bm)

    costs = StepCosts(
        chunks=tuple(tuple(chunk() for _ in range(chunks)) for _ in range(ranks)),
        micro_batches=m,
        p2p_s=draw(time_s),
        p2p_bytes=1.0,
        grad_reduce_s=draw(time_s),
        param_gather_s=draw(time_s),
        overlap_grad_reduce=draw(st.booleans()),
        optimizer_s=draw(time_s),
        fixed_s=draw(time_s),
        tokens=1,
    )
    return costs, schedule


@given(steps(), st.integers(2, 7), st.integers(1, 3))
@settings(max_examples=80)
def test_folded_equals_unfolded(step, replicas, replicas_per_port):
    costs, schedule = step
    a = simulate(costs, schedule, replicas=replicas, replicas_per_port=replicas_per_port)
    b = simulate(costs, schedule, replicas=replicas, replicas_per_port=replicas_per_port, fold=False)
    assert (a.step_s, a.pipeline_s, a.busy_s, a.exposed_comm_s, a.grad_exposed_s) == (
        b.step_s,
        b.pipeline_s,
        b.busy_s,
        b.exposed_comm_s,
        b.grad_exposed_s,
    )
    assert b.simulated_replicas == replicas >= a.simulated_replicas


@given(steps(), st.integers(2, 6), st.data())
@settings(max_examples=40)
def test_folded_equals_unfolded_with_slow_chips(step, replicas, data):
    costs, schedule = step
    slow = tuple(
        (
            data.draw(st.integers(0, replicas - 1)),
            data.draw(st.integers(0, len(costs.chunks) - 1)),
            data.draw(st.floats(1.0, 2.0)),
        )
        for _ in range(2)
    )
    a, b = (simulate(costs, schedule, replicas=replicas, jitter=Jitter(slow=slow), fold=f) for f in (True, False))
    assert a.step_s == b.step_s and a.grad_exposed_s == b.grad_exposed_s


@given(steps())
@settings(max_examples=80)
def test_bounds(step):
    """No step beats its busiest rank or its longest micro-batch, none is slower than doing everything in turn."""
    costs, schedule = step
    r = simulate(costs, schedule)
    assert r.step_s >= max(r.busy_s) - 1e-9
    m = costs.micro_batches
    hops = 2 * len(costs.chunks) * max(2, len(costs.chunks[0])) * m
    serial = 2 * m * sum(c.forward_s + c.backward_s for row in costs.chunks for c in row) + hops * costs.p2p_s
    assert r.pipeline_s <= serial + 1e-6
    assert 0.0 <= r.bubble_fraction <= 1.0
    assert r.grad_exposed_s >= 0.0 and r.exposed_comm_s >= -1e-9


@given(
    steps(),
    st.sampled_from(["p2p_s", "grad_reduce_s", "optimizer_s", "fixed_s", "param_gather_s"]),
    st.floats(0.0, 1.0),
)
@settings(max_examples=80)
def test_better_network_is_never_slower(step, name, factor):
    costs, schedule = step
    faster = replace(costs, **{name: getattr(costs, name) * factor})
    assert simulate(faster, schedule).step_s <= simulate(costs, schedule).step_s + 1e-9


@given(steps(), st.integers(0, 99))
@settings(max_examples=40)
def test_slowness_only_adds(step, seed):
    costs, schedule = step
    j = Jitter(slow_share=0.3, slow_factor=1.5, expert_spread=0.2)
    assert simulate(costs, schedule, jitter=j, seed=seed, replicas=3).step_s >= simulate(costs, schedule).step_s - 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_hypothesis_reaches_every_schedule(schedule):
    """The generator above is only worth something if no schedule is out of its reach."""
    from hypothesis import find

    found = find(steps(), lambda s: s[1] == schedule, settings=settings(max_examples=2000, deadline=None))
    assert found[1] == schedule
