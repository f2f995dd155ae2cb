"""Experts split over processes: each holds E/ep of them, and tokens travel to their experts and back by all-to-all.

A process sorts its (token, choice) pairs by expert, which is also by owner, tells each owner how many rows come, sends
the rows, and receives the results in the same order. No token is dropped and no capacity is set: the exchange is as
uneven as the routing. Gates are multiplied in at home.

Shapes: N tokens of this process, K chosen, C hidden, E experts, M rows received, n processes of the group.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minglm.distributed.collectives import all_to_all
from minglm.distributed.mesh import Mesh
from minglm.model.moe import Experts, MoE, grouped_swiglu


class ExpertParallel(nn.Module):
    """This process's experts, in place of `minglm.model.moe.Experts`: same call, same names of weights,
    E/ep of them."""

    def __init__(self, experts: Experts, mesh: Mesh) -> None:
        super().__init__()
        self.mesh, self.n = mesh, mesh.dims.ep
        self.E = experts.gate_up_proj.shape[0]
        mine = slice(mesh.ep * self.E // self.n, (mesh.ep + 1) * self.E // self.n)
        self.gate_up_proj = nn.Parameter(experts.gate_up_proj.detach()[mine].clone())
        self.down_proj = nn.Parameter(experts.down_proj.detach()[mine].clone())

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C), chosen (N, K), gates (N, K) → output (N, C) and this process's tokens per expert (E,) int64."""
        K, group, each = chosen.shape[1], self.mesh.ep_group, self.E // self.n
        order = torch.argsort(chosen.flatten(), stable=True)  # slots (token·K + choice) by expert
        counts = torch.bincount(chosen.flatten(), minlength=self.E)
        coming = torch.empty_like(counts)  # (n·E/n,): row i what member i sends each of mine
        dist.all_to_all_single(coming, counts, group=group)
        send, receive = counts.view(self.n, each).sum(1).tolist(), coming.view(self.n, each).sum(1).tolist()
        rows = all_to_all(x[order // K], send, receive, group)  # (M, C)
        expert = torch.arange(each, device=x.device).repeat(self.n).repeat_interleave(coming)
        out = grouped_swiglu(rows, self.gate_up_proj, self.down_proj, rows.new_ones(len(rows), 1), expert[:, None])[0]
        back = all_to_all(out, receive, send, group)  # (N·K, C), by expert
        weighted = back * gates.to(x.dtype).flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, order // K, weighted), counts


def balance_share(scores: Tensor, chosen: Tensor, mesh: Mesh, batch: int, length: int) -> Tensor:
    """This process's summand of `minglm.model.moe.balance_loss` over the whole batch.

    scores (B, T, E) and chosen (B, T, K) of this process's rows and positions; `batch` rows and `length` positions
    there are in all. The load f of a sequence counts all its positions, so it is summed over cp;
    it carries no gradient.
    """
    B, T, E = scores.shape
    share = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).sum(1) / length  # (B, E), this part's P
    load = torch.zeros(B, E, dtype=scores.dtype, device=scores.device)
    load.scatter_add_(1, chosen.flatten(1), load.new_ones(()).expand(B, T * chosen.shape[-1]))
    if mesh.dims.cp > 1:
        dist.all_reduce(load, group=mesh.cp_group)
    return (load * (E / (chosen.shape[-1] * length)) * share).sum() / batch


def split_experts(moe: MoE, mesh: Mesh) -> None:
    """Keep this process's part of a layer's experts."""
    if mesh.dims.ep > 1:
        moe.experts = ExpertParallel(moe.experts, mesh)  # type: ignore[assignment]  # same call, same names of weights
