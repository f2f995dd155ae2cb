"""What the planner page knows: from the controls' values to an answer, in closed form, in less than half a second.

    a = answer({"model": "glm5", "machine": "chip:h100", "chips": "20k", "rent_usd_per_hour": "2-3"})
    a.row["days"], a.interval("rent_usd"), a.mover("rent_usd")

The figures are the planner's (`sim.planner.planner.row`) and the interval is Monte Carlo's (`sim.study.monte_carlo`);
`command` is the line that gives the same figures in a terminal. No widget, no picture, no file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.base.units import parse, show
from sim.cost.memory import peak
from sim.cost.price_flags import price_words
from sim.dashboard.controls import BY_KEY, CONTROLS, NAMES, question_of
from sim.planner.candidates import PlanCosts
from sim.planner.explain import parts
from sim.planner.planner import find, row, scenario_of
from sim.planner.question import Question
from sim.planner.quick import quick
from sim.planner.search import RankedPlan
from sim.scenario.training import Scenario
from sim.study.monte_carlo import monte_carlo
from sim.training.evaluate import evaluate

SAMPLES = 60  # of the interval that follows a slider; a report draws more
RESULTS = (
    ("days", "Time", "days"),
    ("rent_usd", "Cost to rent", "USD"),
    ("own_usd", "Cost to own", "USD"),
    ("energy_kwh", "Energy", "kWh"),
)
AXES = (
    "tp",
    "pp",
    "cp",
    "ep",
    "etp",
    "micro_batch",
    "zero",
    "recompute",
    "schedule",
)  # what a kept plan keeps; replicas follow the chips
MAX_INLINE_OPS = 1500  # ops of a step that is simulated without asking


@dataclass(frozen=True)
class Answer:
    """One set of controls answered. `row`: the planner's figures; `sure`: Monte Carlo over the facts' ranges."""

    values: Mapping[str, str]
    fixed: Mapping[str, object]
    question: Question
    candidate: RankedPlan
    row: Mapping[str, Any]
    scenario: Scenario
    sure: Mapping
    memory: Mapping[str, float]  # GiB by part, on the peak-memory rank
    parts: Mapping[str, float]  # seconds of a step by cause

    @property
    def name(self) -> str:
        """Model, chips and their number."""
        return f"{self.question.model.name} on {self.question.cluster_chips:,} × {self.question.cluster.chip.name}"

    @property
    def capacity_gib(self) -> float:
        """Memory of a chip."""
        return self.question.cluster.chip.memory_bytes.value / 2**30

    def interval(self, key: str) -> tuple[float, float]:
        """5% and 95% point of a result."""
        interval = self.sure["intervals"][key]
        return interval["p5"], interval["p95"]

    def mover(self, key: str) -> dict | None:
        """The input that moves a result most: its name, and the result with it at its 5% and 95% point."""
        rows = [r for r in self.sure["tornado"] if f"low_{key}" in r and f"high_{key}" in r]
        if not rows:
            return None
        top = max(rows, key=lambda r: abs(r[f"high_{key}"] - r[f"low_{key}"]))
        low, high = sorted((top[f"low_{key}"], top[f"high_{key}"]))
        return {"name": top["name"], "low": low, "high": high}

    @property
    def results(self) -> list[tuple[str, str, str]]:
        """(key, label, unit) of the results that there is a figure for."""
        return [r for r in RESULTS if r[0] in self.row]

    @property
    def kept(self) -> dict[str, object]:
        """The plan's widths, to keep while other controls move."""
        return {k: self.row[k] for k in AXES}

    @property
    def simulated_ops(self) -> int:
        """Ops in one step of one replica: what simulating it as events costs."""
        p = self.scenario.plan
        return 3 * p.pp * p.vpp * p.micro_batches(self.scenario.workload)


def answer(values: Mapping[str, str], fixed: Mapping[str, object] | None = None, samples: int = SAMPLES) -> Answer:
    """The answer to the controls; with `fixed` for that plan, else for a good plan that is found at once.

    Raises:
        InputError: a control's value is refused, or no plan fits.
    """
    fixed = dict(fixed or {})
    q = question_of(values, fixed)
    candidate, costs = _plan(q, fixed)
    return answered(values, fixed, q, candidate, costs, samples)


_KNOWN: dict[tuple, PlanCosts] = {}  # costs of the last few machines: they depend on neither chips, batch nor prices
_FOUND: dict[tuple, RankedPlan] = {}


