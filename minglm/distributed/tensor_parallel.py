"""Attention heads split over processes (Shoeybi et al. 2019, arXiv 1909.08053, for MLA).

The up-projections of queries, keys and values are cut by head along their rows, the output projection along its
columns. Down-projections, norms, the indexer and the feed-forward are computed by every process of the group: in MLA
they are the small part of attention, and experts have an axis of their own. What flows into a cut weight gets its
gradient summed over the group, what flows out of one is summed itself;
so every other gradient is equal on all of the group, bit for bit.

Shapes: B batch, T positions, H heads, C hidden.
"""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.distributed.collectives import from_group, to_group
from minglm.distributed.mesh import Mesh
from minglm.model.attention import MLA


class _IntoHeads(nn.Module):
    """x (B, T, in) → (B, T, out/tp): this process's rows of the weight."""

    def __init__(self, weight: Tensor, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.group = nn.Parameter(weight), group

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(to_group(x, self.group), self.weight)


class _OutOfHeads(nn.Module):
    """x (B, T, in/tp) → (B, T, out), summed over the group: this process's columns of the weight."""

    def __init__(self, weight: Tensor, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.group = nn.Parameter(weight), group

    def forward(self, x: Tensor) -> Tensor:
        return from_group(F.linear(x, self.weight), self.group)


def split_heads(mla: MLA, mesh: Mesh) -> None:
    """Keep this process's heads of one attention layer."""
    n = mesh.dims.tp
    if n == 1:
        return

    def mine(linear: nn.Linear, axis: int) -> Tensor:
        return linear.weight.detach().chunk(n, axis)[mesh.tp].clone()

    mla.num_heads //= n
    # Called as the nn.Linear it replaces.
    mla.q_b_proj = _IntoHeads(mine(mla.q_b_proj, 0), mesh.tp_group)  # type: ignore[assignment]
    mla.kv_b_proj.weight = nn.Parameter(
        mine(mla.kv_b_proj, 0)
    )  # its input is the gathered latent (ContextParallel.keys)
    mla.o_proj = _OutOfHeads(mine(mla.o_proj, 1), mesh.tp_group)  # type: ignore[assignment]
