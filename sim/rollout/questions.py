"""What a planner asks of a rollout case: the best split of chips, the over-sampling that pays, money per trained token.

Sweeps run on a folded cluster: engines, prompts and trainer divided alike, so that every engine sees the same load.
What is lost is the smoothing of rare events over many engines; `fold` says how far it went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minglm.errors import InputError
from minglm.rl.modes import OVERLAPPED, Policy
from sim.cost.money import Range, costs
from sim.rollout.case import Case
from sim.rollout.metrics import compare
from sim.rollout.rates import cluster_of
from sim.rollout.result import Result
from sim.rollout.scenario import RolloutScenario, read
from sim.rollout.simulate import simulate
from sim.scenario.fields import PRICES
from sim.serving.calibration import error_band

FOLDED = 6_000  # trajectories of a step that a sweep simulates at most
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
FACTORS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)


def fold(case: Case, trajectories: int = FOLDED) -> tuple[Case, int]:
    """(the case divided by a whole number, that number): the largest that leaves whole engines and prompts."""
    want = max(1, -(-case.policy.prompts_per_batch * case.samples_per_prompt // trajectories))
    k = next(
        (
            k
            for k in range(min(want, case.engines), 0, -1)
            if case.engines % k == 0 and case.policy.prompts_per_batch % k == 0
        ),
        1,
    )
    if k == 1 and want > 1:
        k = min(want, case.engines, case.policy.prompts_per_batch)
    p = case.policy
    groups = max(1, p.prompts_per_batch // k)
    over_sampling = None if p.over_sampling is None else max(groups, round(p.over_sampling / k))
    policy = replace(
        p,
        prompts_per_batch=groups,
        over_sampling=over_sampling,
        max_concurrent=None if p.max_concurrent is None else max(1, p.max_concurrent // k),
    )
    parts = case.parts if groups % case.parts == 0 else 1
    return replace(
        case,
        policy=policy,
        engines=max(1, case.engines // k),
        train_chips=max(0, round(case.train_chips / k)),
        parts=parts,
        train_s_per_token=case.train_s_per_token * p.prompts_per_batch / groups,
    ), k


def best_split(case: Case, shares: Sequence[float] = SHARES) -> dict:
    """Trained tokens/s over the share of the chips that roll out, the rest training; refused for colocated cases."""
    if case.colocated or not case.train_chips:
        raise InputError(
            "best split: rollout and training share the chips; give train_chips, or a mode that separates them "
            f"({', '.join(OVERLAPPED)})"
        )
    small, k = fold(case)
    small = replace(small, steps=5, warmup=2)
    total = small.engines * small.chips_per_engine + small.train_chips
    mine = small.engines * small.chips_per_engine / total
    rows = []
    for share in sorted({*shares, round(mine, 6)}):
        engines = max(1, round(total * share / small.chips_per_engine))
        train = total - engines * small.chips_per_engine
        if train < 1:
            continue
        now = replace(
            small,
            engines=engines,
            train_chips=train,
            train_s_per_token=small.train_s_per_token * small.train_chips / train,
            train_fixed_s=small.train_fixed_s,
        )
        r = simulate(now)
        rows.append(
            {
                "rollout_share": engines * small.chips_per_engine / total,
                "engines": engines * k,
                "trained_tokens_per_s": r.throughput.trained_tokens_per_s * k,
                "step_s": r.throughput.step_s,
                "rollout_idle": r.utilisation.rollout_idle,
                "trainer_idle": r.utilisation.trainer_idle,
                "given": abs(share - mine) < 1e-5,
            }
        )
    best = max(rows, key=lambda row: row["trained_tokens_per_s"])
    return {"rows": rows, "best": best, "fold": k}


def over_sampling_that_pays(case: Case, factors: Sequence[float] = FACTORS) -> dict:
    """April over factors of over-sampling: trained tokens/s, stale share, tokens prefilled again."""
    small, k = fold(case)
    n = small.policy.prompts_per_batch
    rows = []
    for factor in factors:
        count = max(n, round(factor * n))
        now = replace(small, policy=Policy("april", n, count), parts=1, steps=10, warmup=3)
        r = simulate(now)
        rows.append(
            {
                "factor": count / n,
                "trained_tokens_per_s": r.throughput.trained_tokens_per_s * k,
                "rollout_s": r.throughput.rollout_s,
                "step_s": r.throughput.step_s,
                "stale_share": r.staleness.stale_share,
                "reprefilled_tokens": r.waste.reprefilled_tokens * k,
            }
        )
    return {"rows": rows, "best": max(rows, key=lambda row: row["trained_tokens_per_s"]), "fold": k}


def money(case_file: RolloutScenario, result: Result) -> dict[str, Range] | None:
    """Rent and ownership per million trained tokens; None where no cluster is named.

    The interval takes the prices at their ends and the time at the ends of the band of the decode predictions
    (`sim.serving.calibration.error_band`), run through the simulator on the folded case.
    """
    if "cluster" not in case_file.values or not result.throughput.trained_tokens or not result.chips:
        return None
    place, case = cluster_of(case_file.values["cluster"]), case_file.case
    small, _ = fold(case)
    small = replace(small, steps=min(4, small.steps), warmup=min(1, small.warmup, min(4, small.steps) - 1))
    middle = simulate(small).throughput.trained_tokens_per_s
    low, high = error_band()
    slow, fast = (
        simulate(replace(small, curve=small.curve.times(f))).throughput.trained_tokens_per_s / middle
        for f in (high, low)
    )
    hours = 1e6 / result.throughput.trained_tokens_per_s / 3600.0
    span = Range(
        hours,
        hours / max(fast, 1.0),
        hours / min(slow, 1.0),
        "h",
        f"a million trained tokens; decode time × {low:.2f} to {high:.2f}, the band of the published decode rows",
    )
    prices = PRICES.read(case_file.values.get("prices") or {}, "prices")
    per_million = costs(replace(place, num_chips=result.chips), span, prices)
    return {k: per_million[k] for k in ("chip_hours", "rent", "own") if k in per_million}


def answer(source, all_answers: bool = False, folded: bool = False, **changes) -> dict:
    """Everything that `clustersim rollouts` prints, as one mapping; `folded`: of the divided cluster (see `fold`)."""
    case_file = read(source, **changes)
    if folded:
        small, k = fold(case_file.case)
        case_file = replace(
            case_file,
            case=replace(small, steps=max(7, small.steps), warmup=3),
            notes=(f"folded {k}-fold: rates and chips are one {k}th of the cluster's", *case_file.notes),
        )
    case = case_file.case
    result = simulate(case)
    out = {
        "name": case.name,
        "question": case_file.values.get("question", ""),
        "result": result.to_dict(),
        "lengths": case.lengths.describe(),
        "notes": list(case_file.notes),
        "assumed": list(case_file.values.get("assumed") or []),
        "compared": compare(case_file, result),
        "case": case_file,
    }
    cost = money(case_file, result)
    if cost:
        out["cost_per_million_trained_tokens"] = {k: v.to_dict() for k, v in cost.items()}
    if all_answers:
        if not case.colocated and case.train_chips:
            out["best_split"] = best_split(case)
        out["over_sampling"] = over_sampling_that_pays(case)
    return out
