"""The step simulator against closed forms, against simpy.Resource, and folded against unfolded."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import simpy

from minglm.errors import InputError
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.training.critical_path import causes
from sim.training.jitter import Jitter, largest
from sim.training.rank_process import Link
from sim.training.sensitivity import step_sensitivity
from sim.training.step import simulate


def costs(ranks=4, micro_batches=8, chunks=1, **changes) -> StepCosts:
    c = ChunkCost(1.0 / chunks, 1.2 / chunks, 0.8 / chunks)
    base = StepCosts(
        chunks=((c,) * chunks,) * ranks,
        micro_batches=micro_batches,
        p2p_s=0.0,
        p2p_bytes=1e6,
        grad_reduce_s=0.0,
        param_gather_s=0.0,
        overlap_grad_reduce=False,
        optimizer_s=0.0,
        tokens=1000,
    )
    return replace(base, **changes)


def test_one_rank_is_the_sum_of_its_parts():
    r = simulate(costs(1, 5, grad_reduce_s=0.5, optimizer_s=0.25, param_gather_s=0.125, fixed_s=0.0625))
    assert r.step_s == pytest.approx(15 + 0.5 + 0.25 + 0.125 + 0.0625) and r.bubble_fraction == pytest.approx(0)
    assert r.tokens_per_s == pytest.approx(1000 / r.step_s)


def test_transfers_delay_the_fill_and_the_drain_of_gpipe():
    """GPipe with transfers shorter than a pass: P−1 hops down and P−1 back on the critical path."""
    assert simulate(costs(4, 8, p2p_s=0.1), "gpipe").step_s == pytest.approx(3 * 11 + 6 * 0.1)


def test_1f1b_cannot_hide_its_transfers():
    """Each steady micro-batch goes to the neighbour and back before the next backward: two transfers exposed per step
    of the pipeline, as in non-interleaved 1F1B with blocking neighbours."""
    extra = [simulate(costs(2, m, p2p_s=0.1)).step_s - 3 * (m + 1) for m in (8, 9)]
    assert extra[1] - extra[0] == pytest.approx(0.2)


def test_uneven_stage_sets_the_pace():
    slow = ChunkCost(2.0, 2.4, 1.6)
    c = costs(4, 100)
    c = replace(c, chunks=(c.chunks[0], (slow,), *c.chunks[2:]))
    assert simulate(c).step_s == pytest.approx(6.0 * 100, rel=0.03)


@pytest.mark.parametrize(
    "schedule, chunks", [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("dualpipe", 1), ("dualpipe-v", 2)]
)
def test_reduction_overlaps_no_more_than_the_schedule_allows(schedule, chunks):
    c = costs(4, 8, chunks, grad_reduce_s=2.0)
    apart = simulate(c, schedule)
    over = simulate(replace(c, overlap_grad_reduce=True), schedule)
    assert apart.grad_exposed_s == pytest.approx(2.0)
    assert 0 < over.grad_exposed_s < 2.0 and over.pipeline_s == apart.pipeline_s
    # The last bucket exists only when the last backward is done.
    assert over.grad_exposed_s >= 2.0 / (8 * chunks) - 1e-9


def test_interleaving_lets_more_reduction_hide_than_1f1b():
    one = simulate(costs(4, 8, 1, grad_reduce_s=2.0, overlap_grad_reduce=True), "1f1b")
    four = simulate(costs(4, 8, 4, grad_reduce_s=2.0, overlap_grad_reduce=True), "interleaved")
    assert four.grad_exposed_s < one.grad_exposed_s


def resource_queue(requests: list[tuple[float, float]]) -> list[float]:
    """Arrival times of the same transfers when the link is a simpy.Resource."""
    env, out = simpy.Environment(), [0.0] * len(requests)
    link = simpy.Resource(env)

    def one(k, at, length):
        yield env.timeout(at)
        with link.request() as turn:
            yield turn
            yield env.timeout(length)
            out[k] = env.now

    for k, (at, length) in enumerate(requests):
        env.process(one(k, at, length))
    env.run()
    return out


def test_link_is_a_resource_without_the_events():
    requests = [(0.0, 1.0), (0.5, 2.0), (0.5, 0.25), (4.0, 1.0), (4.5, 0.0), (9.0, 3.0)]
    link = Link()
    assert [link.send(at, length) for at, length in requests] == pytest.approx(resource_queue(requests))


def test_shared_port_queues_like_a_resource():
    """Replicas that send the same stage's output through one port get it one after another."""
    c = costs(2, 1, p2p_s=5.0)
    r = simulate(c, replicas=3, replicas_per_port=3, fold=False)
    # Last replica: forward 1, then third in the queue (15), then 3 at rank 1, then third again on the way back.
    assert r.step_s == pytest.approx(1 + 15 + 3 + 5 + 2)
    assert simulate(c, replicas=9, replicas_per_port=3).step_s == r.step_s
    assert simulate(c, replicas=9, replicas_per_port=3).simulated_replicas == 3


