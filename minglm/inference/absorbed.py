"""The matrices of a layer as decoding wants them: MLA's up-projections absorbed, what reads the same input joined.

Shapes: H heads, L latent width, r rope width, R = L + r, Q q_lora_rank, Hi/Di indexer heads and width, C hidden, F
width of a feed-forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.model.decoder_layer import DecoderLayer
from minglm.model.moe import MoE


class AbsorbedLayer:
    """The matrices of one layer as decoding wants them; calling modules would cost more than their arithmetic.

    The key half of kv_b_proj is multiplied into q_b_proj, its value half into o_proj, the softmax scale and the scale
    of the indexer's weights into the projections they follow; what reads the same input is one matrix.
    """

    def __init__(self, layer: DecoderLayer):
        mla, ffn = layer.self_attn, layer.mlp
        self.mla, self.norm_in, self.norm_ffn = mla, layer.input_layernorm, layer.post_attention_layernorm
        nope = mla.qk_nope_head_dim
        up_k, up_v = mla.up_projections()  # (H, nope, L), (H, Dv, L)
        w_q = mla.q_b_proj.weight.unflatten(0, (mla.num_heads, -1)) * mla.scale  # (H, nope + r, Q)
        absorbed = torch.bmm(up_k.transpose(1, 2), w_q[:, :nope])  # (H, L, Q)
        self.w_q = torch.cat((absorbed, w_q[:, nope:]), 1).flatten(0, 1)  # (H·R, Q)
        w_o = mla.o_proj.weight.unflatten(1, (mla.num_heads, -1)).transpose(0, 1)  # (H, C, Dv)
        self.w_out = torch.bmm(w_o, up_v).transpose(0, 1).flatten(1)  # (C, H·L)
        rows = [mla.q_a_proj.weight, mla.kv_a_proj_with_mqa.weight]
        self.widths = [mla.q_a_proj.out_features, mla.kv_lora_rank, mla.qk_rope_head_dim]
        if mla.indexer is not None:
            ix = mla.indexer
            rows += [ix.wk.weight, ix.weights_proj.weight * (ix.heads * ix.width) ** -0.5]
            self.widths += [ix.width, ix.heads]
        self.w_in = torch.cat(rows)  # (Q + R [+ Di + Hi], C)
        self.moe = ffn if isinstance(ffn, MoE) else None
        dense = ffn.shared_experts if isinstance(ffn, MoE) else ffn  # the feed-forward that every token takes
        # (gate and up (2F, C), down (C, F)); None where only routed experts are
        self.dense_mlp: tuple[Tensor, Tensor] | None = None
        if dense is not None:
            self.dense_mlp = torch.cat((dense.gate_proj.weight, dense.up_proj.weight)), dense.down_proj.weight
