"""Answers of `sim.planner.inverse` in words: what a terminal and the planner page print."""

from __future__ import annotations

from sim.base.units import show


def buys_text(r: dict) -> str:
    """What a budget and a deadline buy."""
    lines = [
        f"{show(r['budget_usd'], 'money')} in {days(r['deadline_days'])} at ${r['rent_usd_per_hour']:.2f} a chip-hour",
        f"{'chips':24}{r['chips']:,}, {r['plan']}, a step of {r['step_s']:.4g} s, goodput {r['goodput']:.1%}"
        + (f"; at this batch the plan uses {r['chips_of_plan']:,}" if r["chips_of_plan"] < 0.9 * r["chips"] else ""),
        f"{'tokens of this model':24}{show(r['tokens'], 'count')}"
        + ("" if r["enough_for_all_tokens"] else ", fewer than the question's"),
    ]
    for ratio, n in r["largest_active_parameters"].items():
        lines.append(f"{'largest model':24}{show(n, 'count')} active parameters at {ratio} tokens a parameter")
    return "\n".join(lines)


def within_text(r: dict) -> str:
    """The fewest chips for a deadline."""
    rent = f", {show(r['rent_usd'], 'money')} to rent" if "rent_usd" in r else ""
    return f"{r['chips_needed']:,} chips: {r['plan']}, {days(r['days'])}{rent}"


def growth_text(r: dict) -> str:
    """The curve of more chips."""
    lines = [f"{'chips':>10}{'days':>9}{'rent':>11}{'pays':>8}  plan"]
    for x in r["rows"]:
        rent = show(x["rent_usd"], "money") if "rent_usd" in x else "-"
        pays = f"{x['pays']:.0%}" if "pays" in x else ""
        lines.append(f"{x['chips']:>10,}{x['days']:>9.4g}{rent:>11}{pays:>8}  {x['plan']}")
    return "\n".join([*lines, "", growth_words(r)])


def growth_words(r: dict) -> str:
    """Where more chips stop paying."""
    last = r["rows"][-1]["chips"]
    if r["stops_at"] is None:
        return f"up to {last:,} chips, more of them still shorten the run by more than half of their share"
    return (
        f"beyond {r['stops_at']:,} chips no larger number up to {last:,} shortens the run by half of the share that it "
        "adds"
    )


def failures_text(r: dict) -> str:
    """How often chips may fail."""
    return (
        f"chips may fail {r['times']:.3g} times as often: {1000 * r['per_chip_day_at_most']:.3g} per 1,000 chips and "
        f"day instead of {1000 * r['per_chip_day']:.3g}; goodput is then {r['goodput_at_most']:.1%}"
    )


def cheapest_text(r: dict) -> str:
    """Machines, cheapest first."""
    lines = [f"{'chip':12}{'chips':>9}{'days':>9}{'rent':>11}  plan"]
    for x in r["rows"]:
        if "reason" in x:
            lines.append(f"{x['chip']:12}{x['reason']}")
        else:
            chips = x.get("chips_needed", x["chips"])
            lines.append(f"{x['chip']:12}{chips:>9,}{x['days']:>9.4g}{show(x['rent_usd'], 'money'):>11}  {x['plan']}")
    return "\n".join(lines)


def break_even_text(r: dict) -> str:
    """The price of a chip-hour at which two machines cost the same."""
    a, b = r["rows"]
    lines = [
        f"{x['chip']:12}{x['chips']:>9,}{x['days']:>9.4g} days{show(x['rent_usd'], 'money'):>11} at "
        f"${x['rent_usd_per_hour']:.2f}/h  {x['plan']}"
        for x in (a, b)
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"a chip-hour of {a['chip']} at ${r['break_even_usd_per_hour']:.2f} costs the run what {b['chip']} does at "
            f"${b['rent_usd_per_hour']:.2f}; one of {b['chip']} at ${r['other_break_even_usd_per_hour']:.2f} what "
            f"{a['chip']} does at ${a['rent_usd_per_hour']:.2f}",
        ]
    )


def days(count: float, digits: int = 4) -> str:
    """Days in words, to so many digits; hours below two."""
    return f"{count:.{digits}g} days" if count >= 2 else f"{count * 24:.3g} hours"
