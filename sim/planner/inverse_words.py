"""Answers of `sim.planner.inverse` in words: what a terminal and the planner page print. In brackets: 90% of draws."""

from __future__ import annotations

from sim.base.units import show
from sim.planner.row_words import days, dollars, number, price, with_interval


def count(value: float) -> str:
    """A number of tokens or parameters, three digits."""
    return show(float(number(value)), "count")


def buys_text(r: dict) -> str:
    """What a budget and a deadline buy."""
    few = f"; at this batch the plan uses {r['chips_of_plan']:,}" if r["chips_of_plan"] < 0.9 * r["chips"] else ""
    lines = [
        f"{show(r['budget_usd'], 'money')} in {days(r['deadline_days'], 4)} at ${r['rent_usd_per_hour']:.2f} a "
        "chip-hour; in brackets 90% of draws at that price",
        f"{'chips':24}{r['chips']:,}, {r['plan']}, a step of {r['step_s']:.4g} s, goodput {r['goodput']:.1%}{few}",
        f"{'tokens of this model':24}{with_interval(r, 'tokens', count)}: all of the question's in {r['kept']:.0%} of "
        "the draws",
    ]
    for ratio, n in r["largest_active_parameters"].items():
        size = with_interval({**r, ratio: n}, ratio, count)
        lines.append(f"{'largest model':24}{size} active parameters at {ratio} tokens a parameter")
    return "\n".join(lines)


def within_text(r: dict) -> str:
    """The fewest chips for a deadline."""
    rent = f", {with_interval(r, 'rent_usd', dollars)} to rent" if "rent_usd" in r else ""
    surer = f"{r['surer_deadline_days']:.3g} days"
    return (
        f"{r['chips_needed']:,} chips: {r['plan']}, {with_interval(r, 'days', days)}{rent}\n"
        f"{r['kept']:.0%} of the draws keep the deadline; about 95% keep it with the chips of --deadline '{surer}'"
    )


def growth_text(r: dict) -> str:
    """The curve of more chips."""
    lines = [f"{'chips':>10}{'days':>19}{'rent':>26}{'pays':>8}  plan"]
    for x in r["rows"]:
        rent = with_interval(x, "rent_usd", dollars) if "rent_usd" in x else "-"
        pays = f"{x['pays']:.0%}" if "pays" in x else ""
        lines.append(f"{x['chips']:>10,}{with_interval(x, 'days'):>19}{rent:>26}{pays:>8}  {x['plan']}")
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
        f"chips may fail {with_interval(r, 'times')} times as often: {1000 * r['per_chip_day_at_most']:.3g} per 1,000 "
        f"chips and day instead of {1000 * r['per_chip_day']:.3g}; goodput is then {r['goodput_at_most']:.1%}; as "
        f"often as now, {r['kept']:.0%} of the draws keep the deadline"
    )


def cheapest_text(r: dict) -> str:
    """Machines, cheapest first."""
    lines = [f"{'chip':12}{'chips':>9}{'days':>19}{'rent':>26}  plan"]
    for x in r["rows"]:
        if "reason" in x:
            lines.append(f"{x['chip']:12}{x['reason']}")
            continue
        chips = x.get("chips_needed", x["chips"])
        took, rent = with_interval(x, "days"), with_interval(x, "rent_usd", dollars)
        lines.append(f"{x['chip']:12}{chips:>9,}{took:>19}{rent:>26}  {x['plan']}")
    return "\n".join(lines)


def break_even_text(r: dict) -> str:
    """The price of a chip-hour at which two machines cost the same."""
    a, b = r["rows"]
    lines = [
        f"{x['chip']:12}{x['chips']:>9,}{with_interval(x, 'days'):>19} days"
        f"{with_interval(x, 'rent_usd', dollars):>26} at ${x['rent_usd_per_hour']:.2f}/h  {x['plan']}"
        for x in (a, b)
    ]
    mine, theirs = (
        with_interval(r, key, price) for key in ("break_even_usd_per_hour", "other_break_even_usd_per_hour")
    )
    return "\n".join(
        [
            *lines,
            "",
            f"a chip-hour of {a['chip']} at {mine} costs the run what {b['chip']} does at "
            f"${b['rent_usd_per_hour']:.2f}; one of {b['chip']} at {theirs} what {a['chip']} does at "
            f"${a['rent_usd_per_hour']:.2f}",
        ]
    )
