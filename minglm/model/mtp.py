"""Multi-token prediction: one extra layer guesses the tokens after the next one,
with the same parameters at every depth.

At depth d the module joins what depth d-1 knew at position i with the embedding of token i+d, and predicts token i+d+1
(DeepSeek-V3 §2.2; GLM-5 shares one module over its depths, §2.1). Embedding and head are the model's own. With
targets[i] = tokens[i+1], and a document running from 0 to T:

    depth   reads hidden of   joins token   predicts token   label         positions
      0     (main model)                    i+1              targets[i]    0 … T-1
      1     depth 0 at i      i+1           i+2              targets[i+1]  0 … T-2
      2     depth 1 at i      i+2           i+3              targets[i+2]  0 … T-3
      d     depth d-1 at i    i+d           i+d+1            targets[i+d]  0 … T-1-d

A label of -100 stays ignored, and a position is ignored at depth d when token i+d lies in another document.

Shapes: B batch, T positions, C hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.data.shards import IGNORE
from minglm.model.decoder_layer import DecoderLayer
from minglm.model.layers import RMSNorm
from minglm.model.products import Linear


class MTP(nn.Module):
    """The module: two norms, a projection of [embedding; hidden], one decoder layer, a norm before the shared head."""

    def __init__(self, config: ModelConfig, layer: DecoderLayer):
        super().__init__()
        C = config.hidden_size
        self.enorm, self.hnorm = RMSNorm(C, config.rms_norm_eps), RMSNorm(C, config.rms_norm_eps)
        self.eh_proj = Linear(2 * C, C)
        self.layer = layer
        self.norm = RMSNorm(C, config.rms_norm_eps)

    def join(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden and embedding (B, T, C) → input of the layer (B, T, C)."""
        return self.eh_proj(torch.cat((self.enorm(embedding), self.hnorm(hidden)), -1))


def shift_targets(targets: Tensor, depth: int, doc_start: Tensor | None = None) -> Tensor:
    """Labels of one depth, (B, T) → (B, T - depth): the table above, with other documents' tokens set to -100.

    Two positions are in one document when their `doc_start` is the same.
    """
    labels = targets[:, depth:]
    if doc_start is None:
        return labels
    return labels.masked_fill(doc_start[:, depth:] != doc_start[:, : targets.shape[1] - depth], IGNORE)
