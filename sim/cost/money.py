"""Money and energy: chips held for a time, as rent and as ownership, each with its range and source.

Whoever trains pays for the whole cluster while it is held, spares and lost hours included. Rent is chip-hours × price.
Ownership is the system's price spread over its years at a utilisation, interest, electricity × PUE, staff and storage. All in
the currency of `data/money.yaml`; prices in RMB were converted at its rate (`sim.base.units.RMB_PER_USD`). Ranges take every input at
its low, or at its high end.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from minglm import datafiles
from sim.base.documents import read_document
from sim.base.figure import Figure, figure
from sim.spec.hardware import Cluster

HOURS_PER_YEAR = 8766.0
DEFAULTS = {"years": 4.0, "utilization": 0.9, "interest": 0.05, "staff_usd_per_year": 0.0}


@dataclass(frozen=True)
class Range:
    """A result with its low and high end and how it came about."""

    value: float
    low: float
    high: float
    unit: str
    basis: str
    source: str = ""
    confidence: str = ""

    def to_dict(self) -> dict:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "basis": self.basis,
            "source": self.source,
            "confidence": self.confidence,
        }

    def times(self, factor: Range | float, unit: str, basis: str) -> Range:
        value, low, high = (factor.value, factor.low, factor.high) if isinstance(factor, Range) else (factor,) * 3
        return replace(
            self, value=self.value * value, low=self.low * low, high=self.high * high, unit=unit, basis=basis
        )


@functools.cache
def money() -> dict:
    """The currency and the figures of `data/money.yaml`: carbon of electricity, network's and storage's share of a system."""
    given = read_document(datafiles.data("money.yaml"))
    return {
        **given,
        **{k: figure(given[k], "ratio", f"money.{k}") for k in ("carbon_kg_per_kwh", "network_share", "storage_share")},
    }


def with_prices(cluster: Cluster, prices: Mapping[str, object]) -> Cluster:
    """The cluster with the scenario's own prices and power where it gives any."""
    chip = cluster.chip
    if isinstance(prices.get("rent_usd_per_hour"), Figure):
        chip = replace(chip, rent_usd_per_hour=prices["rent_usd_per_hour"])
    if isinstance(prices.get("power_w"), Figure):
        chip = replace(chip, power_w=prices["power_w"])
    changes = {
        k: prices[k]
        for k in ("system_price_usd", "electricity_usd_per_kwh", "pue")
        if isinstance(prices.get(k), Figure)
    }
    return replace(cluster, chip=chip, **changes)


def energy(cluster: Cluster, chips: int, hours: Range) -> Range:
    """Energy at the meter in kWh: (chip + its share of host and network) × PUE × hours, chips at their board power."""
    power, host, pue = cluster.chip.power_w, cluster.host_power_w, cluster.pue

    def kwh(p: float, h: float, u: float, t: float) -> float:
        return chips * (p + h) / 1000.0 * u * t

    return Range(
        kwh(power.value, host.value, pue.value, hours.value),
        kwh(power.low, host.low, pue.low, hours.low),
        kwh(power.high, host.high, pue.high, hours.high),
        "kWh",
        f"{chips:,} chips × ({power.value:g} W + {host.value:g} W host) × PUE {pue.value:g} × {hours.value:,.0f} h, chips at board power throughout",
        f"{power.source}; {host.source}; {pue.source}",
        "assumed",
    )


