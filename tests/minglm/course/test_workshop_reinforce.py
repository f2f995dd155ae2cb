"""The small worlds behind the notebooks on reinforcement learning."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from minglm.course.lessons import reinforce  # noqa: E402
from minglm.errors import InputError  # noqa: E402


def test_a_round_counted_by_hand():
    first, second = reinforce.one_token_a_step([5, 1, 9, 2, 4, 4], target=2, started=4, rounds=2)
    assert first == {
        "steps": 2,
        "running": [5, 1, 9, 2],
        "resumed": [False] * 4,
        "done": [False, True, False, True],
        "stale": 0.0,
    }
    # the rests 3 and 7 go on, two new ones of 4 begin; after 4 steps three are done, of 5 + 4 + 4 tokens 2 are stale
    assert second["running"] == [3, 7, 4, 4] and second["resumed"] == [True, True, False, False]
    assert (
        second["steps"] == 4
        and second["done"] == [True, False, True, True]
        and second["stale"] == pytest.approx(2 / 13)
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=60, max_size=60), st.integers(1, 6), st.integers(0, 6))
def test_no_token_is_lost_and_a_synchronous_round_is_never_stale(todo, target, extra):
    rounds = reinforce.one_token_a_step(todo, target, target + extra, 4)
    for before, after in pairwise(rounds):
        rests = [n - before["steps"] for n, ended in zip(before["running"], before["done"], strict=False) if not ended]
        assert after["running"][: len(rests)] == rests and after["resumed"][: len(rests)] == [True] * len(rests)
    assert all(sum(r["done"]) >= target for r in rounds)
    if extra == 0:
        assert all(r["stale"] == 0 and r["steps"] == max(r["running"]) for r in rounds)


def test_bad_counts_are_refused():
    with pytest.raises(InputError, match="at least the target"):
        reinforce.one_token_a_step([1] * 9, target=3, started=2, rounds=1)
    with pytest.raises(InputError, match="too few"):
        reinforce.one_token_a_step([1] * 5, target=2, started=2, rounds=3)


def test_the_push_of_each_objective_is_what_its_definition_says():
    ratios = [0.1, 0.5, 1.0, 1.9, 3.0]
    assert reinforce.push(ratios, "naive") == pytest.approx([1] * 5)
    assert reinforce.push(ratios, "decoupled_ppo") == pytest.approx(ratios)
    assert reinforce.push(ratios, "tis", tis_high=2.0) == pytest.approx([0.1, 0.5, 1.0, 1.9, 2.0])
    assert reinforce.push(ratios, "icepop", beta=2.0) == pytest.approx([0, 0.5, 1.0, 1.9, 0])
    assert reinforce.push(ratios, "double_sided_mask") == pytest.approx([0, 0, 1.0, 0, 0])


def test_lengths_have_a_long_tail():
    drawn = sorted(reinforce.lengths(300))
    assert drawn[-1] > 8 * drawn[150] and reinforce.lengths(300) == reinforce.lengths(300)
