"""Muon's iteration, compiled (`muon.c` beside this file): a CPU, fp32, matrices that fit into a core's own cache.

`minglm.training.optim.orthogonalize` says the same in torch; it is what runs elsewhere, and what larger matrices take.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native

SOURCE = Path(__file__).with_name("muon.c")
CACHED_FLOATS = 1 << 17  # numbers that a matrix may need: half a core's second cache


def fits(x: Tensor) -> bool:
    """Whether this machine has the code for a stack (N, m, n), m at most n."""
    return x.dim() == 3 and 2 * x.shape[1] * (x.shape[1] + x.shape[2]) <= CACHED_FLOATS and native.fits(SOURCE, x)


def iterate(x: Tensor, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """x (N, m, n), singular values at most 1 → the same after `steps` steps of the quintic."""
    x = x.clone(memory_format=torch.contiguous_format)
    sizes = map(ctypes.c_long, (0, len(x), *x.shape[1:], steps))
    if native.code(SOURCE).orthogonalise(native.address(x), *sizes, *map(ctypes.c_float, coefficients)):
        raise MemoryError(f"Muon's iteration on matrices {tuple(x.shape[1:])}: no room")
    return x
