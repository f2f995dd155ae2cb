"""The indexer's choice in compiled code (`choose.c` beside this file), on a CPU in fp32.

`minglm.model.indexer` says the same in torch, to be read; it is what runs elsewhere. There every score of every head is
written to memory and read again, and then sorted out; here none is.

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

SOURCE = Path(__file__).with_name("choose.c")
TILE = 16  # keys, of choose.c
_NUMBERS = ("Hi", "Di", "k", "T", "S", "offset")
_ARRAYS = ("q", "w", "keys"), ("doc_start", "packed", "facts", "chosen")


class _Choice(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _ARRAYS[0]),
        ("keys_row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _ARRAYS[1]),
    ]


def fits(q: Tensor, k: Tensor, w: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, q, k, w)


def choose(q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int, doc_start: Tensor | None) -> Tensor | None:
    """Keys of every query, as `minglm.model.indexer.select_topk` chooses them: (B, T, topk) int64 in rising order, -1
    behind them; None where the numbers are out of reach of the code's bounds (not finite, or vast).

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi), doc_start (B,T) or None.
    """
    code, (B, T, Hi, Di), S = native.code(SOURCE), q.shape, k.shape[1]
    q, w = q.contiguous(), w.contiguous()
    k = k if k.stride()[1:] == (Di, 1) else k.contiguous()
    doc_start = None if doc_start is None else doc_start.contiguous()
    packed = torch.empty(B, -(-S // TILE) * TILE * ((Di + 1) // 2), dtype=torch.int32)
    facts, chosen = torch.empty(B, 3, dtype=torch.float64), torch.empty(B, T, topk, dtype=torch.int64)
    for row, whole, fact in zip(k, packed, facts, strict=True):
        if code.pack(
            native.address(row), ctypes.c_int64(S), ctypes.c_int64(Di), native.address(whole), native.address(fact)
        ):
            return None
    held = dict(q=q, w=w, keys=k, doc_start=doc_start, packed=packed, facts=facts, chosen=chosen)
    numbers = dict(zip(_NUMBERS, (Hi, Di, topk, T, S, offset), strict=True))
    choice = _Choice(**numbers, keys_row=k.stride(0), **{name: native.address(t) for name, t in held.items()})

    def work(share: Sequence[tuple[int, int, int]]) -> int:
        parts = native.table(share)
        return code.choose(ctypes.byref(choice), native.address(parts), ctypes.c_int64(len(share)))

    failed = parallel_for(work, native.chunks(B, T), q.device)
    if 2 in failed:
        raise MemoryError(f"choosing {topk} keys for {T} queries: no room for their candidates")
    return None if any(failed) else chosen