def test_a_rank_waits_for_its_slowest_chip():
    few, many = (
        simulate(costs(4, 16, chips_per_rank=n), jitter=Jitter(noise=0.05), replicas=4).step_s for n in (1, 64)
    )
    assert simulate(costs(4, 16)).step_s < few < many
    assert largest(0.05, 64)[len(largest(0.05, 64)) // 2] > math.exp(
        0.05 * 2
    )  # median of the largest of 64: over 2 sigma


def test_one_slow_rank_slows_everything_and_folds():
    slow = Jitter(slow=((7, 2, 1.1),))
    r = simulate(costs(4, 200), jitter=slow, replicas=50)
    assert r.simulated_replicas == 2 and r.folded
    assert r.step_s == simulate(costs(4, 200), jitter=slow, replicas=50, fold=False).step_s
    assert r.step_s == pytest.approx(1.1 * 3.0 * 200, rel=0.02)


def test_slow_share_is_drawn_per_chip():
    j = Jitter(slow_share=0.005, slow_factor=1.1)
    factors = j.rank_factors(1000, 16, 8, seed=1)
    share = sum(f > 1 for row in factors for f in row) / 16000
    assert share == pytest.approx(1 - 0.995**8, abs=0.005)
    assert j.rank_factors(1000, 16, 8, seed=1) == factors != j.rank_factors(1000, 16, 8, seed=2)


def test_popular_experts_stretch_all_to_all():
    c = ChunkCost(2.0, 2.0, 1.0, forward_comm_s=1.0, backward_comm_s=1.0)
    even = StepCosts(((c,),) * 4, 8, 0, 0, 0, 0, False, 0)
    assert simulate(even, jitter=Jitter(expert_spread=0.3)).step_s > simulate(even).step_s
    assert (
        simulate(even, jitter=Jitter(expert_spread=0.3, expert_share=0.5)).step_s
        > simulate(even, jitter=Jitter(expert_spread=0.3)).step_s
    )


def test_replicas_that_share_experts_move_together():
    """Lock step of four replicas: a fourth of the processes, each as slow as the slowest of four times the chips."""
    noise = Jitter(noise=0.05)
    apart, together = (
        simulate(costs(4, 32, chips_per_rank=8), replicas=64, jitter=noise, ep_group_replicas=n) for n in (1, 4)
    )
    assert together.processes == apart.processes / 4 and together.simulated_replicas == apart.simulated_replicas == 64
    assert min(together.busy_s) > max(apart.busy_s) * 1.01
    slow = Jitter(slow=((6, 1, 1.2),))
    assert (
        simulate(costs(), replicas=8, jitter=slow, ep_group_replicas=4).step_s
        == simulate(costs(), replicas=8, jitter=slow).step_s
    )
    assert simulate(costs(), replicas=8, ep_group_replicas=4).step_s == simulate(costs()).step_s


