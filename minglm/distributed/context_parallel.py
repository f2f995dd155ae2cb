"""The sequence split over processes: each keeps its queries, and the keys of all are gathered.

MLA's cached key is one latent of R numbers a token in place of 2·H·D, and the indexer has one small key, so gathering
them is cheap: all-gather in the forward pass, a sum in the backward. A process with positions t0 … t0+n needs keys 0 …
t0+n−1 and drops the rest. Parts are contiguous: with dense attention the last process computes most (3/4 of it for
two); with sparse attention every query reads the same number of keys and only the indexer is uneven.

`ContextParallel` is what attention asks (`minglm.model.attention.ForwardContext.context_parallel`): keys of all
positions, and sums over all heads.

Shapes: B batch, T positions of this process, S keys it may see, H heads of this process, k chosen keys,
R width of a key.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from minglm.distributed.collectives import gather_keys, to_group
from minglm.distributed.mesh import Mesh


class ContextParallel:
    """One forward's view of the rest of the mesh: the batch has `batch` rows of `length` positions in all."""

    def __init__(self, mesh: Mesh, batch: int, length: int) -> None:
        self.mesh, self.batch = mesh, batch
        self.offset, self.each = mesh.start(length)
        self.length = length

    def shorter(self, depth: int) -> ContextParallel:
        """The same split for a sequence without its last `depth` positions (multi-token prediction)."""
        out = ContextParallel.__new__(ContextParallel)
        out.mesh, out.batch, out.offset, out.each, out.length = (
            self.mesh,
            self.batch,
            self.offset,
            self.each,
            self.length - depth,
        )
        return out

    @property
    def own(self) -> int:
        """Positions of this process: `each`, but fewer at the end of a shortened sequence."""
        return min(self.each, self.length - self.offset)

    def keys(self, mine: Tensor, heads: bool = True) -> Tensor:
        """This process's keys (B, T, R) → all that its queries may see (B, S, R).

        heads: split heads read them, so that their gradient is to be summed over tp.
        """
        dims = self.mesh.dims
        if heads and dims.tp > 1:
            mine = to_group(mine, self.mesh.tp_group)
        if dims.cp == 1:
            return mine
        padded = F.pad(mine, (0, 0, 0, self.each - mine.shape[1]))
        return gather_keys(padded, self.mesh.cp_group, self.mesh.cp, dims.cp)[:, : self.offset + mine.shape[1]]

    def mean_heads(self, p: Tensor) -> Tensor:
        """Attention averaged over this process's heads (B, T, k) → over all; no gradient."""
        if self.mesh.dims.tp == 1:
            return p
        p = p.clone()
        dist.all_reduce(p, group=self.mesh.tp_group)
        return p / self.mesh.dims.tp

    @torch.no_grad()
    def all_heads(self, x: Tensor) -> Tensor:
        """(B, T, H, D) of this process's heads → of all; no gradient."""
        n = self.mesh.dims.tp
        if n == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(n)]
        dist.all_gather(parts, x.contiguous(), group=self.mesh.tp_group)
        return torch.cat(parts, 2)
