"""How sure are we: Monte Carlo over the ranges of the facts, the simulator's own error, and any scenario field.

    tokens = {"low": "27T", "mid": "28.5T", "high": "30T"}
    result = monte_carlo(load_scenario("glm5_100k_910b"), samples=1000, vary={"tokens": tokens})
    result["intervals"]["days"]      # {"p5": …, "p50": …, "p95": …}
    result["tornado"]                # what moves the days most, one input at a time from its 5% to its 95% point

Each sample draws every uncertain figure of chip, network, power and price on its own (triangular between the fact
files' low and high), a failure rate, and one of the errors that `clustersim validate` finds on runs it was not fitted
on. The scenario's own figures are the middle (`sim.study.answer`); a draw moves each phase's step as the closed form
moves, and the goodput as Daly's formula does.
Sample i depends on the seed and i alone, so the answer does not depend on the number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minglm import plots
from minglm.errors import InputError
from sim.base import parallel_map
from sim.base.checks import versions
from sim.base.distributions import DRAWS, Normal, Triangle, Values, distribution
from sim.base.figure import Figure
from sim.base.quantiles import quantile
from sim.cost import money
from sim.scenario.file import set_path
from sim.scenario.training import Scenario, resolve
from sim.spec.plan import describe
from sim.study.answer import ERROR, FAILURES, LUCK, Base, Outlook, base_of, figures, outcome, outcomes
from sim.study.campaign import GIVEN_RATE_RANGE
from sim.training.failures import RATES_PER_CHIP_DAY
from sim.validation.coverage import kind_of, left_out_factors

MOVED = ("days", "rent_usd", "own_usd", "energy_kwh")
# Samples that a process takes at a time: what it records once serves all of them. With other fields each is a
# scenario of its own.
CHUNK, CHUNK_OF_FIELDS = 1250, 25
# the dimension of scenario fields that take units; all others are counts or ratios
DIMENSIONS = {
    "rent_usd_per_hour": "money_per_hour",
    "system_price_usd": "money",
    "electricity_usd_per_kwh": "money_per_kwh",
    "power_w": "power",
    "staff_usd_per_year": "money",
    "write": "bytes_per_s",
    "read": "bytes_per_s",
    "interval": "time",
    "detect": "time",
    "restart": "time",
    "repair": "time",
    "horizon": "time",
    "pue": "ratio",
    "utilization": "ratio",
    "interest": "ratio",
    "bytes_per_s": "bytes_per_s",
}
WHOLE = {
    "chips",
    "seq",
    "global_batch",
    "micro_batch",
    "tp",
    "pp",
    "dp",
    "cp",
    "ep",
    "etp",
    "vpp",
    "zero",
    "seeds",
    "seed",
}


@dataclass(frozen=True)
class Input:
    """One uncertain input: `path` into the cluster, or into the scenario's document when `field`."""

    name: str
    path: tuple
    dist: Triangle | Normal | Values
    field: bool = False


# ------------------------------------------------------------------ the inputs


def fact_inputs(s: Scenario) -> list[Input]:
    """Every figure of the scenario's machine that has a range, its failure rate and the simulator's error."""
    cluster = money.with_prices(s.cluster, s.prices)
    out: list[Input] = []

    def add(name: str, path: tuple, f: Figure | None) -> None:
        if f is not None and f.low < f.high:
            out.append(Input(name, path, Triangle(f.low, f.value, f.high)))

    precision = (
        "fp8"
        if s.precision == "fp8" and "fp8" in cluster.chip.peak_flops
        else next(p for p in ("bf16", "fp16") if p in cluster.chip.peak_flops)
    )
    add("peak of the chip", ("chip", "peak_flops", precision), cluster.chip.peak_flops[precision])
    for name, key in (
        ("best matmul", "max_matmul_flops"),
        ("best fp8 matmul", "max_matmul_flops_fp8"),
        ("memory bandwidth", "memory_bytes_per_s"),
        ("power of the chip", "power_w"),
        ("rent of a chip", "rent_usd_per_hour"),
    ):
        add(name, ("chip", key), getattr(cluster.chip, key))
    for name, key in (
        ("power of the host", "host_power_w"),
        ("PUE", "pue"),
        ("electricity", "electricity_usd_per_kwh"),
        ("price with the system", "system_price_usd"),
        ("storage bandwidth", "storage_bytes_per_s"),
    ):
        add(name, (key,), getattr(cluster, key))
    for i, tier in enumerate(cluster.tiers):
        for name, key in (("rate", "bytes_per_s"), ("efficiency", "efficiency"), ("latency", "latency_s")):
            add(f"{tier.name} {name}", ("tiers", i, key), getattr(tier, key))
    rate, section = s.cluster.chip.failures_per_chip_hour, dict[str, Any](s.failures)
    if "per_chip_day" in section:
        mid = float(section["per_chip_day"])
        low, high = GIVEN_RATE_RANGE["low"] * mid, GIVEN_RATE_RANGE["high"] * mid
    elif rate is not None and "level" not in section:
        low, mid, high = 24 * rate.low, 24 * rate.value, 24 * rate.high
    else:
        low, mid, high = (RATES_PER_CHIP_DAY[k] for k in ("low", "mid", "high"))
    if low < high:
        out.append(Input(FAILURES, (FAILURES,), Triangle(low, min(max(mid, low), high), high)))
    kind = kind_of(s.cluster.chip, s.model, s.plan, s.workload.seq, s.precision)
    out.append(Input(ERROR, (ERROR,), Values(left_out_factors(kind))))
    return out


