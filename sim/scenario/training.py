"""A scenario: the question as a file, resolved to the objects that the floors below take.

The file's shape, `include:` and `--set` are in `sim/scenario/file.py`. Every fault is one line, before anything is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from minglm.errors import InputError, nearest
from sim.base.figure import figure
from sim.base.units import parse, whole
from sim.cost.stacks import Stack
from sim.scenario.file import (
    ASSUMPTION_KINDS,
    SHAPE,
    check_shape,
    merge,
    read_scenario_document,
    set_path,
    set_value,
)
from sim.scenario.options import clean_options, clean_plan, clean_recompute, clean_schedule
from sim.spec.hardware import Cluster, chip_from, cluster_for_chip, cluster_from
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import Plan, Workload, check


@dataclass(frozen=True)
class Scenario:
    """A resolved scenario. `document` is what it was made from, includes merged."""

    name: str
    question: str
    model: ModelSpec
    cluster: Cluster
    cluster_chips: int  # all there are; the plan may use fewer
    plan: Plan
    workload: Workload
    precision: str
    stack: Stack
    stated: tuple[str, ...]  # defaults that were taken because the file does not say
    tokens: float
    phases: tuple = ()  # sim.spec.phases.Phase
    candidates: tuple[Plan, ...] = ()
    jitter: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, object] = field(default_factory=dict)
    failures: Mapping[str, object] = field(default_factory=dict)
    checkpoint: Mapping[str, object] = field(default_factory=dict)
    seeds: int = 20
    horizon_s: float | None = None
    seed: int = 0
    allow_oom: bool = False  # a plan that is over the memory estimate is shown, not refused
    what_if: tuple[tuple[str, Mapping, str], ...] = ()
    assumptions: tuple[Mapping, ...] = ()
    document: Mapping = field(default_factory=dict)

    @property
    def spares(self) -> int:
        """Chips of the cluster that the plan does not use."""
        return self.cluster_chips - self.plan.num_chips


# ------------------------------------------------------------------ resolving


def load_scenario(path: str | Path, changes: list[str] | None = None, **over: object) -> Scenario:
    """Read, change and resolve a scenario. `over` replaces top-level keys (None ones are left alone)."""
    document = read_scenario_document(path)
    if over.get("model") is not None and document.get("model") is not None:
        document = for_another_model(document, load_model(over["model"]))
    for key, value in over.items():
        if value is not None:
            document = set_path(document, [key], value)
    for text in changes or []:
        document = set_value(document, text)
    return resolve(document, Path(path).stem)


def for_another_model(document: Mapping, model: ModelSpec) -> dict:
    """The scenario without what belongs to its own model: stages, the indexer's phase, more experts per group than there are."""
    out = {k: v for k, v in document.items() if k != "attention"}
    out["options"] = {k: v for k, v in (out.get("options") or {}).items() if k != "stages"}

    def narrowed(plan: object) -> object:
        if not isinstance(plan, Mapping) or not isinstance(plan.get("ep"), int):
            return plan
        return {**plan, "ep": math.gcd(plan["ep"], model.experts) if model.experts else 1}

    out["plan"] = narrowed(out.get("plan"))
    out["plans"] = [narrowed(p) for p in out.get("plans") or ()]
    note = {
        "text": f"the scenario is of {document['model'] if isinstance(document['model'], str) else 'another model'}: its plan, batch and "
        f"phases are kept for {model.name}, its stages are not",
        "kind": "assumed",
        "source": "--model",
    }
    out["assumptions"] = [note, *(out.get("assumptions") or ())]
    return out


