"""Work cut into chunks of queries, over buffers that chunks reuse, so that memory stays bounded at any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Work is cut into chunks of queries so that what a chunk touches stays in the processor's cache.
SCORE_FLOATS = 1 << 20  # indexer scores (Hi·n·S) of one chunk


GATHER_FLOATS = 12 << 16  # gathered keys (n·k·R) of one chunk


ACCELERATOR_CHUNK = 256  # times as much on an accelerator, which wants few large operations (not measured)


class Workspace:
    """Buffers that chunks reuse: fresh memory costs a page fault per 4 KiB,
    more than the arithmetic done on it here."""

    def __init__(self, like: Tensor):
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, overwritten by the next call with the same name."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size + size // 4)  # the next chunk may be a little larger
        return self.buffers[name][:size].view(shape)


def chunk_budget(floats: int, device: torch.device) -> int:
    """Numbers that one chunk may hold: `floats` on a CPU, more on an accelerator."""
    return floats if device.type == "cpu" else floats * ACCELERATOR_CHUNK


def query_chunks(B: int, T: int, floats_per_query: int, budget: int) -> list[tuple[int, slice]]:
    """(sequence, slice of its queries) for B sequences of T queries, each chunk within the budget."""
    step = max(1, budget // floats_per_query)
    return [(b, slice(start, min(T, start + step))) for b in range(B) for start in range(0, T, step)]


def gather_rows(store: Tensor, index: Tensor, space: Workspace) -> Tensor:
    """Rows (n·k, R) of (S, R) as (n, k, R)."""
    n, k = index.shape
    keys = space("keys", n * k, store.shape[-1])
    return torch.index_select(store, 0, index.flatten(), out=keys).view(n, k, -1)


def sum_in_order(parts: tuple[Tensor, ...]) -> Tensor:
    """Adds the threads' shares, in order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def scatter_rows(store: Tensor, index: Tensor, rows: Tensor) -> None:
    """store[index[i]] += rows[i], in a fixed order."""
    store.scatter_add_(0, index.unsqueeze(-1).expand_as(rows), rows)
