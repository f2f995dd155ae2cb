"""Multi-head latent attention (MLA) with DeepSeek Sparse Attention on top.

Keys and values of all heads are rebuilt from one cached latent per token, plus one rotary key shared by the heads
(DeepSeek-V2, arXiv 2405.04434 §2.1; widths as in GLM-5). Two ways to compute the same thing:

- expanded: rebuild per-head keys and values, then ordinary attention. Cheapest when every key is read by many queries.
- absorbed: move the rebuilding matrices to the query and to the output, and attend to the latents themselves. Reads
  R = kv_lora_rank + qk_rope_head_dim numbers per key in place of H·(D + v_head_dim): for decoding and for gathered keys.

Shapes: B batch, T query positions, S key positions, H heads, D = nope + rope query/key width, Dv value width, L latent
width, R = L + rope, C hidden, k chosen keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.model.cache import LatentCache
from minglm.model.indexer import Indexer, causal_mask, select_topk
from minglm.model.indexer_loss import dense_kl, topk_kl
from minglm.model.layers import LATENT_EPS, RMSNorm, apply_rope
from minglm.model.sparse_attention import sparse_attention, topk_mask


class ContextParallelGroup(Protocol):
    """What other processes hold of the sequence and the heads (`minglm.distributed.context_parallel.ContextParallel`)."""

    def keys(self, local: Tensor, heads: bool = True) -> Tensor: ...
    def all_heads(self, local: Tensor) -> Tensor: ...
    def mean_heads(self, local: Tensor) -> Tensor: ...


DENSE_MASK_UNTIL = (
    2  # times index_topk: up to here most keys are chosen, and masking the others costs less than gathering
)


@dataclass
class ForwardContext:
    """What all layers of one forward share: how to attend, and what each query may see."""

    mode: str  # "dense", "warmup" or "sparse"
    rope: Tensor  # (T, rope/2) complex, the turns of the query positions
    offset: int = 0  # position of the first query; keys before it come from the cache
    doc_start: Tensor | None = None  # (B, T) int64, first position each query may see
    cache: LatentCache | None = None
    losses: bool = False  # whether balance losses are wanted
    indexer_loss: bool = False  # whether the indexer's KL is wanted
    indexer_grad: bool = False  # whether that KL is to be differentiated (in "warmup" nothing else is)
    context_parallel: ContextParallelGroup | None = None  # what other processes hold of the sequence and the heads
    topk_indices: Tensor | None = (
        None  # (B, T, k), left by the last "full" layer for "shared" ones; None: read everything
    )


class MLA(nn.Module):
    """One attention layer. `indexer` is None on a "shared" layer, which reuses the previous full layer's choice."""

    def __init__(self, config: ModelConfig, layer: int, full: bool = True):
        super().__init__()
        self.layer, self.topk = layer, config.index_topk
        self.num_heads, self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = (
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.kv_lora_rank, self.scale = config.kv_lora_rank, config.qk_head_dim**-0.5
        C, D = config.hidden_size, config.qk_head_dim
        self.q_a_proj = nn.Linear(C, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
        self.q_b_proj = nn.Linear(config.q_lora_rank, self.num_heads * D, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(C, self.kv_lora_rank + self.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(self.kv_lora_rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(
            self.kv_lora_rank, self.num_heads * (self.qk_nope_head_dim + self.v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, C, bias=False)
        self.indexer = Indexer(config) if full else None

    def forward(self, x: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor | None]:
        """x (B, T, C), already normalised → output (B, T, C) and the indexer's KL (scalar) or None."""
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q_nope, q_rope = (
            self.q_b_proj(q_latent)
            .unflatten(-1, (self.num_heads, -1))
            .split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        )
        q_rope = apply_rope(q_rope, ctx.rope)  # (B, T, H, rope)
        kv, k_rope = self.kv_a_proj_with_mqa(x).split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        latent = torch.cat((self.kv_a_layernorm(kv), apply_rope(k_rope, ctx.rope)), -1)  # (B, T, R)
        if ctx.cache is not None:
            latent = ctx.cache.append(self.layer, latent)  # (B, S, R)
        elif ctx.context_parallel is not None:
            latent = ctx.context_parallel.keys(latent)

        index, kl = None, None
        if self.indexer is not None and (ctx.mode != "dense" or ctx.cache is not None):
            with torch.set_grad_enabled(ctx.indexer_grad and ctx.indexer_loss):
                q_i, k_i, w_i = self.indexer(x.detach(), q_latent.detach(), ctx.rope)
                if ctx.context_parallel is not None:
                    k_i = ctx.context_parallel.keys(k_i, heads=False)
                index = q_i, k_i, w_i
            if ctx.cache is not None:
                k_i = ctx.cache.append_index_key(self.layer, k_i)
            if ctx.mode == "sparse":
                ctx.topk_indices = select_topk(q_i, k_i, w_i, self.topk, ctx.offset, ctx.doc_start)
        want_kl = index is not None and ctx.mode != "dense" and ctx.indexer_loss

        use_dense_mask = (
            latent.shape[1] <= DENSE_MASK_UNTIL * self.topk and x.shape[1] > 1 and ctx.context_parallel is None
        )
        if ctx.mode == "sparse" and ctx.topk_indices is not None and use_dense_mask and not want_kl:
            mask = topk_mask(ctx.topk_indices, latent.shape[1]).unsqueeze(1)
            out = self.dense(torch.cat((q_nope, q_rope), -1), *self.expand(latent), ctx, mask)
        elif ctx.mode == "sparse" and ctx.topk_indices is not None:
            out, p = sparse_attention(
                q_nope, q_rope, latent, *self.up_projections(), ctx.topk_indices, self.scale, want_kl
            )
            if want_kl:
                kl = topk_kl(
                    *index, ctx.topk_indices, p if ctx.context_parallel is None else ctx.context_parallel.mean_heads(p)
                )
        elif x.shape[1] == 1:
            out = self.expand_values(self.absorbed(q_nope, q_rope, latent, ctx))
        else:
            q = torch.cat((q_nope, q_rope), -1)
            k, v = self.expand(latent)
            out = self.dense(q, k, v, ctx)
        if want_kl and kl is None:  # every visible key was read: the chosen set is the visible set
            q, (k, _) = torch.cat((q_nope, q_rope), -1), self.expand(latent)
            if ctx.context_parallel is not None:
                q, k = ctx.context_parallel.all_heads(q), ctx.context_parallel.all_heads(k)
            with torch.set_grad_enabled(ctx.indexer_grad):
                kl = dense_kl(*index, q, k, self.scale, ctx.doc_start, ctx.offset)
        return self.o_proj(out.flatten(-2)), kl

    # ------------------------------------------------------------------ expanded

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, R) → keys (B, S, H, D) and values (B, S, H, Dv)."""
        kv, k_rope = latent.split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        k_nope, v = (
            self.kv_b_proj(kv).unflatten(-1, (self.num_heads, -1)).split((self.qk_nope_head_dim, self.v_head_dim), -1)
        )
        return torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.num_heads, -1)), -1), v

    def dense(self, q: Tensor, k: Tensor, v: Tensor, ctx: ForwardContext, mask: Tensor | None = None) -> Tensor:
        """Every visible key, or those in the mask (B, 1, T, S): q (B,T,H,D), k (B,S,H,D), v (B,S,H,Dv) → (B,T,H,Dv).

        The narrower of key and value is padded with zeros, because only equal widths take torch's fused path.
        """
        T, S, D = q.shape[1], k.shape[1], q.shape[3]
        width = max(D, self.v_head_dim)
        q, k, v = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (q, k, v))
        if mask is None and ctx.doc_start is not None:
            mask = torch.stack([causal_mask(T, ctx.offset, S, start, q.device) for start in ctx.doc_start]).unsqueeze(1)
        elif mask is None and ctx.offset:
            mask = causal_mask(T, ctx.offset, S, None, q.device)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
        )
        return out.transpose(1, 2)[..., : self.v_head_dim]

    # ------------------------------------------------------------------ absorbed

    def up_projections(self) -> tuple[Tensor, Tensor]:
        """The two halves of kv_b_proj: keys (H, nope, L) and values (H, Dv, L)."""
        return self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1)).split(
            (self.qk_nope_head_dim, self.v_head_dim), 1
        )

    def absorb(self, q_nope: Tensor, q_rope: Tensor) -> Tensor:
        """Queries that meet latents directly: (B,T,H,nope), (B,T,H,rope) → (B,T,H,R)."""
        return torch.cat((torch.einsum("bthn,hnl->bthl", q_nope, self.up_projections()[0]), q_rope), -1)

    def expand_values(self, values: Tensor) -> Tensor:
        """Attended latents (B,T,H,L) → values (B,T,H,Dv)."""
        return torch.einsum("bthl,hvl->bthv", values, self.up_projections()[1])

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, ctx: ForwardContext) -> Tensor:
        """Attention of absorbed queries over all visible latents (B,S,R) → attended latents (B,T,H,L)."""
        q = self.absorb(q_nope, q_rope)
        scores = torch.einsum("bthr,bsr->bhts", q, latent) * self.scale
        T, S = q.shape[1], latent.shape[1]
        if ctx.doc_start is not None:
            seen = torch.stack([causal_mask(T, ctx.offset, S, start, q.device) for start in ctx.doc_start])
            scores = scores.masked_fill(~seen.unsqueeze(1), -torch.inf)
        elif T > 1:
            scores = scores.masked_fill(~causal_mask(T, ctx.offset, S, None, q.device), -torch.inf)
        return torch.einsum("bhts,bsl->bthl", scores.softmax(-1), latent[..., : self.kv_lora_rank])
