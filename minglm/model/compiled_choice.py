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

from minglm.model.threads import parallel_for
from minglm.runtime import compiled
from minglm.runtime.switch import fast

SOURCE = Path(__file__).with_name("choose.c")
CHUNK = 64  # queries, of choose.c
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
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (q, k, w))
    counted = torch._C._len_torch_dispatch_stack()  # noqa: SLF001  (who counts operations counts torch's)
    return (
        plain and fast() and not counted and not torch.compiler.is_compiling() and compiled.library(SOURCE) is not None
    )


def choose(q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int, doc_start: Tensor | None) -> Tensor | None:
    """Keys of every query, as `minglm.model.indexer.select_topk` chooses them: (B, T, topk) int64 in rising order, -1
    behind them; None where the numbers are out of reach of the code's bounds (not finite, or vast).

    q (B,T,Hi,Di), k (B,S,Di), w (B,T,Hi), doc_start (B,T) or None.
    """
    code = compiled.library(SOURCE)
    assert code is not None, "asked for where `fits` says no"
    (B, T, Hi, Di), S = q.shape, k.shape[1]
    q, w = q.contiguous(), w.contiguous()
    k = k if k.stride()[1:] == (Di, 1) else k.contiguous()
    doc_start = None if doc_start is None else doc_start.contiguous()
    packed = torch.empty(B, -(-S // TILE) * TILE * ((Di + 1) // 2), dtype=torch.int32)
    facts, chosen = torch.empty(B, 3, dtype=torch.float64), torch.empty(B, T, topk, dtype=torch.int64)
    for row, whole, fact in zip(k, packed, facts, strict=True):
        if code.pack(_at(row), ctypes.c_int64(S), ctypes.c_int64(Di), _at(whole), _at(fact)):
            return None
    held = dict(q=q, w=w, keys=k, doc_start=doc_start, packed=packed, facts=facts, chosen=chosen)
    numbers = dict(zip(_NUMBERS, (Hi, Di, topk, T, S, offset), strict=True))
    choice = _Choice(**numbers, keys_row=k.stride(0), **{name: _at(t) for name, t in held.items()})

    def work(share: Sequence[tuple[int, int, int]]) -> int:
        parts = torch.tensor(share)
        return code.choose(ctypes.byref(choice), _at(parts), ctypes.c_int64(len(share)))

    chunks = [(b, start, min(T, start + CHUNK)) for b in range(B) for start in range(0, T, CHUNK)]
    failed = parallel_for(work, chunks, q.device)
    if 2 in failed:
        raise MemoryError(f"choosing {topk} keys for {T} queries: no room for their candidates")
    return None if any(failed) else chosen


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
