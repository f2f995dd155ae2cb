"""Attention to the chosen latents in compiled code (`attend_chosen.c` beside this file): a CPU, fp32.

`minglm.model.sparse_attention` says the same in torch, to be read; it is what runs elsewhere. There the keys of a
chunk of queries are gathered into memory and multiplied in as many small products as there are queries.

Shapes: B batch, T query positions, S key positions, H heads, k chosen keys, R = L + rope width of a latent, Dv value
width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native
from minglm.model.threads import parallel_for
from minglm.model.workspace import sum_in_order

SOURCE = Path(__file__).with_name("attend_chosen.c")
_NUMBERS = ("H", "k", "R", "L", "T", "S")
_ARRAYS = ("latent", "chosen"), ("q", "probs", "attended", "p", "d_attended", "d_q")


class _Chosen(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in _NUMBERS),
        *((n, ctypes.c_void_p) for n in _ARRAYS[0]),
        ("scale", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in _ARRAYS[1]),
    ]


def fits(*tensors: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, *tensors)


def _described(scale: float, L: int, **held: Tensor | None) -> _Chosen:
    """What the code reads and writes; who calls keeps the tensors alive."""
    latent, q, chosen = held["latent"], held["q"], held["chosen"]
    assert latent is not None and q is not None and chosen is not None
    numbers = dict(H=q.shape[2], k=chosen.shape[-1], R=latent.shape[-1], L=L, T=q.shape[1], S=latent.shape[1])
    return _Chosen(**numbers, scale=scale, **{name: native.address(t) for name, t in held.items()})


class _Attention(torch.autograd.Function):
    """Absorbed queries q (B,T,H,R), latents (B,S,R) and chosen keys (B,T,k) → what each head attended to (B,T,H,L),
    and, when wanted, the head-averaged attention (B,T,k)."""

    @staticmethod
    def forward(ctx, q, latent, chosen, width, scale, want_p):
        code, (B, T, H, _), k = native.code(SOURCE), q.shape, chosen.shape[-1]
        q, latent, chosen = q.contiguous(), latent.contiguous(), chosen.contiguous()
        probs, attended = q.new_empty(B, T, H, k), q.new_empty(B, T, H, width)
        p = q.new_empty(B, T, k) if want_p else None
        what = _described(scale, width, latent=latent, chosen=chosen, q=q, probs=probs, attended=attended, p=p)

        def work(share: Sequence[tuple[int, int, int]]) -> int:
            parts = native.table(share)
            return code.attend(ctypes.byref(what), native.address(parts), ctypes.c_int64(len(share)))

        if any(parallel_for(work, native.chunks(B, T), q.device)):
            raise MemoryError(f"attention to {k} keys: no room for them")
        ctx.save_for_backward(q, latent, chosen, probs, attended)
        ctx.scale = scale
        if p is not None:
            ctx.mark_non_differentiable(p)
        return attended, p

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_attended, _):
        q, latent, chosen, probs, attended = ctx.saved_tensors
        code, d_q, d_attended = native.code(SOURCE), torch.empty_like(q), d_attended.contiguous()
        what = _described(
            ctx.scale,
            attended.shape[-1],
            **dict(latent=latent, chosen=chosen, q=q, probs=probs, attended=attended),
            **dict(d_attended=d_attended, d_q=d_q),
        )

        def work(share: Sequence[tuple[int, int, int]]) -> Tensor:
            parts, d_latent = native.table(share), torch.zeros_like(latent)
            at = native.address(parts), ctypes.c_int64(len(share)), native.address(d_latent)
            if code.attend_backward(ctypes.byref(what), *at):
                raise MemoryError(f"attention to {chosen.shape[-1]} keys: no room for them")
            return d_latent

        shares = parallel_for(work, native.chunks(*q.shape[:2]), q.device)
        return d_q, sum_in_order(tuple(shares)), None, None, None, None


def attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    up_k: Tensor,
    up_v: Tensor,
    topk_indices: Tensor,
    scale: float,
    want_p: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `minglm.model.sparse_attention.sparse_attention`: values (B,T,H,Dv), and p (B,T,k) when wanted."""
    q = torch.cat((torch.einsum("bthn,hnl->bthl", q_nope, up_k), q_rope), -1)
    attended, p = _Attention.apply(q, latent, topk_indices, up_k.shape[-1], scale, want_p)
    return torch.einsum("bthl,hvl->bthv", attended, up_v), p
