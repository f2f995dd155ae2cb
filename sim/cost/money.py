"""Money and energy: chips held for a time, as rent and as ownership, each with its range and source.

Whoever trains pays for the whole cluster while it is held, spares and lost hours included. Rent is chip-hours ×
price. Ownership is the system's price spread over its years at a utilisation, interest, electricity × PUE, staff and
storage. All in the currency of `data/currency_and_carbon.yaml`; prices in RMB were converted at its rate
(`sim.base.units.RMB_PER_USD`). Ranges take every input at its low, or at its high end.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from minglm import datafiles
from sim.base.documents import read_mapping
from sim.base.figure import Figure, figure
from sim.base.units import parse
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

    def to_dict(self) -> dict[str, float | str]:
        """Its fields, for JSON."""
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
        """The product with a figure or another range: low with low, high with high."""
        value, low, high = (factor.value, factor.low, factor.high) if isinstance(factor, Range) else (factor,) * 3
        return replace(
            self, value=self.value * value, low=self.low * low, high=self.high * high, unit=unit, basis=basis
        )

    def by(self, figure: Figure, unit: str, basis: str) -> Range:
        """The product with a published figure, low with low and high with high, under the figure's source."""
        return Range(
            self.value * figure.value,
            self.low * figure.low,
            self.high * figure.high,
            unit,
            basis,
            figure.source,
            figure.confidence,
        )


@functools.cache
def money() -> dict[str, Figure]:
    """Figures of `data/currency_and_carbon.yaml`: carbon of electricity, network's and storage's share of a system."""
    document = read_mapping(datafiles.data("currency_and_carbon.yaml"))
    dimensions = {"carbon_kg_per_kwh": "carbon_per_kwh", "network_share": "ratio", "storage_share": "ratio"}
    return {k: figure(document[k], dimension, f"money.{k}") for k, dimension in dimensions.items()}


def price_figure(prices: Mapping[str, object], key: str) -> Figure | None:
    """A price of the question as a figure with its range, where it gives one."""
    value = prices.get(key)
    return value if isinstance(value, Figure) else None


def with_prices(cluster: Cluster, prices: Mapping[str, object]) -> Cluster:
    """The cluster with the scenario's own prices and power where it gives any."""
    chip = cluster.chip
    chip = replace(
        chip,
        rent_usd_per_hour=price_figure(prices, "rent_usd_per_hour") or chip.rent_usd_per_hour,
        power_w=price_figure(prices, "power_w") or chip.power_w,
    )
    return replace(
        cluster,
        chip=chip,
        system_price_usd=price_figure(prices, "system_price_usd") or cluster.system_price_usd,
        electricity_usd_per_kwh=price_figure(prices, "electricity_usd_per_kwh") or cluster.electricity_usd_per_kwh,
        pue=price_figure(prices, "pue") or cluster.pue,
    )


def energy(cluster: Cluster, hours: Range) -> Range:
    """Energy at the meter in kWh: (chip + its share of host and network) × PUE × hours, chips at their board power."""
    num_chips, power, host, pue = cluster.num_chips, cluster.chip.power_w, cluster.host_power_w, cluster.pue

    def kwh(p: float, h: float, u: float, t: float) -> float:
        return num_chips * (p + h) / 1000.0 * u * t

    return Range(
        kwh(power.value, host.value, pue.value, hours.value),
        kwh(power.low, host.low, pue.low, hours.low),
        kwh(power.high, host.high, pue.high, hours.high),
        "kWh",
        f"{num_chips:,} chips × ({power.value:g} W + {host.value:g} W host) × PUE {pue.value:g} × {hours.value:,.0f} "
        "h, chips at board power throughout",
        f"{power.source}; {host.source}; {pue.source}",
        "assumed",
    )


