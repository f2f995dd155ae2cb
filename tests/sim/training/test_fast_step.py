"""The fast model of a step gives the events' figures: exactly where all is worked off, within 1% where extended."""

import random

import pytest

from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.plan import SCHEDULES
from sim.training.fast_step import EXACT, fast_step_s
from sim.training.schedules import CHUNKS
from sim.training.step import simulate


def uneven_costs(rng, ranks, micro_batches, chunks):
    """A pipeline as ragged as real ones are: no two chunks alike, hideable messages, a reduction under the backward."""

    def chunk():
        f, b, w = (rng.uniform(0.5, 2.0) for _ in range(3))
        return ChunkCost(f, b, w, 0.3 * f * rng.random(), 0.3 * b * rng.random())

    return StepCosts(
        tuple(tuple(chunk() for _ in range(chunks)) for _ in range(ranks)),
        micro_batches,
        rng.choice([0.0, 0.05, 0.8]),
        1e6,
        rng.uniform(0, 20),
        0.3,
        rng.random() < 0.5,
        0.2,
        0.01,
    )


def cases(seed, few):
    rng = random.Random(seed)
    for schedule in SCHEDULES:
        for _ in range(6):
            ranks = rng.choice([1, 2, 4, 6])
            chunks = CHUNKS[schedule] or rng.choice([2, 3])
            if ranks == 1 and schedule != "1f1b":
                continue
            m = ranks * rng.choice([2, 3, 5] if few else [9, 14, 21]) + (
                0 if schedule == "dualpipe" else rng.choice([0, 1])
            )
            yield pytest.param(schedule, uneven_costs(rng, ranks, m, chunks), id=f"{schedule}-{ranks}-{m}")


@pytest.mark.parametrize("schedule, costs", cases(1, few=True))
def test_worked_off_equals_the_events(schedule, costs):
    assert costs.micro_batches <= EXACT * costs.ranks
    assert fast_step_s(costs, schedule) == pytest.approx(simulate(costs, schedule).step_s, rel=1e-12)


@pytest.mark.parametrize("schedule, costs", cases(2, few=False))
def test_extended_is_within_one_percent_of_the_events(schedule, costs):
    assert fast_step_s(costs, schedule) == pytest.approx(simulate(costs, schedule).step_s, rel=0.01)


@pytest.mark.parametrize("layers", [(20, 20, 21, 19), (20, 21, 21, 18), (21, 20, 20, 19)])
def test_near_equal_chunks_of_two_ranks_are_not_extended_too_soon(layers):
    """80 layers over two ranks of two chunks, 60 micro-batches: extended from 12 and 24 the step was over 1% short;
    a search preferred it to a plan that is faster as events, and of its cuts the one with the larger error."""
    head = {3: 1.9}
    chunks = [ChunkCost(n + head.get(i, 0.0), 1.5 * (n + head.get(i, 0.0)), n, 0.0, 0.0) for i, n in enumerate(layers)]
    costs = StepCosts(((chunks[0], chunks[2]), (chunks[1], chunks[3])), 60, 0.02, 1e6, 3.0, 0.3, True, 0.2, 0.01)
    events = simulate(costs, "interleaved").step_s
    assert fast_step_s(costs, "interleaved") == pytest.approx(events, rel=1e-12)
