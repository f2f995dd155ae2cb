"""`clustersim plan` turned round: budgets, deadlines, growth, failures, the cheapest of several machines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minglm.errors import InputError
from minglm.runtime.terminal import json_text
from sim.base.units import parse, show

if TYPE_CHECKING:
    from sim.planner.question import Question


def asked(args: argparse.Namespace, q: Question) -> int:
    """Answer what --ask, --budget and --deadline ask of a question."""
    from sim.planner import inverse
    from sim.planner.planner import solved
    from sim.scenario.training import resolve
    from sim.study.answer import simulate

    deadline = None if args.deadline is None else parse(args.deadline, "time", "--deadline", low=60.0)
    budget = None if args.budget is None else parse(args.budget, "money", "--budget", low=1.0)
    if args.ask == "growth":
        return _told(args, inverse.growth(q), growth_text)
    if deadline is None:
        raise InputError(f"--{'budget' if budget else 'ask ' + args.ask}: needs a deadline; give --deadline '90 days'")
    if args.ask == "failures":
        simulated = simulate(resolve(solved(q)))
        return _told(args, inverse.failures(simulated.scenario, simulated, deadline), failures_text)
    if budget is not None:
        return _told(args, inverse.buys(q, budget, deadline), buys_text)
    return _told(args, inverse.within(q, deadline), within_text)


def cheapest(args: argparse.Namespace, named: dict[str, Any], terms: dict[str, Any]) -> int:
    """The cheapest of the chips that --chip names."""
    from sim.planner import inverse

    names = [n.strip() for n in str(args.chip or "").split(",") if n.strip()]
    if len(names) < 2:
        raise InputError("--ask cheapest: needs several chips; give for example --chip h100,b200,910b")
    deadline = None if args.deadline is None else parse(args.deadline, "time", "--deadline", low=60.0)
    machines = [{"chip": name, "chips": args.chips or 8192} for name in names]
    rows = inverse.cheapest(named["model"], machines, deadline, **{"objective": "cost", **_set(terms)})
    return _told(args, {"rows": rows}, cheapest_text)


def _set(terms: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in terms.items() if v is not None}


def _told(args: argparse.Namespace, result: dict, words: Callable[[dict], str]) -> int:
    print(json_text(result, indent=1) if args.json else words(result))
    return 0


def buys_text(r: dict) -> str:
    """What a budget and a deadline buy."""
    lines = [
        f"{show(r['budget_usd'], 'money')} in {r['deadline_days']:.4g} days at ${r['rent_usd_per_hour']:.2f} "
        "a chip-hour",
        f"{'chips':24}{r['chips']:,}, {r['plan']}, a step of {r['step_s']:.4g} s, goodput {r['goodput']:.1%}",
        f"{'tokens of this model':24}{show(r['tokens'], 'count')}"
        + ("" if r["enough_for_all_tokens"] else ", fewer than the question's"),
    ]
    for ratio, n in r["largest_active_parameters"].items():
        lines.append(f"{'largest model':24}{show(n, 'count')} active parameters at {ratio} tokens a parameter")
    return "\n".join(lines)


def within_text(r: dict) -> str:
    """The fewest chips for a deadline."""
    rent = f", {show(r['rent_usd'], 'money')} to rent" if "rent_usd" in r else ""
    return f"{r['chips_needed']:,} chips: {r['plan']}, {r['days']:.4g} days{rent}"


def growth_text(r: dict) -> str:
    """The curve of more chips."""
    lines = [f"{'chips':>10}{'days':>9}{'rent':>11}{'pays':>8}  plan"]
    for x in r["rows"]:
        rent = show(x["rent_usd"], "money") if "rent_usd" in x else "-"
        pays = f"{x['pays']:.0%}" if "pays" in x else ""
        lines.append(f"{x['chips']:>10,}{x['days']:>9.4g}{rent:>11}{pays:>8}  {x['plan']}")
    stop = (
        f"from {r['stops_at']:,} chips a further tenth shortens the run by less than half of itself"
        if r["stops_at"]
        else "a further tenth still shortens the run by more than half of itself"
    )
    return "\n".join([*lines, "", stop])


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
        if "days" in x:
            rent = show(x["rent_usd"], "money") if "rent_usd" in x else "-"
            lines.append(f"{x['chip']:12}{x['chips']:>9,}{x['days']:>9.4g}{rent:>11}  {x['plan']}")
        if "reason" in x:
            lines.append(f"{x['chip']:12}{x['reason']}")
    return "\n".join(lines)