def costs(
    cluster: Cluster,
    hours: Range,
    prices: Mapping[str, object] | None = None,
    goodput: float | None = None,
) -> dict[str, Range]:
    """Chip-hours, energy, carbon and money for holding all chips of a cluster for `hours`.

    Args:
        goodput: share of the hours that is first-time work; with it, what the rest costs is said (`failed_…`).
    Returns:
        chip_hours, energy, cooling (the part of it above the machines' own), carbon, and where a price is known: rent,
        own (with own_capital, own_energy, own_staff, own_storage; own_network is the part of the capital that is
        network).
    """
    prices = prices or {}
    cluster = with_prices(cluster, prices)
    num_chips = cluster.num_chips
    out = {
        "chip_hours": Range(
            num_chips * hours.value,
            num_chips * hours.low,
            num_chips * hours.high,
            "chip-hours",
            f"{num_chips:,} chips held for {hours.value:,.0f} h, spares and lost time included",
        ),
        "energy": energy(cluster, hours),
    }
    e, pue = out["energy"], cluster.pue
    carbon = price_figure(prices, "carbon_kg_per_kwh") or money()["carbon_kg_per_kwh"]
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
        e.value * carbon.value / 1000,
        e.low * carbon.low / 1000,
        e.high * carbon.high / 1000,
        "t CO2",
        f"{carbon.value:g} ({carbon.low:g}–{carbon.high:g}) kg CO2 a kWh",
        carbon.source,
        carbon.confidence,
    )
    rent = cluster.chip.rent_usd_per_hour
    if rent is not None:
        text = f"${rent.value:.2f} (${rent.low:.2f}–${rent.high:.2f}) a chip-hour"
        out["rent"] = out["chip_hours"].by(rent, "USD", text)
    out |= _ownership(cluster, hours, e, prices)
    if goodput is not None:
        out |= _lost(out, goodput)
    return out


def _ownership(cluster: Cluster, hours: Range, used: Range, prices: Mapping[str, object]) -> dict[str, Range]:
    """What owning costs: electricity and staff always, capital, network, storage and the sum where a price is known."""
    num_chips, tariff, system = cluster.num_chips, cluster.electricity_usd_per_kwh, cluster.system_price_usd
    power = used.by(tariff, "USD", f"${tariff.value:g}/kWh (${tariff.low:g}–{tariff.high:g})")
    out, parts = {"own_energy": power}, [power]
    staff = num_chips and _plain(prices, "staff_usd_per_year") / HOURS_PER_YEAR
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
        parts.append(out["own_staff"])
    if system is None:
        return out
    years, utilization, interest = (_plain(prices, key) for key in ("years", "utilization", "interest"))
    # A level payment over the years; half of the price is owed on average.
    share = (1.0 / years + interest / 2.0) / HOURS_PER_YEAR / utilization
    capital = out["own_capital"] = Range(
        num_chips * system.value * share * hours.value,
        num_chips * system.low * share * hours.low,
        num_chips * system.high * share * hours.high,
        "USD",
        f"${system.value:,.0f} a chip with its system, {years:g} years, {utilization:.0%} in use, "
        f"{interest:.0%} interest",
        system.source,
        system.confidence,
    )
    network = money()["network_share"]
    text = f"{network.value:.0%} ({network.low:.0%}–{network.high:.0%}) of the capital is network"
    out["own_network"] = capital.by(network, "USD", text)
    storage = price_figure(prices, "storage_share")
    if storage:
        out["own_storage"] = capital.by(storage, "USD", f"storage: {storage.value:.1%} of the capital on top")
        parts.append(out["own_storage"])
    parts.insert(0, capital)
    out["own"] = Range(
        sum(r.value for r in parts),
        sum(r.low for r in parts),
        sum(r.high for r in parts),
        "USD",
        "capital, electricity" + (", staff" if staff else "") + (", storage" if storage else ""),
        f"{capital.source}; {power.source}",
        "third-party" if system.confidence != "assumed" else "assumed",
    )
    return out


def _lost(costs: Mapping[str, Range], goodput: float) -> dict[str, Range]:
    """The part of the chip-hours and of the money that is no first-time work."""
    why = f"{1 - goodput:.1%} of the time is lost to failures, restarts and checkpoints"
    return {
        f"failed_{key}": Range(
            costs[key].value * (1 - goodput),
            costs[key].low * (1 - goodput),
            costs[key].high * (1 - goodput),
            costs[key].unit,
            why,
            "goodput",
            "computed",
        )
        for key in ("chip_hours", "rent", "own")
        if key in costs
    }


def _plain(prices: Mapping[str, object], key: str) -> float:
    """A number of the question that has no range, or its default."""
    value = prices.get(key, DEFAULTS[key])
    return float(value) if isinstance(value, (int, float)) else parse(value, "ratio", f"prices.{key}")
