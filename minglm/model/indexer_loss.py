"""The indexer's own loss: KL divergence of its distribution from the attention's (DeepSeek-V3.2-Exp, section 2.1.1).

Shapes: B batch, T query positions, S key positions, H heads, Hi/Di indexer heads and width, k chosen keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.model import compiled_kl
from minglm.model.documents import documents, spans
from minglm.model.indexer import causal_mask
from minglm.model.layers import to_float32
from minglm.model.threads import parallel_for
from minglm.model.workspace import (
    GATHER_FLOATS,
    SCORE_FLOATS,
    Workspace,
    chunk_budget,
    gather_rows,
    query_chunks,
    scatter_rows,
    sum_in_order,
)


def _kl_and_grad(index: Tensor, p: Tensor, seen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w·KL(p ‖ softmax(index)) over rows and its gradient w·(softmax(index) − p); `seen` masks what does not exist,
    weights (n,)."""
    log_q = index.masked_fill(~seen, -torch.inf).log_softmax(-1)
    kl = (torch.xlogy(p, p) - torch.where(p > 0, p * log_q, 0.0)).sum(-1) @ weights
    return kl, (log_q.exp() - p).mul_(weights.unsqueeze(-1))


class _TopkKL(torch.autograd.Function):
    """Weighted sum over queries of the KL on the chosen set. The gradient is made in the forward pass:
    the output is a scalar."""

    @staticmethod
    def forward(ctx, q, k, w, topk_indices, p, weights, wants):  # (B,T,Hi,Di) (B,S,Di) (B,T,Hi) (B,T,k) (B,T,k) (B,T)
        if compiled_kl.fits(q, k, w, p, weights):
            total, *grads = compiled_kl.kl_and_grads(q, k, w, topk_indices, p, weights, wants)
            ctx.save_for_backward(*grads)
            return total
        B, T, Hi, Di = q.shape
        n_keys, d_q, d_w = topk_indices.shape[-1], torch.empty_like(q), torch.empty_like(w)

        def work(share):
            space, total, d_k = Workspace(k), q.new_zeros(()), torch.zeros_like(k)
            for b, part in share:
                index, n = topk_indices[b, part].clamp(min=0), part.stop - part.start
                keys = gather_rows(k[b], index, space)
                dots = torch.bmm(q[b, part], keys.transpose(1, 2), out=space("dots", n, Hi, n_keys)).relu_()
                scores = torch.bmm(w[b, part].unsqueeze(1), dots).squeeze(1)
                kl, d_index = _kl_and_grad(scores, p[b, part], topk_indices[b, part] >= 0, weights[b, part])
                total += kl
                if not wants:
                    continue
                torch.bmm(dots, d_index.unsqueeze(-1), out=d_w[b, part].unsqueeze(-1))
                d_dots = (w[b, part].unsqueeze(-1) * d_index.unsqueeze(1)).mul_(dots > 0)
                torch.bmm(d_dots, keys, out=d_q[b, part])
                d_keys = torch.bmm(d_dots.transpose(1, 2), q[b, part], out=space("d_keys", n, n_keys, Di))
                scatter_rows(d_k[b], index.flatten(), d_keys.view(-1, Di))
            return total, d_k

        chunks = query_chunks(B, T, n_keys * Di, chunk_budget(GATHER_FLOATS, k.device))
        total, d_k = (sum_in_order(parts) for parts in zip(*parallel_for(work, chunks, k.device), strict=True))
        ctx.save_for_backward(d_q, d_k, d_w)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(g * grad for g in ctx.saved_tensors), None, None, None, None


