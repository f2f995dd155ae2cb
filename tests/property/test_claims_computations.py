"""The computations behind the claims obey what they stand for: bounds, inverses, monotone growth, exactness."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minglm.errors import InputError
from sim.claims import benchmarks as bench
from sim.claims import cluster, model, price
from sim.claims.rules import COMPARISONS, exact

shares = st.integers(0, 1000).map(lambda n: Fraction(n, 1000))
tenths = st.integers(0, 1000).map(lambda n: n / 10)


@given(tenths, tenths)
def test_decimals_are_exact(a, b):
    assert bench.gap(a, b).value == Fraction(round(10 * a) - round(10 * b), 10)


@given(st.integers(0, 10**7), st.integers(0, 3))
def test_rounding_is_half_up_and_finds_its_own(n, digits):
    holds = COMPARISONS["rounds"][0]
    value = Fraction(n, 10**digits)
    assert holds(float(value) if digits else n, value, {"digits": digits})
    assert holds(float(value) if digits else n, value - Fraction(1, 2 * 10**digits), {"digits": digits})
    assert not holds(float(value) if digits else n, value + Fraction(1, 2 * 10**digits), {"digits": digits})


@given(st.integers(1, 200_000), st.integers(1, 100), st.integers(50, 1000))
def test_days_and_chips_are_inverses(chips, percent, peak):
    mfu = Fraction(percent, 100)
    days = cluster.run_days(chips, mfu, peak)
    assert cluster.chips_for(days, mfu, peak) == chips
    assert cluster.run_days(2 * chips, mfu, peak) == days / 2


@given(st.integers(0, 10**6), st.sampled_from(("bf16", "fp8")))
def test_cache_grows_in_step_with_the_context(context, dtype):
    assert model.cache_bytes(2 * context, dtype) == 2 * model.cache_bytes(context, dtype)
    assert model.cache_bytes(context, "fp8") <= model.cache_bytes(context, "bf16") <= model.dense_cache_bytes(context)


@given(st.integers(1, 4096))
def test_more_tokens_touch_more_experts_but_never_more_than_there_are(tokens):
    n = model.distinct_experts(tokens)
    assert model.GLM5.num_experts_per_tok - 1e-9 <= n <= model.GLM5.n_routed_experts
    assert model.distinct_experts(tokens + 1) >= n


@given(st.integers(1, 512))
def test_a_larger_batch_slows_each_stream_and_speeds_the_node(batch):
    one, more = model.roofline_tokens_per_s(batch=batch), model.roofline_tokens_per_s(batch=batch + 1)
    assert more <= one and (batch + 1) * more >= batch * one


@given(tenths, st.integers(1, 3000))
def test_an_interval_holds_its_score_and_narrows_with_items(percent, items):
    low, high = bench.score_interval(percent, items)
    assert -1e-9 <= low <= percent + 1e-9 and percent - 1e-9 <= high <= 100 + 1e-9
    again = bench.score_interval(percent, 4 * items)
    assert again[1] - again[0] < high - low


@given(st.integers(0, 500), st.integers(1, 500))
def test_every_real_score_is_possible(right, items):
    percent = Fraction(100 * min(right, items), items)
    printed = float((percent * 10 + Fraction(1, 2)).__floor__()) / 10
    assert bench.possible_in_one_run(printed, items)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_index_and_rate_stay_in_bounds_and_agree(correct, partial, incorrect, abstained):
    if correct + partial + incorrect + abstained == 0 or partial + incorrect + abstained == 0:
        return
    index = bench.omniscience_index(correct, partial, incorrect, abstained)
    rate = bench.hallucination_rate(correct, partial, incorrect, abstained)
    assert -100 <= index <= 100 and 0 <= rate <= 1
    accuracy = Fraction(correct, correct + partial + incorrect + abstained)
    assert bench.index_at(accuracy, rate) == index


def test_the_same_rate_allows_any_sign_of_the_index():
    assert bench.hallucination_rate(10, 0, 34, 66) == bench.hallucination_rate(900, 0, 34, 66) == Fraction(34, 100)
    assert bench.omniscience_index(10, 0, 34, 66) < 0 < bench.omniscience_index(900, 0, 34, 66)


@given(st.integers(0, 1000).map(lambda n: n / 10))
def test_the_text_only_range_holds_the_full_score(full):
    low, high = bench.hle_rival_ceiling(full).value
    assert 0 <= low <= exact(full) <= high <= 100


@given(shares)
def test_a_blend_lies_between_its_prices_and_the_ratio_inverts(share):
    ratio = price.times_cheaper(share)
    assert 5 <= ratio <= Fraction(125, 16)
    assert price.share_where(ratio) == share
    assert price.blended("GLM-5, Z.ai", share) == 1 + share * Fraction("2.2")


@settings(deadline=None)
@given(st.lists(st.integers(1, 16_384), min_size=4, max_size=64), st.integers(1, 8))
def test_april_trains_on_complete_responses_only_and_loses_none(lengths, target):
    target = min(target, len(lengths))
    done = cluster.april(lengths, target, len(lengths))
    assert len(done["trained"]) == target
    assert done["trained_incomplete"] == 0
    assert all(lengths[i] <= done["ticks"] for i in done["trained"])
    assert all(made < lengths[i] for i, made in done["buffered"].items())
    assert not set(done["trained"]) & set(done["buffered"])


def test_impossible_questions_are_refused():
    for call, words in (
        (lambda: cluster.run_days(0), "above 0"),
        (lambda: cluster.run_days(1, 30), "write 30% as 0.3"),
        (lambda: cluster.april([1, 2], 3, 2), "target"),
        (lambda: price.blended("GLM-5, Z.ai", 25), "a quarter as 0.25"),
        (lambda: model.cache_bytes(-1), "at least 0"),
        (lambda: model.weight_bytes("int3"), "bf16 and fp8"),
        (lambda: bench.score_interval(120, 10), "from 0 to 100"),
        (lambda: bench.items_to_separate(50, 50), "equal scores"),
        (lambda: bench.hallucination_rate(3, 0, 0, 0), "at least one miss"),
        (lambda: exact("80"), "without quotes"),
    ):
        with pytest.raises(InputError, match=words):
            call()
