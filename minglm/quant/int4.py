"""INT4 weights: symmetric, one scale for `group` neighbouring inputs of an output row, two codes in a byte.

    scale = bf16(max|w| of the group / 7),  code = round(w / scale) in −7 … 7,  weight = code · scale

Training and inference share `expand`, the only function that turns codes into weights, so both multiply by the same
bits. The scale is rounded to bf16 before the codes are made; the largest code of a group is therefore always ±7, and
quantising a quantised weight changes nothing (a test holds this). 4 + 16/group bits per weight.

Shapes: … leading axes (experts), O outputs, I inputs, G = I/group groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minglm.errors import InputError
from minglm.model.products import linear
from minglm.quant import compiled_codes, int8
from minglm.runtime.switch import fast

LARGEST = 7  # −8 is left out: a symmetric range has no shift, so zero stays zero
_SHIFT = 8  # stored as an unsigned nibble


def encode(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight (…, O, I) → codes (…, O, I) int8 and scales (…, O, G) bf16.

    Raises:
        InputError: `group` is odd, or does not divide I.
    """
    check_group(group, weight.shape[-1])
    groups = weight.detach().float().unflatten(-1, (-1, group))
    scale = (groups.abs().amax(-1) / LARGEST).bfloat16()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a group of zeros
    codes = (groups / scale.float().unsqueeze(-1)).round_().clamp_(-LARGEST, LARGEST)
    return codes.to(torch.int8).flatten(-2), scale


def expand(codes: Tensor, scale: Tensor) -> Tensor:
    """codes (…, O, I) int8, scale (…, O, G) → weight (…, O, I) fp32; exact: 3 + 8 significant bits fit in 24."""
    return (codes.float().unflatten(-1, (scale.shape[-1], -1)) * scale.float().unsqueeze(-1)).flatten(-2)


def pack(codes: Tensor) -> Tensor:
    """(…, O, I) int8 → (…, O, I/2) uint8, the even input in the low nibble."""
    nibbles = (codes + _SHIFT).to(torch.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """(…, O, I/2) uint8 → (…, O, I) int8."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2).to(torch.int8) - _SHIFT


def check_group(group: int, width: int) -> None:
    """InputError unless `group` inputs can share a scale in rows of `width`."""
    if isinstance(group, bool) or not isinstance(group, int) or group < 2 or group % 2 or width % group:
        fits = [g for g in (128, 64, 32, 16, 8, 4, 2) if width % g == 0]
        raise InputError(
            f"group={group}: must be even and divide the {width} inputs of every row; use "
            f"{' or '.join(map(str, fits[:3])) or 'another model'}"
        )


@dataclass(frozen=True)
class Int4:
    """The format as the model's matrices use it. `int8_inputs`: activations rounded per token,
    integer products (W4A8)."""

    group: int = 32
    int8_inputs: bool = False
    parts = ("packed", "scale")
    rows_apart = True

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(…, O, I) → packed (…, O, I/2) uint8, scale (…, O, G) bf16."""
        codes, scale = encode(weight, self.group)
        return pack(codes), scale

    def dequantize(self, packed: Tensor, scale: Tensor) -> Tensor:
        """→ (…, O, I) fp32."""
        if compiled_codes.fits(None, packed, scale):
            return compiled_codes.from_int4(packed, scale)
        return expand(unpack(packed), scale)

    def fake_quantize(self, weight: Tensor) -> Tensor:
        """The weight that inference will see, (…, O, I) fp32: what training multiplies by."""
        return expand(*encode(weight, self.group))

    def shapes(self, rows: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part of a matrix (rows, width)."""
        check_group(self.group, width)
        return {"packed": ((rows, width // 2), torch.uint8), "scale": ((rows, width // self.group), torch.bfloat16)}

    @property
    def rounding(self) -> tuple[int, int]:
        """How activations are rounded, as `minglm.model.compiled_experts.one` is told."""
        return (1, 0) if self.int8_inputs else (0, 0)

    def inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (…, I) as `product` takes it: itself, or whole numbers (…, I) and scales (…, 1)."""
        return int8.encode(x) if self.int8_inputs else (x,)

    def product(self, inputs: tuple[Tensor, ...], packed: Tensor, scale: Tensor) -> Tensor:
        """inputs (…, I) → (…, O).

        W4A8: an integer unit sums each group and then scales. A whole number times a weight is exact in fp32 as well
        (7 + 3 + 8 bits), so on a CPU all groups are one product, which differs by the rounding of its sums alone.
        """
        if not self.int8_inputs:
            return linear(inputs[0], self.dequantize(packed, scale).to(inputs[0].dtype))
        whole, x_scale = inputs
        if packed.device.type == "cpu" and fast():
            return linear(whole, self.dequantize(packed, scale).to(whole.dtype)) * x_scale
        return int8.grouped_sums(whole, unpack(packed), scale) * x_scale

    def linear(self, x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
        """x (…, I) → (…, O)."""
        return self.product(self.inputs(x), packed, scale).to(x.dtype)
