"""INT8: activations rounded per token, weights per output row, and products of whole numbers.

    activation: scale = max|x| of the token / 127;  weight: scale = max|w| of the row / 127;
    code = round(value / scale)

The products and their sums are whole numbers below 2^24, which fp32 holds exactly: what is computed here is what an
integer unit computes, the order of additions does not matter, and only the multiplication by the scales rounds.

Shapes: N tokens, O outputs, I inputs, G groups of inputs that share a weight scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minglm.model.layers import to_float32
from minglm.model.products import linear
from minglm.quant import compiled_codes

LARGEST = 127
EXACT = 2**24  # whole numbers up to here are exact in fp32


def encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """(…, I) → whole numbers (…, I) in −127 … 127, kept as fp32, and scales (…, 1) fp32: one for each row or token."""
    x = to_float32(x.detach())
    if compiled_codes.fits(x):
        return compiled_codes.round_int8(x)
    scale = x.abs().amax(-1, keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x / scale).round_().clamp_(-LARGEST, LARGEST), scale


def grouped_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x (…, I), weight codes (O, I) int8 with scales (O, G) → (…, O) in x's dtype:
    Σ_g scale_g · (integer product of group g).

    Exact up to the scales as long as a group's products stay below 2^24: 127·127 times 1040 inputs. Longer groups are
    cut, which changes nothing: their pieces share the scale.
    """
    whole, x_scale = encode(x)
    return (grouped_sums(whole, codes, scale) * x_scale).to(x.dtype)


def grouped_sums(whole: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The same of whole numbers (…, I), before the scales of their tokens."""
    G = scale.shape[-1]
    width = codes.shape[-1] // G
    pieces = next(p for p in range(1, width + 1) if width % p == 0 and (width // p) * LARGEST**2 < EXACT)
    left = whole.reshape(-1, G * pieces, width // pieces).transpose(0, 1)  # (G, N, width)
    right = codes.to(whole.dtype).view(-1, G * pieces, width // pieces).permute(1, 2, 0)  # (G, width, O)
    sums = torch.bmm(left, right) * scale.to(whole.dtype).repeat_interleave(pieces, -1).T.unsqueeze(1)
    return sums.sum(0).view(*whole.shape[:-1], -1)


@dataclass(frozen=True)
class Int8:
    """W8A8: int8 weights with a scale for each output row, int8 activations with a scale for each token."""

    int8_inputs: bool = True
    parts = ("codes", "scale")
    rows_apart = True

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(…, O, I) → codes (…, O, I) int8, scale (…, O, 1) fp32."""
        codes, scale = encode(weight)
        return codes.to(torch.int8), scale.float()

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """→ (…, O, I) fp32."""
        return codes.float() * scale

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """(…, O, I) rounded as inference sees it."""
        return self.dequantize(*self.quantize(weight))

    def shapes(self, rows: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part of a matrix (rows, width)."""
        return {"codes": ((rows, width), torch.int8), "scale": ((rows, 1), torch.float32)}

    @property
    def rounding(self) -> tuple[int, int]:
        """How activations are rounded, as `minglm.model.compiled_experts.one` is told."""
        return (1, 0) if self.int8_inputs else (0, 0)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (…, I) as `product` takes it: itself, or whole numbers (…, I) and scales (…, 1)."""
        return encode(x) if self.int8_inputs else (x,)

    def product(self, inputs: tuple[Tensor, ...], codes: Tensor, scale: Tensor) -> Tensor:
        """inputs (…, I) → (…, O)."""
        if not self.int8_inputs:
            return linear(inputs[0], self.dequantize(codes, scale).to(inputs[0].dtype))
        return grouped_sums(inputs[0], codes, scale) * inputs[1]

    def linear(self, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        """x (…, I) → (…, O)."""
        return self.product(self.inputs(x), codes, scale).to(x.dtype)