def field_inputs(vary: Mapping[str, object]) -> list[Input]:
    """Scenario fields as distributions: {"tokens": {low, mid, high}, "chips": [..]}; the path is dotted, as in
    `--set`."""
    out = []
    for name, spread in vary.items():
        dimension = DIMENSIONS.get(name.rsplit(".", 1)[-1], "count")
        out.append(Input(name, tuple(name.split(".")), distribution(spread, dimension, name), field=True))
    return out


# ------------------------------------------------------------------ one sample


Drawn = Sequence[tuple[Input, Any]]  # inputs at these values


def _outcomes(s: Scenario, samples: Sequence[Drawn], base: Base) -> list[dict[str, float] | InputError]:
    """The outcome of each sample, or why it cannot run. `base` is the scenario's: of no use where a field of it
    changes."""
    facts = [{one.path: value for one, value in drawn if not one.field} for drawn in samples]
    fields = [[(one, value) for one, value in drawn if one.field] for drawn in samples]
    known = iter(outcomes(s, [row for row, changes in zip(facts, fields, strict=True) if not changes], base))
    return [_elsewhere(s, *both) if both[0] else next(known) for both in zip(fields, facts, strict=True)]


def _elsewhere(s: Scenario, changes: Drawn, facts: Mapping[tuple, float]) -> dict[str, float] | InputError:
    """The outcome of the scenario with other fields."""
    try:
        # one campaign a sample: the base's own draws say how far a median lies from Daly's formula
        return outcome(replace(_with_fields(s, changes), seeds=1), facts)
    except InputError as err:
        return err


def _with_fields(s: Scenario, changes: Drawn) -> Scenario:
    """The scenario with these fields at these values."""
    document = s.document
    for one, value in changes:
        key = one.path[-1]
        value = max(1, round(value)) if key in WHOLE and isinstance(value, float) else value
        document = set_path(document, list(one.path), value)
    return resolve(document, s.name)


def _chunk(job: tuple) -> list[dict[str, float] | str]:
    """Samples start … start+count−1; a sample that cannot run is the reason."""
    s, inputs, seed, start, count, base = job
    # Each input has its own stream: a price that is set, or a field that varies, leaves the others' draws alone.
    samples = [
        [(one, one.dist.draw(random.Random(f"{seed} {i} {one.name}"))) for one in inputs]
        for i in range(start, start + count)
    ]
    return [str(r) if isinstance(r, InputError) else r for r in _outcomes(s, samples, base)]


# ------------------------------------------------------------------ the answer


def monte_carlo(  # noqa: PLR0913 - what is drawn, and where it is computed
    s: Scenario,
    samples: int = 1000,
    vary: Mapping[str, object] | None = None,
    facts: bool = True,
    seed: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    address: str | None = None,
    simulated: Outlook | None = None,
) -> dict:
    """Intervals of days, throughput, money, energy and carbon, and what moves them.

    Args:
        vary: scenario fields (dotted) as {low, mid, high}, {normal: [mean, sd]} or a list of equally likely values.
        facts: draw the facts' ranges and the simulator's error too.
        seed: of the draws (default: the scenario's).
        progress: called with the number of samples done since the last call.
        simulated: the scenario as events, where it is known already.
    Returns:
        samples, refused (those that cannot run, with a reason), centre, intervals (p5, p25, p50, p75, p95, mean),
        tornado, inputs.
    Raises:
        InputError: a bad distribution, or no sample that runs.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or not 2 <= samples <= 10_000_000:
        raise InputError(f"samples={samples!r}: an interval needs 2 to 10,000,000; give 1000")
    inputs = field_inputs(vary or {}) + (fact_inputs(s) if facts else [])
    if not inputs:
        raise InputError(
            "nothing is uncertain: no field varies and facts are held; give --vary or leave the facts free"
        )
    seed = s.seed if seed is None else seed
    base = base_of(s, simulated)
    if facts:
        inputs.append(Input(LUCK, (LUCK,), Values(base.luck)))
    size = CHUNK_OF_FIELDS if vary else CHUNK
    jobs = [(s, inputs, seed, start, min(size, samples - start), base) for start in range(0, samples, size)]
    chunks: list[list[dict | str]] = [[] for _ in jobs]
    for i, rows in parallel_map.run(_chunk, jobs, engine, workers, address):
        assert isinstance(rows, list)  # what _chunk returns
        chunks[i] = rows
        if progress:
            progress(len(rows))
    outcomes = [r for rows in chunks for r in rows if isinstance(r, dict)]
    refused = [r for rows in chunks for r in rows if isinstance(r, str)]
    if len(outcomes) < 2:
        raise InputError(f"no sample can run: {refused[0]}")
    return {
        "samples": len(outcomes),
        "refused": len(refused),
        "reason": refused[0] if refused else "",
        "seed": seed,
        "centre": outcome(s, base=base),
        "intervals": {k: interval([r[k] for r in outcomes]) for k in outcomes[0]},
        "tornado": tornado(s, inputs, base),
        "inputs": [
            {"name": i.name, "p5": i.dist.quantile(0.05), "middle": i.dist.middle, "p95": i.dist.quantile(0.95)}
            for i in inputs
        ],
        "plan": describe(s.plan),
        "name": s.name,
        "versions": versions(),
    }


def figures_with_intervals(simulated: Outlook, outcomes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The answer's figures, and `intervals`: the quantiles of those that are uncertain over its `draws`, as
    `monte_carlo` has them."""
    return {**figures(simulated), "intervals": {k: interval([r[k] for r in outcomes]) for k in outcomes[0]}}


