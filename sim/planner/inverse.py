"""A question turned round: what does this budget buy, which cluster is cheapest, when do more chips stop paying.

Every function answers a `Question` for other chips, tokens or failures with the same search and the same figures as the
question itself; nothing here has a formula of its own for time or money. Figures have the 90% intervals of every other
answer (`intervals`), and where a deadline is to be kept, `kept` is the share of draws that keep it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minglm.errors import InputError
from sim.base.units import DAY_S, parse, show
from sim.cost import money
from sim.planner.candidates import PlanCosts
from sim.planner.compare import break_even as price_of_break_even
from sim.planner.compare import break_even_interval, drawn_apart
from sim.planner.planner import completed, solved
from sim.planner.question import Question, read_question
from sim.planner.quick import quick
from sim.planner.row_words import days as days_words
from sim.scenario.training import Scenario, resolve
from sim.study.answer import Simulated, figures, simulate
from sim.study.campaign import campaign_input
from sim.study.monte_carlo import draws, figures_with_intervals, interval
from sim.training.campaign import expected

TOKENS_PER_PARAMETER = (20.0, 712.0)  # Chinchilla's rule of thumb, and GLM-5's 28.5T for 40B active parameters
STOPS_PAYING = 0.5  # of the chips added: less than this share of them shortens the run
SHORTEST_S = 60.0  # of deadlines
CERTAIN = 5  # tenths that do not pay end a curve
MOST_TENTHS = 12  # of a curve: 3.1 times the chips


def budget_usd(text: str, name: str) -> float:
    """Dollars: '$1.5M', '1.5M', '20k' or '20,000'.

    Raises:
        InputError: no amount, or less than a dollar.
    """
    entered = str(text).strip()
    amount = parse(entered if "$" in entered else "$" + entered, "money", name)
    if amount < 1:
        raise InputError(f"{name}: {entered!r} is less than a dollar; give for example $1M")
    return amount


def deadline_s(text: str, name: str) -> float:
    """Seconds: '90 days', '36 h'.

    Raises:
        InputError: no duration, or less than a minute.
    """
    seconds = parse(text, "time", name)
    if seconds < SHORTEST_S:
        raise InputError(f"{name}: {str(text).strip()!r} is less than a minute; give for example '90 days'")
    return seconds


def with_chips(q: Question, chips: int) -> Question:
    """The same question on a cluster of so many chips."""
    return read_question({**q.document, "chips": chips})


class AtOnce:
    """Questions answered with plans that are found at once; those about other chips share what plans cost."""

    def __init__(self) -> None:
        self._costs: PlanCosts | None = None

    def __call__(self, q: Question) -> Simulated:
        """The question's answer."""
        best, self._costs = quick(q, self._costs)
        return simulate(resolve(completed(q, self._costs, best)))


def at_once(q: Question) -> Simulated:
    """The question answered with a plan that is found at once."""
    return AtOnce()(q)


def _enough(days: float) -> str:
    """A deadline that so many days keep."""
    return f"{math.ceil(days)} days" if days > 2 else f"{math.ceil(days * 24)} h"


def rent_of(q: Question, asked: str) -> float:
    """Dollars of a chip-hour. asked: what needs it, for the refusal.

    Raises:
        InputError: none is known.
    """
    rent = money.with_prices(q.cluster, q.prices).chip.rent_usd_per_hour
    if rent is None:
        raise InputError(f"{asked}: no rent of {q.cluster.chip.name} is known; give one with --chip-hour-price '$2/h'")
    return rent.value


