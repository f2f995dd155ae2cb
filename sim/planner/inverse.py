"""A question turned round: what does this budget buy, which cluster is cheapest, when do more chips stop paying.

Every function answers a `Question` for other chips, tokens or failures with the same search and the same figures as the
question itself; nothing here has a formula of its own for time or money.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.base.units import DAY_S, show
from sim.cost import money
from sim.planner.planner import completed, find, solved
from sim.planner.question import Question, question, read_question
from sim.planner.quick import quick
from sim.scenario.training import Scenario, resolve
from sim.study.answer import Simulated, figures, simulate
from sim.study.campaign import campaign_input
from sim.training.campaign import expected

TOKENS_PER_PARAMETER = (20.0, 712.0)  # Chinchilla's rule of thumb, and GLM-5's 28.5T for 40B active parameters
STOPS_PAYING = 0.5  # of the chips added: below this share of them a further tenth shortens the run


def with_chips(q: Question, chips: int) -> Question:
    """The same question on a cluster of so many chips."""
    return read_question({**q.document, "chips": chips})


def at_once(q: Question) -> Simulated:
    """The question answered with a plan that is found at once."""
    best, costs = quick(q)
    return simulate(resolve(completed(q, costs, best)))


def rent_of(q: Question) -> float:
    """Dollars of a chip-hour.

    Raises:
        InputError: none is known.
    """
    rent = money.with_prices(q.cluster, q.prices).chip.rent_usd_per_hour
    if rent is None:
        raise InputError(f"budget: no rent of {q.cluster.chip.name} is known; give one with --chip-hour-price '$2/h'")
    return rent.value


def buys(q: Question, budget_usd: float, deadline_s: float) -> dict[str, Any]:
    """What a budget and a deadline buy at the chip's rent: chips, tokens of the question's model, and the largest model
    of the same kind at 20 and at 712 tokens a parameter.

    The largest model is the question's scaled: its active parameters n train on r·n tokens with 6 FLOPs a parameter and
    token, so n = sqrt(FLOPs / 6r), at the FLOP/s that the question's own model reaches.

    Raises:
        InputError: a budget that rents less than the smallest cluster that holds the model; the nearest that does.
    """
    rent, days = rent_of(q), deadline_s / DAY_S
    chips = int(budget_usd / (rent * deadline_s / 3600))
    node = max(1, q.cluster.chips_per_node)
    chips = chips // node * node if chips >= node else chips
    try:
        if chips < 1:
            raise InputError("less than one chip")
        asked = with_chips(q, chips)
        s = at_once(asked)
    except InputError:
        least = fewest_chips(q, start=max(chips, 1))
        need = least * rent * deadline_s / 3600
        raise InputError(
            f"budget {show(budget_usd, 'money')} for {days:.3g} days rents {chips:,} × {q.cluster.chip.name} at "
            f"${rent:.2f}/h: too few to hold {q.model.name}; give at least --budget {math.ceil(need)} or --deadline "
            f"'{budget_usd / (least * rent * 24):.2f} days'"
        ) from None
    row = figures(s)
    tokens = row["tokens_per_s"] * row["goodput"] * deadline_s
    flops = 6.0 * q.model.active_params() * tokens
    return {
        "budget_usd": budget_usd,
        "deadline_days": days,
        "rent_usd_per_hour": rent,
        "chips": chips,
        "plan": row["plan"],
        "step_s": row["step_s"],
        "goodput": row["goodput"],
        "tokens": tokens,
        "enough_for_all_tokens": tokens >= q.tokens,
        "largest_active_parameters": {f"{r:g}": math.sqrt(flops / (6.0 * r)) for r in TOKENS_PER_PARAMETER},
    }


def fewest_chips(q: Question, start: int = 1) -> int:
    """The fewest chips, among doublings of `start`, that hold the model with the question's batch.

    Raises:
        InputError: none up to the cluster's own and sixteen times as many.
    """
    chips = max(1, start)
    while chips <= 16 * max(q.cluster.num_chips, 64):
        try:
            quick(with_chips(q, chips), look_everywhere=False)
            return chips
        except InputError:
            chips *= 2
    raise InputError(f"{q.model.name}: no plan fits up to {chips // 2:,} × {q.cluster.chip.name}; take a larger chip")


def within(q: Question, deadline_s: float) -> dict[str, Any]:
    """The fewest chips (to a twentieth) that train the question's tokens by the deadline, with their figures.

    Raises:
        InputError: all chips together are too slow; the days that they need.
    """
    whole = figures(simulate(resolve(solved(q))))
    if whole["days"] * DAY_S > deadline_s:
        raise InputError(
            f"deadline of {deadline_s / DAY_S:.3g} days: {q.cluster.num_chips:,} × {q.cluster.chip.name} need "
            f"{whole['days']:.4g}; give --deadline '{math.ceil(whole['days'])} days', more chips or fewer tokens"
        )
    low, high, best = 1, q.cluster.num_chips, whole
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        try:
            row = figures(at_once(with_chips(q, middle)))
            fast = row["days"] * DAY_S <= deadline_s
        except InputError:
            fast = False
        if fast:
            high, best = middle, row
        else:
            low = middle
    return {"chips_needed": high, **best}


def growth(q: Question, steps: int = 6) -> dict[str, Any]:
    """The question on more and more chips, a tenth more each time: days, money, and the share of the added chips that
    shortens the run. `stops_at`: the first number from which a further tenth brings less than half of itself."""
    rows: list[dict[str, Any]] = []
    for k in range(steps + 1):
        chips = round(q.cluster.num_chips * 1.1**k)
        row = figures(at_once(with_chips(q, chips)))
        entry: dict[str, Any] = {
            key: row[key] for key in ("plan", "step_s", "days", "rent_usd", "own_usd") if key in row
        }
        if rows:
            speedup = rows[-1]["days"] / row["days"] - 1
            entry["pays"] = speedup / (chips / rows[-1]["chips"] - 1)
        rows.append({"chips": chips, **entry})
    stops = next((a["chips"] for a, b in zip(rows, rows[1:], strict=False) if b["pays"] < STOPS_PAYING), None)
    return {"rows": rows, "stops_at": stops}


def failures(s: Scenario, simulated: Simulated, deadline_s: float) -> dict[str, float]:
    """How many times as often chips may fail until the run misses the deadline, by Daly's formula about the median
    campaign.

    Raises:
        InputError: it is missed already.
    """
    main, inp = simulated.campaign, campaign_input(s, simulated.segments)
    if main.days * DAY_S > deadline_s:
        raise InputError(
            f"deadline of {deadline_s / DAY_S:.3g} days: the run takes {main.days:.4g} already; give --deadline "
            f"'{math.ceil(main.days)} days' or more"
        )
    own, wanted = expected(inp), main.goodput * main.days * DAY_S / deadline_s

    def goodput(times: float) -> float:
        rate = replace(inp.failures, per_chip_day=inp.failures.per_chip_day * times)
        return expected(replace(inp, failures=rate)) * main.goodput / own

    low, high = 1.0, 2.0
    while goodput(high) > wanted and high < 1e6:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if goodput(middle) > wanted else (low, middle)
    rate = inp.failures.per_chip_day
    return {"times": low, "per_chip_day": rate, "per_chip_day_at_most": rate * low, "goodput_at_most": wanted}


def cheapest(
    model: Any, machines: Sequence[Mapping[str, Any]], deadline_s: float | None = None, **terms: Any
) -> list[dict[str, Any]]:
    """The question on each of several clusters ({"chip": …, "cluster": …, "chips": …}), cheapest to rent first; those
    that miss the deadline, fit nothing or have no price come last with the reason."""
    rows = []
    for machine in machines:
        row: dict[str, Any] = dict(machine)
        try:
            q = question(model, machine.get("cluster"), machine.get("chips"), chip=machine.get("chip"), **terms)
            out, costs = find(q, 1)
            row |= figures(simulate(resolve(completed(q, costs, out.best[0]))))
            if "rent_usd" not in row:
                row["reason"] = f"no rent of {q.cluster.chip.name} is known"
            elif deadline_s is not None and row["days"] * DAY_S > deadline_s:
                row["reason"] = f"takes {row['days']:.4g} days"
        except InputError as err:
            row["reason"] = str(err)
        rows.append(row)
    return sorted(rows, key=lambda r: ("reason" in r, r.get("rent_usd", math.inf)))