def costs(
    cluster: Cluster, chips: int, hours: Range, prices: Mapping[str, object] | None = None, goodput: float | None = None
) -> dict[str, Range]:
    """Chip-hours, energy, carbon and money for holding `chips` for `hours`.

    Args:
        goodput: share of the hours that is first-time work; with it, what the rest costs is said (`failed_…`).
    Returns:
        chip_hours, energy, cooling (the part of it above the machines' own), carbon, and where a price is known: rent, own (with
        own_capital, own_energy, own_staff, own_storage; own_network is the part of the capital that is network).
    """
    prices = prices or {}
    cluster = with_prices(cluster, prices)
    plain = {k: float(prices.get(k, v)) for k, v in DEFAULTS.items()}
    out = {
        "chip_hours": Range(
            chips * hours.value,
            chips * hours.low,
            chips * hours.high,
            "chip-hours",
            f"{chips:,} chips held for {hours.value:,.0f} h, spares and lost time included",
        )
    }
    out["energy"] = energy(cluster, chips, hours)
    e, pue, kg = out["energy"], cluster.pue, prices.get("carbon_kg_per_kwh") or money()["carbon_kg_per_kwh"]
    out["cooling"] = Range(
        e.value * (1 - 1 / pue.value),
        e.low * (1 - 1 / pue.low),
        e.high * (1 - 1 / pue.high),
        "kWh",
        f"cooling and power conversion: the part of the energy above the machines' own, PUE {pue.value:g}",
        pue.source,
        pue.confidence,
    )
    out["carbon"] = Range(
        e.value * kg.value / 1000,
        e.low * kg.low / 1000,
        e.high * kg.high / 1000,
        "t CO2",
        f"{kg.value:g} ({kg.low:g}–{kg.high:g}) kg CO2 a kWh",
        kg.source,
        kg.confidence,
    )
    rent = cluster.chip.rent_usd_per_hour
    if rent is not None:
        c = out["chip_hours"]
        out["rent"] = Range(
            c.value * rent.value,
            c.low * rent.low,
            c.high * rent.high,
            "USD",
            f"${rent.value:.2f} (${rent.low:.2f}–${rent.high:.2f}) a chip-hour",
            rent.source,
            rent.confidence,
        )
    system, tariff = cluster.system_price_usd, cluster.electricity_usd_per_kwh
    power = Range(
        out["energy"].value * tariff.value,
        out["energy"].low * tariff.low,
        out["energy"].high * tariff.high,
        "USD",
        f"${tariff.value:g}/kWh (${tariff.low:g}–{tariff.high:g})",
        tariff.source,
        tariff.confidence,
    )
    out["own_energy"] = power
    staff = chips and plain["staff_usd_per_year"] / HOURS_PER_YEAR
    if staff:
        out["own_staff"] = Range(
            staff * hours.value,
            staff * hours.low,
            staff * hours.high,
            "USD",
            "staff for the time held",
            "scenario",
            "assumed",
        )
    if system is not None:
        # A level payment over the years; half of the price is owed on average.
        share = (1.0 / plain["years"] + plain["interest"] / 2.0) / HOURS_PER_YEAR / plain["utilization"]
        capital = Range(
            chips * system.value * share * hours.value,
            chips * system.low * share * hours.low,
            chips * system.high * share * hours.high,
            "USD",
            f"${system.value:,.0f} a chip with its system, {plain['years']:g} years, {plain['utilization']:.0%} in use, "
            f"{plain['interest']:.0%} interest",
            system.source,
            system.confidence,
        )
        out["own_capital"] = capital
        part = money()["network_share"]
        out["own_network"] = Range(
            capital.value * part.value,
            capital.low * part.low,
            capital.high * part.high,
            "USD",
            f"{part.value:.0%} ({part.low:.0%}–{part.high:.0%}) of the capital is network",
            part.source,
            part.confidence,
        )
        sums = [capital, power] + ([out["own_staff"]] if staff else [])
        if prices.get("storage_share"):
            part = prices["storage_share"]
            out["own_storage"] = Range(
                capital.value * part.value,
                capital.low * part.low,
                capital.high * part.high,
                "USD",
                f"storage: {part.value:.1%} of the capital on top",
                part.source,
                part.confidence,
            )
            sums.append(out["own_storage"])
        out["own"] = Range(
            sum(r.value for r in sums),
            sum(r.low for r in sums),
            sum(r.high for r in sums),
            "USD",
            "capital, electricity"
            + (", staff" if staff else "")
            + (", storage" if prices.get("storage_share") else ""),
            f"{capital.source}; {power.source}",
            "third-party" if system.confidence != "assumed" else "assumed",
        )
    if goodput is not None:
        for key in ("chip_hours", "rent", "own"):
            if key in out:
                r = out[key]
                out[f"failed_{key}"] = Range(
                    r.value * (1 - goodput),
                    r.low * (1 - goodput),
                    r.high * (1 - goodput),
                    r.unit,
                    f"{1 - goodput:.1%} of the time is lost to failures, restarts and checkpoints",
                    "goodput",
                    "computed",
                )
    return out
