"""The matrices of a layer as decoding wants them: MLA's up-projections absorbed, experts and head cut for one row."""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.model.decoder_layer import DecoderLayer
from minglm.model.moe import MoE


class AbsorbedLayer:
    """The matrices of one layer as decoding wants them; calling modules would cost more than their arithmetic."""

    def __init__(self, layer: DecoderLayer):
        mla, ffn = layer.self_attn, layer.mlp
        self.mla, self.norm_in, self.norm_ffn = mla, layer.input_layernorm, layer.post_attention_layernorm
        up_k, up_v = mla.up_projections()  # (H, nope, L), (H, Dv, L)
        w_q = mla.q_b_proj.weight.unflatten(0, (mla.num_heads, -1)) * mla.scale  # (H, nope + r, Q)
        absorbed = torch.bmm(up_k.transpose(1, 2), w_q[:, : mla.qk_nope_head_dim])  # (H, L, Q)
        self.w_q = torch.cat((absorbed, w_q[:, mla.qk_nope_head_dim :]), 1).flatten(0, 1)  # (H·R, Q)
        w_o = mla.o_proj.weight.unflatten(1, (mla.num_heads, -1)).transpose(0, 1)  # (H, C, Dv)
        self.w_out = torch.bmm(w_o, up_v).transpose(0, 1).flatten(1)  # (C, H·L)
        rows, self.widths = (
            [mla.q_a_proj.weight, mla.kv_a_proj_with_mqa.weight],
            [mla.q_a_proj.out_features, mla.kv_lora_rank, mla.qk_rope_head_dim],
        )
        if mla.indexer is not None:
            ix = mla.indexer
            rows += [ix.wk.weight, ix.weights_proj.weight * (ix.heads * ix.width) ** -0.5]
            self.widths += [ix.width, ix.heads]
        self.w_in = torch.cat(rows)  # (Q + R [+ Di + Hi], C)
        self.moe = ffn if isinstance(ffn, MoE) else None
        always = ffn.shared_experts if self.moe else ffn  # the feed-forward every token takes
        self.always = always is not None
        if self.always:
            self.gate_up = torch.cat((always.gate_proj.weight, always.up_proj.weight))  # (2F, C)
            self.down = always.down_proj.weight  # (C, F)
        if self.moe:
            self.expert_gate_up = [column_split(w) for w in ffn.experts.gate_up_proj.unbind()]
            self.expert_down = [column_split(w) for w in ffn.experts.down_proj.unbind()]


COLUMN_SPLITS = 4  # measured on 2 cores; more parts than cores leave none idle


def column_split(weight: Tensor, parts: int = COLUMN_SPLITS) -> Tensor:
    """A view (P, in, out/P) of a matrix (out, in). A single row times a matrix reads the matrix once and is bound by
    that; a batched product reads the parts on several threads, a plain one reads all of it on one."""
    parts = parts if weight.shape[0] % parts == 0 else 1
    return weight.view(parts, -1, weight.shape[1]).transpose(1, 2)


def row_for_columns(x: Tensor, parts: Tensor) -> Tensor:
    """A view of x (in,) that multiplies the parts (P, in, out/P) of a matrix."""
    return x.expand(len(parts), 1, -1)
