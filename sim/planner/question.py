"""A planner's question: model, machine, batch and objective, from names and human units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from sim.base.units import parse, whole
from sim.cost import money
from sim.cost.stacks import Stack, resolve
from sim.planner.search import OBJECTIVES
from sim.planner.space import Space, default_space
from sim.scenario.build import TRAINED_PRECISIONS, read_cluster
from sim.scenario.fields import RUN
from sim.spec.hardware import Chip, Cluster
from sim.spec.model import ModelSpec
from sim.spec.model_loader import load_model
from sim.spec.plan import Workload

ModelSource = str | Path | Mapping[str, Any] | ModelConfig | ModelSpec


@dataclass(frozen=True)
class Question:
    """What is asked. `batch` in sequences; `fixed` pins plan fields or axes; `stated`: defaults that were taken."""

    model: ModelSpec
    cluster: Cluster
    cluster_chips: int
    seq: int
    batch: int
    tokens: float
    objective: str
    precision: str
    stack: Stack
    tolerance: float = 0.0
    fixed: Mapping[str, object] = field(default_factory=dict)
    schedules: tuple[str, ...] | None = None
    prices: Mapping[str, object] = field(default_factory=dict)
    stated: tuple[str, ...] = ()
    mtp: bool = True

    @property
    def workload(self) -> Workload:
        """One step's batch."""
        return Workload(self.batch, self.seq, mtp=self.mtp)

    def to_dict(self) -> dict[str, Any]:
        """The question as plan.json and the page's saved result hold it."""
        return {
            "model": self.model.name,
            "cluster": self.cluster.name,
            "chip": self.cluster.chip.name,
            "chips": self.cluster_chips,
            "seq": self.seq,
            "batch": self.batch,
            "batch_tolerance": self.tolerance,
            "tokens": self.tokens,
            "objective": self.objective,
            "precision": self.precision,
            "stack": self.stack.name,
        }


def question(  # noqa: PLR0913 (keywords, each a part of the question)
    model: ModelSource,
    cluster: str | Mapping[str, Any] | Cluster | None = None,
    chips: object = None,
    *,
    chip: str | Mapping[str, Any] | Chip | None = None,
    seq: object = None,
    batch: object = None,
    batch_tokens: object = None,
    tokens: object = "1T",
    objective: str = "tokens",
    precision: str = "bf16",
    stack: str | None = None,
    tolerance: float | None = None,
    fixed: Mapping[str, object] | None = None,
    schedules: tuple[str, ...] | None = None,
    prices: Mapping[str, object] | None = None,
    mtp: bool = True,
) -> Question:
    """A question from names and human units.

    batch: sequences, kept exactly. batch_tokens: tokens, met within 2% (or `tolerance`), as replicas rarely divide it.
    Raises:
        InputError: one line.
    """
    spec, stated = load_model(model), []
    if cluster is None and chip is None:
        raise InputError(
            "neither a cluster nor a chip is given; name one, such as --cluster dgx_h100 (names are in data/clusters)"
        )
    machine, _ = read_cluster({"cluster": cluster, "chip": chip})
    count = machine.num_chips if chips is None else RUN["chips"].read(chips, "chips")
    length = min(spec.max_seq, 4096) if seq is None else RUN["seq"].read(seq, "seq")
    if seq is None:
        stated.append(f"sequences of {length:,} tokens")
    if length > spec.max_seq:
        stated.append(f"sequences of {length:,} tokens, longer than the {spec.max_seq:,} that {spec.name} is made for")
    if batch is not None and batch_tokens is not None:
        raise InputError("batch and batch_tokens are both given; keep one")
    if batch is not None:
        size = whole(parse(batch, "count", "batch", low=1.0), "batch", high=10**9)
    else:
        if batch_tokens is None:
            stated.append("a batch of 16M tokens")
        size = max(
            1,
            round(
                parse("16M" if batch_tokens is None else batch_tokens, "count", "batch_tokens", low=1.0, high=1e13)
                / length
            ),
        )
        tolerance = 0.02 if tolerance is None else tolerance
    if objective not in OBJECTIVES:
        raise InputError(f"objective {objective!r}: not one of {', '.join(OBJECTIVES)}{nearest(objective, OBJECTIVES)}")
    if precision not in TRAINED_PRECISIONS:
        known = ", ".join(TRAINED_PRECISIONS)
        raise InputError(f"precision {precision!r}: not one of {known}{nearest(precision, TRAINED_PRECISIONS)}")
    release, notes = resolve(stack, machine.chip)
    stated += notes
    total = parse(tokens, "count", "tokens", low=1.0, high=1e18)
    machine = money.with_prices(machine, prices or {})
    if objective == "cost" and machine.chip.rent_usd_per_hour is None and machine.system_price_usd is None:
        raise InputError(
            f"objective cost: no price of {machine.chip.name} is known; give one with --chip-hour-price '$2/h' or "
            "prices.rent_usd_per_hour, or "
            "choose --objective tokens"
        )
    return Question(
        spec,
        machine,
        count,
        length,
        size,
        total,
        objective,
        precision,
        release,
        tolerance or 0.0,
        fixed or {},
        schedules,
        prices or {},
        tuple(stated),
        mtp,
    )


def space_of(q: Question) -> Space:
    """The plans that answer the question."""
    return default_space(
        q.model,
        q.cluster,
        q.cluster_chips,
        q.seq,
        q.batch,
        tolerance=q.tolerance,
        schedules=q.schedules,
        fixed=q.fixed,
        mtp=q.mtp,
    )