def draws(
    s: Scenario, samples: int = DRAWS, simulated: Outlook | None = None, seed: int | None = None
) -> list[dict[str, float]]:
    """The outcomes themselves, with the facts' ranges drawn: for a share of them below some figure, or for what two
    answers have in common.

    seed: of the draws (default: the scenario's); another one draws independently of an answer's own.

    Raises:
        InputError: the scenario cannot run.
    """
    base, seed = base_of(s, simulated), s.seed if seed is None else seed
    inputs = [*fact_inputs(s), Input(LUCK, (LUCK,), Values(base.luck))]
    return [r for r in _chunk((s, inputs, seed, 0, samples, base)) if isinstance(r, dict)]


def interval(values: Sequence[float]) -> dict[str, float]:
    """Quantiles (linear between the two nearest values) and the mean."""
    ordered = sorted(values)
    points = {f"p{percent}": quantile(ordered, percent / 100) for percent in (5, 25, 50, 75, 95)}
    return {**points, "mean": sum(ordered) / len(ordered)}


def tornado(s: Scenario, inputs: Sequence[Input], base: Base | None = None) -> list[dict]:
    """Each input alone at its 5% and its 95% point: `MOVED` there, widest swing of days first, then of money."""
    base = base or base_of(s)
    rows, centre = [], outcome(s, base=base)
    cost = next((k for k in ("own_usd", "rent_usd") if k in centre), None)
    samples = [[(one, one.dist.quantile(q))] for one in inputs for q in (0.05, 0.95)]
    there = _outcomes(s, samples, base)
    for i, one in enumerate(inputs):
        row: dict = {"name": one.name}
        for end, k in (("low", 2 * i), ("high", 2 * i + 1)):
            row[f"{end}_input"], figures = samples[k][0][1], there[k]
            if isinstance(figures, InputError):
                row["reason"] = str(figures)
            else:
                row |= {f"{end}_{k}": figures[k] for k in MOVED if k in figures}
        row["days_swing"] = abs(row.get("high_days", 0.0) - row.get("low_days", 0.0))
        row["money_swing"] = abs(row.get(f"high_{cost}", 0.0) - row.get(f"low_{cost}", 0.0)) if cost else 0.0
        rows.append(row)
    return sorted(rows, key=lambda r: (-r["days_swing"], -r["money_swing"], r["name"]))


def tornado_figure(result: Mapping, metric: str = "days", most: int = 12):
    """Bars from each input's 5% to its 95% point about the centre (Plotly); `metric` is days or the money in the
    rows."""
    rows = [r for r in result["tornado"] if f"low_{metric}" in r and f"high_{metric}" in r]
    rows = sorted(rows, key=lambda r: abs(r[f"high_{metric}"] - r[f"low_{metric}"]))[-most:]
    centre = result["centre"][metric]
    fig = plots.figure(
        f"What moves {metric.replace('_usd', ' (USD)')}",
        f"change of {metric.replace('_usd', ' (USD)')} from {centre:,.4g}",
        "",
        height=120 + 28 * len(rows),
    )
    for end, index in (("low", 0), ("high", 1)):
        fig.add_bar(
            y=[r["name"] for r in rows],
            x=[r[f"{end}_{metric}"] - centre for r in rows],
            orientation="h",
            name=f"at its {'5' if end == 'low' else '95'}% point",
            marker_color=("#0072B2", "#E69F00")[index],
        )
    fig.update_layout(barmode="overlay")
    return fig
