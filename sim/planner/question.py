"""A planner's question, read from the document that a scenario file is: whatever asks goes through here.

    q = question("glm5", chips=100_000, chip="910b")          # a notebook; `clustersim plan` and the page do the same
    q = read_question(load_document("my.yaml"))               # a file with plan: auto, or {tp: 8, pp: auto}
    complete(q.document)                                      # the same document with the best plan written into it

What is not said takes the one table of defaults (`sim.scenario.defaults`). A plan's fields that are given are pinned,
the others are searched; with all of them given there is nothing to search and the document is its own answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError
from sim.base.fields import located
from sim.base.figure import Figure
from sim.cost import money
from sim.cost.stacks import Stack, resolve
from sim.planner.search import OBJECTIVES
from sim.planner.space import Space, default_space
from sim.scenario.build import TRAINED_PRECISIONS, plan_options, read_cluster, stack_with, stages_of, workload_options
from sim.scenario.defaults import with_defaults
from sim.scenario.fields import OPTIONS, PLAN, SCENARIO, Recompute
from sim.scenario.file import canonical_document, set_path
from sim.scenario.phases import check_indexer, check_tokens, read_phases
from sim.scenario.training import attended
from sim.spec.hardware import Cluster
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import WIDTHS, Workload

ModelSource = str | Path | Mapping[str, Any] | ModelConfig | ModelSpec
BATCH_TOLERANCE = 0.02  # of a batch in tokens, as replicas rarely divide it
OPTION_OF = {"sp": "sequence_parallel", "offload": "optimizer_offload"}  # fields of `Plan` → a document's options
_KEYS = ("schedule", "micro_batch", "recompute")  # of a document's first level; the rest of WIDTHS is in plan, options


@dataclass(frozen=True)
class Question:
    """What is asked, read. `pinned`: fields of the plan that are given, each a value or a list of values to search.

    `cluster` has as many chips as there are; `workload` the batch that is asked for; `stated`: assumptions.
    """

    document: Mapping[str, Any]
    model: ModelSpec
    cluster: Cluster
    workload: Workload
    tokens: float
    objective: str
    precision: str
    stack: Stack
    tolerance: float
    pinned: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, object] = field(default_factory=dict)
    stated: tuple[str, ...] = ()

    @property
    def seq(self) -> int:
        """Tokens of a sequence."""
        return self.workload.seq

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return self.workload.global_batch

    @property
    def is_open(self) -> bool:
        """Whether anything of the plan is to be searched."""
        return bool((self.document.get("plan") or {}).get("auto"))

    def to_dict(self) -> dict[str, Any]:
        """The question as plan.json and the page's saved result hold it."""
        return {
            "model": self.model.name,
            "attention": "sparse" if self.model.index_topk else "dense",
            "cluster": self.cluster.name,
            "chip": self.cluster.chip.name,
            "chips": self.cluster.num_chips,
            "seq": self.seq,
            "batch": self.batch,
            "batch_tolerance": self.tolerance,
            "tokens": self.tokens,
            "objective": self.objective,
            "precision": self.precision,
            "stack": self.stack.name,
        }


def read_question(
    document: Mapping[str, Any], name: str = "question", choices: Mapping[str, Any] | None = None
) -> Question:
    """The question that a document asks.

    Args:
        choices: fields of the plan with the values that are searched of each, beside what the document pins.
    Raises:
        InputError: one line, as a scenario file would be refused with.
    """
    document = canonical_document(document, name)
    with located(name) if name != "question" else _nowhere():
        document = with_defaults(document)
    values = SCENARIO.read(document, name)
    with located(name) if name != "question" else _nowhere():
        whole = load_model(values["model"])
        phases = read_phases(values.get("phases"))
        check_indexer(phases, whole)
        check_tokens(phases, values["tokens"])
        model = attended(whole, values.get("attention"))
        machine, assumed = read_cluster(values)
        release, notes = resolve(values.get("stack"), machine.chip)
    # one spelling of every amount: '100k' and 100000 are one question
    document |= {k: values[k] for k in ("chips", "seq", "tokens", "global_batch", "global_tokens") if k in values}
    stated = list(notes) + ([f"nodes and network: {machine.name}"] if assumed else [])
    seq, options = values["seq"], values.get("options", {})
    if seq > model.max_seq:
        stated.append(f"sequences of {seq:,} tokens, longer than the {model.max_seq:,} that {model.name} is made for")
    if values.get("precision") not in TRAINED_PRECISIONS:
        raise InputError(
            f"precision {values['precision']!r}: training is simulated in {', '.join(TRAINED_PRECISIONS)}; give one of "
            "them"
        )
    exact = values.get("global_batch")
    if not exact and values["global_tokens"] < seq:
        raise InputError(
            f"global_tokens {values['global_tokens']:,.0f}: less than one sequence of {seq:,} tokens; give at least "
            f"{seq}"
        )
    tolerance = values.get("batch_tolerance", 0.0 if exact else BATCH_TOLERANCE)
    workload = Workload(exact or max(1, round(values["global_tokens"] / seq)), seq, **workload_options(options))
    prices = values.get("prices", {})
    machine = money.with_prices(machine, prices)
    objective = values["objective"]
    if objective == "cost" and machine.chip.rent_usd_per_hour is None and machine.system_price_usd is None:
        raise InputError(
            f"objective cost: no price of {machine.chip.name} is known; give one with --chip-hour-price '$2/h' or "
            "prices.rent_usd_per_hour, or choose --objective tokens"
        )
    return Question(
        document,
        model,
        machine,
        workload,
        values["tokens"],
        objective,
        values["precision"],
        stack_with(release, options),
        tolerance,
        {**_pinned(values, model.layers), **(choices or {})},
        prices,
        tuple(stated),
    )


