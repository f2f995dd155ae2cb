"""Mixture of experts: sigmoid router with a balancing bias, grouped expert matmuls, one shared expert.

The bias is added to the scores only to choose experts; the gates come from the raw scores, so balancing steers the load
without touching the output's weights (Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437 §2.1.2). No
token is ever dropped: tokens are sorted by expert and each expert multiplies exactly the rows that chose it.

Shapes: N tokens, C hidden, E experts, K chosen, F expert width, B sequences, T tokens in each.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.model import compiled_experts, gpu_kernels
from minglm.model.layers import SwiGLU, to_float32
from minglm.model.products import rows_product, sum_over_rows


class Router(nn.Module):
    """Scores each token against each expert and chooses K. `e_score_correction_bias` is a buffer,
    moved by `move_bias`."""

    e_score_correction_bias: Tensor  # (E,) fp32

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.k, self.scale = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, C) → chosen experts (N, K) int64, gates (N, K) that sum to `routed_scaling_factor`, scores (N,
        E) fp32."""
        scores = F.linear(to_float32(x), to_float32(self.weight)).sigmoid()
        with torch.no_grad():
            chosen = (scores + self.e_score_correction_bias).topk(self.k, -1, sorted=False).indices
        gates = scores.gather(-1, chosen)
        return chosen, gates * (self.scale / (gates.sum(-1, keepdim=True) + 1e-20)), scores

    @torch.no_grad()
    def move_bias(self, counts: Tensor, rate: float) -> None:
        """bias += rate · sign(mean load − load): the underloaded become likelier to be chosen. counts (E,)."""
        load = counts.to(self.e_score_correction_bias)
        self.e_score_correction_bias += rate * torch.sign(load.mean() - load)


