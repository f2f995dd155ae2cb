"""The lightning indexer: scores of each query for each earlier key, and the top-k of them (DeepSeek-V3.2-Exp,
section 2.1).

Shapes: B batch, T query positions, S key positions, Hi/Di indexer heads and width, k chosen keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.model import compiled_choice
from minglm.model.documents import documents, spans
from minglm.model.layers import LATENT_EPS, apply_rope, to_float32
from minglm.model.products import Linear
from minglm.model.threads import parallel_for
from minglm.model.topk import fold_factor, topk_lowest
from minglm.model.workspace import SCORE_FLOATS, Workspace, chunk_budget

CANDIDATES = 15 << 10  # places where a chunk's best keys may be: over 128 KiB, the C library maps fresh memory for them


class Indexer(nn.Module):
    """The lightning indexer: a few small heads, one shared key per token (normalised, interleaved RoPE)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.width, self.rope_width = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
        self.wq_b = Linear(config.q_lora_rank, self.heads * self.width)
        self.wk = Linear(config.hidden_size, self.width)
        self.k_norm = nn.LayerNorm(self.width, eps=LATENT_EPS)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def forward(self, x: Tensor, q_latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,C), q_latent (B,T,q_lora) → q (B,T,Hi,Di), k (B,T,Di), w (B,T,Hi); scales are folded into w."""
        q = self.wq_b(q_latent).unflatten(-1, (self.heads, self.width))
        k = self.k_norm(self.wk(x))
        r = self.rope_width
        q = torch.cat((apply_rope(q[..., :r], rope), q[..., r:]), -1)
        k = torch.cat((apply_rope(k[..., :r], rope), k[..., r:]), -1)
        return q, k, to_float32(self.weights_proj(x)) * (self.heads * self.width) ** -0.5


def index_scores(q: Tensor, k: Tensor, w: Tensor, space: Workspace | None = None) -> Tensor:
    """I for one sequence: q (n, Hi, Di), k (S, Di), w (n, Hi) → (n, S), fp32, not masked;
    in `space` when it is given."""
    n, Hi, S = q.shape[0], q.shape[1], k.shape[0]
    space = space or Workspace(w)
    if q.dtype == w.dtype:
        dots = torch.mm(q.flatten(0, 1), k.T, out=space("dots", n * Hi, S))
    else:  # half precision: the sum over heads stays in fp32
        dots = to_float32(q.flatten(0, 1) @ k.T)
    return torch.bmm(w.unsqueeze(1), dots.view(n, Hi, S).relu_(), out=space("scores", n, 1, S)).squeeze(1)


def _queries_at_a_time(q: Tensor, Hi: int, S: int, topk: int) -> int:
    """Queries of a chunk that see S keys."""
    fitting = chunk_budget(SCORE_FLOATS, q.device) // (Hi * S)
    return max(1, min(fitting, chunk_budget(CANDIDATES, q.device) // (fold_factor(S, topk + 1) * (topk + 1))))


def causal_mask(T: int, offset: int, end: int, doc_start: Tensor | None, device) -> Tensor:
    """Which of the first `end` keys each of T queries at positions offset… may see: (T, end) bool.

    doc_start (T,) int64 hides everything before it.
    """
    keys, queries = torch.arange(end, device=device), torch.arange(offset, offset + T, device=device)
    mask = keys <= queries[:, None]
    return mask if doc_start is None else mask & (keys >= doc_start[:, None])


@torch.no_grad()
def select_topk(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, doc_start: Tensor | None = None
) -> Tensor | None:
    """Choose keys for every query: (B, T, topk) int64, or None when no query sees more than `topk` keys (read them
    all).

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi); the first query stands at position `offset`; doc_start (B,T) or None.
    """
    B, T, Hi, _ = q.shape
    S = k.shape[1]
    if S <= topk:
        return None
    if compiled_choice.fits(q, k, w):
        chosen = compiled_choice.choose(q, k, w, topk, offset, doc_start)
        if chosen is not None:
            return chosen
    topk_indices = torch.empty(B, T, topk, dtype=torch.int64, device=q.device)
    parts: list[tuple[int, slice, int]] = []  # row, its queries, the first key that any of them sees
    whole = None if offset else documents(doc_start)
    hidden = doc_start if whole is None else None  # what a mask must still hide
    for b, first, end in spans(whole, B, T):
        early = max(first, min(end, first + topk - offset))  # the queries before it see at most topk keys: all of them
        if early > first:
            seen = causal_mask(
                early - first, offset, topk, None if hidden is None else hidden[b, first:early], q.device
            )
            every = torch.arange(first, first + topk, device=q.device)
            topk_indices[b, first:early] = torch.where(seen, every, -1)
        start = early
        while start < end:
            stop = min(end, start + _queries_at_a_time(q, Hi, offset + start + 1 - first, topk))
            parts.append((b, slice(start, stop), first))
            start = stop

    def work(share):
        space = Workspace(w)
        for b, part, key in share:
            first, n, end = offset + part.start, part.stop - part.start, offset + part.stop  # no query sees past end
            scores = index_scores(q[b, part], k[b, key:end], w[b, part], space)
            if hidden is None:  # only the chunk's own keys can lie in a query's future
                scores[:, first - key :].masked_fill_(~causal_mask(n, 0, n, None, q.device), -torch.inf)
            else:
                scores.masked_fill_(~causal_mask(n, first, end, hidden[b, part], q.device), -torch.inf)
            chosen = topk_lowest(scores, topk)
            topk_indices[b, part] = chosen + key if key else chosen  # none is empty: these see more than topk keys

    parallel_for(work, parts, q.device)
    return topk_indices
