"""What compiled code of the model may be given, and how: tensors of fp32 on a CPU, by their addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minglm.runtime import compiled
from minglm.runtime.switch import fast

CHUNK = 64  # queries of a part of the work


def fits(source: Path, *tensors: Tensor) -> bool:
    """Whether this machine has the code of a C file, and it is wanted, for tensors of that kind."""
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    counted = torch._C._len_torch_dispatch_stack()  # noqa: SLF001  (who counts operations counts torch's)
    return (
        plain and fast() and not counted and not torch.compiler.is_compiling() and compiled.library(source) is not None
    )


def code(source: Path) -> ctypes.CDLL:
    """The functions of a C file, where `fits` says yes."""
    library = compiled.library(source)
    assert library is not None, "asked for where `fits` says no"
    return library


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where the numbers of a contiguous tensor lie; NULL for None. Who calls keeps it alive."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def chunks(B: int, T: int) -> list[tuple[int, int, int]]:
    """(sequence, first query, the one after the last) of at most CHUNK queries each."""
    return [(b, start, min(T, start + CHUNK)) for b in range(B) for start in range(0, T, CHUNK)]


def table(share: Sequence[tuple[int, int, int]]) -> Tensor:
    """Some of `chunks` as C reads them: (n, 3) int64."""
    return torch.tensor(share, dtype=torch.int64).view(-1, 3)
