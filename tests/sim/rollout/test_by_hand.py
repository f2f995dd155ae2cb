"""One engine, one group and one trainer, second by second: what comes, what is pushed, what is too old."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from minglm.rl.modes import Policy
from sim.rollout.collector import Collector
from sim.rollout.decode_curve import DecodeCurve
from sim.rollout.engine import Engine
from sim.rollout.group import Group
from sim.rollout.lengths import Lengths
from sim.rollout.simulate import Case, simulate
from sim.rollout.timeline import Timeline
from sim.rollout.trajectory import Trajectory

STEADY = DecodeCurve(((1, 1.0), (8, 1.0)))  # a token of each request a second, however many run


def start(engine: Engine, now: float, *samples: Trajectory) -> None:
    engine.advance(now)
    engine.queue.extend(samples)
    assert engine.admit(now) == len(samples)


def push(engine: Engine, now: float, version: int, pause_s: float = 0.0) -> None:
    engine.advance(now)
    engine.sync_weights(now, version, pause_s)


def book(trajectory, *segments):
    """So many tokens by weights of each version, in order."""
    for version, tokens in segments:
        trajectory.book(trajectory.done + tokens, version)


def test_tokens_are_booked_on_the_versions_that_sampled_them():
    engine, group = Engine(0, STEADY, reuse_kv_cache=True), Group(0, 0, True)
    early, late, last = (Trajectory(group, 50, 0) for _ in range(3))
    start(engine, 0.0, early)
    push(engine, 3.0, 1)
    start(engine, 5.0, late)
    push(engine, 9.0, 2)
    push(engine, 11.0, 3)
    start(engine, 12.0, last)
    engine.advance(14.0)
    assert set(engine.abort(14.0)) == {early, late, last}
    assert early.segments == [(0, 3), (1, 6), (2, 2), (3, 3)]
    assert late.segments == [(1, 4), (2, 2), (3, 3)]  # none on version 0: it came when 1 was there
    assert last.segments == [(3, 2)]


def test_a_request_that_comes_back_keeps_its_old_tokens_and_books_new_ones_on_new_versions():
    engine, group = Engine(0, STEADY, reuse_kv_cache=True), Group(0, 0, True)
    one = Trajectory(group, 50, 0)
    start(engine, 0.0, one)
    engine.advance(4.0)
    engine.abort(4.0)
    push(engine, 6.0, 1)
    start(engine, 6.0, one)
    push(engine, 7.0, 2)
    engine.advance(10.0)
    engine.abort(10.0)
    assert one.segments == [(0, 4), (1, 1), (2, 3)] and one.done == 8


@pytest.mark.parametrize("running", [1, 2, 5])
def test_a_push_reads_every_running_request_again_in_a_call_of_its_own(running):
    engine, group = Engine(0, STEADY, prefill_s=0.01, prefill_fixed_s=0.5), Group(0, 0, True)
    start(engine, 0.0, *(Trajectory(group, 50, 100) for _ in range(running)))
    began = running * (0.5 + 0.01 * 100)  # the prompts' prefills, one after another
    push(engine, began + 20.0, 1, pause_s=3.0)
    # each has its prompt of 100 and 20 tokens of answer
    assert engine.resume == pytest.approx(began + 20.0 + 3.0 + running * (0.5 + 0.01 * 120))
    assert engine.reprefilled == running * 120
    engine.advance(engine.resume + 7.0)
    assert engine.v == pytest.approx(27.0)  # nothing was decoded in the meantime


def test_a_push_that_keeps_the_caches_only_pauses():
    engine, group = Engine(0, STEADY, prefill_s=0.01, prefill_fixed_s=0.5, reuse_kv_cache=True), Group(0, 0, True)
    start(engine, 0.0, Trajectory(group, 50, 100))
    push(engine, 21.5, 1, pause_s=3.0)
    assert engine.resume == pytest.approx(24.5) and engine.reprefilled == 0


def test_a_group_is_as_old_as_its_oldest_token():
    group = Group(0, 7, True)
    group.samples = [Trajectory(group, 9, 0) for _ in range(3)]
    assert group.oldest_version == 7  # nothing sampled yet: when it was first submitted
    book(group.samples[0], (4, 2), (6, 1))
    book(group.samples[1], (3, 5), (5, 1))
    assert group.oldest_version == 3  # one without tokens does not count


def test_an_answer_spans_from_the_oldest_to_the_newest_version_that_sampled_it():
    """Three trained answers and one that nobody waited for: by the versions of their tokens."""
    case = Case(Policy("sync", prompts_per_batch=2), 2, Lengths.lognormal(50, 400), 1, STEADY, steps=1)
    collector = Collector(case, Timeline(), [])
    group = Group(0, 0, True)
    for segments in ([(1, 4), (3, 2), (2, 1)], [(3, 5)], [(2, 1), (3, 1)], []):
        group.samples.append(Trajectory(group, 9, 0))
        book(group.samples[-1], *segments)
        assert group.samples[-1].segments == segments
    step = collector.trained([group], version=4)
    found = collector.result({"waiting": [], "buffered": [], "running": []}, submitted=1).staleness
    assert found.max_span == 2 and found.oldest == {3: 1, 1: 1, 2: 1, 0: 1}
    assert found.tokens == {3: 4, 1: 2 + 5 + 1, 2: 1 + 1} and found.max == 3
    assert (step.tokens, step.stale_share, step.staleness_max) == (14, 1.0, 3)


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_no_trained_token_is_older_than_the_bound(bound):
    """Answers of 3 to 60 tokens side by side while weights are pushed every few seconds: long ones span versions."""
    case = Case(
        Policy("glm5", 2, max_concurrent=6, weight_sync_interval=1, filter_staleness_above=bound),
        2,
        Lengths(groups=((3, 4), (5, 60), (8, 3), (30, 25), (4, 4), (12, 5))),
        2,
        STEADY,
        reuse_kv_cache=True,
        steps=30,
    )
    result = simulate(case)
    free = simulate(replace(case, policy=replace(case.policy, filter_staleness_above=None)))
    assert max(result.staleness.oldest) <= bound < max(free.staleness.oldest)
    assert result.counts["too_stale"] > 0 == free.counts["too_stale"]


@pytest.mark.parametrize("share, z", [(0.9, 1.2815515655446004), (0.99, 2.3263478740408408)])
def test_a_median_and_a_percentile_make_the_log_normal_through_both(share, z):
    lengths = Lengths.lognormal(median=1000, percentile=(share, 3000))
    assert lengths.sigma == pytest.approx(math.log(3) / z)


@pytest.mark.parametrize("keys", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_step_is_longer_from_the_first_one_with_more_keys_than_are_read(keys, length):
    """Alone after a prompt of 10: so many tokens a second each until the selection sets in, then 1.5 s each."""
    engine, group = Engine(0, DecodeCurve(((1, 1.0),), beyond=((1, 0.5),)), topk=10 + keys), Group(0, 0, True)
    start(engine, 0.0, Trajectory(group, length, 10))
    now, ended = 0.0, []
    while not ended:
        now = engine.next_event(now)
        engine.advance(now)
        ended = engine.fire(now)
    assert now == pytest.approx(length + 0.5 * max(0, length - keys))


def test_the_tail_is_the_time_after_nine_tenths_have_ended():
    """One engine, a token a second each, four steps of groups of four: what is left after the trajectory at 90%."""
    case = Case(Policy("sync", prompts_per_batch=5), 4, Lengths.lognormal(50, 400), 1, STEADY, steps=2)
    rng = random.Random(case.seed)
    shares = []
    for first in (0, 5):
        ends = sorted(n for i in range(first, first + 5) for n in case.lengths.draw_group(rng, 4, i))
        shares.append((ends[-1] - ends[math.ceil(0.9 * len(ends)) - 1], ends[-1]))
    tail, rollout = map(sum, zip(*shares, strict=True))
    assert simulate(case).utilisation.tail_share == pytest.approx(tail / rollout)


@pytest.mark.parametrize("warmup", [0, 1])
def test_shares_of_time_are_those_of_the_steps_that_count(warmup):
    """Two engines that train too, a token a second each, an update of 50 s: by the drawn lengths of each step."""
    case = Case(
        Policy("sync", prompts_per_batch=4),
        1,
        Lengths.lognormal(50, 400),
        2,
        STEADY,
        train_fixed_s=50.0,
        colocated=True,
        steps=3,
        warmup=warmup,
    )
    result, rng = simulate(case), random.Random(case.seed)
    drawn = [[n for i in range(4) for n in case.lengths.draw_group(rng, 1, 4 * step + i)] for step in range(3)][warmup:]
    tokens, rollout = sum(map(sum, drawn)), sum(map(max, drawn))  # the longest answer of a step ends its rollout
    used = result.utilisation
    assert result.seconds == pytest.approx(rollout + 50.0 * len(drawn))
    assert result.throughput.generated_tokens == tokens
    assert used.mean_running == pytest.approx(tokens / rollout / 2)  # a token a second each, over two engines
    assert used.idle_share == pytest.approx(used.rollout_idle * rollout / result.seconds)
    assert 0 < used.rollout_idle < 1
