"""Published quantities of a rollout from its counts, by hand."""

from types import SimpleNamespace

import pytest

from sim.rollout.metrics import quantity, rollout_rate


def result(tokens: float, rollout_s: float, steps: int, chips: int = 16):
    """`steps` steps that generated `tokens` in all, each with `rollout_s` seconds of rollout and as much training."""
    whole = 2 * rollout_s * steps
    rates = dict(step_s=2 * rollout_s, rollout_s=rollout_s, generated_tokens=tokens)
    rates |= dict(tokens_per_s=tokens / whole, trained_tokens_per_s=0.5 * tokens / whole)
    return SimpleNamespace(
        throughput=SimpleNamespace(**rates),
        utilisation=SimpleNamespace(tail_share=0.3),
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
