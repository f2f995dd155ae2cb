"""Money and energy against hand-made arithmetic."""

from dataclasses import replace

import pytest

from sim.base.figure import figure
from sim.cost.money import HOURS_PER_YEAR, Range, costs, energy, with_prices
from sim.spec.hardware import load_cluster

HOURS = Range(100.0, 80.0, 150.0, "h", "")


def of(name, num_chips):
    """A cluster of so many chips."""
    return replace(load_cluster(name), num_chips=num_chips)


def test_rent_is_chip_hours_times_price():
    cluster = of("atlas_800t_a2", 1000)
    out = costs(cluster, HOURS)
    rent = cluster.chip.rent_usd_per_hour
    assert out["chip_hours"].value == 100_000
    assert out["rent"].value == pytest.approx(100_000 * rent.value) and out["rent"].low == pytest.approx(
        80_000 * rent.low
    )
    assert out["rent"].high == pytest.approx(150_000 * rent.high) and rent.source in out["rent"].source


def test_energy_is_power_times_pue_times_time():
    cluster = of("dgx_h100", 8)
    e = energy(cluster, HOURS)
    assert e.value == pytest.approx(8 * (0.7 + 0.575) * 1.2 * 100)
    assert e.low < e.value < e.high and e.unit == "kWh"


def test_ownership():
    cluster = of("atlas_800t_a2", 10)
    out = costs(cluster, HOURS, {"years": 4.0, "utilization": 1.0, "interest": 0.0})
    assert out["own_capital"].value == pytest.approx(10 * 38600 / 4 * 100 / HOURS_PER_YEAR)
    assert out["own"].value == pytest.approx(out["own_capital"].value + out["own_energy"].value)
    dearer = costs(cluster, HOURS, {"years": 4.0, "utilization": 0.5, "interest": 0.05, "staff_usd_per_year": 1e6})
    assert dearer["own_capital"].value > 2 * out["own_capital"].value and dearer["own_staff"].value == pytest.approx(
        1e6 * 100 / HOURS_PER_YEAR
    )


def test_own_prices_win_and_missing_ones_are_left_out():
    cluster = of("dgx_a100", 8)
    assert "own" not in costs(cluster, HOURS)
    mine = with_prices(
        cluster,
        {
            "rent_usd_per_hour": figure("$1/h", "money_per_hour", "rent"),
            "system_price_usd": figure("$20k", "money", "price"),
        },
    )
    assert mine.chip.rent_usd_per_hour.value == 1.0 and "own" in costs(mine, HOURS)
    for r in costs(mine, HOURS).values():
        assert r.low <= r.value <= r.high and r.basis


@pytest.mark.parametrize("goodput", [0.0, 0.8, 0.97, 1.0])
def test_what_is_lost_is_the_part_without_first_time_work(goodput):
    out = costs(of("atlas_800t_a2", 100), HOURS, goodput=goodput)
    for key in ("chip_hours", "rent", "own"):
        whole, lost = out[key], out[f"failed_{key}"]
        for end in ("value", "low", "high"):
            assert getattr(lost, end) == pytest.approx(getattr(whole, end) * (1 - goodput))
    assert out["failed_chip_hours"].value == pytest.approx(10_000 * (1 - goodput))
    assert f"{1 - goodput:.1%}" in out["failed_rent"].basis


def test_carbon_is_tonnes():
    """8 chips with their hosts for 100, 80 and 150 h at 0.385 (0.3 to 0.5) kg a kWh; a tonne is 1,000 kg."""
    cluster = of("dgx_h100", 8)
    given = {"carbon_kg_per_kwh": figure({"value": 0.385, "low": 0.3, "high": 0.5}, "ratio", "carbon")}
    out = costs(cluster, HOURS, given)
    assert out["carbon"].unit == "t CO2"
    assert out["carbon"].value == pytest.approx(8 * (0.7 + 0.575) * 1.2 * 100 * 0.385 / 1000)
    assert out["carbon"].low == pytest.approx(out["energy"].low * 0.3 / 1000)
    assert out["carbon"].high == pytest.approx(out["energy"].high * 0.5 / 1000)


def test_cooling_is_what_pue_adds_to_the_machines():
    out = costs(of("dgx_h100", 8), HOURS)
    assert out["cooling"].value == pytest.approx(8 * (0.7 + 0.575) * (1.2 - 1.0) * 100)


def test_interest_and_utilisation_of_what_is_owned():
    """$38,600 a chip over 4 years at 5% on half of it, in use 80% of the time."""
    out = costs(of("atlas_800t_a2", 10), HOURS, {"years": 4.0, "utilization": 0.8, "interest": 0.05})
    per_year = 38_600 / 4 + 38_600 / 2 * 0.05
    assert out["own_capital"].value == pytest.approx(10 * per_year / (HOURS_PER_YEAR * 0.8) * 100)


def test_capital_is_a_level_payment_at_each_end_of_the_range():
    """Price over the years, and interest on half of it, for the hours held; low with low, high with high."""
    cluster = of("dgx_h100", 16)
    system = cluster.system_price_usd
    prices = {"years": 4.0, "utilization": 0.8, "interest": 0.1}
    out = costs(cluster, HOURS, prices)["own_capital"]
    share = (1 / 4 + 0.1 / 2) / HOURS_PER_YEAR / 0.8
    wanted = [16 * p * share * h for p, h in ((system.value, 100), (system.low, 80), (system.high, 150))]
    assert [out.value, out.low, out.high] == pytest.approx(wanted)