def buys(q: Question, budget_usd: float, deadline_s: float) -> dict[str, Any]:
    """What a budget and a deadline buy at the chip's rent: chips, tokens of the question's model, and the largest model
    of the same kind at 20 and at 712 tokens a parameter.

    The largest model is the question's scaled: its active parameters n train on r·n tokens with 6 FLOPs a parameter and
    token, so n = sqrt(FLOPs / 6r), at the FLOP/s that the question's own model reaches.

    Raises:
        InputError: a budget that rents less than the smallest cluster that trains the model; the nearest that does.
    """
    rent, days = rent_of(q, "budget"), deadline_s / DAY_S
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
        need, minutes = least * rent * deadline_s / 3600, math.floor(budget_usd / (least * rent) * 60)
        sooner = f" or at most --deadline '{minutes} min'" if minutes else ""
        raise InputError(
            f"budget {show(budget_usd, 'money')} for {days_words(deadline_s / DAY_S)} rents {chips:,} × "
            f"{q.cluster.chip.name} at ${rent:.2f}/h: too few to train {q.model.name}; "
            f"give at least --budget {math.ceil(need)}{sooner}"
        ) from None
    row = figures(s)
    tokens = row["tokens_per_s"] * row["goodput"] * deadline_s
    drawn = [tokens * row["days"] / r["days"] for r in draws(s.scenario, simulated=s)]

    def largest(tokens: float, ratio: float) -> float:
        return math.sqrt(q.model.active_params() * tokens / ratio)

    return {
        "budget_usd": budget_usd,
        "deadline_days": days,
        "rent_usd_per_hour": rent,
        "chips": chips,
        "plan": row["plan"],
        "chips_of_plan": row["chips"],
        "step_s": row["step_s"],
        "goodput": row["goodput"],
        "tokens": tokens,
        "enough_for_all_tokens": tokens >= q.tokens,
        "kept": _share(t >= q.tokens for t in drawn),
        "largest_active_parameters": {f"{r:g}": largest(tokens, r) for r in TOKENS_PER_PARAMETER},
        "intervals": {
            "tokens": interval(drawn),
            **{f"{r:g}": interval([largest(t, r) for t in drawn]) for r in TOKENS_PER_PARAMETER},
        },
    }


def _row(answer: Simulated) -> dict[str, Any]:
    """An answer's figures with their intervals."""
    return figures_with_intervals(answer, draws(answer.scenario, simulated=answer))


def _share(holds: Iterable[bool]) -> float:
    """The share that is true."""
    each = list(holds)
    return sum(each) / len(each)


def fewest_chips(q: Question, start: int = 1) -> int:
    """The fewest chips, among doublings of `start`, that hold the model with the question's batch and train it to the
    end of the question's tokens.

    Raises:
        InputError: none up to the cluster's own and sixteen times as many.
    """
    chips, answered = max(1, start), AtOnce()
    while chips <= 16 * max(q.cluster.num_chips, 64):
        try:
            answered(with_chips(q, chips))
            return chips
        except InputError:
            chips *= 2
    raise InputError(f"{q.model.name}: no plan fits up to {chips // 2:,} × {q.cluster.chip.name}; take a larger chip")


def within(q: Question, deadline_s: float) -> dict[str, Any]:
    """The fewest chips (to a twentieth) that train the question's tokens by the deadline, with their figures.

    `kept`: the share of draws in which they do; `surer_deadline_days`: chips that are found for this earlier deadline
    keep the asked one in about 19 draws of 20.

    Raises:
        InputError: all chips together are too slow; the days that they need.
    """
    best = simulate(resolve(solved(q)))
    whole = figures(best)
    if whole["days"] * DAY_S > deadline_s:
        raise InputError(
            f"deadline of {days_words(deadline_s / DAY_S)}: {q.cluster.num_chips:,} × {q.cluster.chip.name} need "
            f"{days_words(whole['days'])}; give --deadline '{_enough(whole['days'])}', more chips or fewer tokens"
        )
    low, high, answered = 1, q.cluster.num_chips, AtOnce()
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        try:
            fewer = answered(with_chips(q, middle))
            fast = fewer.campaign.days * DAY_S <= deadline_s
        except InputError:
            fast = False
        if fast:
            high, best = middle, fewer
        else:
            low = middle
    drawn = draws(best.scenario, simulated=best)
    row, kept = figures_with_intervals(best, drawn), _share(r["days"] * DAY_S <= deadline_s for r in drawn)
    surer = deadline_s / DAY_S * min(row["days"] / row["intervals"]["days"]["p95"], 1.0)
    return {"chips_needed": high, **row, "kept": kept, "surer_deadline_days": surer}


def growth(q: Question, most: int = MOST_TENTHS) -> dict[str, Any]:
    """The question on more and more chips, a tenth more each time: days, money, and the share of the added chips that
    shortens the run.

    `stops_at`: the first number beyond which no larger one of the curve brings half of what its chips add (None: the
    curve does not end so). Widths divide few numbers of chips well, so a single tenth says little.
    """
    rows: list[dict[str, Any]] = []
    answered = AtOnce()
    for k in range(most + 1):
        chips = round(q.cluster.num_chips * 1.1**k)
        if rows and chips == rows[-1]["chips"]:
            continue
        row = _row(answered(with_chips(q, chips)))
        kept = ("chips", "plan", "step_s", "days", "rent_usd", "own_usd", "intervals")
        entry: dict[str, Any] = {key: row[key] for key in kept if key in row}
        entry["chips"] = chips
        rows.append({**entry, **({"pays": _pays(rows[-1], entry)} if rows else {})})
        if stops_at(rows, CERTAIN) is not None:
            break
    return {"rows": rows, "stops_at": stops_at(rows, 1)}


