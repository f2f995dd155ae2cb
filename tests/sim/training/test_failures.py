"""Failure rates against their sources, and streams that can be compared failure by failure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from itertools import pairwise

import pytest

from minglm.errors import InputError
from sim.base.units import DAY_S
from sim.training.failures import LLAMA3_COMPONENTS, FailureModel, Recovery, SlowServers


def until(stream, seconds):
    return list(itertools.takewhile(lambda f: f.time_s < seconds, stream))


def test_llama3_table_adds_up():
    assert sum(n for n, _ in LLAMA3_COMPONENTS.values()) == 419


def test_rates_reproduce_their_sources():
    assert FailureModel.named("mid").mtbf_s(16384) / 3600 == pytest.approx(54 * 24 / 419)  # 3.09 h
    assert FailureModel.named("high").mtbf_s(100_000) / 60 == pytest.approx(18)
    assert FailureModel.named("low").mtbf_s(100_000) / 60 == pytest.approx(50, rel=0.01)
    rates = [FailureModel.named(n).per_chip_day for n in ("low", "mid", "high")]
    assert rates == sorted(rates)


def test_54_days_of_llama3():
    """Counts and components of many 54-day runs on 16,384 chips scatter around the published ones."""
    runs = [until(FailureModel.named("mid").stream(16384, seed), 54 * DAY_S) for seed in range(30)]
    assert sum(map(len, runs)) / 30 == pytest.approx(419, rel=0.03)
    counts = Counter(f.component for r in runs for f in r)
    assert counts["chip"] / 30 == pytest.approx(148, rel=0.06) and counts["HBM"] / 30 == pytest.approx(72, rel=0.08)


def test_gaps_are_exponential():
    times = [f.time_s for f in until(FailureModel.named("high").stream(100_000, 3), 60 * DAY_S)]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((g - mean) ** 2 for g in gaps) / len(gaps))
    assert mean == pytest.approx(18 * 60, rel=0.04) and spread / mean == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("factor", [1.01, 1.7, 2.0, 5.0, 40.0])
def test_a_lower_rate_is_part_of_a_higher_one(factor):
    low = until(FailureModel(1e-4).stream(10_000, 7), 20 * DAY_S)
    high = until(FailureModel(1e-4 * factor).stream(10_000, 7), 20 * DAY_S)
    assert set(low) <= set(high) and len(high) == pytest.approx(len(low) * factor, rel=0.6)


def test_no_failures_is_an_empty_stream():
    assert list(FailureModel(0.0).stream(1000, 0)) == [] and math.isinf(FailureModel(0.0).mtbf_s(1000))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: FailureModel.named("middle"), "did you mean 'mid'"),
        (lambda: FailureModel(-1.0), "-1.0"),
        (lambda: FailureModel(math.nan), "nan"),
        (lambda: FailureModel(1.0, ()), "Llama 3 table"),
        (lambda: Recovery(restart_s=-5), "restart_s=-5"),
        (lambda: SlowServers(factor=0.5), "0.5"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError) as err:
        make()
    assert words in str(err.value) and "\n" not in str(err.value)
