"""Causal attention inside documents of packed rows, compiled (`attend_documents.c` beside this file): a CPU, fp32.

`minglm.model.documents` says the same with torch's own attention; it is what runs elsewhere.

Shapes: B rows, T positions, H heads, D width of queries and keys, Dv of values.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native
from minglm.model.threads import parallel_for

SOURCE = Path(__file__).with_name("attend_documents.c")
_NUMBERS = ("H", "T", "D", "V", "key_row", "key_head", "value_row", "value_head")
_ARRAYS = ("q", "k", "v", "out", "log_sums", "d_out", "d_q", "d_k", "d_v")


class _Packed(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in _NUMBERS),
        ("scale", ctypes.c_float),
        *((n, ctypes.c_void_p) for n in _ARRAYS),
    ]


def fits(*tensors: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, *tensors)


def _rows(t: Tensor) -> Tensor:
    """(B,T,H,D) as the code reads it: numbers of a head side by side, positions of all rows equally far apart."""
    return t if t.stride(3) == 1 and t.stride(0) == t.shape[1] * t.stride(1) else t.contiguous()


def _run(name: str, parts: Sequence[tuple[int, int, int, int]], scale: float, **held: Tensor) -> None:
    """Call a function of the code on documents' heads, (row, first position, the one after the last, head) each."""
    code, q, k, v = native.code(SOURCE), held["q"], held["k"], held["v"]
    (_, T, H, D), V = q.shape, v.shape[3]
    strides = (*k.stride()[1:3], *v.stride()[1:3])
    arrays = {n: native.address(held.get(n)) for n in _ARRAYS}
    what = _Packed(**dict(zip(_NUMBERS, (H, T, D, V, *strides), strict=True)), scale=scale, **arrays)

    def work(share: Sequence[tuple[int, int, int, int]]) -> int:
        table = torch.tensor(share, dtype=torch.int64)
        return getattr(code, name)(ctypes.byref(what), native.address(table), ctypes.c_int64(len(share)))

    if any(parallel_for(work, parts, q.device)):
        raise MemoryError(f"attention inside documents of up to {max(p[2] - p[1] for p in parts)} tokens: no room")


class _Attention(torch.autograd.Function):
    """Queries and keys (B,T,H,D), values (B,T,H,Dv) → (B,T,H,Dv)."""

    @staticmethod
    def forward(ctx, query, key, value, parts, scale):
        q, k, v = query.contiguous(), _rows(key), _rows(value)
        out, log_sums = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])
        _run("attend", parts, scale, q=q, k=k, v=v, out=out, log_sums=log_sums)
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        q, k, v, out, log_sums = ctx.saved_tensors
        d_q, d_k, d_v = (t.new_empty(t.shape) for t in (q, k, v))
        held = dict(q=q, k=k, v=v, out=out, log_sums=log_sums, d_out=d_out.contiguous(), d_q=d_q, d_k=d_k, d_v=d_v)
        _run("attend_backward", ctx.parts, ctx.scale, **held)
        return d_q, d_k, d_v, None, None


def attention(
    query: Tensor, key: Tensor, value: Tensor, documents: Sequence[tuple[int, int, int]], scale: float
) -> Tensor:
    """As `minglm.model.documents.attention_by_document`; the longest documents are begun first."""
    parts = [(*d, head) for d in sorted(documents, key=lambda d: d[1] - d[2]) for head in range(query.shape[2])]
    return _Attention.apply(query, key, value, parts, scale)
