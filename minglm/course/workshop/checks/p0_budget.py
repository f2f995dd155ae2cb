"""Checks of the sheet to plan/planner: cost, choice under deadline and budget, swings, the figure to sign."""

import math
from functools import partial

from minglm.course.workshop.checking import Exercise, Mistake


def _run_cost(steps, step_s, goodput, chips, spares, rent, overhead, wrong=""):
    days = steps * step_s / 86400 * (goodput if wrong == "times goodput" else 1 / goodput)
    rented = chips if wrong == "no spares" else chips + spares
    factor = 1.0 if wrong == "no overhead" else 1.0 + overhead
    return [days, days * 24 * rented * rent * factor]


def _pair(answer):
    def run(*args):
        out = answer(*args)
        return list(out) if isinstance(out, tuple) else out

    return run


DRAWS = {
    "wide": [(20, 90), (24, 95), (29, 101), (33, 140), (22, 93)],
    "narrow": [(25, 110), (26, 112), (25, 111), (27, 118), (26, 113)],
    "slow": [(40, 60), (41, 61), (42, 62), (40, 63), (43, 64)],
}


def _choose(plans, deadline, budget, sure, wrong=""):
    best, least = None, math.inf
    for name, draws in plans.items():
        if wrong == "means":
            share = (
                sum(d for d, _ in draws) / len(draws) <= deadline and sum(c for _, c in draws) / len(draws) <= budget
            )
        elif wrong == "either":
            share = sum(d <= deadline or c <= budget for d, c in draws) / len(draws)
        else:
            share = sum(d <= deadline and c <= budget for d, c in draws) / len(draws)
        mean = sum(c for _, c in draws) / len(draws)
        if share >= sure - 1e-12 and mean < least:
            best, least = name, mean
    return best


def _money(inputs):
    return inputs["days"] * inputs["chips"] * inputs["rent"] / inputs["goodput"]


MIDDLE = {"days": 30.0, "chips": 1000.0, "rent": 2.0, "goodput": 0.9}
RANGES = {"rent": (1.5, 3.0), "goodput": (0.8, 0.95), "days": (28.0, 45.0)}


def _swings(cost, middle, ranges, wrong=""):
    out = []
    for name in ranges:
        low, high = (cost({k: (end if k == name else v) for k, v in middle.items()}) for end in ranges[name])
        out.append([name, high - low if wrong == "signed" else abs(high - low)])
    if wrong == "together":
        low, high = (cost({**middle, **{k: r[e] for k, r in ranges.items()}}) for e in (0, 1))
        out = [[name, abs(high - low)] for name in ranges]
    return sorted(out, key=lambda pair: pair[1], reverse=wrong != "rising")


def _rows(answer):
    def run(*args):
        out = answer(*args)
        return [list(row) for row in out] if isinstance(out, (list, tuple)) else out

    return run


def _signed(costs, sure, wrong=""):
    for cost in sorted(costs):
        below = sum(c < cost if wrong == "below" else c <= cost for c in costs) / len(costs)
        if below >= sure - 1e-12:
            return cost
    return max(costs)


EXERCISES = [
    Exercise(
        "plan_planner.run_cost",
        _run_cost,
        lambda: [
            (1000, 3600.0, 1.0, 10, 0, 2.0, 0.0),
            (50000, 4.0, 0.9, 1000, 32, 1.1, 0.15),
            (1, 3.5, 0.8, 1, 0, 1.0, 0.0),
        ],
        (
            Mistake(
                partial(_run_cost, wrong="times goodput"), "Lost time makes the run longer: divide by the goodput."
            ),
            Mistake(partial(_run_cost, wrong="no spares"), "Spares are rented, too, all the time."),
            Mistake(partial(_run_cost, wrong="no overhead"), "The overhead comes on top: times 1 + overhead."),
        ),
        "hours = steps·step_s/goodput/3600; days = hours/24; dollars = hours·(chips + spares)·rent·(1 + overhead).",
        use=_pair,
        hints=(
            "Hours first, then both results.",
            "Only the share `goodput` of the time moves the run on.",
            "hours · (chips + spares) · rent · (1 + overhead).",
        ),
    ),
    Exercise(
        "plan_planner.choose",
        _choose,
        lambda: [
            (DRAWS, 30, 120, 0.9),
            (DRAWS, 30, 120, 0.8),
            (DRAWS, 45, 65, 1.0),
            (DRAWS, 27, 118, 1.0),
            (DRAWS, 10, 10, 0.5),
            ({"lucky": [(1, 1), (1, 9), (9, 9)], "sure": [(2, 2), (2, 2), (2, 2)]}, 5, 5, 0.6),
            # the least mean is neither first nor the least sum, number of draws, or days
            ({"dear": [(1, 30)], "near": [(1, 20.6)] * 2, "cheap": [(3, 20.4), (2, 20.4), (1, 20.4)]}, 5, 50, 0.9),
            # dear draws alone make a plan unsafe whose mean is low
            ({"over": [(1, 12), (1, 12), (1, 1), (1, 1)], "within": [(1, 8), (2, 8)]}, 5, 10, 0.9),
        ],
        (
            Mistake(partial(_choose, wrong="means"), "A mean that fits says little: count the draws that fit."),
            Mistake(partial(_choose, wrong="either"), "A draw must meet both, the deadline and the budget."),
        ),
        "Count the draws with days <= deadline and dollars <= budget; among the safe plans the least mean cost.",
        hints=(
            "First which plans are safe, then which of them is cheapest.",
            "sum(days <= deadline and dollars <= budget for ...) counts; compare with sure · len(draws).",
            "min(safe, key=safe.get) over a dict name → mean cost; None where it is empty.",
        ),
    ),
    Exercise(
        "plan_planner.swings",
        _swings,
        lambda: [
            (_money, MIDDLE, RANGES),
            (lambda x: x["a"] - 3 * x["b"], {"a": 1.0, "b": 1.0}, {"a": (0, 2), "b": (0, 1)}),
        ],
        (
            Mistake(partial(_swings, wrong="together"), "Move one input at a time; the others stay at their middle."),
            Mistake(partial(_swings, wrong="rising"), "The largest swing comes first."),
            Mistake(partial(_swings, wrong="signed"), "A swing has no sign: take its absolute value."),
        ),
        "For each name cost({**middle, name: end}) at both ends; absolute difference; sort by it, falling.",
        use=_rows,
        hints=(
            "Two calls of `cost` for each name in `ranges`.",
            "{**middle, name: value} is the middle with one input moved, and leaves `middle` as it was.",
            "abs(high − low), then sorted(..., key=lambda pair: -pair[1]).",
        ),
    ),
    Exercise(
        "plan_planner.signed",
        _signed,
        lambda: [
            ([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0, 10.0], 0.9),
            ([5.0, 1.0, 9.0], 0.5),
            ([2.0, 2.0, 2.0, 8.0], 0.75),
            ([4.0], 1.0),
            ([1.0, 100.0], 0.5),
        ],
        (
            Mistake(
                lambda costs, sure: sum(costs) / len(costs), "That is the mean; it says nothing about being right."
            ),
            Mistake(partial(_signed, wrong="below"), "A draw equal to the figure does not exceed it: it counts, too."),
        ),
        "Sort; the first cost whose place (from 1) is at least sure · len(costs).",
        hints=(
            "Sort the costs and walk up.",
            "At place n of N, n draws do not exceed it.",
            "The first n with n >= sure · N.",
        ),
    ),
]
