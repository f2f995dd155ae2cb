"""Matrix products of many rows, through whichever of torch's two libraries multiplies faster on this processor.

torch hands an fp32 product on a CPU to its BLAS. Where that is MKL, its widest kernels are kept to one maker's
processors; oneDNN, which torch carries too, picks by what the processor can do. Both compute in fp32, so results differ
by rounding alone. Which one is faster is measured once a process, on the first large product.

oneDNN makes a kernel for each shape it meets, which costs as much as a product of some hundred rows. Row counts of
experts differ from step to step, so it is given whole blocks of rows, and BLAS the rest.

Shapes: m rows, k summed over, n columns; C in, F out.
"""

from __future__ import annotations

import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minglm.runtime.switch import fast

BLOCK = 32  # rows: a product has a multiple of it in oneDNN
NARROW = 16  # columns, or numbers summed over, below which BLAS is as fast
FASTER = 1.3  # times as fast as BLAS that oneDNN must be: a clear difference, so that each process finds the same
_SIDE, _REPETITIONS = 256, 7  # of the product that is measured


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    """a (m, k) @ b (k, n) by oneDNN; it reads transposed views as they lie, but for a part of a wider b (the latent in
    the output of a joint projection) it has no kernel that is worth the name: that is copied first."""
    b = b if b.is_contiguous() or b.T.is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")  # noqa: SLF001  (torch's own way to it)


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is there, and clearly faster than BLAS at an fp32 product: the best of several each, in turns."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    # not torch.randn: measuring must leave the random state of a run alone
    a = torch.linspace(-1, 1, _SIDE * _SIDE, dtype=torch.float32).view(_SIDE, _SIDE)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        torch.mm(a, a)
        between = time.perf_counter()
        _onednn(a, a)
        seconds[0].append(between - start)
        seconds[1].append(time.perf_counter() - between)
    return min(seconds[0]) > FASTER * min(seconds[1])


def _by_onednn(a: Tensor, b: Tensor, rows: int) -> bool:
    return (
        rows >= BLOCK
        and min(a.shape[0], a.shape[1], b.shape[1]) >= NARROW
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()  # noqa: SLF001  (who counts products knows them by torch's names)
        and fast()
        and onednn_is_faster()
    )


def rows_product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a (m, k) @ b (k, n) → (m, n), in `out` when it is given. Without gradients."""
    m = a.shape[0]
    if not _by_onednn(a, b, m):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    whole = m - m % BLOCK
    if out is None and whole == m:
        return _onednn(a, b)
    out = a.new_empty(m, b.shape[1]) if out is None else out
    out[:whole] = _onednn(a[:whole], b)
    if whole < m:
        torch.mm(a[whole:], b, out=out[whole:])
    return out


def sum_over_rows(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """aᵀ (k, m) @ b (m, n) → (k, n) for a (m, k): the gradient of a weight. Without gradients."""
    m = a.shape[0]
    if not _by_onednn(a.T, b, m):
        return torch.mm(a.T, b) if out is None else torch.mm(a.T, b, out=out)
    whole = m - m % BLOCK
    product = _onednn(a[:whole].T, b[:whole])
    if whole < m:
        product.addmm_(a[whole:].T, b[whole:])
    return product if out is None else out.copy_(product)


class _Linear(torch.autograd.Function):
    """x (m, C) @ weight (F, C)ᵀ."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return rows_product(x, weight.T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        d_x = rows_product(grad, weight) if ctx.needs_input_grad[0] else None
        return d_x, sum_over_rows(grad, x) if ctx.needs_input_grad[1] else None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, C) times weight (F, C) → (…, F), as torch's `F.linear`, up to rounding."""
    rows = x.numel() // max(x.shape[-1], 1)
    if rows < BLOCK or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)
    flat = x.reshape(rows, x.shape[-1])
    if not _by_onednn(flat, weight.T, rows):
        return F.linear(x, weight)
    return _Linear.apply(flat, weight).view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """torch's linear layer without a bias, by `linear`."""

    def __init__(self, width: int, out: int):
        super().__init__(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, F)."""
        return linear(x, self.weight)
