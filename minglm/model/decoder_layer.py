"""One layer: attention, then a dense or expert feed-forward, each behind a norm and beside a residual.

Shapes: B batch, T query positions, C hidden, k chosen keys, E experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.model.attention import MLA, ForwardContext
from minglm.model.layers import RMSNorm, SwiGLU
from minglm.model.moe import MoE


class AuxLosses:
    """Collects what the layers of one forward add to the losses: indexer KL, balance loss, expert counts."""

    def __init__(self) -> None:
        self.kl: list[Tensor] = []  # scalars
        self.balance: list[Tensor] = []  # scalars
        self.counts: list[Tensor] = []  # (E,) int64

    def add(self, kl: Tensor | None, balance: Tensor | None = None, counts: Tensor | None = None) -> None:
        """One layer's part; None for what it does not have."""
        for store, value in ((self.kl, kl), (self.balance, balance), (self.counts, counts)):
            if value is not None:
                store.append(value)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, full: bool, experts: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer, full)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MoE | SwiGLU = MoE(config) if experts else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, ctx: ForwardContext, aux: AuxLosses, shared_topk: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, C) and the keys (B, T, k) that the last full layer chose → x, and those for the next layer. What
        this layer adds to the losses goes to `aux`."""
        attended, kl, topk_indices = self.self_attn(self.input_layernorm(x), ctx, shared_topk)
        x = x + attended
        x_norm, balance, counts = self.post_attention_layernorm(x), None, None
        if isinstance(self.mlp, MoE):
            fed, balance, counts = self.mlp(x_norm, ctx.losses)
        else:
            fed = self.mlp(x_norm)
        aux.add(kl, balance, counts)
        return x + fed, topk_indices
