"""Muon's iteration, compiled (`muon.c` beside this file): a CPU, fp32, matrices that fit into a core's own cache.

`minglm.training.optim.orthogonalize` says the same in torch; it is what runs elsewhere, and what larger matrices take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native
from minglm.model.threads import parallel_for

SOURCE = Path(__file__).with_name("muon.c")
CACHED_FLOATS = 1 << 17  # numbers that a matrix may need: half a core's second cache
PARTS = 8  # of a stack, shared out to the threads


def fits(x: Tensor) -> bool:
    """Whether this machine has the code for a stack (N, m, n), m at most n."""
    return x.dim() == 3 and 2 * x.shape[1] * (x.shape[1] + x.shape[2]) <= CACHED_FLOATS and native.fits(SOURCE, x)


def iterate(x: Tensor, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """x (N, m, n), singular values at most 1 → the same after `steps` steps of the quintic."""
    x = x.clone(memory_format=torch.contiguous_format)
    sizes = [ctypes.c_long(size) for size in (*x.shape[1:], steps)]
    rest = (*sizes, *map(ctypes.c_float, coefficients))
    orthogonalise, each = native.code(SOURCE).orthogonalise, -(-len(x) // PARTS)

    def work(share: Sequence[int]) -> bool:
        ends = ((first, min(len(x), first + each)) for first in share)
        return any(orthogonalise(native.address(x), *map(ctypes.c_long, end), *rest) for end in ends)

    if any(parallel_for(work, range(0, len(x), each or 1), x.device)):
        raise MemoryError(f"Muon's iteration on matrices {tuple(x.shape[1:])}: no room")
    return x