def resolve(document: Mapping, name: str = "scenario") -> Scenario:
    """From a mapping to a `Scenario`. Everything that can be wrong is refused here, before anything is computed."""
    check_shape(document, "", name)
    d = document
    for key in ("model", "seq"):
        if d.get(key) is None:
            raise InputError(f"{name}: has no {key!r}; a scenario needs model, cluster or chip, chips, plan and seq")
    model = load_model(d["model"])
    attention = _choose(d, "attention", ("sparse", "dense") if model.index_topk else ("dense", "sparse"), name)
    if attention == "sparse" and not model.index_topk:
        raise InputError(f"{name}: attention sparse: the model {model.name} has no indexer; use attention: dense")
    if attention == "dense":
        model = dense(model)
    if d.get("cluster") is not None:
        cluster = cluster_from(d["cluster"])
        cluster = replace(cluster, chip=chip_from(d["chip"])) if d.get("chip") is not None else cluster
    elif d.get("chip") is not None:
        cluster = cluster_for_chip(d["chip"])
    else:
        raise InputError(f"{name}: has neither cluster nor chip; name one, such as cluster: atlas_800t_a2")
    chips = whole(d.get("chips", cluster.num_chips), f"{name}: chips", high=10**8)
    cluster = replace(cluster, num_chips=chips)
    try:
        row = _row(d, cluster, chips, name, model)
        candidates = tuple(_candidate(p, d, cluster, chips, model) for p in d.get("plans") or ())
    except InputError as err:
        raise InputError(_located(name, str(err))) from None
    check_shape(d.get("campaign") or {}, "campaign", f"{name}: campaign")
    seeds = int((d.get("campaign") or {}).get("seeds") or 20)
    if not 2 <= seeds <= 100_000:
        raise InputError(f"{name}: campaign seeds={seeds}: give 2 to 100,000")
    horizon = (d.get("campaign") or {}).get("horizon")
    scenario = Scenario(
        name=str(d.get("name", name)),
        question=str(d.get("question", "")),
        model=model,
        cluster=cluster,
        cluster_chips=chips,
        plan=row.plan,
        workload=row.workload,
        precision=row.precision,
        stack=row.stack,
        stated=row.assumptions,
        tokens=parse(d.get("tokens", "1T"), "count", f"{name}: tokens", low=1.0),
        phases=_phases(d.get("phases"), name),
        candidates=candidates,
        jitter=_jitter(d, name),
        prices=_prices(d.get("prices") or {}, name),
        failures=_section(
            d, "failures", name, {"per_chip_day": "count", "detect": "time", "restart": "time", "repair": "time"}
        ),
        checkpoint=_section(d, "checkpoint", name, {"interval": "time", "write": "bytes_per_s", "read": "bytes_per_s"}),
        seeds=seeds,
        horizon_s=parse(horizon, "time", f"{name}: campaign horizon", low=1.0) if horizon is not None else None,
        seed=int(d.get("seed") or 0),
        allow_oom=bool(d.get("allow_oom") or False),
        what_if=_what_if(d.get("what_if") or (), name),
        assumptions=_assumptions(d.get("assumptions") or (), name),
        document=document,
    )
    if scenario.plan.num_chips > chips:
        p = scenario.plan
        raise InputError(
            f"{name}: the plan needs {p.num_chips:,} chips (TP {p.tp} × CP {p.cp} × PP {p.pp} × DP {p.dp}) and the cluster has {chips:,}; "
            f"lower dp to {max(1, chips // (p.tp * p.cp * p.pp))} or raise chips"
        )
    check(scenario.plan, model, scenario.workload)
    return scenario


def _choose(d: Mapping, key: str, known: tuple[str, ...], name: str) -> str:
    """The value of a key that has a few; the first is the default."""
    value = d.get(key) if d.get(key) is not None else known[0]
    if value not in known:
        raise InputError(f"{name}: {key} {str(value)[:40]!r}: must be {' or '.join(known)}{nearest(str(value), known)}")
    return value


def dense(model: ModelSpec) -> ModelSpec:
    """The same model before sparse attention: every query reads every visible key, no indexer."""
    return dataclasses.replace(model, index_topk=0, index_heads=0, index_dim=0, indexer_full_layers=0)


_ROW_KEYS = ("seq", "precision", "stack")


