"""What a step's losses are divided by. One law: the mean over everything that the whole optimiser step counts.

A step may be cut: into several forward passes (`grad_accum`), over processes, into rows that are packed or not. A mean
of the parts' means gives a part with few counted tokens more than its due, so that loss and gradient depend on the cut.
Hence every part divides by the counts of the whole step, and the parts are summed:

    lm_loss       Σ over the step's targets that are not -100, by their number
    mtp_loss      the same at each depth, with the labels of that depth; then the mean over depths
    indexer_kl    Σ over the step's queries of documents with something to learn, by their number; padding is none
    balance_loss  defined per row (sequence-wise): Σ over the step's rows, by their number

Shapes: B rows, T positions, D depths of multi-token prediction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from minglm.data.shards import IGNORE
from minglm.model.mtp import shift_targets


@dataclass(frozen=True)
class StepCounts:
    """Counts over all forward passes of one optimiser step; entry d of a tensor is of MTP depth d, 0 the main model."""

    targets: Tensor  # (D + 1,) int64, labels that are not -100
    queries: Tensor  # (D + 1,) int64, queries whose KL counts
    rows: int  # sequences

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor | None]], depths: int = 0) -> StepCounts:
        """Counts of a step whose forward passes have these (targets (B, T), doc_start (B, T) or None)."""
        targets, queries, rows = [], [], 0
        for labels, doc_start in batches:
            here = range(min(depths, labels.shape[1] - 1) + 1)
            targets.append(torch.stack([(shift_targets(labels, d, doc_start) != IGNORE).sum() for d in here]))
            queries.append(torch.stack([counted_queries(labels, doc_start, d).sum() for d in here]))
            rows += len(labels)
        return cls(torch.stack(targets).sum(0), torch.stack(queries).sum(0), rows)

    def to(self, device: torch.device) -> StepCounts:
        """The same on a device."""
        return StepCounts(self.targets.to(device), self.queries.to(device), self.rows)


def counted_queries(targets: Tensor, doc_start: Tensor | None, depth: int = 0) -> Tensor:
    """(B, T − depth) bool: the query's document has a target in this row, and the token that depth joins is of it too.

    Padding, and what follows the last word to learn in another document, has no target: it counts nothing.
    """
    taught = targets != IGNORE
    if doc_start is None:
        return taught.any(1, keepdim=True).expand(-1, targets.shape[1] - depth)
    by_document = torch.zeros_like(targets).scatter_add(1, doc_start, taught.to(targets.dtype))  # at its first position
    counted, end = by_document.gather(1, doc_start) > 0, targets.shape[1] - depth
    return counted[:, :end] & (doc_start[:, depth:] == doc_start[:, :end])


def query_weights(counted: Tensor, queries: Tensor) -> Tensor:
    """What each query's KL counts in the step's mean, (B, T) fp32, from `counted_queries` and the step's number."""
    return counted.to(torch.float32) / queries.clamp(min=1)