def by_expert(chosen: Tensor, gates: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """chosen and gates (N, K) → the choices sorted by expert: their tokens (N·K,) and gates (N·K, 1); where each choice
    went, (N, K); and how many each expert has, (E,)."""
    order = torch.argsort(chosen.flatten(), stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    gate = gates.flatten().index_select(0, order).unsqueeze(-1)
    return order // chosen.shape[1], gate, place.view_as(chosen), torch.bincount(chosen.flatten(), minlength=experts)


def parts(counts: Tensor) -> list[tuple[int, slice]]:
    """(expert, slice of the sorted rows) for every expert that was chosen."""
    numbers = counts.tolist()
    ends = itertools.accumulate(numbers)
    return [(e, slice(end - n, end)) for e, (n, end) in enumerate(zip(numbers, ends, strict=True)) if n]


def gated(inner: Tensor, gate: Tensor) -> Tensor:
    """inner (n, 2F) and gate (n, 1) → silu(first half) · second half · gate, (n, F)."""
    g, u = inner.chunk(2, -1)
    return F.silu(g).mul_(u).mul_(gate)


def gated_backward(inner: Tensor, gate: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same and the gradient d_hidden (n, F) → `gated` (n, F), and the gradients of inner and gate."""
    g, u = inner.chunk(2, -1)
    sigmoid = g.sigmoid()
    act = g * sigmoid  # silu(g)
    hidden = act * u
    d_gate = (d_hidden * hidden).sum(-1, keepdim=True)
    d_act, slope = d_hidden * gate, sigmoid + act * (1 - sigmoid)  # silu'(g) = sigmoid + silu·(1 − sigmoid)
    return hidden * gate, torch.cat((d_act * u * slope, d_act * act), -1), d_gate


class GroupedSwiGLU(torch.autograd.Function):
    """Every expert's SwiGLU on the rows that chose it. The gate multiplies the hidden activation, so that its gradient
    needs no copy of the expert's output."""

    @staticmethod
    def forward(ctx, x, gate_up, down, gates, chosen):
        """x (N, C), gate_up (E, 2F, C), down (E, C, F), gates and chosen (N, K) → output (N, C),
        tokens per expert (E,)."""
        token, gate, place, counts = by_expert(chosen, gates, gate_up.shape[0])
        rows, inner = x.index_select(0, token), x.new_empty(token.numel(), gate_up.shape[1])  # (N·K, C), (N·K, 2F)
        for e, part in parts(counts):
            rows_product(rows[part], gate_up[e].T, out=inner[part])
        hidden, out = gated(inner, gate), torch.empty_like(rows)
        for e, part in parts(counts):
            rows_product(hidden[part], down[e].T, out=out[part])
        ctx.save_for_backward(x, gate_up, down, gate, token, place, inner)
        ctx.counts = counts
        return F.embedding_bag(place, out, mode="sum"), counts

    @staticmethod
    def backward(ctx, grad, _):
        """grad (N, C) → gradients of x, gate_up, down and gates."""
        x, gate_up, down, gate, token, place, inner = ctx.saved_tensors
        d_gate_up, d_down = torch.empty_like(gate_up), torch.empty_like(down)
        for e in (ctx.counts == 0).nonzero().flatten().tolist():
            d_gate_up[e], d_down[e] = 0.0, 0.0
        rows, d_out = x.index_select(0, token), grad.index_select(0, token)
        d_hidden = x.new_empty(token.numel(), down.shape[-1])
        for e, part in parts(ctx.counts):
            rows_product(d_out[part], down[e], out=d_hidden[part])  # gradient of gate·hidden
        hidden, d_inner, d_gate = gated_backward(inner, gate, d_hidden)
        d_rows = torch.empty_like(rows)
        for e, part in parts(ctx.counts):
            sum_over_rows(d_out[part], hidden[part], out=d_down[e])
            sum_over_rows(d_inner[part], rows[part], out=d_gate_up[e])
            rows_product(d_inner[part], gate_up[e], out=d_rows[part])
        return (
            F.embedding_bag(place, d_rows, mode="sum"),
            d_gate_up,
            d_down,
            d_gate.flatten().index_select(0, place.flatten()).view_as(place),
            None,
        )


def grouped_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, gates: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Each token through the experts it chose, weighted by its gates: x (N, C), gate_up (E, 2F, C), down (E, C, F),
    gates and chosen (N, K) → output (N, C) and tokens per expert (E,)."""
    if compiled_experts.fits(x, gate_up, down, gates):
        token, gate, place, counts = by_expert(chosen, gates, len(down))
        return compiled_experts.experts(x, gate_up, down, gate, token, place, parts(counts)), counts
    if x.device.type == "cpu":
        return GroupedSwiGLU.apply(x, gate_up, down, gates, chosen)
    # No loop over experts there, which would wait for their counts.
    return gpu_kernels.grouped_swiglu(x, gate_up, down, gates, chosen)


class Experts(nn.Module):
    """The routed experts' weights, stacked: gate and up in one matrix per expert, as in transformers."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, C, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * width, C))
        self.down_proj = nn.Parameter(torch.empty(E, C, width))

    def forward(self, x: Tensor, chosen: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C), chosen (N, K), gates (N, K) → output (N, C) and tokens per expert (E,) int64."""
        return grouped_swiglu(x, self.gate_up_proj, self.down_proj, gates.to(x.dtype), chosen)


class MoE(nn.Module):
    """Router, routed experts and shared expert of one layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, shared) if shared else None

    def forward(self, x: Tensor, want_loss: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
        """x (B, T, C) → output (B, T, C), balance loss (scalar, when wanted), tokens per expert (E,) int64."""
        flat = x.flatten(0, -2)
        chosen, gates, scores = self.gate(flat)
        out, counts = self.experts(flat, chosen, gates)
        if self.shared_experts is not None:
            out = out + self.shared_experts(flat)
        loss = balance_loss(scores.view(*x.shape[:2], -1), chosen.view(*x.shape[:2], -1)) if want_loss else None
        return out.view_as(x), loss, counts


def balance_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """Sequence-wise balance loss, without its coefficient α (DeepSeek-V3 eq. 17-20); 1.0 for an even load.

    Σ_i f_i·P_i, with f_i = E/(K·T)·(tokens of the sequence that chose i) and P_i the mean of the scores normalised over
    experts; the mean over sequences. scores (B, T, E), chosen (B, T, K). Gradients flow through P only.
    """
    B, T, E = scores.shape
    share = (scores / (scores.sum(-1, keepdim=True) + 1e-20)).mean(1)  # (B, E)
    load = torch.zeros(B, E, dtype=scores.dtype, device=scores.device)
    load.scatter_add_(
        1, chosen.flatten(1), torch.ones((), dtype=scores.dtype, device=scores.device).expand(B, T * chosen.shape[-1])
    )
    return (load * (E / (chosen.shape[-1] * T)) * share).sum(-1).mean()
