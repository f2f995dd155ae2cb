"""The references of the sheets to scale/ and plan/ against the simulator's own schedules, clock, memory and formulas.

`minglm` never imports `sim`, so the sheets have references of their own; here they meet.
"""

import pytest

pytest.importorskip("torch")
from minglm.course.workshop import build, checking
from minglm.course.workshop.checks import s03_pipelines, s05_failures
from sim.cost.step_costs import ChunkCost, StepCosts
from sim.training import checkpoints, schedules
from sim.training.fast_step import fast_step_s

GRID = [(P, m) for P in (1, 2, 4, 7) for m in (1, 3, 8, 20)]


@pytest.mark.parametrize("schedule,name", [("1f1b", "one_f_one_b"), ("zb-h1", "zero_bubble")])
def test_the_schedules_are_the_simulators_order_by_order(schedule, name):
    answers = build.solved("scale_03_pipelines")
    for P, m in GRID:
        theirs = [[(op.kind, op.micro_batch) for op in order] for order in schedules.orders(schedule, P, m)]
        assert [answers[name](rank, P, m) for rank in range(P)] == theirs
        assert [checking.find(f"scale_03.{name}").reference(rank, P, m) for rank in range(P)] == theirs


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_the_clock_is_the_simulators_to_the_last_digit(schedule):
    answers = build.solved("scale_03_pipelines")
    times = {"F": 1.0, "B": 2.0, "I": 1.2, "W": 0.8}
    chunk = ChunkCost(times["F"], times["I"], times["W"])
    for P, m in GRID:
        orders = [[(op.kind, op.micro_batch) for op in order] for order in schedules.orders(schedule, P, m)]
        costs = StepCosts(((chunk,),) * P, m, 0.3, 0.0, 0.0, 0.0, False, 0.0)
        want = fast_step_s(costs, schedule)
        for clock in (answers["step_time"], s03_pipelines.reference_time):
            assert clock(orders, times, 0.3) == pytest.approx(want, rel=1e-9)


def test_the_intervals_are_the_simulators():
    for save, mean in ((0.1, 40.0), (0.01, 3.0), (1.0, 0.4), (0.5, 1.0)):
        want = [checkpoints.young(save, mean), checkpoints.daly(save, mean)]
        assert list(build.solved("scale_05_failures")["intervals"](save, mean)) == pytest.approx(want)


def test_a_replay_of_drawn_months_is_worth_what_dalys_expectation_says():
    """400 months of exponential failures: the mean share of work against the closed form."""
    import random

    replay, rng = build.solved("scale_05_failures")["replay"], random.Random(0)
    every, save, restart, mean, hours = 2.0, 0.1, 0.5, 12.0, 720.0
    shares = []
    for _ in range(400):
        log, now = [], rng.expovariate(1 / mean)
        while now < hours:
            log.append(now)
            now += rng.expovariate(1 / mean)
        shares.append(replay(log, hours, every, save, restart) / hours)
    want = checkpoints.expected_goodput(every, save, restart, mean)
    assert sum(shares) / len(shares) == pytest.approx(want, abs=0.004)


def test_the_two_ways_to_replay_agree_on_drawn_logs():
    import random

    replay, rng = build.solved("scale_05_failures")["replay"], random.Random(1)
    for _ in range(300):
        log = sorted(round(rng.uniform(0, 50), 3) for _ in range(rng.randrange(8)))
        every, save, restart = rng.uniform(0.5, 9), rng.uniform(0, 1), rng.uniform(0, 2)
        assert replay(log, 50.0, every, save, restart) == pytest.approx(
            s05_failures._replay(log, 50.0, every, save, restart), abs=1e-6
        )


def test_a_ring_of_equal_links_is_the_textbooks_and_late_ranks_delay_it():
    ring = build.solved("scale_01_the_network")["ring"]
    n, size, rate, latency = 8, 1e9, 1e10, 1e-5
    assert ring(size, [0.0] * n, [rate] * n, latency) == pytest.approx(2 * (n - 1) * (latency + size / n / rate))
    late = ring(size, [0.0] * 7 + [5.0], [rate] * n, latency)
    assert late == pytest.approx(5.0 + 2 * (n - 1) * (latency + size / n / rate))


def test_every_new_exercise_has_three_hints_and_every_exercise_three_steps():
    for key, exercise in checking.all_exercises().items():
        assert len(exercise.steps()) == 3 and len(set(exercise.steps())) == 3, key
        if key.startswith(("scale_", "plan_")):
            assert len(exercise.hints) == 3, key
