"""Multi-head latent attention (MLA) with DeepSeek Sparse Attention on top: project, index, attend, out.

Keys and values of all heads are rebuilt from one cached latent per token, plus one rotary key shared by the heads
(DeepSeek-V2, arXiv 2405.04434 §2.1; widths as in GLM-5). Three ways to attend, the same values from each:

- dense: rebuild per-head keys and values, then ordinary attention. Cheapest when every key is read by many queries.
- absorbed: move the rebuilding matrices to the query and to the output, and attend to the latents themselves. Reads
  R = kv_lora_rank + qk_rope_head_dim numbers per key in place of H·(D + v_head_dim): for decoding.
- sparse: absorbed, over the keys that the indexer chose (`minglm.model.sparse_attention`).

Shapes: B batch, T query positions, S key positions, H heads, D = nope + rope query/key width, Dv value width, L latent
width, R = L + rope, Q width of the compressed query, C hidden, Hi/Di indexer heads and width, k chosen keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.model.cache import LatentCache
from minglm.model.documents import Document, attention_by_document, documents, heads_first
from minglm.model.indexer import Indexer, causal_mask, select_topk
from minglm.model.indexer_loss import dense_kl, topk_kl
from minglm.model.layers import LATENT_EPS, RMSNorm, apply_rope
from minglm.model.products import Linear
from minglm.model.sparse_attention import sparse_attention, topk_mask

DENSE_MASK_UNTIL = (
    2  # times index_topk: up to here most keys are chosen, and masking the rest costs less than gathering
)


class ContextParallelGroup(Protocol):
    """What other processes hold of the sequence and the heads
    (`minglm.distributed.context_parallel.ContextParallel`)."""

    def keys(self, local: Tensor, heads: bool = True) -> Tensor:
        """(B, T, R) of this process → (B, S, R) of all positions that its queries may see."""
        ...

    def all_heads(self, local: Tensor) -> Tensor:
        """(B, T, H, D) of this process's heads → of all heads."""
        ...

    def mean_heads(self, local: Tensor) -> Tensor:
        """(B, T, k) averaged over this process's heads → over all heads."""
        ...


@dataclass(frozen=True)
class ForwardContext:
    """What all layers of one forward share: how to attend, what each query may see, and where earlier keys are."""

    mode: str  # "dense", "warmup" or "sparse"
    rope: Tensor  # (T, rope/2) complex, the rotations of the query positions
    offset: int = 0  # position of the first query; keys before it come from the cache
    doc_start: Tensor | None = None  # (B, T) int64, first position each query may see
    cache: LatentCache | None = None
    losses: bool = False  # whether balance losses are wanted
    indexer_loss: bool = False  # whether the indexer's KL is wanted
    indexer_grad: bool = False  # whether that KL is to be differentiated (in "warmup" nothing else is)
    query_weights: Tensor | None = None  # (B, T) what each query's KL counts; None: alike, 1 in all
    context_parallel: ContextParallelGroup | None = None

    def all_latents(self, layer: int, latent: Tensor) -> Tensor:
        """New latents (B, T, R) of a layer → those of every position up to them, (B, S, R);
        the cache takes the new ones."""
        if self.cache is not None:
            return self.cache.append(layer, latent)
        return latent if self.context_parallel is None else self.context_parallel.keys(latent)

    def all_index_keys(self, layer: int, keys: Tensor) -> Tensor:
        """The same for the indexer's keys: (B, T, Di) → (B, S, Di)."""
        if self.cache is not None:
            return self.cache.append_index_key(layer, keys)
        return keys if self.context_parallel is None else self.context_parallel.keys(keys, heads=False)

    @cached_property
    def documents(self) -> list[Document] | None:
        """The documents that the queries' rows are made of; None: go by the mask."""
        return None if self.offset else documents(self.doc_start)

    def causal_mask(self, T: int, S: int, device: torch.device) -> Tensor:
        """Which keys each query may see: (T, S) bool, or (B, 1, T, S) where documents differ."""
        if self.doc_start is None:
            return causal_mask(T, self.offset, S, None, device)
        return torch.stack([causal_mask(T, self.offset, S, start, device) for start in self.doc_start]).unsqueeze(1)


