"""The rules of asynchronous RL, as counts: who may start, when a batch is ready, what is too stale."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.rl.policy import MODES, PartialBuffer, Policy, Status, micro_batches


def play(policy: Policy, updates: int, seed: int, drop_share: float = 0.0, in_order: bool = False) -> dict:
    """Run a mode on counts alone: groups finish in random order, or as they were started; returns what a trainer saw."""
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
        if policy.batch_is_ready(status):
            batch, finished = finished[: policy.batch_groups], finished[policy.batch_groups :]
            if policy.aborts_at_target:
                buffer.put_back(running)
                running, finished = [], []
            seen += [status.version - v for v in batch if not policy.too_stale(status.version, v)]
            status.accepted += len(batch)
            done += 1
            status.version += policy.pushes_after(done)
        else:
            assert running, "nothing runs and no batch is ready: the loop would hang"
            version = running.pop(0 if in_order else rng.randrange(len(running)))
            if rng.random() >= drop_share:
                finished.append(version)
        status.running, status.finished = len(running), len(finished)
    return {"lag": seen, "resumed": resumed, "submitted": submitted, "waiting": len(buffer)}


@pytest.mark.parametrize("mode", ("sync", "april"))
def test_nothing_that_runs_survives_an_update_so_fresh_groups_never_lag(mode):
    lag = play(Policy(mode, batch_groups=4), updates=20, seed=1)["lag"]
    assert set(lag) == {0}


def test_april_resumes_what_it_aborted_and_loses_nothing():
    result = play(Policy("april", batch_groups=4, over_sampling=8), updates=30, seed=2)
    assert result["resumed"] > 0 and max(result["lag"]) > 0
    assert result["submitted"] - result["resumed"] == 30 * 4 + result["waiting"]  # every new group trained, or waits


@given(eta=st.integers(0, 4), batch=st.integers(1, 6), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_async_starts_no_more_than_eta_batches_ahead(eta, batch, seed):
    """The rule bounds how far ahead groups start; a straggler may still end later than the bound says."""
    policy = Policy("async", batch_groups=batch, eta=eta)
    assert max(play(policy, updates=12, seed=seed, in_order=True)["lag"]) <= eta
    assert play(policy, updates=12, seed=seed)["submitted"] <= (12 + eta + 1) * batch


def test_async_with_eta_zero_is_synchronous():
    assert set(play(Policy("async", batch_groups=3, eta=0), updates=10, seed=3)["lag"]) == {0}


@given(gap=st.integers(0, 3), push_every=st.integers(1, 4), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_glm5_drops_beyond_the_gap_and_counts_versions_in_pushes(gap, push_every, seed):
    policy = Policy("glm5", batch_groups=3, push_every=push_every, max_gap=gap)
    lag = play(policy, updates=16, seed=seed)["lag"]
    assert not lag or max(lag) <= gap
    assert [policy.pushes_after(n) for n in range(1, 2 * push_every + 1)].count(True) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_that_drops_half_never_hangs_a_mode(mode):
    play(Policy(mode, batch_groups=4), updates=10, seed=4, drop_share=0.5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"mode": "apri"}, "april"),
        ({"batch_groups": 0}, "batch_groups=0"),
        ({"eta": -1}, "eta=-1"),
        ({"mode": "april", "batch_groups": 8, "over_sampling": 4}, "over_sampling=4"),
        ({"over_sampling": 16}, "only april"),
        ({"max_gap": -1}, "max_gap=-1"),
        ({"push_every": True}, "push_every=True"),
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
