"""Published quantities of a rollout from its counts, by hand."""

from types import SimpleNamespace

import pytest

from sim.rollout.metrics import compare, quantity, rollout_rate


def result(tokens: float, rollout_s: float, steps: int, chips: int = 16):
    """`steps` steps that generated `tokens` in all, each with `rollout_s` seconds of rollout and as much training."""
    whole = 2 * rollout_s * steps
    rates = dict(step_s=2 * rollout_s, rollout_s=rollout_s, generated_tokens=tokens)
    rates |= dict(tokens_per_s=tokens / whole, trained_tokens_per_s=0.5 * tokens / whole)
    return SimpleNamespace(
        throughput=SimpleNamespace(**rates),
        utilisation=SimpleNamespace(tail_share=0.3, rollout_idle=0.2),
        waste=SimpleNamespace(preemptions=30),
        chips=chips,
        steps=[None] * steps,
    )


BASE, FAST = result(6000, 10.0, 3), result(6000, 4.0, 3, chips=8)


@pytest.mark.parametrize(
    "name, right",
    [
        ("step_s", 8.0),
        ("rollout_s", 4.0),
        ("tokens_per_s", 6000 / 24),
        ("trained_tokens_per_s", 3000 / 24),
        ("tail_share", 0.3),
        ("rollout_idle", 0.2),
        ("preemptions", 30 / 3),
        ("tokens_per_s_per_chip", 6000 / 24 / 8),
        ("speedup", 60 / 24),
        ("gain", 10 / 4 - 1),
        ("rollout_speedup", 10 / 4),
    ],
)
def test_a_quantity_is_its_definition(name, right):
    assert quantity(name, FAST, BASE) == pytest.approx(right)


def test_a_ratio_needs_its_baseline():
    assert rollout_rate(BASE) == 6000 / 30
    with pytest.raises(AssertionError, match="needs a baseline"):
        quantity("speedup", FAST)


def test_errors_are_relative_and_those_of_gains_and_shares_a_difference(monkeypatch):
    """The baseline is simulated once and for ratios alone; a gain of 120 is 120%, of 1.2 and 3 itself."""
    asked = []
    monkeypatch.setattr("sim.rollout.metrics.simulate", lambda case: asked.append(case) or BASE)
    monkeypatch.setattr("sim.rollout.metrics.baseline", lambda case: SimpleNamespace(case="the baseline"))

    def errors(published):
        asked.clear()
        rows = compare(SimpleNamespace(published=published, case="itself"), FAST)
        assert [row["quantity"] for row in rows] == list(published)
        return {row["quantity"]: row["error"] for row in rows}

    plain = errors({"step_s": 10.0, "tokens_per_s_per_chip": 25.0, "tail_share": 0.5})
    assert plain == pytest.approx({"step_s": -0.2, "tokens_per_s_per_chip": 0.25, "tail_share": -0.2}) and not asked
    ratios = errors({"speedup": 2.0, "rollout_speedup": 2.0, "gain": 120.0})
    assert ratios == pytest.approx({"speedup": 0.25, "rollout_speedup": 0.25, "gain": 0.3}) and len(asked) == 1
    assert errors({"gain": 1.2}) == pytest.approx({"gain": 0.3}) and asked == ["the baseline"]
    assert errors({"gain": 3.0}) == pytest.approx({"gain": -1.5}) and errors({"gain": 3.5})["gain"] > 1.4
    for name in ("speedup", "rollout_speedup"):
        assert errors({name: 2.5}) == pytest.approx({name: 0.0}) and asked == ["the baseline"]
    assert compare(SimpleNamespace(published={}, case="itself")) == []


def test_a_rollout_nobody_ran_yet_is_simulated_once(monkeypatch):
    monkeypatch.setattr("sim.rollout.metrics.simulate", lambda case: FAST)
    (row,) = compare(SimpleNamespace(published={"rollout_s": 5.0}, case="itself"))
    assert (row["predicted"], row["published"], row["error"]) == pytest.approx((4.0, 5.0, -0.2))
