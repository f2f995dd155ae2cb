"""pass@k against enumeration, intervals that cover, ratings that come back, and the judge of answers."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from minglm.evals import statistics


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert statistics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased_and_drawing_with_replacement_is_not():
    chance, n, k = 0.3, 6, 3
    mean = [0.0, 0.0]
    for c in range(n + 1):
        weight = math.comb(n, c) * chance**c * (1 - chance) ** (n - c)
        mean[0] += weight * statistics.pass_at_k(n, c, k)
        mean[1] += weight * (1 - (1 - c / n) ** k)
    truth = 1 - (1 - chance) ** k
    assert mean[0] == pytest.approx(truth, abs=1e-12) and mean[1] < truth - 0.03


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_wilson_covers_about_95_percent_and_the_textbook_interval_less(rate):
    n, covered, textbook = 20, 0.0, 0.0
    for c in range(n + 1):
        weight = math.comb(n, c) * rate**c * (1 - rate) ** (n - c)
        low, high = statistics.wilson(c, n)
        covered += weight * (low <= rate <= high)
        half = 1.96 * math.sqrt(c / n * (1 - c / n) / n)
        textbook += weight * (c / n - half <= rate <= c / n + half)
    assert 0.91 < covered <= 1 and (rate == 0.5 or textbook < covered)
    assert statistics.wilson(0, n)[0] == 0 and statistics.wilson(n, n)[1] == 1 and statistics.wilson(0, n)[1] > 0.1


def _votes(strength: dict, count: int, seed: int) -> list:
    draw, out = random.Random(seed), []
    for _ in range(count):
        a, b = draw.sample(sorted(strength), 2)
        out.append((a, b, float(draw.random() < statistics.win_probability(strength[a], strength[b]))))
    return out


def test_ratings_come_back_from_votes_and_intervals_hold_them():
    truth = {"a": 1150.0, "b": 1000.0, "c": 850.0}
    votes = _votes(truth, 6000, seed=1)
    got, intervals = statistics.bradley_terry(votes), statistics.bootstrap(votes, rounds=60, seed=2)
    assert list(got) == ["a", "b", "c"] and list(statistics.ranks(intervals).values()).count(1) == 1
    for pair in (("a", "b"), ("b", "c")):
        assert got[pair[0]] - got[pair[1]] == pytest.approx(150, abs=25)
    assert all(low < got[p] < high for p, (low, high) in intervals.items())
    few = statistics.bootstrap(votes[:60], rounds=60, seed=2)
    assert few["a"][1] - few["a"][0] > 3 * (intervals["a"][1] - intervals["a"][0])


def test_equal_players_share_a_rank():
    intervals = statistics.bootstrap(_votes({"a": 1000.0, "b": 1000.0}, 200, seed=3), rounds=60)
    assert set(statistics.ranks(intervals).values()) == {1}


def test_a_tie_counts_half_and_order_does_not_matter():
    votes = [("a", "b", 1.0), ("a", "b", 0.5), ("b", "a", 1.0), ("b", "c", 1.0)]
    turned = [(b, a, 1 - s) for a, b, s in votes]
    one, two = statistics.bradley_terry(votes), statistics.bradley_terry(turned)
    assert all(one[p] == pytest.approx(two[p], abs=1e-3) for p in one)
    assert math.isfinite(one["c"])


def test_votes_to_separate_by_simulation():
    gap, z = 60, 1.96
    n = statistics.votes_to_separate(gap, power=0.5)
    p, draw, seen = statistics.win_probability(gap, 0), random.Random(0), 0
    for _ in range(400):
        won = sum(draw.random() < p for _ in range(n)) / n
        seen += (won - 0.5) / math.sqrt(won * (1 - won) / n) > z
    assert 0.4 < seen / 400 < 0.6, "about half of such experiments find the gap"
    assert statistics.votes_to_separate(gap, power=0.5, ties=0.5) >= 2 * n - 2


def test_arena_draws_order_and_cancels_a_judge_that_likes_the_first():
    answers = {"x": [1] * 5, "y": [1] * 5}
    votes = statistics.arena(answers, lambda a, b, q: 1.0, 1000)
    got = statistics.bradley_terry(votes)
    assert abs(got["x"] - got["y"]) < 40
    fixed = statistics.bradley_terry([("x", "y", 1.0)] * 1000)
    assert fixed["x"] - fixed["y"] > 400, "the control: without a drawn order the judge decides"


@pytest.mark.parametrize(
    "call,part",
    [
        (lambda: statistics.pass_at_k(4, 2, 5), "k=5"),
        (lambda: statistics.pass_at_k(4, 5, 2), "correct=5"),
        (lambda: statistics.wilson(3, 2), "3 right of 2"),
        (lambda: statistics.bradley_terry([]), "at least one vote"),
        (lambda: statistics.bradley_terry([("a", "a", 1)]), "two players"),
        (lambda: statistics.bradley_terry([("a", "b", 1.0)], prior=0), "never won"),
        (lambda: statistics.bootstrap([("a", "b", 1)], rounds=3), "rounds=3"),
        (lambda: statistics.votes_to_separate(0), "gap=0"),
        (lambda: statistics.arena({"a": [1]}, lambda *_: 1, 3), "two players or more"),
    ],
)
def test_bad_input_is_one_line(call, part):
    with pytest.raises(InputError, match=part) as err:
        call()
    assert "\n" not in str(err.value)


def test_pass_at_k_judges_what_counts():
    from minglm.data.chat import examples
    from minglm.evals.passk import better, is_right, what_counts

    assert what_counts("Radi is fuzzy falcon.i is") == "fuzzy falcon" and what_counts("3 + 4 = 7") == "7"
    for task in ("lookup", "copy", "arithmetic", "returns"):
        for e in examples(task, 5, 4):
            assert (
                is_right(e, e.messages[-1][1]) and is_right(e, f" {e.messages[-1][1]}\n") and not is_right(e, "no idea")
            )
    assert [better(*v) for v in ((True, False), (True, True), (False, True))] == [1.0, 0.5, 0.0]


def test_lookups_of_pass_at_k_hide_their_fact_in_a_passage(small_checkpoint):
    from minglm.evals import passk
    from minglm.inference.load import load_model

    _, tokenizer, _ = load_model(small_checkpoint)
    asked = passk.problems(3, 1, tokenizer, passage_tokens=160)["lookup"]
    assert [e.messages for e in asked] == [e.messages for e in passk.hidden_facts(3, 1, tokenizer, 160)]
    for e in asked:
        (_, user), (_, fact) = e.messages
        assert user.count(fact) == 1 and user.endswith("?") and passk.is_right(e, fact)
        assert 100 <= len(tokenizer.encode(user)) <= 170
    assert [e.messages for e in asked] != [e.messages for e in passk.hidden_facts(3, 2, tokenizer, 160)]


@pytest.mark.parametrize(
    "freedom, quantile", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_students_quantile_is_that_of_printed_tables(freedom, quantile):
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_an_interval_of_means_needs_two_values_and_tends_to_the_normal_one():
    assert statistics.t_quantile(4, 0.99) == pytest.approx(4.604, abs=5e-4)
    assert statistics.t_quantile(4000) == pytest.approx(statistics.Z95, rel=1e-3)
    assert statistics.mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), rel=1e-4)
    with pytest.raises(InputError, match="0 degrees of freedom"):
        statistics.mean_interval([1.0])
