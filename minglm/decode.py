"""One new token per sequence, with as few operations as possible: decoding is bound by their number, not by arithmetic.

`Decoder` computes what `Model.forward` computes for a single position (a test compares them), after folding what does not
change from step to step:

- the absorbed query: kv_b_proj's key half is multiplied into q_b_proj, its value half into o_proj, the softmax scale too;
- projections that read the same input become one matrix;
- rotary position is one small matrix per step, shared by all layers, because all sequences stand at the same slot.

Shapes: B sequences, S cached positions, H heads, L latent width, r rope width, R = L + r, Q q_lora_rank, Hi/Di indexer
heads and width, C hidden, k chosen keys, V vocabulary.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.attention import MLA
from minglm.cache import LatentCache
from minglm.dsa import topk_lowest
from minglm.layers import LATENT_EPS, RMSNorm
from minglm.model import Layer, Model
from minglm.moe import MoE


class _Folded:
    """The matrices of one layer as decoding wants them; calling modules would cost more than their arithmetic."""

    def __init__(self, layer: Layer):
        mla, ffn = layer.self_attn, layer.mlp
        self.norm_in, self.norm_ffn = layer.input_layernorm, layer.post_attention_layernorm
        up_k, up_v = mla._up()                                                             # (H, nope, L), (H, Dv, L)
        w_q = mla.q_b_proj.weight.unflatten(0, (mla.H, -1)) * mla.scale                    # (H, nope + r, Q)
        absorbed = torch.bmm(up_k.transpose(1, 2), w_q[:, :mla.nope])                      # (H, L, Q)
        self.w_q = torch.cat((absorbed, w_q[:, mla.nope:]), 1).flatten(0, 1)               # (H·R, Q)
        w_o = mla.o_proj.weight.unflatten(1, (mla.H, -1)).transpose(0, 1)                  # (H, C, Dv)
        self.w_out = torch.bmm(w_o, up_v).transpose(0, 1).flatten(1).T.contiguous()        # (H·L, C)
        rows, self.widths = [mla.q_a_proj.weight, mla.kv_a_proj_with_mqa.weight], [mla.q_a_proj.out_features, mla.L, mla.rope]
        if mla.indexer is not None:
            ix = mla.indexer
            rows += [ix.wk.weight, ix.weights_proj.weight * (ix.heads * ix.width) ** -0.5]
            self.widths += [ix.width, ix.heads]
        self.w_in = torch.cat(rows)                                                        # (Q + R [+ Di + Hi], C)
        self.moe = ffn if isinstance(ffn, MoE) else None
        always = ffn.shared_experts if self.moe else ffn                                   # the feed-forward every token takes
        if always is not None:
            self.gate_up = torch.cat((always.gate_proj.weight, always.up_proj.weight))     # (2F, C)
            self.down = always.down_proj.weight.T                                          # (F, C)
        self.always = always is not None
        if self.moe:
            self.expert_gate_up, self.expert_down = ffn.experts.gate_up_proj.unbind(), ffn.experts.down_proj.unbind()


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


class Decoder:
    """Continues the sequences of a filled cache.

    Args:
        model: its weights are folded now; changing them later does not reach this decoder.
        cache: holds the prompts; `step` appends to it.
        pad: (B,) int64, positions at the left of each sequence that do not exist; None: no sequence is padded.
        mode: "sparse", or "dense" (which leaves indexer keys unwritten).
    """

    def __init__(self, model: Model, cache: LatentCache, pad: Tensor | None = None, mode: str = "sparse"):
        self.model, self.cache, self.pad, self.sparse = model, cache, pad, mode == "sparse"
        with torch.no_grad():
            self.folded = [_Folded(layer) for layer in model.layers]
        B, width = cache.latent.shape[1], cache.latent.shape[-1]
        self.flat = [store.view(-1, width) for store in cache.latent]
        self.first_row = torch.arange(B, device=cache.latent.device).mul_(cache.max_len).unsqueeze(-1)      # (B, 1)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """tokens (B,) int64, the last one of each sequence → logits of the next (B, V)."""
        config, end = self.model.config, self.cache.length + 1
        turn = self._turn(end - 1)
        self.turn_q = torch.block_diag(torch.eye(config.kv_lora_rank, dtype=turn.dtype, device=turn.device), turn)
        self.turn_i = torch.block_diag(turn, torch.eye(config.index_head_dim - len(turn), dtype=turn.dtype, device=turn.device))
        self.turn_k, self.choice = turn, None
        self.hidden_keys = None                                # (B, S) True where a padded position must not be seen
        if self.pad is not None:
            self.hidden_keys = torch.arange(end, device=tokens.device) < self.pad[:, None]
        x = self.model.embed_tokens(tokens)
        for layer, folded in zip(self.model.layers, self.folded):
            x = self._feed(self._attend(x, layer.self_attn, folded, end), folded)
        self.cache.advance(1)
        return F.linear(_norm(x, self.model.norm), self.model.lm_head.weight)

    def _turn(self, position: int) -> Tensor:
        """(r, r): row vectors times this are turned to `position`, pairs (0,1), (2,3), …"""
        device = self.cache.latent.device
        turns = self.model._rope_slice(position, 1, device)[0]                             # (r/2,) complex
        blocks = torch.stack((turns.real, turns.imag, -turns.imag, turns.real), -1).view(-1, 2, 2)
        return torch.block_diag(*blocks).to(self.cache.latent.dtype)

    def _attend(self, x: Tensor, mla: MLA, folded: _Folded, end: int) -> Tensor:
        cache = self.cache
        B, L, R = x.shape[0], mla.L, mla.L + mla.rope
        q_a, kv, k_rope, *index = F.linear(_norm(x, folded.norm_in), folded.w_in).split(folded.widths, -1)
        q_latent = _norm(q_a, mla.q_a_layernorm)
        q = torch.mm(F.linear(q_latent, folded.w_q).view(B * mla.H, R), self.turn_q).view(B, mla.H, R)
        slot = cache.latent[mla.layer][:, end - 1]
        slot[:, :L] = _norm(kv, mla.kv_a_layernorm)
        slot[:, L:] = torch.mm(k_rope, self.turn_k)
        if self.sparse and mla.indexer is not None:
            self.choice = self._choose(mla, q_latent, *index, end)
        hidden = self.hidden_keys
        if self.choice is None:
            keys = cache.latent[mla.layer][:, :end]                                        # (B, S, R)
        else:
            choice, hidden = self.choice
            keys = self.flat[mla.layer].index_select(0, (choice + self.first_row).view(-1)).view(B, -1, R)
        scores = torch.bmm(q, keys.transpose(1, 2))
        if hidden is not None:
            scores.masked_fill_(hidden.unsqueeze(1), -torch.inf)
        values = torch.bmm(scores.softmax(-1), keys[..., :L])                              # (B, H, L)
        return torch.addmm(x, values.view(B, -1), folded.w_out)

    def _choose(self, mla: MLA, q_latent: Tensor, key: Tensor, w: Tensor, end: int):
        """The indexer's choice: (B, k) positions and which of them are empty (or None); None when all keys are read."""
        ix, cache, B = mla.indexer, self.cache, key.shape[0]
        store = cache.index_keys[cache._index_row[mla.layer]]
        store[:, end - 1] = torch.mm(F.layer_norm(key, key.shape[-1:], ix.k_norm.weight, ix.k_norm.bias, LATENT_EPS), self.turn_i)
        if end <= mla.topk:
            return None
        q = torch.mm(F.linear(q_latent, ix.wq_b.weight).view(B * ix.heads, ix.width), self.turn_i).view(B, ix.heads, ix.width)
        dots = torch.bmm(q, store[:, :end].transpose(1, 2)).relu_()
        scores = torch.bmm(w.unsqueeze(1), dots).squeeze(1)                                # (B, S)
        if self.hidden_keys is not None:
            scores.masked_fill_(self.hidden_keys, -torch.inf)
        values, index = scores.topk(mla.topk + 1, -1)
        if not bool((values[:, -1] == values[:, -2]).any()):
            return index[:, :-1], None                         # no tie at the edge: torch's choice is the only one
        choice = topk_lowest(scores, mla.topk)
        empty = choice < 0
        return choice.clamp_(min=0), empty if bool(empty.any()) else None

    def _feed(self, x: Tensor, folded: _Folded) -> Tensor:
        h, out = _norm(x, folded.norm_ffn), x
        if folded.always:
            g, u = F.linear(h, folded.gate_up).chunk(2, -1)
            out = torch.addmm(x, F.silu(g).mul_(u), folded.down)
        if folded.moe is None:
            return out
        chosen, gates, _ = folded.moe.gate.forward(h)
        if h.shape[0] > 1:
            return out + folded.moe.experts.forward(h, chosen, gates)[0]
        # A single token: a few matrix-vector products; sorting rows by expert would cost more than they do.
        picked, h = chosen[0].tolist(), h[0]
        inner = torch.stack([torch.mv(folded.expert_gate_up[e], h) for e in picked])       # (K, 2F)
        g, u = inner.chunk(2, -1)
        total = out[0]
        for row, e in zip(F.silu(g).mul_(u).mul_(gates.to(h.dtype).view(-1, 1)).unbind(), picked):
            total = torch.addmv(total, folded.expert_down[e], row)
        return total.unsqueeze(0)
