"""The experts' activation and its gradients in compiled code (`swiglu.c` beside this file): a CPU, fp32.

`minglm.model.moe` says the same in torch, to be read; it is what runs elsewhere, in a pass over memory for every
operation of the formula.

Shapes: n rows, F expert width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native
from minglm.model.threads import parallel_for

SOURCE = Path(__file__).with_name("swiglu.c")
ROWS = 256  # of a part of the work


def fits(*tensors: Tensor) -> bool:
    """Whether this machine has the code for tensors of that kind."""
    return native.fits(SOURCE, *tensors)


def _each(name: str, n: int, F: int, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    """Call a function of the code on parts of n rows."""
    function, held = getattr(native.code(SOURCE), name), [t.contiguous() for t in reads]

    def work(share: Sequence[int]) -> None:
        for first in share:
            rows = (ctypes.c_long(first), ctypes.c_long(min(n, first + ROWS)), ctypes.c_long(F))
            function(*map(native.address, held), *rows, *map(native.address, writes))

    parallel_for(work, range(0, n, ROWS), torch.device("cpu"))


def gated(inner: Tensor, gate: Tensor) -> Tensor:
    """inner (n, 2F) and gate (n, 1) → silu(first half) · second half · gate, (n, F)."""
    n, F = inner.shape[0], inner.shape[1] // 2
    hidden = inner.new_empty(n, F)
    _each("swiglu", n, F, (inner, gate), (hidden,))
    return hidden


def gated_backward(inner: Tensor, gate: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same and the gradient d_hidden (n, F) → hidden (n, F), d_inner (n, 2F), d_gate (n, 1)."""
    n, F = d_hidden.shape
    hidden, d_inner, d_gate = torch.empty_like(d_hidden), torch.empty_like(inner), torch.empty_like(gate)
    _each("swiglu_backward", n, F, (inner, gate, d_hidden), (hidden, d_inner, d_gate))
    return hidden, d_inner, d_gate
