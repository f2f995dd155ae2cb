"""Rows that are whole documents one after the other: each document attends to itself alone, so it is computed alone.

Under a mask, a row of T tokens costs T² whatever is in it; document by document it costs the sum of their squares, half
of that again because no query reads its future. `doc_start` says where each query's document begins.

Shapes: B rows, T positions, H heads, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.model import compiled_documents
from minglm.model.layers import to_float32
from minglm.model.threads import parallel_for
from minglm.runtime.switch import fast

LONG = 256  # tokens from which a document's operations are split inside instead of being one thread's own

# What torch's scaled dot-product attention runs on a CPU.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  (only the pair takes a backward)
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001  (as above)


class Document(NamedTuple):
    """Positions start … stop-1 of a row."""

    row: int
    start: int
    stop: int


def documents(doc_start: Tensor | None) -> list[Document] | None:
    """The documents of a batch from doc_start (B, T) int64; None where it is not made of whole documents (some query
    sees further back than its document's first position, or not that far), or where the readable path is wanted."""
    if doc_start is None or doc_start.device.type != "cpu" or not fast() or torch.compiler.is_compiling():
        return None
    begins = doc_start == torch.arange(doc_start.shape[1])
    goes_on = doc_start[:, 1:] == doc_start[:, :-1]
    if not bool(begins[:, 0].all()) or not bool((begins[:, 1:] | goes_on).all()):
        return None
    edges = [[*row.nonzero().flatten().tolist(), len(row)] for row in begins]
    return [Document(b, *ends) for b, row in enumerate(edges) for ends in itertools.pairwise(row)]


def spans(documents: list[Document] | None, B: int, T: int) -> list[Document]:
    """What the queries of a batch may see at most: their documents, or, where none are known, their rows."""
    return documents if documents is not None else [Document(b, 0, T) for b in range(B)]


class _ByDocument(torch.autograd.Function):
    """torch's own causal attention for each document, and its own backward."""

    @staticmethod
    def forward(ctx, query, key, value, parts, scale):  # (B, H, T, D) each
        out = torch.empty_like(query)
        log_sums = to_float32(query.new_empty(query.shape[:3]))

        def attend(share):
            for b, start, stop in share:
                here = slice(b, b + 1), slice(None), slice(start, stop)
                attended, log_sum = _FORWARD(query[here], key[here], value[here], 0.0, True, scale=scale)
                out[here], log_sums[here] = attended, log_sum

        _each(attend, parts)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        query, key, value, out, log_sums = ctx.saved_tensors
        grads = tuple(torch.empty_like(t) for t in (query, key, value))

        def differentiate(share):
            for b, start, stop in share:
                here = slice(b, b + 1), slice(None), slice(start, stop)
                found = _BACKWARD(
                    *(t[here] for t in (d_out, query, key, value, out)),
                    log_sums[here],
                    0.0,
                    True,
                    scale=ctx.scale,
                )
                for grad, part in zip(grads, found, strict=True):
                    grad[here] = part

        _each(differentiate, ctx.parts)
        return *grads, None, None


def _each(work: Callable[[Sequence[Document]], None], parts: Sequence[Document]) -> None:
    """Long documents one after the other, each on all threads; the short ones shared out, large before small."""
    cpu = torch.device("cpu")
    if long := [d for d in parts if d.stop - d.start >= LONG]:
        work(long)
    if short := [d for d in parts if d.stop - d.start < LONG]:
        parallel_for(work, sorted(short, key=lambda d: d.start - d.stop), cpu)


def heads_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, H, D) each → (B, H, T, D). The narrower of key and value is padded with zeros, because only equal widths
    take torch's fused path."""
    width = max(query.shape[-1], value.shape[-1])
    query, key, value = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (query, key, value))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def attention_by_document(query: Tensor, key: Tensor, value: Tensor, parts: list[Document], scale: float) -> Tensor:
    """Causal attention inside each document: query and key (B, T, H, D), value (B, T, H, Dv) → (B, T, H, Dv), the same
    as scaled dot-product attention under the mask of these documents, up to rounding."""
    if compiled_documents.fits(query, key, value):
        return compiled_documents.attention(query, key, value, parts, scale)
    out = _ByDocument.apply(*heads_first(query, key, value), parts, scale)
    return out.transpose(1, 2)[..., : value.shape[-1]]
