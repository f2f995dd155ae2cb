"""Money and energy against hand-made arithmetic."""

import pytest

from sim.base.figure import figure
from sim.cost.money import HOURS_PER_YEAR, Range, costs, energy, with_prices
from sim.spec.hardware import load_cluster

HOURS = Range(100.0, 80.0, 150.0, "h", "")


def test_rent_is_chip_hours_times_price():
    cluster = load_cluster("atlas_800t_a2")
    out = costs(cluster, 1000, HOURS)
    rent = cluster.chip.rent_usd_per_hour
    assert out["chip_hours"].value == 100_000
    assert out["rent"].value == pytest.approx(100_000 * rent.value) and out["rent"].low == pytest.approx(
        80_000 * rent.low
    )
    assert out["rent"].high == pytest.approx(150_000 * rent.high) and rent.source in out["rent"].source


def test_energy_is_power_times_pue_times_time():
    cluster = load_cluster("dgx_h100")
    e = energy(cluster, 8, HOURS)
    assert e.value == pytest.approx(8 * (0.7 + 0.575) * 1.2 * 100)
    assert e.low < e.value < e.high and e.unit == "kWh"


def test_ownership():
    cluster = load_cluster("atlas_800t_a2")
    out = costs(cluster, 10, HOURS, {"years": 4.0, "utilization": 1.0, "interest": 0.0})
    assert out["own_capital"].value == pytest.approx(10 * 38600 / 4 * 100 / HOURS_PER_YEAR)
    assert out["own"].value == pytest.approx(out["own_capital"].value + out["own_energy"].value)
    dearer = costs(cluster, 10, HOURS, {"years": 4.0, "utilization": 0.5, "interest": 0.05, "staff_usd_per_year": 1e6})
    assert dearer["own_capital"].value > 2 * out["own_capital"].value and dearer["own_staff"].value == pytest.approx(
        1e6 * 100 / HOURS_PER_YEAR
    )


def test_own_prices_win_and_missing_ones_are_left_out():
    cluster = load_cluster("dgx_a100")
    assert "own" not in costs(cluster, 8, HOURS)
    mine = with_prices(
        cluster,
        {
            "rent_usd_per_hour": figure("$1/h", "money_per_hour", "rent"),
            "system_price_usd": figure("$20k", "money", "price"),
        },
    )
    assert mine.chip.rent_usd_per_hour.value == 1.0 and "own" in costs(mine, 8, HOURS)
    for r in costs(mine, 8, HOURS).values():
        assert r.low <= r.value <= r.high and r.basis
