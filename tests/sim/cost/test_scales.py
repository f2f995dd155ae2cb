"""Expected kernel speed of a pair that was never fitted."""

from __future__ import annotations

import pytest

from sim.cost.scales import expected


def test_nothing_fitted_expects_the_model_itself():
    assert expected([], "A100", "x") == 1.0


def test_an_unknown_chip_and_product_get_the_middle():
    fits = [("A", "p", 0.8), ("B", "q", 0.9), ("C", "r", 1.0)]
    assert expected(fits, "new", "new") == pytest.approx((0.8 * 0.9 * 1.0) ** (1 / 3), rel=0.02)


def test_a_slow_chip_and_a_slow_product_are_told_apart():
    fits = [("slow", "p", 0.6), ("slow", "q", 0.6), ("fast", "p", 0.9), ("fast", "q", 0.9), ("fast", "lazy", 0.7)]
    assert expected(fits, "slow", "new") < expected(fits, "new", "new") < expected(fits, "fast", "new")
    assert expected(fits, "fast", "lazy") < expected(fits, "fast", "p")
    assert expected(fits, "slow", "lazy") < 0.6


def test_one_sighting_is_held_back_and_more_are_believed():
    base = [("A", "p", 0.9), ("A", "q", 0.9), ("B", "p", 0.9)]
    one = expected([*base, ("X", "r", 0.5)], "X", "new")
    three = expected([*base, ("X", "r", 0.5), ("X", "s", 0.5), ("X", "t", 0.5)], "X", "new")
    assert 0.5 < three < one < 0.9
