"""Bradley–Terry ratings: closed form for two, no preferred zero, and noise that behaves as the theory says."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.evals import statistics

gaps = st.floats(-400, 400, allow_nan=False)


@given(gaps)
def test_the_two_sides_of_a_vote_share_it(gap):
    assert statistics.win_probability(gap) + statistics.win_probability(-gap) == pytest.approx(1)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_two_models_have_the_closed_form(up, down):
    first, second = statistics.fit_table({(0, 1): (up, down)})
    assert first - second == pytest.approx(400 * math.log10(up / down), abs=1e-3)
    assert first + second == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-150, 150), min_size=3, max_size=6), st.integers(0, 10_000))
def test_a_long_arena_finds_the_true_gaps(ratings, seed):
    fitted = statistics.fit_table(statistics.simulate_votes(ratings, 200_000, seed))
    centre = sum(ratings) / len(ratings)
    for got, true in zip(fitted, ratings, strict=False):
        assert got == pytest.approx(true - centre, abs=15)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-200, 200), min_size=2, max_size=5), st.integers(50, 2000), st.integers(0, 1000))
def test_every_vote_is_counted_once_and_names_do_not_matter(ratings, votes, seed):
    wins = statistics.simulate_votes(ratings, votes, seed)
    assert sum(a + b for a, b in wins.values()) == votes
    n = len(ratings)
    mirrored = {(n - 1 - j, n - 1 - i): (b, a) for (i, j), (a, b) in wins.items()}
    assert statistics.fit_table(mirrored) == pytest.approx(statistics.fit_table(wins)[::-1], abs=1e-2)


@given(st.floats(1, 200))
def test_a_larger_gap_takes_fewer_votes_and_certainty_takes_more(gap):
    votes = statistics.votes_to_separate(gap)
    assert statistics.votes_to_separate(gap * 1.5) < votes or votes < 20
    assert statistics.votes_to_separate(gap, power=0.95) > votes
    assert statistics.votes_to_separate(-gap) == votes


def test_the_votes_needed_do_what_they_promise():
    """Simulated: with the computed number of votes, a true gap of 20 points is significant about 80 times of 100."""
    votes, found, arenas = statistics.votes_to_separate(20), 0, 600
    for seed in range(arenas):
        up, down = statistics.simulate_votes((20, 0), votes, seed)[0, 1]
        found += abs(up - down) / math.sqrt(votes) > 1.96
    assert 0.74 < found / arenas < 0.86


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    truth, covered, total = (30, 10, 0, -10, -30), 0, 0
    for seed in range(40):
        interval = statistics.bootstrap_table(statistics.simulate_votes(truth, 3000, seed), rounds=100, seed=seed)
        for true, low, high in zip(truth, interval["low"], interval["high"], strict=False):
            covered += low <= true <= high
            total += 1
    assert 0.88 < covered / total <= 1
    assert interval["first"][0] > interval["first"][4]
    assert sum(interval["first"]) == pytest.approx(1)


def test_the_half_width_agrees_with_the_bootstrap():
    wins = statistics.simulate_votes((0, 0), 10_000, 3)
    interval = statistics.bootstrap_table(wins, rounds=400, seed=3)
    half = (interval["high"][0] - interval["low"][0]) / 2  # of one rating; the difference of two moves twice as much
    assert 2 * half == pytest.approx(statistics.half_width(10_000), rel=0.2)


def test_a_model_that_never_lost_gets_a_finite_rating():
    fitted = statistics.fit_table({(0, 1): (20, 0), (0, 2): (20, 0), (1, 2): (10, 10)})
    assert all(math.isfinite(r) for r in fitted) and fitted[0] == max(fitted)


def test_impossible_questions_are_refused():
    with pytest.raises(InputError, match="equal players"):
        statistics.votes_to_separate(0)
    with pytest.raises(InputError, match="at least one vote"):
        statistics.half_width(0)
    with pytest.raises(InputError, match="at least two"):
        statistics.simulate_votes([1500], 10)
