"""What each pipeline rank holds: its chunks, their layers by kind, and which of these are run again.

>>> from sim.spec.model_loader import load_model
>>> from sim.spec.plan import Plan
>>> first, last = chunks_by_rank(load_model("deepseek_v3"), Plan(pp=2, recompute="full", recompute_layers=4))
>>> first[0].layers(), first[0].is_first, last[0].is_last
((('dense', 3, 0), ('moe', 1, 28)), True, True)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.spec.model import ModelSpec
    from sim.spec.plan import Plan


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of the model on a rank. Recomputed layers are counted from the chunk's first one."""

    dense: int
    moe: int
    again: int  # layers that are run again
    tail: int  # 0: the prediction depths ride on it; 1, 2, …: it lies behind theirs and holds heads; -1: before theirs
    is_first: bool
    is_last: bool

    def layers(self) -> tuple[tuple[str, int, int], ...]:
        """(kind, layers run again, other layers) of both kinds."""
        dense = min(self.again, self.dense)
        moe = self.again - dense
        return ("dense", dense, self.dense - dense), ("moe", moe, self.moe - moe)


@functools.lru_cache(maxsize=256)
def chunks_by_rank(model: ModelSpec, plan: Plan, mtp: bool = True) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of every pipeline rank, in the order of `Plan.chunks_of_rank`.

    Args:
        mtp: whether the prediction depths are trained: they take room in a layout that is not given.
    """
    counts = plan.chunk_layers(model.layers, model.mtp_depth if mtp else 0)
    last = len(counts) - 1
    starts = [sum(counts[:i]) for i in range(len(counts))]
    out = []
    for rank in range(plan.pp):
        left = plan.recompute_layers if plan.recompute_layers is not None else model.layers
        row = []
        for number in plan.chunks_of_rank(rank):
            n = counts[number]
            dense = max(0, min(n, model.dense_ffn_layers - starts[number])) if model.experts else n
            again = min(left, n)
            left -= again
            tail = max(number - (last - plan.mtp_before_head), -1)
            row.append(Chunk(dense, n - dense, again, tail, number == 0, number == last))
        out.append(tuple(row))
    return tuple(out)
