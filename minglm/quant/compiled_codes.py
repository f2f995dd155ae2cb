"""Codes to numbers, and numbers to codes, in compiled code (`codes.c` beside this file): on a CPU.

`minglm.quant.int4`, `int8` and `fp8` say the same in torch, to be read; it is what runs elsewhere. The bits are
the same.

Shapes: … leading axes, O outputs, I inputs, G groups.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from minglm.model import native

SOURCE = Path(__file__).with_name("codes.c")


def fits(rounded: Tensor | None = None, *codes: Tensor) -> bool:
    """Whether this machine has the code: for fp32 numbers that nobody differentiates, and codes on the CPU."""
    numbers = () if rounded is None else (rounded,)
    return (
        native.fits(SOURCE, *numbers)
        and all(t.device.type == "cpu" for t in codes)
        and not any(t.requires_grad for t in numbers)
    )


def _call(name: str, reads: tuple[Tensor, ...], numbers: tuple[int, ...], writes: tuple[Tensor, ...]) -> None:
    held = [t.contiguous() for t in reads]
    function = getattr(native.code(SOURCE), name)
    function(*map(native.address, held), *map(ctypes.c_long, numbers), *map(native.address, writes))


def _rows(shape: torch.Size) -> int:
    return shape[:-1].numel()


def from_int4(packed: Tensor, scale: Tensor) -> Tensor:
    """packed (…, O, I/2) uint8, scale (…, O, G) bf16 → (…, O, I) fp32."""
    width = 2 * packed.shape[-1]
    out = scale.new_empty((*packed.shape[:-1], width), dtype=torch.float32)
    _call("from_int4", (packed, scale), (_rows(packed.shape), width, width // scale.shape[-1]), (out,))
    return out


def from_fp8(values: Tensor, scale: Tensor, block: int) -> Tensor:
    """values (…, O, I) float8_e4m3fn, scale (…, ⌈O/block⌉, ⌈I/block⌉) fp32 → (…, O, I) fp32."""
    out, (rows, width) = scale.new_empty(values.shape), values.shape[-2:]
    codes = values.contiguous().view(torch.uint8).view(-1, rows, width)
    for one, its_scale, numbers in zip(codes, scale.view(-1, *scale.shape[-2:]), out.view_as(codes), strict=True):
        _call("from_fp8", (one, its_scale), (rows, width, block), (numbers,))
    return out


def round_fp8(x: Tensor, tile: int) -> Tensor:
    """(…, I) → the same, rounded to e4m3 with one scale for each `tile` neighbouring values."""
    out = x.new_empty(x.shape)
    _call("round_fp8", (x,), (_rows(x.shape), x.shape[-1], tile), (out,))
    return out


def round_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(…, I) → whole numbers (…, I) in −127 … 127, kept as fp32, and scales (…, 1)."""
    whole, scale = x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1))
    _call("round_int8", (x,), (_rows(x.shape), x.shape[-1]), (whole, scale))
    return whole, scale
