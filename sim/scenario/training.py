"""A scenario: the question as a file, resolved to the objects that the rooms below take.

The file's keys are in `sim/scenario/fields.py`, `include:` and `--set` in `sim/scenario/file.py`; the run that it holds
is built by `sim/scenario/build.py`. Every fault is one line, before anything is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minglm.errors import InputError
from sim.base.fields import located, shorten
from sim.cost.stacks import Stack
from sim.cost.stacks import resolve as resolve_stack
from sim.scenario.build import ENDS, Run, RunSpec, build_plan, build_run, read_run
from sim.scenario.defaults import with_defaults
from sim.scenario.fields import ASSUMPTION, OPTIONS, RUN, SCENARIO, WHAT_IF
from sim.scenario.file import canonical_document, merge, read_scenario_document, set_path, set_value
from sim.scenario.phases import check_tokens, read_phases
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.phases import Phase
from sim.spec.plan import Plan, Workload

CANDIDATE_KEYS = ("schedule", "recompute", "micro_batch", "options")  # what a further plan may say beside its widths


@dataclass(frozen=True)
class Scenario:
    """A resolved scenario: a run and what is asked of it. `document` is what it was made from, includes merged."""

    name: str
    run: Run
    tokens: float
    question: str = ""
    phases: tuple[Phase, ...] = ()
    candidates: tuple[Plan, ...] = ()
    jitter: Mapping[str, float] = field(default_factory=dict)
    prices: Mapping[str, object] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 20
    horizon_s: float | None = None
    seed: int = 0
    allow_oom: bool = False  # a plan that is over the memory estimate is shown, not refused
    what_if: tuple[tuple[str, Mapping[str, Any], str], ...] = ()
    assumptions: tuple[Mapping[str, str], ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> ModelSpec:
        """What is trained."""
        return self.run.model

    @property
    def cluster(self) -> Cluster:
        """What it is trained on."""
        return self.run.cluster

    @property
    def plan(self) -> Plan:
        """How it is laid out."""
        return self.run.plan

    @property
    def workload(self) -> Workload:
        """What a step trains on."""
        return self.run.workload

    @property
    def precision(self) -> str:
        """Of the matmuls."""
        return self.run.precision

    @property
    def stack(self) -> Stack:
        """The software that trains it."""
        return self.run.stack


# ------------------------------------------------------------------ resolving


def load_scenario(path: str | Path, changes: list[str] | None = None, **replaced: object) -> Scenario:
    """Read, change and resolve a scenario. `replaced`: top-level keys (None ones are left alone)."""
    return resolve(load_document(path, changes, **replaced), Path(path).stem)


def load_document(path: str | Path | None, changes: list[str] | None = None, **replaced: object) -> dict[str, Any]:
    """A scenario file as a document, changed as `load_scenario` does; its plan may still be automatic.

    Without a file the changes are all of it, and what they leave of the plan is open.
    """
    document = read_scenario_document(path) if path is not None else {"plan": {"auto": True}}
    if replaced.get("model") is not None and document.get("model") is not None:
        document = for_another_model(document, load_model(replaced["model"]))  # type: ignore[arg-type]  # refused there
    for key, value in replaced.items():
        if value is not None:
            document = set_path(document, [key], value)
    if replaced.get("cluster") is not None and replaced.get("chip") is None:
        document.pop("chip", None)  # the chip of the file's own cluster
    for text in changes or []:
        document = set_value(document, text)
    return document


def for_another_model(document: Mapping[str, Any], model: ModelSpec) -> dict[str, Any]:
    """The scenario without what is of its own model: stages, the indexer, wider expert parallelism than experts."""
    out = {k: v for k, v in document.items() if k != "attention"}
    out["options"] = {k: v for k, v in (out.get("options") or {}).items() if k not in ("stages", *ENDS)}

    def narrowed(plan: object) -> object:
        if not isinstance(plan, Mapping) or not isinstance(plan.get("ep"), int):
            return plan
        return {**plan, "ep": math.gcd(plan["ep"], model.experts) if model.experts else 1}

    out["plan"] = narrowed(out.get("plan"))
    out["plans"] = [narrowed(p) for p in out.get("plans") or ()]
    own = document["model"] if isinstance(document["model"], str) else "another model"
    note = {
        "text": f"the scenario is of {own}: its plan, batch and phases are kept for {model.name}, its stages are not",
        "kind": "assumed",
        "source": "--model",
    }
    out["assumptions"] = [note, *(out.get("assumptions") or ())]
    return out


def resolve(document: Mapping[str, Any], name: str = "scenario") -> Scenario:
    """From a mapping to a `Scenario`. Everything that can be wrong is refused here, before anything is computed."""
    document = canonical_document(document, name)
    if document.get("model") is None:
        raise InputError(f"{name}: has no 'model'; a scenario needs model, cluster or chip, chips and plan")
    if (document.get("plan") or {}).get("auto"):
        raise InputError(
            f"{name}: plan auto is completed by a command (clustersim run, plan, campaign, sweep) before it gets here; "
            "from Python, by sim.planner.planner.complete(document)"
        )
    with located(name):
        document = with_defaults(document)
    values = SCENARIO.read(document, name)
    with located(name):
        phases = read_phases(values.get("phases"))
        check_tokens(phases, values.get("tokens"))
        values["model"] = attended(load_model(values["model"]), values.get("attention"))
        spec = replace(read_run(values), chips_assumed=False)  # without `chips`, all of the cluster
        run = build_run(spec)
        candidates = tuple(_candidate(one, document, spec) for one in values.get("plans") or ())
    campaign = values.get("campaign", {})
    seeds = campaign.get("seeds", 20)
    if not 2 <= seeds <= 100_000:
        raise InputError(f"{name}: campaign.seeds={seeds}: give 2 to 100,000")
    prices = values.get("prices", {})
    for key in ("years", "utilization"):
        if prices.get(key) == 0:
            raise InputError(f"{name}: prices.{key}=0: must be more than 0")
    jitter = values.get("jitter", {})
    return Scenario(
        name=values.get("name", name),
        question=values.get("question", ""),
        run=run,
        tokens=values["tokens"],
        phases=phases,
        candidates=candidates,
        jitter={"slow_factor": 1.0, **jitter} if "slow_share" in jitter else jitter,
        prices=prices,
        failures=values.get("failures", {}),
        checkpoint=values.get("checkpoint", {}),
        seeds=seeds,
        horizon_s=campaign.get("horizon"),
        seed=values.get("seed", 0),
        allow_oom=values.get("allow_oom", False),
        what_if=_what_if(values.get("what_if") or (), name),
        assumptions=_assumptions(values.get("assumptions") or (), name),
        document=document,
    )


def attended(model: ModelSpec, attention: str | None) -> ModelSpec:
    """The model as a question trains it: with its indexer, or dense."""
    attention = attention or ("sparse" if model.index_topk else "dense")
    if attention == "sparse" and not model.index_topk:
        raise InputError(f"attention sparse: the model {model.name} has no indexer; use attention: dense")
    return dense(model) if attention == "dense" else model


def dense(model: ModelSpec) -> ModelSpec:
    """The same model before sparse attention: every query reads every visible key, no indexer."""
    return dataclasses.replace(model, index_topk=0, index_heads=0, index_dim=0, indexer_full_layers=0)


def _candidate(raw: object, document: Mapping[str, Any], spec: RunSpec) -> Plan:
    """A further plan for other phases: plan widths, and its own schedule, recompute, micro_batch or options."""
    if not isinstance(raw, Mapping):
        raise InputError(
            f"plans: {shorten(raw)} is not a plan; give mappings such as {{tp: 8, pp: 16, cp: 4, dp: 195}}"
        )
    own = {key: raw[key] for key in raw if RUN.name_of(key) in CANDIDATE_KEYS}
    widths = {key: value for key, value in raw.items() if key not in own}
    if isinstance(own.get("options"), Mapping):
        own["options"] = merge(document.get("options") or {}, OPTIONS.canonical(own["options"], "plans: options"))
    read = RUN.read({**own, "plan": widths}, "plans")
    candidate = replace(spec, plan={}, schedule=None)
    candidate = replace(candidate, **{key: value for key, value in read.items()})
    stack, _ = resolve_stack(spec.stack, spec.cluster.chip)
    return build_plan(candidate, stack, [])


def _what_if(raw: Any, name: str) -> tuple[tuple[str, Mapping[str, Any], str], ...]:
    out = []
    for i, one in enumerate(raw):
        where = f"{name}: what_if[{i}]"
        values = WHAT_IF.read(one, where) if isinstance(one, Mapping) else {}
        if "set" not in values:
            raise InputError(
                f"{where}: must have name and set, such as {{name: larger batch, set: {{global_tokens: 256M}}}}"
            )
        changes = canonical_document(values["set"], f"{where}: set")
        out.append((values.get("name", f"what if {i + 1}"), changes, values.get("note", "")))
    return tuple(out)


def _assumptions(raw: Any, name: str) -> tuple[Mapping[str, str], ...]:
    out = []
    for i, one in enumerate(raw):
        where = f"{name}: assumptions[{i}]"
        values = ASSUMPTION.read(one, where) if isinstance(one, Mapping) else {}
        if not values.get("text"):
            raise InputError(f"{where}: must have text, kind and source")
        kind, source = values.get("kind", "assumed"), values.get("source", "")
        out.append({"text": values["text"], "kind": kind, "source": source})
    return tuple(out)
