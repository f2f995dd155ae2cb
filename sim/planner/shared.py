"""What each cost of a candidate depends on: plans that agree in that share it, and it is computed once.

`cached` keeps a method of `sim.planner.candidates.PlanCosts` under a key; the keys are beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sim.planner.candidate import Candidate, ChunkLayout

Value = TypeVar("Value")
Key = tuple[object, ...]
WORK_SWITCHES = ("sp", "overlap_tp", "overlap_all_to_all", "recompute_modules")  # those that change a layer's work
LAYER_SWITCHES = (*WORK_SWITCHES, "activation_offload")  # and its cost


class Costs(Protocol):
    """What the keys read of `sim.planner.candidates.PlanCosts`."""

    known: dict[str, dict[Key, Any]]
    switches: tuple[Mapping[str, Any], ...]
    layer_set: Sequence[int]
    work_set: Sequence[int]
    once_set: Sequence[int]

    def layout(self, c: Candidate, /) -> ChunkLayout:
        """Which chunks each pipeline rank holds."""

    def stage_message_s(self, c: Candidate, /) -> float:
        """Seconds of one message between pipeline stages."""


def cached(
    key: Callable[[Any, Candidate], Key],
) -> Callable[[Callable[[Any, Candidate], Value]], Callable[[Any, Candidate], Value]]:
    """A method of `PlanCosts` that is computed once for all candidates with the same `key`."""

    def decorate(compute: Callable[[Any, Candidate], Value]) -> Callable[[Any, Candidate], Value]:
        name = compute.__name__

        @functools.wraps(compute)
        def method(self: Any, c: Candidate) -> Value:
            known = self.known[name]
            of = key(self, c)
            try:
                return known[of]  # one hash: this runs some ten times a plan
            except KeyError:
                value = known[of] = compute(self, c)
            return value

        return method

    return decorate


def layer_key(costs: Costs, c: Candidate) -> Key:
    """Widths that a layer's operators depend on."""
    paired = c.schedule.startswith("dualpipe")
    return (c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, paired, costs.layer_set[c.switches])


def work_key(costs: Costs, c: Candidate) -> Key:
    """As `layer_key`: where a layer keeps its activations changes its cost, not its work."""
    paired = c.schedule.startswith("dualpipe")
    return (c.tp, c.cp, c.ep, c.etp, c.micro_batch, c.recompute, paired, costs.work_set[c.switches])


def sharded_layer_key(costs: Costs, c: Candidate) -> Key:
    """As `layer_key`, and the replicas that ZeRO-3 gathers weights over."""
    if c.zero == 3 and c.dp * c.cp > 1:
        return (*layer_key(costs, c), c.dp, costs.switches[c.switches].get("hsdp", 0))
    return layer_key(costs, c)


def layout_key(costs: Costs, c: Candidate) -> Key:
    """What the cut of the model into chunks depends on."""
    return (layer_key(costs, c), c.pp, c.vpp, c.schedule, c.mtp_before_head, c.stages)


def loads_key(costs: Costs, c: Candidate) -> Key:
    """What a pipeline's ranks do depends on."""
    hops = costs.stage_message_s(c) if c.mtp_before_head and c.pp > 1 else 0.0
    return (sharded_layer_key(costs, c), c.pp, c.vpp, c.schedule, c.mtp_before_head, c.stages, hops)


def params_key(costs: Costs, c: Candidate) -> Key:
    """What the weights of each rank depend on."""
    return (c.tp, c.ep, c.etp, c.pp, c.vpp, c.schedule, c.mtp_before_head, costs.layout(c).stages)


def message_key(costs: Costs, c: Candidate) -> Key:
    """What a message between stages depends on."""
    return (c.tp, c.cp, c.dp, c.micro_batch, costs.work_set[c.switches])


def data_parallel_key(costs: Costs, c: Candidate) -> Key:
    """What gradient reduction, gather and optimiser depend on."""
    return (*params_key(costs, c), c.cp, c.dp, c.zero, costs.once_set[c.switches])
