"""What a planner's answer rests on: the machine's facts with their sources, and what is taken for granted."""

from __future__ import annotations

from sim.base.units import format_value
from sim.planner.question import Question
from sim.planner.search import PER_CHIP


def facts(q: Question) -> list[dict]:
    """The machine's figures with range, strength and source, as a report shows them."""
    c, chip = q.cluster, q.cluster.chip
    listed = [
        ("peak of the chip", chip.peak("fp8" if q.precision == "fp8" else "bf16")),
        ("memory bandwidth", chip.memory_bytes_per_s),
        ("power of the chip", chip.power_w),
        ("rent of a chip", chip.rent_usd_per_hour),
        ("failures of a chip", chip.failures_per_chip_hour),
        ("price with the system", c.system_price_usd),
        ("PUE", c.pue),
        ("electricity", c.electricity_usd_per_kwh),
    ]
    listed += [
        (f"{t.name} {what}", f)
        for t in c.tiers
        for what, f in (("rate", t.bytes_per_s), ("efficiency", t.efficiency), ("latency", t.latency_s))
    ]
    return [
        {
            "name": name,
            "value": format_value(f.value, f.unit),
            "range": "" if f.certain else f"{format_value(f.low, f.unit)} – {format_value(f.high, f.unit)}",
            "strength": f.confidence,
            "source": f.source,
        }
        for name, f in listed
        if f is not None
    ]


def assumptions(q: Question) -> list[str]:
    """What an answer rests on beside the question's own defaults."""
    out = [
        "plans are ranked by a step worked off operation by operation, every chip at the speed of the expected slowest",
        "cost and energy count the chips a plan uses"
        if q.objective in PER_CHIP
        else "cost counts all chips, spares included; in the front of time and chips, those that a plan uses",
        "days of the other plans: by Daly's formula, times what phases and failures make of the winner's",
        "not searched: ZeRO 2, whose reduction after every micro-batch is not priced; GPipe, which has 1F1B's bubble "
        "and needs more memory; a vocabulary split over stages, which no listed stack offers; recomputation of a part "
        "of a rank's layers (clustersim run takes it); another order of ranks than Megatron-Core's tp-cp-ep-dp-pp",
    ]
    rate = q.cluster.chip.failures_per_chip_hour
    out.append(
        f"failures: {rate.source}" if rate else "failures per chip as in Llama 3's table: none is known for this chip"
    )
    if q.cluster.chip.rent_usd_per_hour is None:
        out.append(f"no rent of {q.cluster.chip.name} is known: no cost to rent is given (--chip-hour-price sets one)")
    if q.cluster.system_price_usd is None:
        out.append(
            f"no system price of {q.cluster.chip.name} is known: no cost to own is given (--system-price sets one)"
        )
    return out
