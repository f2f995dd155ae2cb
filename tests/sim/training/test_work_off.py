"""Operations worked off give what SimPy's events give, to the last bit."""

import random

import pytest

from minglm.runtime.switch import VARIABLE
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.spec.plan import SCHEDULES
from sim.training.jitter import Jitter
from sim.training.schedules import CHUNKS
from sim.training.step import simulate

JITTER = [
    Jitter(noise=0.05),
    Jitter(noise=0.02, spread=0.03, slow=((1, 0, 1.3),)),
    Jitter(noise=0.01, expert_spread=0.2, expert_share=0.5),
]


def ragged(rng, ranks, chunks):
    def chunk():
        f, b, w = (rng.uniform(0.5, 2.0) for _ in range(3))
        return ChunkCost(f, b, w, 0.3 * f * rng.random(), 0.3 * b * rng.random())

    table = tuple(tuple(chunk() for _ in range(chunks)) for _ in range(ranks))
    return StepCosts(table, 4 * ranks, rng.choice([0.0, 0.05, 0.8]), 1e6, 3.0, 0.3, rng.random() < 0.5, 0.2, 0.01)


@pytest.mark.parametrize("jitter", JITTER, ids=["noise", "slow chips", "experts"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_worked_off_equals_the_events_to_the_last_bit(schedule, jitter, monkeypatch):
    rng = random.Random(f"{schedule} {jitter}")
    for ranks in (2, 4):
        costs = ragged(rng, ranks, CHUNKS[schedule] or 2)
        results = []
        for way in ("1", "0"):
            monkeypatch.setenv(VARIABLE, way)
            results.append(simulate(costs, schedule, replicas=5, jitter=jitter, seed=3))
        fast, events = results
        for figure in ("step_s", "events", "busy_s", "reduced_s", "critical_path", "exposed_comm_s", "slowest"):
            assert getattr(fast, figure) == getattr(events, figure), figure


def test_a_shared_port_is_left_to_the_events(monkeypatch):
    """Two replicas behind one port wait for each other there, which no replica alone can know."""
    costs = ragged(random.Random(0), 2, 1)
    both = []
    for way in ("1", "0"):
        monkeypatch.setenv(VARIABLE, way)
        both.append(simulate(costs, replicas=4, jitter=JITTER[0], replicas_per_port=2).step_s)
    assert both[0] == both[1]