def _row(d: Mapping, cluster: Cluster, chips: int, name: str, model: ModelSpec):
    """Plan, workload and stack, by the same reader as rows of measured runs (`sim/validation/rows.py`)."""
    from sim.validation.rows import parse as read_row

    row = {k: d[k] for k in _ROW_KEYS if d.get(k) is not None}
    row |= {
        "id": name,
        "cluster": cluster,
        "model": model,
        "measured": {"seconds_per_step": 1.0},
        "seq": whole(d["seq"], "seq", high=10**8),
        "plan": clean_plan(d.get("plan") or {}),
        "options": clean_options(d.get("options") or {}),
        "micro_batch": whole(d.get("micro_batch") or 1, "micro_batch", high=10**6),
        "recompute": clean_recompute(d.get("recompute") or "none"),
    }
    if d.get("schedule") is not None:
        row["schedule"] = clean_schedule(d["schedule"])
    plan = row["plan"]
    inner = plan.get("tp", 1) * plan.get("pp", 1) * plan.get("cp", 1)
    if inner > chips:
        raise InputError(
            f"the plan needs at least tp × pp × cp = {inner:,} chips and the cluster has {chips:,}; lower one of them or raise chips"
        )
    plan.setdefault("dp", chips // inner)  # the rest of the cluster is spare
    row["chips"] = inner * plan["dp"]
    per = plan["dp"] * row["micro_batch"]
    if d.get("global_tokens") is not None and d.get("global_batch") is not None:
        raise InputError("global_batch and global_tokens are both given; keep one")
    if d.get("global_tokens") is not None:  # the nearest batch that the replicas share evenly
        row["global_batch"] = (
            max(1, round(parse(d["global_tokens"], "count", "global_tokens", low=1.0) / row["seq"] / per)) * per
        )
    elif d.get("global_batch") is not None:
        row["global_batch"] = whole(d["global_batch"], "global_batch", high=10**9)
    return read_row(row)


def _located(name: str, message: str) -> str:
    """A row reader's message under the scenario's name."""
    message = message.removeprefix(f"row {name}: ")
    return message if message.startswith(f"{name}:") else f"{name}: {message}"


def _candidate(given: object, d: Mapping, cluster: Cluster, chips: int, model: ModelSpec) -> Plan:
    """A further plan for other phases: plan widths, and its own schedule, recompute, micro_batch or options."""
    if not isinstance(given, Mapping):
        raise InputError(
            f"plans: {str(given)[:40]!r} is not a plan; give mappings such as {{tp: 8, pp: 16, cp: 4, dp: 195}}"
        )
    own = {k: given[k] for k in given if k in ("schedule", "recompute", "micro_batch", "options")}
    base = {k: v for k, v in d.items() if k not in ("plan", "global_tokens", "global_batch", "schedule")}
    if isinstance(own.get("options"), Mapping):
        own["options"] = merge(d.get("options") or {}, own["options"])
    return _row(
        {**base, **own, "plan": {k: v for k, v in given.items() if k not in own}}, cluster, chips, "plans", model
    ).plan


def _section(d: Mapping, key: str, name: str, dimensions: Mapping[str, str]) -> dict:
    values = d.get(key) or {}
    check_shape(values, key, f"{name}: {key}")
    return {
        k: parse(v, dimensions[k], f"{name}: {key}.{k}") if k in dimensions else v
        for k, v in values.items()
        if v is not None
    }


def _jitter(d: Mapping, name: str) -> dict:
    """Spreads of the logarithm up to 2 (a factor of seven), shares up to 1, a slow chip up to a hundred times slower."""
    out = _section(d, "jitter", name, {k: "ratio" for k in SHAPE["jitter"]})
    for key, value in out.items():
        most = 100.0 if key == "slow_factor" else 1.0 if key.endswith("share") else 2.0
        if value > most:
            raise InputError(f"{name}: jitter.{key}={value:g}: must be at most {most:g}")
    return {"slow_factor": 1.0, **out} if "slow_share" in out else out


def _prices(values: Mapping, name: str) -> dict:
    check_shape(values, "prices", f"{name}: prices")
    figures = {
        "rent_usd_per_hour": "money_per_hour",
        "system_price_usd": "money",
        "electricity_usd_per_kwh": "money_per_kwh",
        "pue": "ratio",
        "power_w": "power",
        "carbon_kg_per_kwh": "ratio",
        "storage_share": "ratio",
    }
    plain = {"years": "count", "utilization": "ratio", "interest": "ratio", "staff_usd_per_year": "money"}
    out: dict = {}
    for key, value in values.items():
        if value is None:
            continue
        if key in figures:
            out[key] = figure(value, figures[key], f"{name}: prices.{key}")
        elif key in plain:
            out[key] = parse(
                value,
                plain[key],
                f"{name}: prices.{key}",
                high={"utilization": 1.0, "interest": 1.0, "years": 50.0}.get(key, 1e15),
            )
        else:
            out[key] = value
    for key in ("years", "utilization"):
        if out.get(key) == 0:
            raise InputError(f"{name}: prices.{key}=0: must be more than 0")
    return out


def _phases(given: object, name: str) -> tuple:
    if given is None:
        return ()
    from sim.spec.phases import GLM5, Phase

    if isinstance(given, str):
        if given.lower() != "glm5":
            raise InputError(f"{name}: phases {given!r}: must be glm5 or a list of phases{nearest(given, ('glm5',))}")
        return GLM5
    if not isinstance(given, list) or not given:
        raise InputError(f"{name}: phases must be glm5 or a list of phases with name, tokens, seq, batch")
    out = []
    for i, values in enumerate(given):
        where = f"{name}: phases[{i}]"
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: {str(values)[:40]!r} is not a phase; give name, tokens, seq, batch")
        check_shape(values, "phase", where)
        for key in ("tokens", "seq", "batch"):
            if values.get(key) is None:
                raise InputError(f"{where}: has no {key!r}; give name, tokens, seq, batch")
        first = values.get("first_batch")
        out.append(
            Phase(
                str(values.get("name", f"phase {i + 1}")),
                parse(values["tokens"], "count", f"{where}.tokens", low=1.0),
                whole(values["seq"], f"{where}.seq", high=10**8),
                parse(values["batch"], "count", f"{where}.batch", low=1.0),
                None if first is None else parse(first, "count", f"{where}.first_batch", low=1.0),
                parse(values.get("ramp", 0), "count", f"{where}.ramp"),
                str(values.get("note", "")),
                str(values.get("attention", "dense")),
            )
        )
    return tuple(out)


def _what_if(given: object, name: str) -> tuple[tuple[str, Mapping, str], ...]:
    out = []
    for i, values in enumerate(given):
        where = f"{name}: what_if[{i}]"
        if not isinstance(values, Mapping) or not isinstance(values.get("set"), Mapping):
            raise InputError(
                f"{where}: must have name and set, such as {{name: larger batch, set: {{global_tokens: 256M}}}}"
            )
        check_shape(values, "what_if", where)
        out.append((str(values.get("name", f"what if {i + 1}")), values["set"], str(values.get("note", ""))))
    return tuple(out)


def _assumptions(given: object, name: str) -> tuple[Mapping, ...]:
    out = []
    for i, values in enumerate(given):
        where = f"{name}: assumptions[{i}]"
        if not isinstance(values, Mapping) or not values.get("text"):
            raise InputError(f"{where}: must have text, kind and source")
        check_shape(values, "assumption", where)
        if values.get("kind", "assumed") not in ASSUMPTION_KINDS:
            raise InputError(
                f"{where}: kind {values['kind']!r} is not one of {', '.join(ASSUMPTION_KINDS)}{nearest(str(values['kind']), ASSUMPTION_KINDS)}"
            )
        out.append(
            {
                "text": str(values["text"]),
                "kind": values.get("kind", "assumed"),
                "source": str(values.get("source", "")),
            }
        )
    return tuple(out)
