"""The rules of asynchronous RL, as counts: who may start, when a batch is ready, what is too stale."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.rl.modes import MODES, PartialBuffer, Policy, Status, micro_batches


def play(policy: Policy, updates: int, seed: int, drop_share: float = 0.0) -> dict:
    """Run a mode on counts alone: groups finish in random order; returns what a trainer saw."""
    rng, status, running, finished, seen = random.Random(seed), Status(), [], [], []
    buffer = PartialBuffer()
    resumed = submitted = done = 0
    while done < updates:
        room = policy.groups_to_submit(status)
        taken = buffer.take(room)
        resumed += len(taken)
        running += taken + [status.version] * (room - len(taken))  # a group is its oldest version
        submitted += room
        status.running = len(running)
        if policy.batch_is_ready(status) and not policy.must_wait(status, Counter(running), Counter(finished)):
            if policy.mode == "async":
                finished.sort()  # the oldest first
            batch, finished = finished[: policy.prompts_per_batch], finished[policy.prompts_per_batch :]
            if policy.aborts_at_target:
                buffer.put_back(running)
            if policy.discards_surplus:
                finished = []
            if not policy.continuous:
                running = []
            seen += [status.version - v for v in batch if not policy.too_stale(status.version, v)]
            status.accepted += len(batch)
            done += 1
            status.version += policy.syncs_weights_after(done)
        else:
            assert running, "nothing runs and no batch is ready: the loop would hang"
            version = running.pop(rng.randrange(len(running)))
            if rng.random() >= drop_share:
                finished.append(version)
        status.running, status.finished = len(running), len(finished)
    return {"staleness": seen, "resumed": resumed, "submitted": submitted, "waiting": len(buffer)}


@pytest.mark.parametrize("mode", ("sync", "april"))
def test_nothing_that_runs_survives_an_update_so_fresh_groups_never_lag(mode):
    staleness = play(Policy(mode, prompts_per_batch=4), updates=20, seed=1)["staleness"]
    assert set(staleness) == {0}


def test_april_resumes_what_it_aborted_and_loses_nothing():
    result = play(Policy("april", prompts_per_batch=4, over_sampling=8), updates=30, seed=2)
    assert result["resumed"] > 0 and max(result["staleness"]) > 0
    assert result["submitted"] - result["resumed"] == 30 * 4 + result["waiting"]  # every new group trained, or waits


@given(
    max_staleness=st.integers(0, 8),
    batch=st.integers(1, 6),
    in_flight=st.sampled_from((None, 1, 2, 5)),
    drop=st.sampled_from((0.0, 0.4)),
    seed=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=60)
def test_async_trains_nothing_older_than_eta_in_whatever_order_groups_end(max_staleness, batch, in_flight, drop, seed):
    policy = Policy("async", prompts_per_batch=batch, max_staleness=max_staleness / 2, max_concurrent=in_flight)
    result = play(policy, updates=12, seed=seed, drop_share=drop)
    assert max(result["staleness"]) <= -(-policy.max_staleness // 1)
    assert drop or result["submitted"] <= (12 + policy.max_staleness + 1) * batch


def test_young_groups_that_overtake_old_ones_leave_room_for_them():
    """By hand: η = 2, B = 4. At version 0 twelve groups start (capacity (2 + 0 + 1)·4), at version 1 four more.

    What started at version 0 must be trained by version 2, so among the first 12. Eight are left at version 1. If four
    young ones were trained there, four of the eight would be left over for version 3.
    """
    policy, status = Policy("async", prompts_per_batch=4, max_staleness=2), Status()
    assert policy.groups_to_submit(status) == 12
    status = Status(running=8, finished=0, accepted=4, version=1)
    assert policy.groups_to_submit(status) == 4
    status = Status(running=8, finished=4, accepted=4, version=1)
    assert policy.must_wait(status, {0: 8}, {1: 4})  # 8 old ones for 4 places: 12 - 4 accepted - 4 now
    assert policy.must_wait(status, {0: 5}, {0: 3, 1: 4})  # one young one would go along: 5 for 4 places
    assert not policy.must_wait(status, {0: 4}, {0: 4, 1: 4})  # four old ones go, four are left for version 2
    assert not policy.must_wait(status, {1: 4}, {0: 8})
    assert policy.must_wait(status, {0: 7}, {0: 1, 1: 4}, batch=2)  # two at a time: 7 for 12 - 4 - 2
    assert not policy.must_wait(status, {0: 6}, {0: 2, 1: 4}, batch=2)
    assert not policy.must_wait(status, {}, {0: 8, 1: 4})  # nothing to wait for
    for mode in MODES:
        assert mode == "async" or not Policy(mode, prompts_per_batch=4).must_wait(status, {0: 8}, {1: 4})


def test_a_filter_that_lets_more_than_a_batch_pass_makes_nothing_stale():
    staleness = [
        play(Policy(mode, prompts_per_batch=4), updates=20, seed=s, drop_share=0.4)["staleness"]
        for mode in ("sync", "one_step_off")
        for s in range(20)
    ]
    assert {x for one in staleness for x in one} == {0}  # one_step_off adds one in the loop: the update beside it


def test_async_with_eta_zero_is_synchronous():
    assert set(play(Policy("async", prompts_per_batch=3, max_staleness=0), updates=10, seed=3)["staleness"]) == {0}


@given(gap=st.integers(0, 3), weight_sync_interval=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_glm5_drops_beyond_the_gap_and_counts_versions_in_pushes(gap, weight_sync_interval, seed):
    policy = Policy("glm5", prompts_per_batch=3, weight_sync_interval=weight_sync_interval, filter_staleness_above=gap)
    staleness = play(policy, updates=16, seed=seed)["staleness"]
    assert not staleness or max(staleness) <= gap
    assert [policy.syncs_weights_after(n) for n in range(1, 2 * weight_sync_interval + 1)].count(True) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_that_drops_half_never_hangs_a_mode(mode):
    play(Policy(mode, prompts_per_batch=4), updates=10, seed=4, drop_share=0.5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"mode": "apri"}, "april"),
        ({"prompts_per_batch": 0}, "prompts_per_batch=0"),
        ({"max_staleness": -1}, "max_staleness=-1"),
        ({"mode": "april", "prompts_per_batch": 8, "over_sampling": 4}, "over_sampling=4"),
        ({"over_sampling": 16}, "only april"),
        ({"filter_staleness_above": -1}, "filter_staleness_above=-1"),
        ({"weight_sync_interval": True}, "weight_sync_interval=True"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, word):
    with pytest.raises(InputError, match=word) as caught:
        Policy(**values)
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(16, 2048))
def test_passes_hold_every_row_once_and_keep_the_limit(lengths, limit):
    parts = micro_batches(lengths, limit)
    assert sorted(n for part in parts for n in part) == sorted(lengths)
    assert all(len(part) * max(part) <= limit or len(part) == 1 for part in parts)


@pytest.mark.parametrize("mode", MODES)
def test_weights_go_out_after_every_k_th_update(mode):
    policy = Policy(mode, weight_sync_interval=3)
    after = [n for n in range(1, 13) if policy.syncs_weights_after(n)]
    assert after == ([3, 6, 9, 12] if mode == "glm5" else list(range(1, 13)))


def test_what_is_too_stale_by_hand():
    policy = Policy("glm5", filter_staleness_above=2)
    assert [policy.too_stale(5, oldest) for oldest in (5, 4, 3, 2, 0)] == [False, False, False, True, True]
    assert not Policy("glm5").too_stale(50, 0) and not Policy("async", filter_staleness_above=0).too_stale(50, 0)


@pytest.mark.parametrize(
    ("policy", "status", "want"),
    [
        (Policy("sync", 4), Status(), 4),
        (Policy("sync", 4), Status(running=3), 4),  # a filter dropped one: a round more
        (Policy("sync", 4), Status(running=3, finished=1), 0),
        (Policy("one_step_off", 4), Status(finished=3), 4),
        (Policy("april", 4, over_sampling=6), Status(running=1, finished=2), 6),
        (Policy("april", 4, over_sampling=6), Status(running=4), 0),
        (Policy("async", 4, max_staleness=1), Status(), 8),  # (1 + 0 + 1)·4
        (Policy("async", 4, max_staleness=0.5), Status(version=2, accepted=8, running=1), 5),  # (0.5 + 2 + 1)·4 − 9
        (Policy("async", 3, max_staleness=0.5), Status(), 4),  # 4.5, rounded down
        (Policy("glm5", 4), Status(running=3, finished=2), 3),
        (Policy("glm5", 4, max_concurrent=4), Status(running=3), 1),
        (Policy("glm5", 4, max_concurrent=2), Status(running=3), 0),
    ],
)
def test_how_many_groups_may_start_by_hand(policy, status, want):
    assert policy.groups_to_submit(status) == want
    assert not policy.batch_is_ready(Status(finished=policy.prompts_per_batch - 1))
    assert policy.batch_is_ready(Status(finished=policy.prompts_per_batch))


def test_partial_groups_come_back_in_the_order_they_went():
    buffer = PartialBuffer()
    buffer.put_back("ab")
    buffer.put_back("c")
    assert buffer.take(2) == ["a", "b"] and len(buffer) == 1 and buffer.take(5) == ["c"] and not buffer.take(1)