def _pays(few: Mapping[str, Any], many: Mapping[str, Any]) -> float:
    """Share of the chips between two rows that shortens the run."""
    return float((few["days"] / many["days"] - 1) / (many["chips"] / few["chips"] - 1))


def stops_at(rows: Sequence[Mapping[str, Any]], later: int = 1) -> int | None:
    """Chips of the first row that at least `later` rows follow, none of which pays."""
    for i in range(len(rows) - later):
        if all(_pays(rows[i], row) < STOPS_PAYING for row in rows[i + 1 :]):
            return int(rows[i]["chips"])
    return None


def failures(s: Scenario, simulated: Simulated, deadline_s: float) -> dict[str, Any]:
    """How many times as often chips may fail until the run misses the deadline, by Daly's formula about the median
    campaign.

    Raises:
        InputError: it is missed already.
    """
    main, inp = simulated.campaign, campaign_input(s, simulated.segments)
    if main.days * DAY_S > deadline_s:
        raise InputError(
            f"deadline of {days_words(deadline_s / DAY_S)}: the run takes {days_words(main.days)} already; give "
            f"--deadline '{_enough(main.days)}' or more"
        )
    own, rate = expected(inp), inp.failures.per_chip_day

    def goodput(times: float) -> float:
        return expected(replace(inp, failures=replace(inp.failures, per_chip_day=rate * times))) * main.goodput / own

    def most(wanted: float) -> float:
        low, high = 0.0, 1.0
        while goodput(high) > wanted and high < 1e6:
            low, high = high, 2 * high
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if goodput(middle) > wanted else (low, middle)
        return low

    drawn = [r["days"] for r in draws(s, simulated=simulated)]
    span, per_day = interval(drawn), main.goodput * DAY_S / deadline_s  # goodput that a run of so many days needs
    times = most(per_day * main.days)
    return {
        "times": times,
        "per_chip_day": rate,
        "per_chip_day_at_most": rate * times,
        "goodput_at_most": per_day * main.days,
        "intervals": {"times": {"p5": most(per_day * span["p95"]), "p95": most(per_day * span["p5"])}},
        "kept": _share(days * DAY_S <= deadline_s for days in drawn),
    }


def cheapest(questions: Sequence[Question], deadline_s: float | None = None) -> list[dict[str, Any]]:
    """The same run on each of several machines, cheapest to rent first; those that miss the deadline, fit nothing or
    have no price come last with the reason.

    With a deadline each takes the fewest of its chips that keep it, without one the plan that the question's aim finds.

    Raises:
        InputError: none of them answers; the first reason.
    """
    rows = []
    for q in questions:
        row: dict[str, Any] = {"chip": q.cluster.chip.name, "cluster": q.cluster.name}
        try:
            row |= within(q, deadline_s) if deadline_s else _row(simulate(resolve(solved(q))))
            if "rent_usd" not in row:
                row["reason"] = f"no rent of {q.cluster.chip.name} is known, so no cost to rent"
        except InputError as err:
            row["reason"] = str(err)
        rows.append(row)
    if all("reason" in row for row in rows):
        raise InputError(f"cheapest: none of the {len(rows)} machines answers; {rows[0]['reason']}")
    return sorted(rows, key=lambda r: ("reason" in r, r.get("rent_usd", math.inf)))


def break_even(q: Question, other: Question) -> dict[str, Any]:
    """The rent of a chip-hour at which the question's run costs what it does on another machine, and the other way.

    Raises:
        InputError: a machine that does not hold the model, or has no price.
    """
    rents = [rent_of(one, "break-even") for one in (q, other)]
    answers = [simulate(resolve(solved(one))) for one in (q, other)]
    drawn = [draws(answer.scenario, simulated=answer) for answer in answers]
    mine, theirs = rows = [
        {"chip": one.cluster.chip.name, "rent_usd_per_hour": rent, **figures_with_intervals(answer, own)}
        for one, rent, answer, own in zip((q, other), rents, answers, drawn, strict=True)
    ]
    return {
        "rows": rows,
        "break_even_usd_per_hour": price_of_break_even(mine, theirs),
        "other_break_even_usd_per_hour": price_of_break_even(theirs, mine),
        "intervals": {
            "break_even_usd_per_hour": break_even_interval(answers[0], drawn[0], drawn_apart(answers[1])),
            "other_break_even_usd_per_hour": break_even_interval(answers[1], drawn[1], drawn_apart(answers[0])),
        },
    }