class Query(NamedTuple):
    """A layer's queries: `nope` (B, T, H, nope) meets the latents, `rope` (B, T, H, rope) the rotary keys, already
    rotated; both come from `compressed` (B, T, Q), which the indexer reads too."""

    nope: Tensor
    rope: Tensor
    compressed: Tensor

    @property
    def joined(self) -> Tensor:
        """(B, T, H, D)."""
        return torch.cat((self.nope, self.rope), -1)


class Index(NamedTuple):
    """What a layer's indexer says: its queries (B, T, Hi, Di), keys (B, S, Di) and weights (B, T, Hi), and the keys
    chosen for every query, (B, T, k) int64 with -1 for an empty place; None: read every visible key."""

    q: Tensor
    k: Tensor
    w: Tensor
    topk_indices: Tensor | None


class MLA(nn.Module):
    """One attention layer. `indexer` is None on a "shared" layer,
    which reads the keys that the last full layer chose."""

    def __init__(self, config: ModelConfig, layer: int, full: bool = True):
        super().__init__()
        self.layer, self.topk = layer, config.index_topk
        self.num_heads, self.v_head_dim, self.kv_lora_rank = (
            config.num_attention_heads,
            config.v_head_dim,
            config.kv_lora_rank,
        )
        self.qk_nope_head_dim, self.qk_rope_head_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.scale = config.qk_head_dim**-0.5
        H, C, L = self.num_heads, config.hidden_size, self.kv_lora_rank
        self.q_a_proj = Linear(C, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
        self.q_b_proj = Linear(config.q_lora_rank, H * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(C, L + self.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(L, LATENT_EPS)
        self.kv_b_proj = Linear(L, H * (self.qk_nope_head_dim + self.v_head_dim))
        self.o_proj = Linear(H * self.v_head_dim, C)
        self.indexer = Indexer(config) if full else None

    def forward(
        self, x: Tensor, ctx: ForwardContext, shared_topk: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (B, T, C), already normalised, and what the last full layer chose → output (B, T, C), the indexer's KL
        (scalar) or None, and the (B, T, k) key positions that shared layers after this one read (None:
        every visible key)."""
        q, latent = self.project(x, ctx)
        index = self.index(x, q, ctx)
        topk_indices = shared_topk if index is None else index.topk_indices
        want_probs = index is not None and ctx.indexer_loss
        out, probs = self.attend(q, latent, topk_indices, ctx, want_probs)
        return self.o_proj(out.flatten(-2)), self.indexer_loss(q, latent, index, probs, ctx), topk_indices

    # ------------------------------------------------------------------ the four steps

    def project(self, x: Tensor, ctx: ForwardContext) -> tuple[Query, Tensor]:
        """x (B, T, C) → queries, and the latents of all keys (B, S, R): L numbers normalised, then the rotary key."""
        compressed = self.q_a_layernorm(self.q_a_proj(x))
        heads = self.q_b_proj(compressed).unflatten(-1, (self.num_heads, -1))
        q_nope, q_rope = heads.split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
        q = Query(q_nope, apply_rope(q_rope, ctx.rope), compressed)
        kv, k_rope = self.kv_a_proj_with_mqa(x).split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        latent = torch.cat((self.kv_a_layernorm(kv), apply_rope(k_rope, ctx.rope)), -1)  # (B, T, R)
        return q, ctx.all_latents(self.layer, latent)

    def index(self, x: Tensor, q: Query, ctx: ForwardContext) -> Index | None:
        """Score the keys and choose; None on a shared layer, and where nobody asks. Inputs are detached: the indexer
        learns from its own loss only. Dense decoding still writes indexer keys,
        so that the same cache can go on sparse."""
        if self.indexer is None or (ctx.mode == "dense" and ctx.cache is None):
            return None
        with torch.set_grad_enabled(ctx.indexer_grad and ctx.indexer_loss):
            q_i, new_k, w_i = self.indexer(x.detach(), q.compressed.detach(), ctx.rope)
            k_i = ctx.all_index_keys(self.layer, new_k)
        chosen = select_topk(q_i, k_i, w_i, self.topk, ctx.offset, ctx.doc_start) if ctx.mode == "sparse" else None
        return Index(q_i, k_i, w_i, chosen)

    def attend(
        self, q: Query, latent: Tensor, topk_indices: Tensor | None, ctx: ForwardContext, want_probs: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Values (B, T, H, Dv) and, when wanted from chosen keys, the head-averaged attention on them (B, T, k)."""
        T, S = q.nope.shape[1], latent.shape[1]
        if topk_indices is None:
            return self.absorbed(q, latent, ctx) if T == 1 else self.dense(q, latent, ctx), None
        use_dense_mask = S <= DENSE_MASK_UNTIL * self.topk and T > 1 and ctx.context_parallel is None
        if use_dense_mask and not want_probs:
            return self.dense(q, latent, ctx, topk_mask(topk_indices, S).unsqueeze(1)), None
        return sparse_attention(q.nope, q.rope, latent, *self.up_projections(), topk_indices, self.scale, want_probs)

    def indexer_loss(
        self, q: Query, latent: Tensor, index: Index | None, probs: Tensor | None, ctx: ForwardContext
    ) -> Tensor | None:
        """Mean KL (nats per query) of the indexer from the attention just paid: on the chosen keys, or, where every
        visible key was read, on all of them."""
        if index is None or ctx.mode == "dense" or not ctx.indexer_loss:
            return None
        group = ctx.context_parallel
        if probs is not None and index.topk_indices is not None:
            p = probs if group is None else group.mean_heads(probs)
            return topk_kl(index.q, index.k, index.w, index.topk_indices, p, ctx.query_weights)
        queries, (keys, _) = q.joined, self.expand(latent)
        if group is not None:
            queries, keys = group.all_heads(queries), group.all_heads(keys)
        with torch.set_grad_enabled(ctx.indexer_grad):
            return dense_kl(
                index.q, index.k, index.w, queries, keys, self.scale, ctx.doc_start, ctx.offset, ctx.query_weights
            )

    # ------------------------------------------------------------------ expanded

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, R) → keys (B, S, H, D) and values (B, S, H, Dv)."""
        kv, k_rope = latent.split((self.kv_lora_rank, self.qk_rope_head_dim), -1)
        heads = self.kv_b_proj(kv).unflatten(-1, (self.num_heads, -1))
        k_nope, v = heads.split((self.qk_nope_head_dim, self.v_head_dim), -1)
        return torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.num_heads, -1)), -1), v

    def dense(self, q: Query, latent: Tensor, ctx: ForwardContext, mask: Tensor | None = None) -> Tensor:
        """Attention to every visible key, or to those in the mask (B, 1, T, S): latents (B, S, R) → values (B, T,
        H, Dv)."""
        heads = (q.joined, *self.expand(latent))
        T, S = heads[0].shape[1], latent.shape[1]
        if mask is None and ctx.documents is not None and S == T:
            return attention_by_document(*heads, ctx.documents, self.scale)
        if mask is None and (ctx.doc_start is not None or ctx.offset):
            mask = ctx.causal_mask(T, S, latent.device)
        query, key, value = heads_first(*heads)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale
        )
        return out.transpose(1, 2)[..., : self.v_head_dim]

    # ------------------------------------------------------------------ absorbed

    def up_projections(self) -> tuple[Tensor, Tensor]:
        """The two halves of kv_b_proj: keys (H, nope, L) and values (H, Dv, L)."""
        up_k, up_v = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1)).split(
            (self.qk_nope_head_dim, self.v_head_dim), 1
        )
        return up_k, up_v

    def absorb(self, q: Query) -> Tensor:
        """Queries that meet latents directly, (B, T, H, R)."""
        return torch.cat((torch.einsum("bthn,hnl->bthl", q.nope, self.up_projections()[0]), q.rope), -1)

    def absorbed(self, q: Query, latent: Tensor, ctx: ForwardContext) -> Tensor:
        """The same as `dense` without rebuilding a key: queries meet the latents (B, S, R), and only what was attended
        is expanded to values (B, T, H, Dv)."""
        queries = self.absorb(q)
        scores = torch.einsum("bthr,bsr->bhts", queries, latent) * self.scale
        T, S = queries.shape[1], latent.shape[1]
        if ctx.doc_start is not None or T > 1:
            scores = scores.masked_fill(~ctx.causal_mask(T, S, latent.device), -torch.inf)
        attended = torch.einsum("bhts,bsl->bthl", scores.softmax(-1), latent[..., : self.kv_lora_rank])
        return torch.einsum("bthl,hvl->bthv", attended, self.up_projections()[1])
