"""FP8 e4m3 weights with one scale for each block of 128×128, as DeepSeek-V3 and GLM-5 publish them.

    weight_scale_inv = max|w| of the block / 448 (fp32; the name is the published one, the number multiplies)
    weight ≈ fp8(w / weight_scale_inv) · weight_scale_inv

A rollout engine rounds its activations too, one scale for 128 neighbouring values of a token (DeepSeek-V3 §3.3.2);
`fp8_inputs` does the same, so a policy's rollout can be run here as such an engine would run it. Products are taken in
fp32 of the rounded values; the narrower sums inside a tensor core are not imitated.

Shapes: … leading axes (experts), O outputs, I inputs; the last block of a row or column may be smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.errors import InputError
from minglm.model.layers import to_float32
from minglm.model.products import linear
from minglm.quant import compiled_codes

LARGEST = 448.0  # of float8_e4m3fn


def encode(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(…, O, I) → float8_e4m3fn of the same shape and scales (…, ⌈O/block⌉, ⌈I/block⌉) fp32."""
    weight = weight.detach().float()
    rows, width = weight.shape[-2:]
    padded = F.pad(weight.abs(), (0, -width % block, 0, -rows % block))
    largest = padded.unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).amax((-3, -1))
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (weight / _spread(scale, rows, width, block)).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def expand(values: Tensor, scale: Tensor, block: int) -> Tensor:
    """float8 (…, O, I) and its scales → fp32 (…, O, I)."""
    if compiled_codes.fits(scale, values):
        return compiled_codes.from_fp8(values, scale, block)
    rows, width = values.shape[-2:]
    return values.float() * _spread(scale, rows, width, block)


def _spread(scale: Tensor, rows: int, width: int, block: int) -> Tensor:
    return scale.repeat_interleave(block, -2)[..., :rows, :].repeat_interleave(block, -1)[..., :width]


def round_activations(x: Tensor, tile: int) -> Tensor:
    """(…, I) → the same, rounded to e4m3 with one scale for each `tile` neighbouring values of a token."""
    if compiled_codes.fits(x):
        return compiled_codes.round_fp8(x, tile)
    width = x.shape[-1]
    tiles = F.pad(to_float32(x), (0, -width % tile)).unflatten(-1, (-1, tile))
    scale = tiles.abs().amax(-1, keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = (tiles / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(scale.dtype) * scale
    return rounded.flatten(-2)[..., :width].to(x.dtype)


@dataclass(frozen=True)
class Fp8:
    """The format as the model's matrices use it."""

    block: int = 128
    fp8_inputs: bool = True
    parts = ("values", "scale_inv")
    rows_apart = False

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise InputError(
                f"block={self.block!r}: must be a whole number of at least 1; published checkpoints use 128"
            )

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(…, O, I) → values (…, O, I) float8_e4m3fn, scale_inv (…, ⌈O/block⌉, ⌈I/block⌉) fp32."""
        return encode(weight, self.block)

    def dequantize(self, values: Tensor, scale_inv: Tensor) -> Tensor:
        """→ (…, O, I) fp32."""
        return expand(values, scale_inv, self.block)

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """(…, O, I) rounded as inference sees it."""
        return self.dequantize(*self.quantize(weight))

    def shapes(self, rows: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part of a matrix (rows, width)."""
        blocks = (math.ceil(rows / self.block), math.ceil(width / self.block))
        return {"values": ((rows, width), torch.float8_e4m3fn), "scale_inv": (blocks, torch.float32)}

    @property
    def rounding(self) -> tuple[int, int]:
        """How activations are rounded, as `minglm.model.compiled_experts.one` is told."""
        return (8, self.block) if self.fp8_inputs else (0, 0)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (…, I) as `product` takes it, (…, I)."""
        return (round_activations(x, self.block) if self.fp8_inputs else x,)

    def product(self, inputs: tuple[Tensor, ...], values: Tensor, scale_inv: Tensor) -> Tensor:
        """inputs (…, I) → (…, O)."""
        return linear(inputs[0], self.dequantize(values, scale_inv).to(inputs[0].dtype))

    def linear(self, x: Tensor, values: Tensor, scale_inv: Tensor) -> Tensor:
        """x (…, I) → (…, O)."""
        return self.product(self.inputs(x), values, scale_inv)
