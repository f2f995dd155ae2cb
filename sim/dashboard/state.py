"""What the planner page knows: from the controls' values to an answer.

    a = answer({"model": "glm5", "machine": "chip:h100", "chips": "20k", "rent_usd_per_hour": "2-3"})
    a.row["days"], a.interval("rent_usd"), a.mover("rent_usd")

`answer` takes a good plan that is found at once, `searched` the one that `clustersim plan` finds. Of either the figures
are those of every command (`sim.study.answer`) and the interval is Monte Carlo's (`sim.study.monte_carlo`); `command`
is the line that gives the same figures in a terminal. No widget, no picture, no file.
"""

from __future__ import annotations

import json
import shlex
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from minglm.errors import InputError, nearest
from sim.base.distributions import DRAWS
from sim.base.units import show
from sim.cost.price_flags import price_words
from sim.dashboard.controls import BY_KEY, CONTROLS, NAMES, question_of
from sim.planner.candidates import PlanCosts
from sim.planner.explain import parts
from sim.planner.planner import completed, find, with_phase_plans
from sim.planner.question import Question, plain, space_of
from sim.planner.quick import quick
from sim.planner.search import RankedPlan
from sim.scenario.training import Scenario, resolve
from sim.study.answer import Outlook, Simulated, figures, simulate
from sim.study.campaign import nothing
from sim.study.monte_carlo import monte_carlo
from sim.training.evaluate import Point

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
    "vpp",
    "mtp_before_head",
    "stages",
)  # what a kept plan keeps; replicas follow the chips
MAX_INLINE_OPS = 1500  # ops of a step that is simulated without asking


@dataclass(frozen=True)
class Answer:
    """One set of controls answered. `row`: the figures of `sim.study.answer`; `sure`: Monte Carlo over the
    facts' ranges."""

    values: Mapping[str, str]
    fixed: Mapping[str, object]
    question: Question
    candidate: RankedPlan
    row: Mapping[str, Any]
    document: Mapping[str, Any]  # the scenario as a file says it
    simulated: Outlook
    sure: Mapping
    memory: Mapping[str, float]  # GiB by part, on the peak-memory rank
    parts: Mapping[str, float]  # seconds of a step by cause

    @property
    def is_first_look(self) -> bool:
        """Whether the full answer is still to come (`sim.dashboard.first_look`)."""
        return not isinstance(self.simulated, Simulated)

    @property
    def as_events(self) -> Simulated:
        """The full answer's step and campaigns."""
        assert isinstance(self.simulated, Simulated), "a first look has no events"
        return self.simulated

    @property
    def scenario(self) -> Scenario:
        """What is answered, its plan written out."""
        return self.simulated.scenario

    @property
    def name(self) -> str:
        """Model, chips and their number."""
        return f"{self.question.model.name} on {self.question.cluster.num_chips:,} × {self.question.cluster.chip.name}"

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


def answer(
    values: Mapping[str, str],
    fixed: Mapping[str, object] | None = None,
    samples: int = DRAWS,
    check: Callable[[], None] | None = None,
) -> Answer:
    """The answer to the controls; with `fixed` for that plan, else for a good plan that is found at once.

    check: called now and then; what it raises ends the work.
    Raises:
        InputError: a control's value is refused, or no plan fits.
    """
    fixed = dict(fixed or {})
    q = question_of(values, fixed)
    candidate, costs = _plan(q, fixed, check)
    return answered(values, fixed, q, candidate, costs, samples, check=check)


PRICES = ("system_price_usd", "electricity_usd_per_kwh", "pue")  # no step depends on them
_KNOWN: dict[str, PlanCosts] = {}  # costs of the last few machines: they depend on neither chips, batch nor prices
_FOUND: dict[str, RankedPlan] = {}


def _about(q: Question) -> str:
    """What the costs of a question's plans depend on."""
    pins = sorted(q.pinned.items(), key=str)
    chip = replace(q.cluster.chip, rent_usd_per_hour=None)
    machine = [getattr(q.cluster, f.name) for f in fields(q.cluster) if f.name not in ("num_chips", "chip", *PRICES)]
    return repr((q.model, chip, machine, replace(q.workload, global_batch=1), q.precision, q.stack, pins))


def known_costs(q: Question) -> PlanCosts:
    """Costs of the question's plans, with what was computed before where only chips, batch, tokens or prices moved."""
    about = _about(q)
    costs = _KNOWN.get(about) or PlanCosts(q.model, q.cluster, q.workload, q.precision, q.stack, space_of(q).switches)
    _remember(_KNOWN, about, costs, 4)
    return costs


