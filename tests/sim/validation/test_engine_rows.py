"""Measured inference engines: the rules of use, a prediction by hand, errors and intervals by whole groups."""

import pytest

from sim.serving.error import interval, kind_of
from sim.serving.step_time import decode_step, prefill
from sim.spec.model_loader import load_model
from sim.validation import engine_rows
from sim.validation.engine_rows import MODELS, coverage, deployment_of, load, predict_ms, use_of, weighted_quantiles


@pytest.fixture(scope="module")
def summary():
    return engine_rows.summary()


def test_groups_are_calibrated_or_held_out_whole():
    uses = {}
    for row in load():
        use = use_of(row)[0]
        if use != "unsupported":
            uses.setdefault(row.group, set()).add(use)
    assert all(len(some) == 1 for some in uses.values())
    held = sum(1 for some in uses.values() if some == {"holdout"})
    assert held > len(uses) / 2  # most groups of model, chip and engine never touched a constant


def test_a_row_is_a_decode_step_and_its_share_of_the_other_prompts():
    row = next(r for r in load() if r.model == "Llama-3.1-70B" and r.chip == "h200" and r.concurrency == 32)
    d = deployment_of(row)
    by_hand = decode_step(d, 32, row.prompt + row.output / 2).total_s
    by_hand += 31 * prefill(d, row.prompt, 0, 1).total_s / row.output
    assert predict_ms(row) == pytest.approx(1e3 * by_hand)


def test_errors_of_engines_that_nothing_was_fitted_on(summary):
    held = summary["by_use"]["holdout"]
    assert held["rows"] > 600 and held["mean"] < 0.22 and held["median"] < 0.17
    assert summary["by_model"]["Llama-3.1-70B"]["mean"] < 0.12


def test_the_80_percent_interval_holds_about_that_many(summary):
    for kind, c in summary["coverage"].items():
        assert 0.75 <= c["within_80"] <= 0.90, kind
        assert c["within_50"] < c["within_80"]


def test_a_group_counts_once_whatever_its_rows():
    assert weighted_quantiles([[1.0] * 100, [2.0]], (0.25, 0.75)) == [1.0, 2.0]
    assert weighted_quantiles([], (0.1, 0.9)) == [1.0, 1.0]
    row = next(r for r in load() if use_of(r)[0] == "holdout")
    alone = coverage([(row, 1.3)])[row.kind]
    assert alone["within_80"] == 0.0  # no other group says that 1.3 may happen


def test_what_is_not_compared_has_a_reason(summary):
    assert sum(summary["unsupported"].values()) + summary["rows"] == len(load())
    assert all(summary["unsupported"])


def test_the_shipped_intervals_are_those_of_the_rows():
    for kind, (low, high) in engine_rows.measured_intervals().items():
        shipped = interval(next(load_model(m) for m in set(MODELS.values()) if kind_of(load_model(m)) == kind))
        assert shipped == pytest.approx((low, high), abs=6e-4)
