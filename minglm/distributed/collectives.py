"""The exchanges that gradients flow through. Each is an autograd function whose backward is the opposite exchange.

to_group       identity,             gradients summed      before weights that are split over the group
from_group     summed,               identity              after them
gather_keys    joined along axis 1,  summed and cut        keys of a split sequence
exchange       all-to-all of rows,   all-to-all back       tokens on their way to experts
total          summed,               identity              values to print: the gradient stays this process's own
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _ToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        x = x.detach().contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _GatherKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, rank, size):  # (B, T, R) → (B, size·T, R)
        ctx.group, ctx.rank, ctx.size = group, rank, size
        parts = [torch.empty_like(x) for _ in range(size)]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)  # summed whole, then cut: the same on every backend
        return grad.chunk(ctx.size, 1)[ctx.rank].contiguous(), None, None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, send, receive, group):  # (Σ send, …) → (Σ receive, …)
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _all_to_all(x, send, receive, group)

    @staticmethod
    def backward(ctx, grad):
        return _all_to_all(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _all_to_all(x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


def to_group(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x itself; its gradient is the sum over the group, whose members each hold a part of what x meets next."""
    return _ToGroup.apply(x, group)


def from_group(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the group; each member's part gets the whole gradient."""
    return _Summed.apply(x, group)


def total(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the group as a value; the gradient goes to this process's own summand,
    as if nobody had been asked."""
    return _Summed.apply(x, group)


def gather_keys(x: Tensor, group: dist.ProcessGroup, rank: int, size: int) -> Tensor:
    """(B, T, R) of each of `size` members → (B, size·T, R) in the order of their ranks, on all of them."""
    return _GatherKeys.apply(x, group, rank, size)


def all_to_all(x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup) -> Tensor:
    """All-to-all of rows: the first send[0] rows go to member 0, and so on; receive[i] rows come from member i."""
    return _Exchange.apply(x, send, receive, group)