class _DenseKL(torch.autograd.Function):
    """Weighted sum over queries of the KL on all visible keys, for the warm-up;
    attention is formed a chunk of queries at a time."""

    @staticmethod
    def forward(ctx, q, k, w, attn_q, attn_k, scale, doc_start, offset, weights, wants):  # noqa: PLR0913  (autograd's)
        # attn_q (B,T,H,D), attn_k (B,S,H,D)
        B, T, Hi, Di = q.shape
        total = to_float32(q.new_zeros(()))
        d_q, d_k, d_w = torch.empty_like(q), torch.zeros_like(k), torch.empty_like(w)
        whole = None if offset else documents(doc_start)
        hidden = doc_start if whole is None else None  # what a mask must still hide
        for b, first, stop in spans(whole, B, T):
            keys = k.shape[1] if whole is None else stop - first
            for _, queries in query_chunks(
                1, stop - first, keys * (Hi + attn_q.shape[2]), chunk_budget(SCORE_FLOATS, k.device)
            ):
                part = slice(first + queries.start, first + queries.stop)
                seen_keys, n = slice(first, offset + part.stop), part.stop - part.start
                seen = causal_mask(
                    n,
                    offset + queries.start,
                    offset + queries.stop,
                    None if hidden is None else hidden[b, part],
                    q.device,
                )
                attn = torch.matmul(attn_q[b, part].transpose(0, 1), attn_k[b, seen_keys].permute(1, 2, 0)).mul_(scale)
                p = attn.masked_fill_(~seen, -torch.inf).softmax(-1).mean(0)  # (n, keys)
                dots = (q[b, part].flatten(0, 1) @ k[b, seen_keys].T).view(n, Hi, -1).relu_()
                scores = torch.bmm(w[b, part].unsqueeze(1), dots).squeeze(1)
                kl, d_index = _kl_and_grad(scores, p, seen, weights[b, part])
                total += kl
                if not wants:
                    continue
                torch.bmm(dots, d_index.unsqueeze(-1), out=d_w[b, part].unsqueeze(-1))
                d_dots = (w[b, part].unsqueeze(-1) * d_index.unsqueeze(1)).mul_(dots > 0).flatten(0, 1)
                d_q[b, part] = (d_dots @ k[b, seen_keys]).view(n, Hi, Di)
                d_k[b, seen_keys] += d_dots.T @ q[b, part].flatten(0, 1)
        ctx.save_for_backward(d_q, d_k, d_w)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(g * grad for g in ctx.saved_tensors), None, None, None, None, None, None, None


def _weights(q: Tensor, weights: Tensor | None) -> Tensor:
    """(B, T) in the computation's type; alike, and 1 in all, where none are given."""
    B, T = q.shape[:2]
    even = to_float32(q.new_full((B, T), 1 / (B * T)))
    return even if weights is None else weights.to(even)


def topk_kl(q: Tensor, k: Tensor, w: Tensor, topk_indices: Tensor, p: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sparse-stage indexer loss: mean over queries of KL(p ‖ softmax(I)) over each query's chosen keys, in nats.

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi) from `Indexer`; choice and p (B,T,k) as `sparse_attention` returned it.
    weights (B,T): what each query counts, in place of the mean's 1/(B·T).
    """
    parts = (to_float32(q), to_float32(k), to_float32(w), topk_indices, to_float32(p))
    return _TopkKL.apply(*parts, _weights(q, weights), torch.is_grad_enabled())


def dense_kl(  # noqa: PLR0913  (the last three are options)
    q: Tensor,
    k: Tensor,
    w: Tensor,
    attn_q: Tensor,
    attn_k: Tensor,
    scale: float,
    doc_start: Tensor | None = None,
    offset: int = 0,
    weights: Tensor | None = None,
) -> Tensor:
    """Warm-up indexer loss: the same over every visible key, p being the dense attention of attn_q (B,T,H,D) to attn_k
    (B,S,H,D); the first query stands at position `offset`."""
    return _DenseKL.apply(
        to_float32(q),
        to_float32(k),
        to_float32(w),
        to_float32(attn_q.detach()),
        to_float32(attn_k.detach()),
        scale,
        doc_start,
        offset,
        _weights(q, weights),
        torch.is_grad_enabled(),
    )
