"""The closed form: textbook bubbles, and the simulator's own result."""

from __future__ import annotations

import dataclasses

import pytest

from sim.cost.closed_form import pipeline_time, step_time, straggler
from sim.cost.step_costs import ChunkCost, StepCosts

F, B, W = 1.0, 1.1, 0.6


def costs(P: int, m: int, v: int = 1, p2p: float = 0.0, comm: float = 0.0, **more) -> StepCosts:
    chunk = ChunkCost(F / v, B / v, W / v, comm / v, comm / v)
    return StepCosts(
        tuple((chunk,) * v for _ in range(P)),
        m,
        p2p,
        1.0,
        **{**dict(grad_reduce_s=0.0, param_gather_s=0.0, overlap_grad_reduce=False, optimizer_s=0.0), **more},
    )


@pytest.mark.parametrize("P, m", [(4, 8), (8, 16), (8, 64)])
def test_bubbles_of_the_papers(P, m):
    work = F + B + W
    assert pipeline_time(costs(P, m), "gpipe")[1] == pytest.approx((P - 1) * work)
    assert pipeline_time(costs(P, m), "1f1b")[1] == pytest.approx((P - 1) * work)
    assert pipeline_time(costs(P, m, 4), "interleaved")[1] == pytest.approx((P - 1) * work / 4)
    assert pipeline_time(costs(P, m), "zb-h1")[1] == pytest.approx((P - 1) * (F + B - W))


def test_one_rank_has_no_bubble():
    assert pipeline_time(costs(1, 7), "1f1b") == (pytest.approx(7 * (F + B + W)), 0.0)


def test_pangu_ultras_published_bubbles():
    # 8 stages, 16 micro-batches: 30.45%; six virtual stages: 6.8% (arXiv 2504.07866)
    assert step_time(costs(8, 16), "1f1b").bubble_fraction == pytest.approx(0.3045, abs=0.001)
    assert step_time(costs(8, 16, 6), "interleaved").bubble_fraction == pytest.approx(0.068, abs=0.001)


@pytest.mark.parametrize(
    "schedule, v",
    [
        ("gpipe", 1),
        ("1f1b", 1),
        ("interleaved", 2),
        ("interleaved", 3),
        ("zb-h1", 1),
        ("zb-v", 2),
        ("dualpipe", 2),
        ("dualpipe-v", 2),
    ],
)
@pytest.mark.parametrize("P, m", [(4, 8), (8, 32)])
@pytest.mark.parametrize("p2p", [0.0, 0.02])
def test_equal_stages_cost_what_the_events_say(schedule, v, P, m, p2p):
    pytest.importorskip("simpy")
    from sim.training.step import simulate

    given = costs(P, m, v, p2p, comm=0.3)
    exact = schedule in ("gpipe", "1f1b", "interleaved", "zb-h1")
    assert step_time(given, schedule).total_s == pytest.approx(
        simulate(given, schedule).step_s, rel=1e-3 if exact else 0.03
    )


@pytest.mark.parametrize(
    "schedule, v", [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2), ("dualpipe", 2), ("dualpipe-v", 2)]
)
def test_a_busier_last_stage_sets_the_pace(schedule, v):
    pytest.importorskip("simpy")
    from sim.training.step import simulate

    given = costs(8, 64, v)
    rows = list(given.chunks)
    rows[-1] = tuple(
        ChunkCost(c.forward_s * 1.3, c.backward_input_s * 1.3, c.backward_weight_s * 1.3) for c in rows[-1]
    )
    given = dataclasses.replace(given, chunks=tuple(rows))
    assert step_time(given, schedule).total_s == pytest.approx(simulate(given, schedule).step_s, rel=0.04)


@pytest.mark.parametrize("reduce", [0.2, 1.5, 6.0])
@pytest.mark.parametrize("schedule, v", [("1f1b", 1), ("interleaved", 3)])
def test_reduction_under_the_last_backward(reduce, schedule, v):
    pytest.importorskip("simpy")
    from sim.training.step import simulate

    given = costs(4, 16, v, grad_reduce_s=reduce, overlap_grad_reduce=True)
    plain = dataclasses.replace(given, overlap_grad_reduce=False)
    assert step_time(plain, schedule).grad_reduce_s == reduce
    assert step_time(given, schedule).grad_reduce_s < reduce
    assert step_time(given, schedule).total_s == pytest.approx(simulate(given, schedule).step_s, rel=0.03)


def test_parts_add_up():
    s = step_time(costs(4, 8, grad_reduce_s=0.5, optimizer_s=0.25, param_gather_s=0.125, fixed_s=0.0625))
    assert s.total_s == pytest.approx(s.pipeline_s + 0.5 + 0.25 + 0.125 + 0.0625)


def test_the_slowest_of_many_chips_is_slower():
    factors = [straggler(n, 0.01) for n in (1, 8, 1024, 100_000)]
    assert factors[0] == 1.0 and factors == sorted(factors)
    # expected maximum of n normals: 1.4236 for 8, 3.2 for 1,000 (tables)
    assert straggler(8, 1.0) - 1 == pytest.approx(1.4236, rel=0.01)
    assert straggler(1000, 1.0) - 1 == pytest.approx(3.2414, rel=0.01)


def test_two_ranks_by_hand():
    """Two ranks, m micro-batches: each is busy m times, and waits once for the other's forward and backward."""
    for m in (1, 2, 7):
        time, idle = pipeline_time(costs(2, m))
        assert time == pytest.approx((m + 1) * (F + B + W)) and idle == pytest.approx(F + B + W)
        assert pipeline_time(costs(1, m)) == pytest.approx((m * (F + B + W), 0.0))


@pytest.mark.parametrize("schedule, v", [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2)])
def test_a_slower_chip_stretches_everything_alike(schedule, v):
    """Without messages there is nothing but compute, so the whole time scales."""
    for m in (4, 12):
        once, slow = (pipeline_time(costs(4, m, v), schedule, slow=s) for s in (1.0, 1.7))
        assert slow == pytest.approx([1.7 * x for x in once])
