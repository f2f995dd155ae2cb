"""A plan as a search enumerates it, and the parts of its cost that plans share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

from sim.cost import memory
from sim.cost.layer import LayerEstimator
from sim.cost.layer_cost import LayerWork
from sim.cost.parameters import Held
from sim.spec.plan import chunk_numbers


class Candidate(NamedTuple):
    """A plan and its batch as a search enumerates them. `batch` in sequences; `switches` index `PlanCosts.switches`.

    Its pipeline is cut by `sim.planner.stages.balanced` unless `stages` says how.
    """

    tp: int
    cp: int
    ep: int
    etp: int
    micro_batch: int
    recompute: str
    pp: int
    vpp: int
    schedule: str
    dp: int
    zero: int
    batch: int
    switches: int = 0
    mtp_before_head: int = 0
    stages: tuple[int, ...] = ()  # (): balanced

    @property
    def num_chips(self) -> int:
        """Chips that the plan uses."""
        return self.tp * self.cp * self.pp * self.dp


class SharedWork(NamedTuple):
    """What candidates with equal layers on a chip share:
    the work of each kind of layer and of the ends, activations.
    """

    estimator: LayerEstimator
    kinds: dict[str, tuple[tuple[float, LayerWork], ...]]
    ends: tuple[LayerWork, LayerWork, LayerWork | None]
    activations: memory.SavedActivations


class PhaseSeconds(NamedTuple):
    """Seconds of one micro-batch: forward, input gradient, weight gradient, and the hideable parts of the first two."""

    forward: float
    backward: float
    weight: float
    hide_forward: float
    hide_backward: float


class DataParallelCosts(NamedTuple):
    """What a step costs once: seconds of the gradient reduction, the parameter gather and the optimiser."""

    grad_reduce_s: float
    param_gather_s: float
    optimizer_s: float
    overlap_grad_reduce: bool
    overlap_p2p: bool | None  # None: the stack's default


class StepParts(NamedTuple):
    """What `sim.cost.closed_form.step_time_of` asks beside the loads, as in `StepCosts`."""

    micro_batches: int
    p2p_s: float
    grad_reduce_s: float
    param_gather_s: float
    overlap_grad_reduce: bool
    optimizer_s: float
    fixed_s: float


class ChunkKind(NamedTuple):
    """What a chunk holds. Chunks that are equal cost the same."""

    dense: int
    moe: int
    first: bool
    depths: bool
    last: bool
    hops: tuple[bool, bool] = (False, False)  # whether the depths' streams leave it forwards, and backwards


@dataclass(frozen=True)
class ChunkLayout:
    """Where layers lie: pp × vpp chunks, `stages` layers in each.

    `ranks[r]` indexes `kinds`, each a tuple of chunks.
    """

    pp: int
    vpp: int
    schedule: str
    stages: tuple[int, ...]
    ranks: tuple[int, ...]
    kinds: tuple[tuple[ChunkKind, ...], ...]
    first_of: tuple[int, ...]  # the first rank of each kind: it holds most micro-batches in flight

    @functools.cached_property
    def held(self) -> tuple[Held, ...]:
        """Of each kind of rank."""
        return tuple(
            Held(
                sum(chunk.dense for chunk in chunks),
                sum(chunk.moe for chunk in chunks),
                sum(chunk.first for chunk in chunks),
                sum(chunk.depths for chunk in chunks),
                sum(chunk.last for chunk in chunks),
            )
            for chunks in self.kinds
        )


@functools.lru_cache(maxsize=4096)  # layers that take different times are cut alike as a rule
def chunk_layout(
    stages: tuple[int, ...], pp: int, vpp: int, schedule: str, dense_layers: int, mtp_before_head: int, mtp: bool
) -> ChunkLayout:
    """The layout of a pipeline with so many layers in each chunk, the first `dense_layers` of the model dense.

    mtp: whether prediction depths are trained.
    """
    chunks, start, last = [], 0, len(stages) - 1
    for i, n in enumerate(stages):
        dense = max(0, min(n, dense_layers - start))
        ahead = i - (last - mtp_before_head) if mtp and mtp_before_head else -1
        hops = (0 <= ahead < mtp_before_head, ahead > 0)
        chunks.append(ChunkKind(dense, n - dense, i == 0, mtp and i == last - mtp_before_head, i == last, hops))
        start += n
    ranks = [tuple(chunks[number] for number in numbers) for numbers in chunk_numbers(schedule, pp, vpp)]
    kinds = tuple(dict.fromkeys(ranks))
    place = {kind: i for i, kind in enumerate(kinds)}
    return ChunkLayout(
        pp, vpp, schedule, stages, tuple(place[r] for r in ranks), kinds, tuple(ranks.index(k) for k in kinds)
    )
