"""DeepSeek Sparse Attention: a lightning indexer chooses `index_topk` keys for each query, attention reads only those.

    I[t,s] = Σ_j w[t,j] · relu(q[t,j] · k[s])                         (DeepSeek-V3.2 eq. 1)

The choice is not differentiable, so the language-model loss gives the indexer no gradient. The indexer learns from
KL(p_t ‖ softmax(I_t)), where p_t is the attention that the model itself paid, averaged over heads: over all visible
keys while warming up, over the chosen keys afterwards. Its inputs are detached, so the KL gives the model no gradient.

A choice is an int64 tensor (B, T, k) of key positions in any order; -1 marks a place that a query with fewer than k
visible keys leaves empty. Equal scores go to the lowest position, so the chosen set is a function of the scores alone.

Shapes: B batch, T query positions, S key positions, k chosen, H heads, Hi/Di indexer heads and width, R latent + rope
width of a cached key, L latent width (the first L of R are also the value), n queries of one chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.model import compiled_sparse
from minglm.model.threads import parallel_for
from minglm.model.workspace import (
    GATHER_FLOATS,
    Workspace,
    chunk_budget,
    gather_rows,
    query_chunks,
    scatter_rows,
    sum_in_order,
)


def _absorb(q_nope: Tensor, q_rope: Tensor, up_k: Tensor, out: Tensor) -> Tensor:
    """(n,H,nope), (n,H,rope), (H,nope,L) → out (n,H,R), stored heads first so that the product is one batched
    matmul."""
    L = up_k.shape[-1]
    torch.bmm(q_nope.transpose(0, 1), up_k, out=out[..., :L].transpose(0, 1))
    out[..., L:] = q_rope
    return out


class _SparseAttention(torch.autograd.Function):
    """Absorbed attention over gathered latents, a chunk of queries at a time: absorb the query, gather, attend, expand
    the values. Gathered keys and absorbed queries are made again in the backward instead of being stored."""

    @staticmethod
    def forward(ctx, q_nope, q_rope, latent, up_k, up_v, topk_indices, scale, want_p):  # noqa: PLR0913  (autograd's)
        B, T, H, _ = q_nope.shape
        k, R, L, Dv = topk_indices.shape[-1], latent.shape[-1], up_k.shape[-1], up_v.shape[1]
        out, attended = q_nope.new_empty(B, T, H, Dv), q_nope.new_empty(B, T, H, L)
        probs = q_nope.new_empty(B, T, H, k)
        p = q_nope.new_empty(B, T, k) if want_p else q_nope.new_empty(0)
        index, ragged = topk_indices.clamp(min=0), (topk_indices < 0).any(-1)

        def work(share):
            space = Workspace(latent)
            for b, part in share:
                n, P, A = part.stop - part.start, probs[b, part], attended[b, part]
                keys = gather_rows(latent[b], index[b, part], space)
                q = _absorb(q_nope[b, part], q_rope[b, part], up_k, space("q", H, n, R).transpose(0, 1))
                scores = torch.bmm(q, keys.transpose(1, 2), out=space("scores", n, H, k)).mul_(scale)
                if ragged[b, part].any():
                    scores.masked_fill_((topk_indices[b, part] < 0).unsqueeze(1), -torch.inf)
                torch.softmax(scores, -1, out=P)
                torch.bmm(P, keys[..., :L], out=A)
                torch.bmm(A.transpose(0, 1), up_v.transpose(1, 2), out=out[b, part].transpose(0, 1))
                if want_p:
                    torch.mean(P, 1, out=p[b, part])

        parallel_for(work, query_chunks(B, T, k * R, chunk_budget(GATHER_FLOATS, latent.device)), latent.device)
        ctx.save_for_backward(q_nope, q_rope, latent, up_k, up_v, index, probs, attended)
        ctx.scale = scale
        if want_p:
            ctx.mark_non_differentiable(p)
        return out, p if want_p else None

    @staticmethod
    def backward(ctx, d_out, _):
        q_nope, q_rope, latent, up_k, up_v, index, probs, attended = ctx.saved_tensors
        B, T, H, _ = q_nope.shape
        k, R, L = index.shape[-1], latent.shape[-1], up_k.shape[-1]
        d_nope, d_rope = torch.empty_like(q_nope), torch.empty_like(q_rope)

        def work(share):
            d_latent, d_up_k, d_up_v = torch.zeros_like(latent), torch.zeros_like(up_k), torch.zeros_like(up_v)
            space = Workspace(latent)
            for b, part in share:
                n, P, A, d_values = (
                    part.stop - part.start,
                    probs[b, part],
                    attended[b, part],
                    d_out[b, part].transpose(0, 1),
                )
                keys = gather_rows(latent[b], index[b, part], space)
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
                d_absorbed = d_q[..., :L].transpose(0, 1)  # (H, n, L)
                torch.bmm(d_absorbed, up_k.transpose(1, 2), out=d_nope[b, part].transpose(0, 1))
                d_up_k.baddbmm_(q_nope[b, part].permute(1, 2, 0), d_absorbed)
                d_up_v.baddbmm_(d_values.transpose(1, 2), A.transpose(0, 1))
            return d_latent, d_up_k, d_up_v

        shares = parallel_for(
            work, query_chunks(B, T, k * R, chunk_budget(GATHER_FLOATS, latent.device)), latent.device
        )
        d_latent, d_up_k, d_up_v = (sum_in_order(parts) for parts in zip(*shares, strict=True))
        return d_nope, d_rope, d_latent, d_up_k, d_up_v, None, None, None


def sparse_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    up_k: Tensor,
    up_v: Tensor,
    topk_indices: Tensor,
    scale: float,
    want_p: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """MLA over the chosen keys only: compute and memory traffic grow with k, not with S.

    Args:
        q_nope, q_rope: the two parts of the queries, (B, T, H, nope) and (B, T, H, rope), the latter already turned.
        latent: cached keys (B, S, R): L of latent, then the rotary key.
        up_k, up_v: halves of kv_b_proj, (H, nope, L) and (H, Dv, L).
        choice: (B, T, k) int64, -1 for an empty place; every query has at least one key.
    Returns:
        values (B, T, H, Dv) and, when asked, the head-averaged attention p (B, T, k) without gradient.
    """
    fits = compiled_sparse.fits(q_nope, q_rope, latent, up_k, up_v)
    path = compiled_sparse.attention if fits else _SparseAttention.apply
    return path(q_nope, q_rope, latent, up_k, up_v, topk_indices, scale, want_p)


def topk_mask(topk_indices: Tensor, S: int) -> Tensor:
    """A choice (B, T, k) as a mask (B, T, S), True where a key was chosen."""
    mask = torch.zeros(
        *topk_indices.shape[:2], S + 1, dtype=torch.bool, device=topk_indices.device
    )  # empty places mark the last column
    return mask.scatter_(-1, torch.where(topk_indices < 0, S, topk_indices), True)[..., :-1]


def masked_reference(
    q_nope: Tensor, q_rope: Tensor, latent: Tensor, up_k: Tensor, up_v: Tensor, topk_indices: Tensor, scale: float
) -> Tensor:
    """What `sparse_attention` must equal, written the slow, obvious way: every key expanded,
    everything unchosen masked."""
    S, L = latent.shape[1], up_k.shape[-1]
    mask = topk_mask(topk_indices, S).unsqueeze(1)
    keys = torch.einsum("bsl,hnl->bhsn", latent[..., :L], up_k)
    values = torch.einsum("bsl,hvl->bhsv", latent[..., :L], up_v)
    scores = torch.einsum("bthn,bhsn->bhts", q_nope, keys) + torch.einsum("bthr,bsr->bhts", q_rope, latent[..., L:])
    probs = F.softmax((scores * scale).masked_fill(~mask, -torch.inf), -1)
    return torch.einsum("bhts,bhsv->bthv", probs, values)