def _plan(q: Question, fixed: Mapping[str, object]) -> tuple[RankedPlan, PlanCosts]:
    """The plan, from what was computed before where only chips, batch, tokens or prices have moved."""
    about = (q.model, q.cluster.name, q.cluster.chip.name, q.seq, q.precision, q.stack.name, q.mtp)
    exact = (*about, q.cluster_chips, q.batch, q.objective, tuple(sorted(fixed.items())))
    candidate = _FOUND.get(exact)
    if candidate is None:
        if fixed:
            out, costs = find(q, 1)
            candidate = out.best[0]
        else:
            candidate, costs = quick(q, _KNOWN.get(about))
            _remember(_KNOWN, about, costs, 4)
        _remember(_FOUND, exact, candidate, 500)
        return candidate, costs
    # fresh costs where none are at hand: they only turn the candidate into a plan and a row
    return candidate, _KNOWN.get(about) or PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack)


def _remember(store: dict, key: tuple, value: object, most: int) -> None:
    store[key] = value
    while len(store) > most:
        del store[next(iter(store))]


def answered(
    values: Mapping[str, str],
    fixed: Mapping[str, object],
    q: Question,
    candidate: RankedPlan,
    costs: PlanCosts,
    samples: int = SAMPLES,
) -> Answer:
    """The answer for one plan."""
    scenario = scenario_of(q, costs, candidate)
    need = peak(q.model, scenario.plan, scenario.workload, q.precision, q.stack).breakdown()
    return Answer(
        dict(values),
        dict(fixed),
        q,
        candidate,
        row(q, costs, candidate),
        scenario,
        monte_carlo(scenario, samples, workers=1),
        {k: v / 2**30 for k, v in need.items()},
        {k: max(v, 0.0) for k, v in parts(q, scenario.plan, scenario.workload).items()},
    )


def searched(values: Mapping[str, str], progress=None, samples: int = SAMPLES) -> Answer:
    """As `answer`, with every plan of the space looked at: proven best, in seconds to a minute."""
    q = question_of(values)
    out, costs = find(q, 1, progress)
    a = answered(values, {}, q, out.best[0], costs, samples)
    return replace(a, fixed=a.kept)


def simulated_step(a: Answer):
    """The plan's step simulated as events (`sim.training.evaluate.Point`), for the timeline.

    Raises:
        InputError: more ops than are simulated.
    """
    s = a.scenario
    return evaluate(s.model, s.cluster, s.plan, s.workload, s.precision, s.stack)


# ------------------------------------------------------------------ in words


def sentence(a: Answer) -> str:
    """The answer in one sentence with its interval."""
    r = a.row
    low, high = a.interval("days")
    money = [
        f"{show(r[k], 'money')} to {word} ({show(a.interval(k)[0], 'money')} to {show(a.interval(k)[1], 'money')})"
        for k, word in (("rent_usd", "rent"), ("own_usd", "own"))
        if k in r
    ]
    cost = " or ".join(money) if money else f"no price of {a.question.cluster.chip.name} is known, so no cost"
    used = f"{r['chips']:,} of {a.question.cluster_chips:,}" if r["spares"] else f"{a.question.cluster_chips:,}"
    return (
        f"{a.question.model.name} on {used} × {a.question.cluster.chip.name}: {r['days']:.3g} days ({low:.3g} to "
        f"{high:.3g}), {cost}."
    )


def figure_words(a: Answer, key: str, value: float | None = None) -> str:
    """A result in its unit: days, money, or GWh."""
    x = a.row[key] if value is None else value
    return f"{x:.3g} days" if key == "days" else f"{x / 1e6:.3g} GWh" if key == "energy_kwh" else show(x, "money")


def command(a: Answer) -> str:
    """The line that gives the same figures in a terminal. A range of prices has no flag: its middle is given."""
    kind, name = a.values.get("machine", BY_KEY["machine"].default).split(":", 1)
    q = a.question
    words = [
        "clustersim",
        "plan",
        "--model",
        a.values.get("model") or BY_KEY["model"].default,
        f"--{kind}" if kind == "cluster" else "--chip",
        name,
        "--chips",
        str(q.cluster_chips),
        "--seq",
        str(q.seq),
        "--batch-tokens",
        f"{_batch_tokens(a):.15g}",
        "--tokens",
        f"{q.tokens:.15g}",
        "--objective",
        q.objective,
        "--precision",
        q.precision,
    ]
    words += price_words(q.prices)
    for key in AXES:
        words += ["--schedules", str(a.row[key])] if key == "schedule" else ["--set", f"{key}={a.row[key]}"]
    return shlex.join(words)


def _batch_tokens(a: Answer) -> float:
    return parse(a.values.get("batch") or BY_KEY["batch"].default, "count", "batch")


def assumptions(a: Answer) -> list[str]:
    """What was set on the page, then what was taken for granted."""
    said = []
    for c in CONTROLS:
        text = str(a.values.get(c.key, "")).strip()
        if text and text != c.default:
            said.append(
                f"{c.label}: {NAMES.get(text, text) if c.key == 'objective' else text} "
                f"{c.unit if c.kind != 'choice' else ''}".rstrip()
            )
    return said
