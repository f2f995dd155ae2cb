"""What `clustersim serving --day` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.base.units import parse

if TYPE_CHECKING:
    from sim.base.figure import Figure

HOURS = 24


def answer(document: Mapping[str, Any], hourly: list[float], seed: int) -> tuple[dict[str, Any], str]:
    """(the answer, its text) for a scenario's document; hourly: relative rates, none for an even day."""
    from sim.serving.day import day
    from sim.serving.scenario import fleet_and_work, fleet_rent

    fleet, work = fleet_and_work(document)
    limits = {name: parse(v, "time", f"--{name}", low=1e-9) for name, v in (document.get("target") or {}).items()}
    result = day(fleet, work, hourly or [1.0] * HOURS, limits.get("ttft"), limits.get("tpot"), seed)
    money = _money(result, fleet_rent(fleet, document.get("prices") or {}))
    result = {
        "deployment": fleet.decode.describe(),
        "instances": fleet.decode_instances + (fleet.prefill_instances if fleet.prefill else 0),
        "chips": fleet.chips,
        **result,
        **money,
        "mode": fleet.mode,
    }
    return result, _text(result, limits)


def _money(result: Mapping[str, Any], rent: tuple[Figure, dict[str, float]] | None) -> dict[str, float]:
    """Rent of the day in USD, and of a million output tokens with their input; nothing where no rent is known."""
    if rent is None:
        return {}
    of_chip, hourly = rent
    out: dict[str, float] = {"rent_usd_per_chip_hour": of_chip.value}
    for name, pick in (("", "value"), ("_low", "low"), ("_high", "high")):
        out[f"usd{name}"] = HOURS * hourly[pick]
        out[f"usd_per_million_output{name}"] = out[f"usd{name}"] / result["output_tokens"] * 1e6
    return out


def _text(r: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    lines = [
        f"{r['instances']:,} × {r['deployment']}, {r['chips']:,} chips",
        f"capacity     {r['capacity_per_s']:,.4g} requests/s with full batches",
        "     hour     load  requests/s   TTFT p50     p95 s   TPOT p50    p95 ms" + ("   kept" if limits else ""),
    ]
    whole = {"rate_per_s": r["requests"] / (HOURS * 3600), **r}
    whole["load"] = whole["rate_per_s"] / r["capacity_per_s"]
    every = HOURS / len(r["hours"])
    named = [(f"{i * every:g}", row) for i, row in enumerate(r["hours"])]
    for name, row in [*named, ("day", whole)]:
        kept = "" if row["kept"] is None else f"{row['kept']:>7.0%}"
        lines.append(
            f"{name:>9} {row['load']:>8.0%} {row['rate_per_s']:>11,.4g} {row['ttft_p50_s']:>10.3f} "
            f"{row['ttft_p95_s']:>9.3f} {1e3 * row['tpot_p50_s']:>10.1f} {1e3 * row['tpot_p95_s']:>9.1f}{kept}"
        )
    lines.append(
        f"a day        {r['requests']:,.0f} requests, {r['input_tokens']:,.3g} tokens in and "
        f"{r['output_tokens']:,.3g} out"
    )
    if "usd" in r:
        lines.append(
            f"cost         ${r['usd']:,.0f} a day, ${r['usd_per_million_output']:.2f} a million output tokens with "
            f"their input (${r['usd_per_million_output_low']:.2f} to ${r['usd_per_million_output_high']:.2f}) at "
            f"${r['rent_usd_per_chip_hour']:.2f} a chip-hour"
        )
    growing = [name for name, row in named if row.get("queue_grows")]
    if growing:
        lines.append(
            f"saturated    the queue grows in the hours from {', '.join(growing)}; who comes then waits for it"
        )
    lines.append(
        f"simulated    {r['simulated_requests']:,} requests on {r['pod_instances']} instances, which stand for all "
        f"({r['pods']:,.4g} times as many), {r['stretch_s']:,.0f} s for each hour"
    )
    return "\n".join([*lines, f"mode         {r['mode']}"])
