"""DeepSeek Sparse Attention: a lightning indexer chooses `index_topk` keys for each query, attention reads only those.

    I[t,s] = Σ_j w[t,j] · relu(q[t,j] · k[s])                         (DeepSeek-V3.2 eq. 1)

The choice is not differentiable, so the language-model loss gives the indexer no gradient. The indexer learns from
KL(p_t ‖ softmax(I_t)), where p_t is the attention that the model itself paid, averaged over heads: over all visible keys
while warming up, over the chosen keys afterwards. Its inputs are detached, so the KL gives the model no gradient.

A choice is an int64 tensor (B, T, k) of key positions in any order; -1 marks a place that a query with fewer than k
visible keys leaves empty. Equal scores go to the lowest position, so the chosen set is a function of the scores alone.

Shapes: B batch, T query positions, S key positions, k chosen, H heads, Hi/Di indexer heads and width, R latent + rope
width of a cached key, L latent width (the first L of R are also the value), n queries of one chunk.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.layers import LATENT_EPS, apply_rope, wide
from minglm.parallel import share_out

# Work is cut into chunks of queries so that what a chunk touches stays in the processor's cache.
SCORE_FLOATS = 1 << 20      # indexer scores (Hi·n·S) of one chunk
CANDIDATES = 15 << 10       # places where a chunk's best keys may be: over 128 KiB, the C library maps fresh memory for them
GATHER_FLOATS = 12 << 16    # gathered keys (n·k·R) of one chunk
ACCELERATOR_CHUNK = 256     # times as much on an accelerator, which wants few large operations (not measured)


class Indexer(nn.Module):
    """The lightning indexer: a few small heads, one shared key per token (normalised, interleaved RoPE)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.width, self.rope_width = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
        self.wq_b = nn.Linear(config.q_lora_rank, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        self.k_norm = nn.LayerNorm(self.width, eps=LATENT_EPS)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    def forward(self, x: Tensor, q_latent: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,T,C), q_latent (B,T,q_lora) → q (B,T,Hi,Di), k (B,T,Di), w (B,T,Hi); scales are folded into w."""
        q = self.wq_b(q_latent).unflatten(-1, (self.heads, self.width))
        k = self.k_norm(self.wk(x))
        r = self.rope_width
        q = torch.cat((apply_rope(q[..., :r], rope), q[..., r:]), -1)
        k = torch.cat((apply_rope(k[..., :r], rope), k[..., r:]), -1)
        return q, k, wide(self.weights_proj(x)) * (self.heads * self.width) ** -0.5


class _Workspace:
    """Buffers that chunks reuse: fresh memory costs a page fault per 4 KiB, more than the arithmetic done on it here."""

    def __init__(self, like: Tensor):
        self.like, self.buffers = like, {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, overwritten by the next call with the same name."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size + size // 4)     # the next chunk may be a little larger
        return self.buffers[name][:size].view(shape)


def index_scores(q: Tensor, k: Tensor, w: Tensor, space: _Workspace | None = None) -> Tensor:
    """I for one sequence: q (n, Hi, Di), k (S, Di), w (n, Hi) → (n, S), fp32, not masked; in `space` when it is given."""
    n, Hi, S = q.shape[0], q.shape[1], k.shape[0]
    space = space or _Workspace(w)
    if q.dtype == w.dtype:
        dots = torch.mm(q.flatten(0, 1), k.T, out=space("dots", n * Hi, S))
    else:                                                      # half precision: the sum over heads stays in fp32
        dots = wide(q.flatten(0, 1) @ k.T)
    return torch.bmm(w.unsqueeze(1), dots.view(n, Hi, S).relu_(), out=space("scores", n, 1, S)).squeeze(1)


def visible(T: int, offset: int, end: int, doc_start: Tensor | None, device) -> Tensor:
    """Which of the first `end` keys each of T queries at positions offset… may see: (T, end) bool.

    doc_start (T,) int64 hides everything before it.
    """
    keys, queries = torch.arange(end, device=device), torch.arange(offset, offset + T, device=device)
    mask = keys <= queries[:, None]
    return mask if doc_start is None else mask & (keys >= doc_start[:, None])


def topk_lowest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row, (n, S) → (n, k) int64; equal scores go to the lowest position, -inf gives -1.

    One more than k is asked for. Where the k-th and the next are equal, torch's own choice was arbitrary and the row is
    settled by position.
    """
    S = scores.shape[1]
    if S <= k:
        values, index = scores.topk(S, -1)
        return index.masked_fill_(values == -torch.inf, -1)
    fold = _fold(S, k + 1)
    if fold > 1:
        places = _candidates(scores, k + 1, fold)
        values, index = scores.gather(1, places).topk(k + 1, -1)
        index = places.gather(1, index)
    else:
        values, index = scores.topk(k + 1, -1)
    empty = values[:, :k] == -torch.inf
    return settle_ties(scores, values, index).masked_fill_(empty, -1)


def settle_ties(scores: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The k best of each row, given the k + 1 best in order (values and index, (n, k + 1)): where the last two are equal,
    whichever torch put first is replaced by the lowest position. (n, S) → (n, k)."""
    k = index.shape[1] - 1
    edge, index = values[:, k - 1], index[:, :k]
    tied = ((edge == values[:, k]) & (edge > -torch.inf)).nonzero().squeeze(-1)
    if tied.numel():
        edge = edge[tied, None]
        above = (values[tied, :k] > edge).sum(-1)                  # these stay, in front
        row, place = (scores[tied] == edge).nonzero().unbind(1)    # all that are equal to the last, in order
        first = torch.searchsorted(row, torch.arange(len(tied), device=row.device))
        room = k - above
        kept = torch.arange(len(row), device=row.device) - first[row] < room[row]
        settled = index[tied]
        settled[torch.arange(k, device=row.device) >= above[:, None]] = place[kept]
        index[tied] = settled
    return index


def _fold(S: int, m: int) -> int:
    """Looking for m values in S/f folded maxima and then in f·m candidates costs least at f = √(S/m)."""
    return 1 << round(math.log2(S / m) / 2) if S >= 4 * m else 1


def _candidates(scores: Tensor, m: int, fold: int) -> Tensor:
    """Positions that hold m largest values of each row: fold the row, keep the m columns with the highest maxima. A value
    outside them is at most the smallest of m maxima, so it cannot be needed. (n, S) → (n, about fold·m)."""
    n, S = scores.shape
    columns = S // fold
    best = scores[:, :columns * fold].unflatten(1, (fold, columns)).amax(1).topk(m, -1, sorted=False).indices
    places = (best.unsqueeze(1) + columns * torch.arange(fold, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(columns * fold, S, device=scores.device)
    return torch.cat((places, rest.expand(n, -1)), 1) if rest.numel() else places


@torch.no_grad()
def select(q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, doc_start: Tensor | None = None) -> Tensor | None:
    """Choose keys for every query: (B, T, topk) int64, or None when no query sees more than `topk` keys (read them all).

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi); the first query stands at position `offset`; doc_start (B,T) or None.
    """
    B, T, Hi, _ = q.shape
    S = k.shape[1]
    if S <= topk:
        return None
    choice = torch.empty(B, T, topk, dtype=torch.int64, device=q.device)
    early = max(0, min(T, topk - offset))                      # these see at most topk keys: all of them
    for b in range(B if early else 0):
        seen = visible(early, offset, topk, None if doc_start is None else doc_start[b, :early], q.device)
        choice[b, :early] = torch.where(seen, torch.arange(topk, device=q.device), -1)
    parts, start = [], early
    while start < T:
        S_now = offset + start + 1
        n = min(_budget(SCORE_FLOATS, q.device) // (Hi * S_now), _budget(CANDIDATES, q.device) // (_fold(S_now, topk + 1) * (topk + 1)))
        stop = min(T, start + max(1, n))
        parts += [(b, slice(start, stop)) for b in range(B)]
        start = stop

    def work(share):
        space = _Workspace(w)
        for b, part in share:
            first, n, end = offset + part.start, part.stop - part.start, offset + part.stop     # no query sees past end
            scores = index_scores(q[b, part], k[b, :end], w[b, part], space)
            if doc_start is None:                              # only the chunk's own keys can lie in a query's future
                scores[:, first:].masked_fill_(~visible(n, 0, n, None, q.device), -torch.inf)
            else:
                scores.masked_fill_(~visible(n, first, end, doc_start[b, part], q.device), -torch.inf)
            choice[b, part] = topk_lowest(scores, topk)

    share_out(work, parts, q.device)
    return choice


def _budget(floats: int, device: torch.device) -> int:
    return floats if device.type == "cpu" else floats * ACCELERATOR_CHUNK


def _chunks(B: int, T: int, floats_per_query: int, budget: int) -> list[tuple[int, slice]]:
    step = max(1, budget // floats_per_query)
    return [(b, slice(start, min(T, start + step))) for b in range(B) for start in range(0, T, step)]


def _gather(store: Tensor, index: Tensor, space: _Workspace) -> Tensor:
    """Rows (n·k, R) of (S, R) as (n, k, R)."""
    n, k = index.shape
    keys = space("keys", n * k, store.shape[-1])
    return torch.index_select(store, 0, index.flatten(), out=keys).view(n, k, -1)


def _absorb(q_nope: Tensor, q_rope: Tensor, up_k: Tensor, out: Tensor) -> Tensor:
    """(n,H,nope), (n,H,rope), (H,nope,L) → out (n,H,R), stored heads first so that the product is one batched matmul."""
    L = up_k.shape[-1]
    torch.bmm(q_nope.transpose(0, 1), up_k, out=out[..., :L].transpose(0, 1))
    out[..., L:] = q_rope
    return out


class _SparseAttention(torch.autograd.Function):
    """Absorbed attention over gathered latents, a chunk of queries at a time: absorb the query, gather, attend, expand the
    values. Gathered keys and absorbed queries are made again in the backward instead of being stored."""

    @staticmethod
    def forward(ctx, q_nope, q_rope, latent, up_k, up_v, choice, scale, want_p):
        B, T, H, _ = q_nope.shape
        k, R, L, Dv = choice.shape[-1], latent.shape[-1], up_k.shape[-1], up_v.shape[1]
        out, attended = q_nope.new_empty(B, T, H, Dv), q_nope.new_empty(B, T, H, L)
        probs = q_nope.new_empty(B, T, H, k)
        p = q_nope.new_empty(B, T, k) if want_p else None
        index, ragged = choice.clamp(min=0), (choice < 0).any(-1)

        def work(share):
            space = _Workspace(latent)
            for b, part in share:
                n, P, A = part.stop - part.start, probs[b, part], attended[b, part]
                keys = _gather(latent[b], index[b, part], space)
                q = _absorb(q_nope[b, part], q_rope[b, part], up_k, space("q", H, n, R).transpose(0, 1))
                scores = torch.bmm(q, keys.transpose(1, 2), out=space("scores", n, H, k)).mul_(scale)
                if ragged[b, part].any():
                    scores.masked_fill_((choice[b, part] < 0).unsqueeze(1), -torch.inf)
                torch.softmax(scores, -1, out=P)
                torch.bmm(P, keys[..., :L], out=A)
                torch.bmm(A.transpose(0, 1), up_v.transpose(1, 2), out=out[b, part].transpose(0, 1))
                if want_p:
                    torch.mean(P, 1, out=p[b, part])

        share_out(work, _chunks(B, T, k * R, _budget(GATHER_FLOATS, latent.device)), latent.device)
        ctx.save_for_backward(q_nope, q_rope, latent, up_k, up_v, index, probs, attended)
        ctx.scale = scale
        if want_p:
            ctx.mark_non_differentiable(p)
        return out, p

    @staticmethod
    def backward(ctx, d_out, _):
        q_nope, q_rope, latent, up_k, up_v, index, probs, attended = ctx.saved_tensors
        B, T, H, _ = q_nope.shape
        k, R, L = index.shape[-1], latent.shape[-1], up_k.shape[-1]
        d_nope, d_rope = torch.empty_like(q_nope), torch.empty_like(q_rope)

        def work(share):
            d_latent, d_up_k, d_up_v = torch.zeros_like(latent), torch.zeros_like(up_k), torch.zeros_like(up_v)
            space = _Workspace(latent)
            for b, part in share:
                n, P, A, d_values = part.stop - part.start, probs[b, part], attended[b, part], d_out[b, part].transpose(0, 1)
                keys = _gather(latent[b], index[b, part], space)
                # A key's gradient is dS^T·q + (P^T·dA, 0): one product of the stacked pairs [dS; P] and [q; (dA, 0)].
                left, right = space("left", n, 2 * H, k), space("right", 2 * H, n, R).transpose(0, 1)
                left[:, H:], d_scores, d_attended = P, left[:, :H], right[:, H:, :L]
                right[:, H:, L:] = 0
                torch.bmm(d_values, up_v, out=d_attended.transpose(0, 1))
                _absorb(q_nope[b, part], q_rope[b, part], up_k, right[:, :H])
                d_p = torch.bmm(d_attended, keys[..., :L].transpose(1, 2), out=space("scores", n, H, k))
                d_p -= (d_attended * A).sum(-1, keepdim=True)
                torch.mul(d_p, P, out=d_scores).mul_(ctx.scale)
                d_keys = torch.bmm(left.transpose(1, 2), right, out=space("d_keys", n, k, R))
                scatter_rows(d_latent[b], index[b, part].flatten(), d_keys.view(-1, R))
                d_q = torch.bmm(d_scores, keys, out=space("q", n, H, R))
                d_rope[b, part] = d_q[..., L:]
                d_absorbed = d_q[..., :L].transpose(0, 1)                                      # (H, n, L)
                torch.bmm(d_absorbed, up_k.transpose(1, 2), out=d_nope[b, part].transpose(0, 1))
                d_up_k.baddbmm_(q_nope[b, part].permute(1, 2, 0), d_absorbed)
                d_up_v.baddbmm_(d_values.transpose(1, 2), A.transpose(0, 1))
            return d_latent, d_up_k, d_up_v

        shares = share_out(work, _chunks(B, T, k * R, _budget(GATHER_FLOATS, latent.device)), latent.device)
        d_latent, d_up_k, d_up_v = (_sum(parts) for parts in zip(*shares))
        return d_nope, d_rope, d_latent, d_up_k, d_up_v, None, None, None


def _sum(parts: tuple[Tensor, ...]) -> Tensor:
    """Adds the threads' shares, in order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def scatter_rows(store: Tensor, index: Tensor, rows: Tensor) -> None:
    """store[index[i]] += rows[i], in a fixed order."""
    store.scatter_add_(0, index.unsqueeze(-1).expand_as(rows), rows)


def sparse_attention(q_nope: Tensor, q_rope: Tensor, latent: Tensor, up_k: Tensor, up_v: Tensor, choice: Tensor, scale: float,
                     want_p: bool = False) -> tuple[Tensor, Tensor | None]:
    """MLA over the chosen keys only: compute and memory traffic grow with k, not with S.

    Args:
        q_nope, q_rope: the two parts of the queries, (B, T, H, nope) and (B, T, H, rope), the latter already turned.
        latent: cached keys (B, S, R): L of latent, then the rotary key.
        up_k, up_v: halves of kv_b_proj, (H, nope, L) and (H, Dv, L).
        choice: (B, T, k) int64, -1 for an empty place; every query has at least one key.
    Returns:
        values (B, T, H, Dv) and, when asked, the head-averaged attention p (B, T, k) without gradient.
    """
    return _SparseAttention.apply(q_nope, q_rope, latent, up_k, up_v, choice, scale, want_p)


def chosen_mask(choice: Tensor, S: int) -> Tensor:
    """A choice (B, T, k) as a mask (B, T, S), True where a key was chosen."""
    mask = torch.zeros(*choice.shape[:2], S + 1, dtype=torch.bool, device=choice.device)   # empty places mark the last column
    return mask.scatter_(-1, torch.where(choice < 0, S, choice), True)[..., :-1]


def _kl_and_grad(index: Tensor, p: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Σ KL(p ‖ softmax(index)) over rows and its gradient softmax(index) − p; `seen` masks what does not exist."""
    log_q = index.masked_fill(~seen, -torch.inf).log_softmax(-1)
    kl = (torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0.0)).sum()
    return kl, log_q.exp() - p


class _ChosenKL(torch.autograd.Function):
    """Mean over queries of the KL on the chosen set. The gradient is made in the forward pass: the output is a scalar."""

    @staticmethod
    def forward(ctx, q, k, w, choice, p, wants):   # (B,T,Hi,Di) (B,S,Di) (B,T,Hi) (B,T,k) (B,T,k)
        B, T, Hi, Di = q.shape
        n_keys, d_q, d_w = choice.shape[-1], torch.empty_like(q), torch.empty_like(w)

        def work(share):
            space, total, d_k = _Workspace(k), q.new_zeros(()), torch.zeros_like(k)
            for b, part in share:
                index, n = choice[b, part].clamp(min=0), part.stop - part.start
                keys = _gather(k[b], index, space)
                dots = torch.bmm(q[b, part], keys.transpose(1, 2), out=space("dots", n, Hi, n_keys)).relu_()
                scores = torch.bmm(w[b, part].unsqueeze(1), dots).squeeze(1)
                kl, d_index = _kl_and_grad(scores, p[b, part], choice[b, part] >= 0)
                total += kl
                if not wants:
                    continue
                torch.bmm(dots, d_index.unsqueeze(-1), out=d_w[b, part].unsqueeze(-1))
                d_dots = (w[b, part].unsqueeze(-1) * d_index.unsqueeze(1)).mul_(dots > 0)
                torch.bmm(d_dots, keys, out=d_q[b, part])
                d_keys = torch.bmm(d_dots.transpose(1, 2), q[b, part], out=space("d_keys", n, n_keys, Di))
                scatter_rows(d_k[b], index.flatten(), d_keys.view(-1, Di))
            return total, d_k

        total, d_k = (_sum(parts) for parts in zip(*share_out(work, _chunks(B, T, n_keys * Di, _budget(GATHER_FLOATS, k.device)), k.device)))
        ctx.save_for_backward(d_q, d_k, d_w)
        ctx.queries = B * T
        return total / (B * T)

    @staticmethod
    def backward(ctx, grad):
        return *(g * (grad / ctx.queries) for g in ctx.saved_tensors), None, None, None


class _DenseKL(torch.autograd.Function):
    """Mean over queries of the KL on all visible keys, for the warm-up; attention is formed a chunk of queries at a time."""

    @staticmethod
    def forward(ctx, q, k, w, attn_q, attn_k, scale, doc_start, offset, wants):     # attn_q (B,T,H,D), attn_k (B,S,H,D)
        B, T, Hi, Di = q.shape
        total = wide(q.new_zeros(()))
        d_q, d_k, d_w = torch.empty_like(q), torch.zeros_like(k), torch.empty_like(w)
        for b, part in _chunks(B, T, k.shape[1] * (Hi + attn_q.shape[2]), _budget(SCORE_FLOATS, k.device)):
            end, n = offset + part.stop, part.stop - part.start
            seen = visible(n, offset + part.start, end, None if doc_start is None else doc_start[b, part], q.device)
            attn = torch.matmul(attn_q[b, part].transpose(0, 1), attn_k[b, :end].permute(1, 2, 0)).mul_(scale)
            p = attn.masked_fill_(~seen, -torch.inf).softmax(-1).mean(0)                   # (n, end)
            dots = (q[b, part].flatten(0, 1) @ k[b, :end].T).view(n, Hi, end).relu_()
            kl, d_index = _kl_and_grad(torch.bmm(w[b, part].unsqueeze(1), dots).squeeze(1), p, seen)
            total += kl
            if not wants:
                continue
            torch.bmm(dots, d_index.unsqueeze(-1), out=d_w[b, part].unsqueeze(-1))
            d_dots = (w[b, part].unsqueeze(-1) * d_index.unsqueeze(1)).mul_(dots > 0).flatten(0, 1)
            d_q[b, part] = (d_dots @ k[b, :end]).view(n, Hi, Di)
            d_k[b, :end] += d_dots.T @ q[b, part].flatten(0, 1)
        ctx.save_for_backward(d_q, d_k, d_w)
        ctx.queries = B * T
        return total / (B * T)

    @staticmethod
    def backward(ctx, grad):
        return *(g * (grad / ctx.queries) for g in ctx.saved_tensors), None, None, None, None, None, None


def chosen_kl(q: Tensor, k: Tensor, w: Tensor, choice: Tensor, p: Tensor) -> Tensor:
    """Sparse-stage indexer loss: mean over queries of KL(p ‖ softmax(I)) over each query's chosen keys, in nats.

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi) from `Indexer`; choice and p (B,T,k) as `sparse_attention` returned it.
    """
    return _ChosenKL.apply(wide(q), wide(k), wide(w), choice, wide(p), torch.is_grad_enabled())


def dense_kl(q: Tensor, k: Tensor, w: Tensor, attn_q: Tensor, attn_k: Tensor, scale: float,
             doc_start: Tensor | None = None, offset: int = 0) -> Tensor:
    """Warm-up indexer loss: the same over every visible key, p being the dense attention of attn_q (B,T,H,D) to attn_k
    (B,S,H,D); the first query stands at position `offset`."""
    return _DenseKL.apply(wide(q), wide(k), wide(w), wide(attn_q.detach()), wide(attn_k.detach()), scale, doc_start, offset,
                          torch.is_grad_enabled())


def masked_reference(q_nope: Tensor, q_rope: Tensor, latent: Tensor, up_k: Tensor, up_v: Tensor, choice: Tensor,
                     scale: float) -> Tensor:
    """What `sparse_attention` must equal, written the slow, obvious way: every key expanded, everything unchosen masked."""
    S, L = latent.shape[1], up_k.shape[-1]
    mask = chosen_mask(choice, S).unsqueeze(1)
    keys = torch.einsum("bsl,hnl->bhsn", latent[..., :L], up_k)
    values = torch.einsum("bsl,hvl->bhsv", latent[..., :L], up_v)
    scores = torch.einsum("bthn,bhsn->bhts", q_nope, keys) + torch.einsum("bthr,bsr->bhts", q_rope, latent[..., L:])
    probs = F.softmax((scores * scale).masked_fill(~mask, -torch.inf), -1)
    return torch.einsum("bhts,bhsv->bthv", probs, values)