def _plan(
    q: Question, fixed: Mapping[str, object], check: Callable[[], None] | None = None
) -> tuple[RankedPlan, PlanCosts]:
    """The plan, from what was found before where only tokens or prices have moved."""
    exact = repr((_about(q), q.cluster.num_chips, q.batch, q.objective, q.tolerance))
    candidate, costs = _FOUND.get(exact), known_costs(q)
    if candidate is None:
        candidate = find(q, 1)[0].best[0] if fixed else quick(q, costs, check=check)[0]
        _remember(_FOUND, exact, candidate, 500)
    return candidate, costs


def _remember(store: dict, key: str, value: object, most: int) -> None:
    store[key] = value
    while len(store) > most:
        del store[next(iter(store))]


def answered(  # noqa: PLR0913 - the question, its plan, and how it is simulated
    values: Mapping[str, str],
    fixed: Mapping[str, object],
    q: Question,
    candidate: RankedPlan,
    costs: PlanCosts,
    samples: int = DRAWS,
    document: dict[str, Any] | None = None,
    simulated_as: Callable[[Scenario], Outlook] | None = None,
    check: Callable[[], None] | None = None,
) -> Answer:
    """The answer for one plan. document: the scenario with the plan in it, where it is known."""
    if document is None:
        document = with_phase_plans(q, completed(q, costs, candidate), check)
    resolved = resolve(document, "the page's question")
    simulated = simulated_as(resolved) if simulated_as else simulate(resolved, check=check or nothing)
    s = simulated.scenario
    need = simulated.memory.breakdown()
    return Answer(
        dict(values),
        dict(fixed),
        q,
        candidate,
        figures(simulated),
        document,
        simulated,
        monte_carlo(s, samples, workers=1, simulated=simulated, progress=lambda _: check() if check else None),
        {k: v / 2**30 for k, v in need.items()},
        {k: max(v, 0.0) for k, v in parts(q, s.plan, s.workload).items()},
    )


def searched(values: Mapping[str, str], progress=None, samples: int = DRAWS) -> Answer:
    """As `answer`, with every plan of the space looked at: proven best, in seconds to a minute."""
    q = question_of(values)
    out, costs = find(q, 1, progress)
    a = answered(values, {}, q, out.best[0], costs, samples)
    return replace(a, fixed=a.kept)


def simulated_step(a: Answer) -> Point:
    """The plan's step simulated as events, for the timeline."""
    return a.as_events.point


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
    used = f"{r['chips']:,} of {a.question.cluster.num_chips:,}" if r["spares"] else f"{a.question.cluster.num_chips:,}"
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
    q, d = a.question, a.document
    words = ["clustersim", "plan", "--model", a.values.get("model") or BY_KEY["model"].default]
    words += [f"--{kind}", name, "--chips", str(d["chips"]), "--seq", str(q.seq)]
    words += ["--batch", str(d["global_batch"]), "--tokens", f"{q.tokens:.15g}", "--attention", str(d["attention"])]
    if "phases" in d:
        words += ["--phases", str(d["phases"])]
    if d.get("plans"):  # of phases whose sequences or batches are of another size
        words += ["--set", f"plans={json.dumps(d['plans'])}"]
    words += ["--objective", q.objective, "--precision", q.precision]
    if d.get("stack"):
        words += ["--stack", str(d["stack"])]
    words += price_words(q.prices)
    fields = {**d["plan"], **{k: d[k] for k in ("schedule", "micro_batch", "recompute")}, **d["options"]}
    for key, value in fields.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)


def yaml_text(a: Answer) -> str:
    """The answer's scenario as YAML, one key a line: `clustersim run` of it gives the same figures."""
    return "".join(f"{key}: {json.dumps(_plain(value), ensure_ascii=False)}\n" for key, value in a.document.items())


def _plain(value: object) -> object:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else plain(value)


def link(a: Answer) -> str:
    """The question as the end of an address: the page opens with these controls."""
    said = {k: v for k, v in a.values.items() if str(v).strip() and v != BY_KEY[k].default}
    return "?" + urllib.parse.urlencode(said)


SERVERS_OWN = ("token", "voila-template", "voila-theme")  # what an address says to the server
SECTION = "normal_"  # begins what an address says to the section on a measured number (`sim.dashboard.normal`)


def from_link(query: str) -> dict[str, str]:
    """The controls' values of a `link`; what an address says to the server or to a section is not the controls'.

    Raises:
        InputError: a key that is no control.
    """
    said = urllib.parse.parse_qsl(query.lstrip("?"))
    values = {key: value for key, value in said if key not in SERVERS_OWN and not key.startswith(SECTION)}
    for key in values:
        if key not in BY_KEY:
            raise InputError(f"link: control {key[:40]!r} is not known{nearest(key, BY_KEY)}; open the page without it")
    return values


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