def test_seed_decides_everything():
    j = Jitter(noise=0.05, spread=0.02)
    a, b, c = (simulate(costs(), jitter=j, replicas=5, seed=s) for s in (1, 1, 2))
    assert (a.step_s, a.busy_s, a.events) == (b.step_s, b.busy_s, b.events)
    assert a.step_s != c.step_s


def test_events_are_counted_not_guessed(monkeypatch):
    scheduled = [0]
    real = simpy.Environment.schedule

    def counting(self, *args, **kwargs):
        scheduled[0] += 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(simpy.Environment, "schedule", counting)
    for schedule, chunks in (("1f1b", 1), ("dualpipe", 1), ("interleaved", 2)):
        scheduled[0] = 0
        r = simulate(costs(4, 8, chunks, p2p_s=0.05), schedule, replicas=3, fold=False)
        # Process starts and timeouts are put on the queue by SimPy itself, past Environment.schedule in some versions.
        assert scheduled[0] == r.events


def test_collector_is_restored():
    for state in (gc.enable, gc.disable):
        state()
        before = gc.isenabled()
        simulate(costs())
        assert gc.isenabled() == before
    gc.enable()


def test_critical_path_has_no_gaps_and_ends_with_the_step():
    for schedule, chunks in (("1f1b", 1), ("zb-h1", 1), ("dualpipe", 1), ("interleaved", 2), ("zb-v", 2)):
        r = simulate(
            costs(4, 8, chunks, p2p_s=0.05, grad_reduce_s=1.0, overlap_grad_reduce=True, optimizer_s=0.3, fixed_s=0.1),
            schedule,
            replicas=4,
            jitter=Jitter(noise=0.05),
        )
        path = r.critical_path
        assert path[0].start_s == 0.0 and path[-1].end_s == pytest.approx(r.step_s)
        for a, b in pairwise(path):
            assert a.end_s == pytest.approx(b.start_s)
        assert sum(causes(path).values()) == pytest.approx(r.step_s)


def test_sensitivity_names_the_bottleneck():
    assert step_sensitivity(costs(2, 8), "1f1b")[0][0].startswith("compute")
    assert step_sensitivity(costs(8, 8, p2p_s=20.0), "1f1b")[0][0] == "pipeline links"
    assert step_sensitivity(costs(2, 2, grad_reduce_s=90.0), "1f1b")[0][0] == "gradient reduction"
    name, saved = step_sensitivity(costs(1, 2, fixed_s=90.0), "1f1b")[0]
    assert name == "host work" and saved == pytest.approx(45.0)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(p2p_s=-1.0), "p2p_s=-1.0"),
        (dict(grad_reduce_s=math.nan), "grad_reduce_s=nan"),
        (dict(optimizer_s=math.inf), "optimizer_s=inf"),
        (dict(micro_batches=0), "micro_batches=0"),
        (dict(chunks=((ChunkCost(math.nan, 1, 1),),)), "rank 0 chunk 0 forward_s=nan"),
        (dict(chunks=((ChunkCost(1, 1, 1),), (ChunkCost(1, 1, 1),) * 2)), "[1, 2]"),
        (dict(chunks=((ChunkCost(1, 1, 1, forward_comm_s=2),),)), "exceeds the pass"),
        (dict(chips_per_rank=0), "chips_per_rank=0"),
    ],
)
def test_bad_costs_are_refused_in_one_line(change, words):
    with pytest.raises(InputError) as err:
        simulate(replace(costs(), **change))
    assert words in str(err.value) and "\n" not in str(err.value)


def test_a_slow_rank_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="ranks 0 to 3"):
        simulate(costs(4, 8), jitter=Jitter(slow=((0, 4, 1.1),)))


@pytest.mark.parametrize(
    "change",
    [dict(noise=-0.1), dict(slow_share=1.5), dict(slow_factor=0.9), dict(spread=math.nan), dict(slow=((0, 0, 0.0),))],
)
def test_bad_jitter_is_refused(change):
    with pytest.raises(InputError, match="jitter"):
        Jitter(**change)
