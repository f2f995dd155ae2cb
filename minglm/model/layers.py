"""The small parts every layer is made of: RMSNorm, rotary position, SwiGLU, and a head that never stores all logits.

Shapes: B batch, T query positions, C hidden, F width of a feed-forward, D head width, V vocabulary, N = B·T tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.data.shards import IGNORE
from minglm.model.products import Linear, rows_product, sum_over_rows

LATENT_EPS = 1e-6  # norms of the q and kv latents and of the indexer key (transformers `glm_moe_dsa`)
HEAD_CHUNK = 1024  # tokens whose logits exist at one time during training


def to_float32(x: Tensor) -> Tensor:
    """fp32 for sums that half precision would spoil; fp64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms(x) over the last axis, which stays with width 1."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """Forward and backward in as few passes over x as there can be; both are bound by memory, not by arithmetic."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # (N, C), (C,)
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, inverse = ctx.saved_tensors  # inverse (N, 1)
        gx = grad * x
        d_weight = gx.T @ inverse.squeeze(-1)
        along = (gx @ weight).unsqueeze(-1).mul_(inverse.pow(3)).div_(x.shape[-1])  # the part of grad along x
        return torch.mul(grad, weight, out=gx).mul_(inverse).addcmul_(x, along, value=-1), d_weight, None


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C) in x's dtype."""
        if not torch.is_grad_enabled():
            if x.device.type != "cpu":  # torch's own is one kernel there, and a dozen passes on a CPU
                return F.rms_norm(to_float32(x), x.shape[-1:], to_float32(self.weight), self.eps).to(x.dtype)
            return (to_float32(x) * _inverse_rms(to_float32(x), self.eps)).mul_(to_float32(self.weight)).to(x.dtype)
        flat = to_float32(x).reshape(-1, x.shape[-1])
        return _RMSNorm.apply(flat, to_float32(self.weight), self.eps).view(x.shape).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), the feed-forward of dense layers and of the shared expert (Shazeer 2020)."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rope_table(length: int, width: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """Unit complex numbers e^{i·position·θ^(-2j/width)}, shape (length, width/2), complex64."""
    inverse = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] * inverse
    return torch.polar(torch.ones_like(angle), angle)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (x0,x1), (x2,x3), … of the last axis by the position's angle (interleaved layout, RoFormer §3.4).

    x is (B, T, D) or (B, T, H, D); table is (T, D/2). transformers writes the turned pairs in another order, which no
    dot product notices.
    """
    real = to_float32(x).unflatten(-1, (-1, 2)).contiguous()
    if real.storage_offset() % 2:  # a slice of one row that begins at an odd place counts as contiguous
        real = real.clone()
    pairs = torch.view_as_complex(real)
    turned = pairs * (table if x.dim() == 3 else table[:, None])
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class _HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T`, a chunk of tokens at a time,
    with the gradient made in the same pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, count, wants):  # (N, C), (V, C), (N,), ()
        counted = targets != IGNORE
        total = to_float32(hidden.new_zeros(()))
        grads = (torch.empty_like(hidden), torch.zeros_like(weight)) if wants else None
        for start in range(0, hidden.shape[0], HEAD_CHUNK):
            part = slice(start, start + HEAD_CHUNK)
            logits = to_float32(rows_product(hidden[part], weight.T))  # (n, V)
            target, kept = targets[part].clamp(min=0)[:, None], counted[part]
            picked, (highest, place) = logits.gather(-1, target).squeeze(-1), logits.max(-1)
            probs = logits.softmax(-1)
            # log Z: the largest probability is exp(highest)/Z
            log_z = highest - probs.gather(-1, place[:, None]).squeeze(-1).log()
            total += ((log_z - picked) * kept).sum()
            if grads is not None:
                d_hidden, d_weight = grads
                probs.scatter_add_(-1, target, probs.new_full((), -1.0).expand_as(target))
                if not bool(kept.all()):
                    probs.mul_(kept[:, None])
                grad = probs.to(hidden.dtype)
                rows_product(grad, weight, out=d_hidden[part])
                d_weight += sum_over_rows(grad, hidden[part])
        if grads is not None:
            ctx.save_for_backward(*grads, count)
        return total / count

    @staticmethod
    def backward(ctx, grad: Tensor):
        d_hidden, d_weight, count = ctx.saved_tensors
        scale = grad / count
        return d_hidden * scale, d_weight * scale, None, None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not -100; 0 when there are none.

    hidden (B, T, C), weight (V, C), targets (B, T) int64. At most `HEAD_CHUNK` rows of logits exist at a time.
    count (): what the sum is divided by where these are only a part of the targets that a mean is taken over.
    """
    wants = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    count = (targets != IGNORE).sum() if count is None else count
    return _HeadLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), count.clamp(min=1), wants)
