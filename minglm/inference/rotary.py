"""Rotary position as a small matrix for each token: a row vector times it is the rotated vector.

While decoding, one product with a matrix is one operation where rotating pairs is five. Pairs (0,1), (2,3), … are
rotated by [[cos, sin], [-sin, cos]], as in `minglm.model.layers.apply_rope`.

Shapes: S positions, N tokens, r width of the rotary part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.model.layers import rope_table


class RotaryMatrices:
    """The rotation of every position up to `positions`, in the dtype and on the device of `like`."""

    def __init__(self, config: ModelConfig, positions: int, like: Tensor):
        self.width = config.qk_rope_head_dim
        table = torch.view_as_real(rope_table(positions, self.width, config.rope_theta, like.device))  # (S, r/2, 2)
        self.cos_sin = table.repeat_interleave(2, 1).transpose(1, 2).to(like.dtype).contiguous()  # (S, 2, r)
        self.diagonal = torch.eye(self.width, dtype=like.dtype, device=like.device)
        pair = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        self.off_diagonal = torch.block_diag(*[pair] * (self.width // 2)).to(like)

    def at(self, positions: Tensor) -> Tensor:
        """The matrices (N, r, r) of positions (N,) int64."""
        cos, sin = self.cos_sin.index_select(0, positions).unsqueeze(2).unbind(1)  # (N, 1, r) each
        return torch.addcmul(self.diagonal * cos, self.off_diagonal, sin)