class _nowhere:
    """Errors stay as they are: the question has no file."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _pinned(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Fields of the plan that a document gives, under their names in `sim.spec.plan.Plan`."""
    out = {k: v for k, v in values.get("plan", {}).items() if k != "auto"}
    out |= {k: values[k] for k in _KEYS if k in values}
    options = values.get("options", {})
    out |= plan_options(options) | stages_of(options, out, layers)
    if isinstance(out.get("recompute"), Recompute):
        again = out.pop("recompute")
        out["recompute"] = again.kind
        if again.layers is not None:
            out["recompute_layers"] = again.layers
    if out.get("recompute_layers") is not None and values.get("plan", {}).get("auto"):
        raise InputError(
            f"recompute of {out['recompute_layers']} layers: a search recomputes all layers of a kind or none; leave "
            "the layers out, or give the whole plan"
        )
    return out


def question(  # noqa: PLR0913 (keywords, each a part of the question)
    model: ModelSource,
    cluster: str | Mapping[str, Any] | None = None,
    chips: object = None,
    *,
    chip: str | Mapping[str, Any] | None = None,
    seq: object = None,
    batch: object = None,
    batch_tokens: object = None,
    tokens: object = None,
    objective: str | None = None,
    precision: str | None = None,
    stack: str | None = None,
    tolerance: float | None = None,
    fixed: Mapping[str, object] | None = None,
    schedules: tuple[str, ...] | None = None,
    prices: Mapping[str, object] | None = None,
    attention: str | None = None,
    phases: object = None,
    options: Mapping[str, object] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Question:
    """A question from names and human units; what is None takes its default.

    batch: sequences, kept exactly. batch_tokens: tokens, met within 2% (or `tolerance`), as replicas rarely divide it.
    fixed: fields of the plan that are pinned; a list of values searches those. base: a document that the rest changes.
    Raises:
        InputError: one line.
    """
    if batch is not None and batch_tokens is not None:
        raise InputError("batch and batch_tokens are both given; keep one")
    if objective is not None and objective not in OBJECTIVES:
        SCENARIO["objective"].read(objective, "objective")
    if cluster is None and chip is None and not base:
        raise InputError(
            "neither a cluster nor a chip is given; name one, such as --cluster dgx_h100 (names are in data/clusters)"
        )
    said = {
        "model": model,
        "cluster": cluster,
        "chip": chip,
        "chips": chips,
        "seq": seq,
        "global_batch": batch,
        "global_tokens": batch_tokens,
        "tokens": tokens,
        "objective": objective,
        "precision": precision,
        "stack": stack,
        "batch_tolerance": tolerance,
        "attention": attention,
        "phases": phases,
    }
    other_batch = {"global_batch"} if batch_tokens is not None else {"global_tokens"} if batch is not None else set()
    document: dict[str, Any] = {k: v for k, v in (base or {}).items() if k not in other_batch}
    document |= {k: v for k, v in said.items() if v is not None}
    if prices:
        document["prices"] = {**document.get("prices", {}), **{k: plain(v) for k, v in prices.items()}}
    document["options"] = {**(document.get("options") or {}), **(options or {})}
    choices: dict[str, Any] = {}
    given = dict(fixed or {})
    if schedules is not None:
        given["schedule"] = list(schedules) if len(schedules) != 1 else schedules[0]
    for key, value in given.items():
        _pin(document, choices, key, value)
    if not base:
        document["plan"] = {"auto": True, **document.get("plan", {})}
    if all(name in read_pins(document) for name in WIDTHS):
        document["plan"] = {k: v for k, v in document["plan"].items() if k != "auto"}
    return read_question(document, choices=choices)


def read_pins(document: Mapping[str, Any]) -> set[str]:
    """Names of the plan's fields that a document gives."""
    return {*(document.get("plan") or {}), *(k for k in _KEYS if k in document), *(document.get("options") or {})}


def _pin(document: dict[str, Any], choices: dict[str, Any], key: str, value: object) -> None:
    """Write a pinned field of the plan where a file would have it; several values are choices of the search. Any other
    key of a scenario is changed as in a file, `plans` and `failures.level` among them."""
    key = OPTION_OF.get(key, key)
    if SCENARIO.name_of(key.partition(".")[0]) not in (None, *_KEYS):
        document |= set_path(document, key.split("."), value)
    elif isinstance(value, (list, tuple)) and key not in ("stages", "recompute_modules"):
        choices[{v: k for k, v in OPTION_OF.items()}.get(key, key)] = list(value)
    elif key in PLAN:
        document["plan"] = {**(document.get("plan") or {}), key: value}
    elif key in _KEYS:
        document[key] = value
    elif key in OPTIONS:
        document["options"] = {**document["options"], key: list(value) if isinstance(value, tuple) else value}
    else:  # `sp`, `offload`, or a name that the space refuses with the nearest
        choices[key] = value


def space_of(q: Question) -> Space:
    """The plans that answer the question."""
    return default_space(
        q.model,
        q.cluster,
        q.seq,
        q.batch,
        tolerance=q.tolerance,
        fixed=q.pinned,
        mtp=q.workload.mtp,
        unfused=q.stack.attention == "unfused",
    )


def with_pins(q: Question, **pinned: object) -> Question:
    """The same question with further fields of the plan pinned."""
    return replace(q, pinned={**q.pinned, **pinned})


def plain(value: object) -> object:
    """A value as a file writes it."""
    if isinstance(value, Figure):
        return {k: getattr(value, k) for k in ("value", "low", "high", "source", "confidence")}
    return value
