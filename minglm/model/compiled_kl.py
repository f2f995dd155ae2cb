"""The indexer's loss on chosen keys, with its gradients, in compiled code (`learn.c` beside this file): a CPU, fp32.

`minglm.model.indexer_loss` says the same in torch, to be read; it is what runs elsewhere.

Shapes: B batch, T query positions, S key positions, Hi/Di indexer heads and width, k chosen keys.
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

SOURCE = Path(__file__).with_name("learn.c")
_NUMBERS = ("Hi", "Di", "k", "T", "S")
_ARRAYS = ("q", "w", "keys", "chosen", "p", "weights", "d_q", "d_w")


class _Loss(ctypes.Structure):
    _fields_ = [*((n, ctypes.c_int64) for n in _NUMBERS), *((n, ctypes.c_void_p) for n in _ARRAYS)]


def fits(*tensors: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, *tensors)


def kl_and_grads(
    q: Tensor, k: Tensor, w: Tensor, topk_indices: Tensor, p: Tensor, weights: Tensor, wants: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted sum over queries of the KL (a scalar), and its gradients by q (B,T,Hi,Di), k (B,S,Di) and w (B,T,Hi),
    which are not computed unless `wants`. topk_indices and p (B,T,k), weights (B,T)."""
    code, (B, T, Hi, Di) = native.code(SOURCE), q.shape
    q, k, w, topk_indices, p, weights = (t.contiguous() for t in (q, k, w, topk_indices, p, weights))
    d_q, d_w = torch.empty_like(q), torch.empty_like(w)
    held = dict(q=q, w=w, keys=k, chosen=topk_indices, p=p, weights=weights, d_q=d_q, d_w=d_w)
    numbers = dict(zip(_NUMBERS, (Hi, Di, topk_indices.shape[-1], T, k.shape[1]), strict=True))
    loss = _Loss(**numbers, **{name: native.address(t) for name, t in held.items()})

    def work(share: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        parts, total, d_k = native.table(share), torch.zeros((), dtype=torch.float64), torch.zeros_like(k)
        at = [native.address(t) for t in (d_k if wants else None, total)]
        if code.learn(ctypes.byref(loss), native.address(parts), ctypes.c_int64(len(share)), *at):
            raise MemoryError(f"the indexer's loss on {topk_indices.shape[-1]} keys: no room for them")
        return total, d_k

    shares = parallel_for(work, native.chunks(B, T), q.device)
    total, d_k = (sum_in_order(parts) for parts in zip(*shares, strict=True))
    return total.to(q), d_q, d_k, d_w
