"""One token of one sequence, what `Decoder.step` does most while a person waits for an answer.

Here nothing is left to share among rows, so a step costs its operations, a few microseconds each, and the reading of
the weights. Hence:

- every result goes to a buffer made once, and so is every slice of a buffer: making a view costs half an operation;
- an RMSNorm is a dot product and one multiplication (torch's own is a dozen operations);
- the numbers of one token that steer the rest (the norm's factor, the chosen experts and their gates) become Python
  numbers, which torch then takes as factors of operations that run anyway.

Shapes as in `minglm.inference.decoder`, with N = 1 and no axis for it: S cached positions, H heads, L latent width, r
rope width, R = L + r, Q q_lora_rank, Hi/Di indexer heads and width, C hidden, F width of a feed-forward, K chosen
experts, k chosen keys, P parts of a matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.inference.absorbed import column_split, row_for_columns
from minglm.model.layers import LATENT_EPS, RMSNorm
from minglm.model.topk import largest

if TYPE_CHECKING:
    from minglm.inference.absorbed import AbsorbedLayer
    from minglm.inference.decoder import Decoder


class _Product:
    """out = weight @ x, from buffer to buffer; with `add`, out += weight @ x."""

    def __init__(self, weight: Tensor, x: Tensor, out: Tensor, add: bool = False):
        self.parts, self.add = column_split(weight), add
        self.x, self.out = row_for_columns(x, self.parts), out.view(len(self.parts), 1, -1)

    def __call__(self) -> None:
        if self.add:
            self.out.baddbmm_(self.x, self.parts)
        else:
            torch.bmm(self.x, self.parts, out=self.out)


class _Norm:
    """x / rms(x) · weight, from buffer to buffer."""

    def __init__(self, norm: RMSNorm, x: Tensor, out: Tensor | None = None):
        self.weight, self.eps, self.zero = norm.weight.detach(), norm.eps, torch.zeros_like(x)
        self.x, self.out = x, out

    def __call__(self, out: Tensor | None = None) -> None:
        inverse = (torch.dot(self.x, self.x).item() / len(self.x) + self.eps) ** -0.5
        torch.addcmul(self.zero, self.x, self.weight, value=inverse, out=self.out if out is None else out)


class _Attend:
    """x += attention of one layer."""

    def __init__(self, absorbed: AbsorbedLayer, one: OneToken):
        mla, new = absorbed.mla, one.x.new_empty
        H, L, R, Q = (
            mla.num_heads,
            mla.kv_lora_rank,
            mla.kv_lora_rank + mla.qk_rope_head_dim,
            mla.q_a_layernorm.weight.shape[0],
        )
        self.one, self.layer, self.mla = one, mla.layer, mla
        made = new(absorbed.w_in.shape[0])  # all that reads the layer's input
        q_a, kv, self.k_rope, *index = made.split(absorbed.widths)
        self.norm_in, self.w_in = _Norm(absorbed.norm_in, one.x, one.h), _Product(absorbed.w_in, one.h, made)
        q_latent, q = new(Q), new(H * R)
        self.norm_q, self.w_q = _Norm(mla.q_a_layernorm, q_a, q_latent), _Product(absorbed.w_q, q_latent, q)
        self.norm_kv = _Norm(mla.kv_a_layernorm, kv)
        self.q, self.rotated = q.view(H, R), new(H, R)
        self.keys = new(mla.topk, R)  # the chosen ones
        self.keys_t, self.values = self.keys.T, self.keys[:, :L]
        attended = new(H, L)
        self.attended, self.w_out = attended, _Product(absorbed.w_out, attended.view(-1), one.x, add=True)
        self.indexer = _Choose(absorbed, one, q_latent, *index) if one.sparse and index else None

    def __call__(self) -> None:
        one, layer = self.one, self.layer
        self.norm_in()
        self.w_in()
        self.norm_q()
        self.w_q()
        torch.mm(self.q, one.rotation_q, out=self.rotated)  # (H, R)
        self.norm_kv(one.new_kv[layer])
        torch.mv(one.rotation_t, self.k_rope, out=one.new_rope[layer])
        if self.indexer is not None:
            one.topk_indices = self.indexer()
        if one.topk_indices is None:  # every key is read
            keys = one.keys[layer]  # (S, R)
            keys_t, values = keys.T, keys[:, : self.mla.kv_lora_rank]
        else:
            torch.index_select(one.store[layer], 0, one.topk_indices, out=self.keys)
            keys_t, values = self.keys_t, self.values
        torch.mm(torch.mm(self.rotated, keys_t).softmax(-1), values, out=self.attended)
        self.w_out()


class _Choose:
    """The indexer's choice: (k,) positions, or None when all keys are read."""

    def __init__(self, absorbed: AbsorbedLayer, one: OneToken, q_latent: Tensor, key: Tensor, w: Tensor):
        ix, new, self.k = absorbed.mla.indexer, one.x.new_empty, absorbed.mla.topk
        self.one, self.key, self.w, self.row = one, key, w, one.index_row[absorbed.mla.layer]
        self.norm = ix.k_norm.weight.detach(), ix.k_norm.bias.detach()
        q = new(ix.heads * ix.width)
        self.w_q, self.q, self.rotated = (
            _Product(ix.wq_b.weight.detach(), q_latent, q),
            q.view(ix.heads, -1),
            new(ix.heads, ix.width),
        )
        self.values, self.index = new(self.k + 1), torch.empty(self.k + 1, dtype=torch.int64)
        self.chosen = self.index[:-1]

    def __call__(self) -> Tensor | None:
        one = self.one
        key = F.layer_norm(self.key, self.key.shape, *self.norm, LATENT_EPS)
        torch.mv(one.rotation_index.T, key, out=one.new_index[self.row])
        if one.end <= self.k:
            return None
        self.w_q()
        torch.mm(self.q, one.rotation_index, out=self.rotated)
        dots = torch.mm(self.rotated, one.index_keys[self.row].T).relu_()  # (Hi, S)
        scores = torch.mv(dots.T, self.w)  # (S,)
        largest(scores, self.k, out=(self.values, self.index))
        return self.chosen


class _Feed:
    """x += feed-forward of one layer."""

    def __init__(self, absorbed: AbsorbedLayer, one: OneToken):
        new, moe = one.x.new_empty, absorbed.moe
        self.one, self.moe, self.always = one, moe, absorbed.always
        self.norm = _Norm(absorbed.norm_ffn, one.x, one.h)
        if self.always:
            inner = new(absorbed.gate_up.shape[0])  # (2F,)
            self.gate, self.up = inner.chunk(2)
            self.act = torch.empty_like(self.gate)
            self.gate_up, self.down = (
                _Product(absorbed.gate_up, one.h, inner),
                _Product(absorbed.down, self.act, one.x, add=True),
            )
        if moe is not None:
            self.router, self.bias = moe.gate.weight.detach(), moe.gate.e_score_correction_bias
            self.K, self.scale = moe.gate.k, moe.gate.scale
            self.expert_gate_up, self.expert_down = absorbed.expert_gate_up, absorbed.expert_down
            first, last = self.expert_gate_up[0], self.expert_down[0]
            inner = new(self.K, first.shape[0] * first.shape[2])  # (K, 2F)
            self.inner = [row.view(len(first), 1, -1) for row in inner]
            self.gates, self.ups = inner.chunk(2, -1)
            self.acts = torch.empty_like(self.gates)
            self.h, self.rows = row_for_columns(one.h, first), [row_for_columns(row, last) for row in self.acts]
            self.x = one.x.view(len(last), 1, -1)

    def __call__(self) -> None:
        self.norm()
        if self.always:
            self.gate_up()
            torch.mul(F.silu(self.gate), self.up, out=self.act)
            self.down()
        if self.moe is not None:
            self._experts()

    def _experts(self) -> None:
        scores = torch.mv(self.router, self.one.h).sigmoid_()  # (E,)
        chosen = (scores + self.bias).topk(self.K, sorted=False).indices
        if self.one.routes is not None:
            self.one.routes.append(chosen.unsqueeze(0))
        picked, gates = chosen.tolist(), scores[chosen].tolist()
        for e, inner in zip(picked, self.inner):
            torch.bmm(self.h, self.expert_gate_up[e], out=inner)
        torch.mul(F.silu(self.gates), self.ups, out=self.acts)
        scale = self.scale / (sum(gates) + 1e-20)
        for e, row, gate in zip(picked, self.rows, gates):
            self.x.baddbmm_(row, self.expert_down[e], alpha=gate * scale)


class OneToken:
    """Steps of the first sequence of a `Decoder`'s cache, in fp32 or fp64 on a CPU. Its matrices are the decoder's."""

    def __init__(self, decoder: Decoder):
        model, cache, config = decoder.model, decoder.cache, decoder.model.config
        L, R, r = config.kv_lora_rank, config.kv_lora_rank + config.qk_rope_head_dim, config.qk_rope_head_dim
        self.decoder, self.sparse, self.index_row = decoder, decoder.sparse, cache.index_row
        self.x, self.h = cache.latent.new_empty(config.hidden_size), cache.latent.new_empty(config.hidden_size)
        self.latent, self.index = cache.latent[:, 0], cache.index_keys[:, 0]  # (layers, max_len, R), (…, Di)
        self.kv, self.rope = self.latent[..., :L], self.latent[..., L:]
        self.store = self.latent.unbind(0)
        self.rotation_q, self.rotation_index = (
            torch.eye(R, dtype=self.x.dtype),
            torch.eye(config.index_head_dim, dtype=self.x.dtype),
        )
        self.rotation, self.rotation_of_index = (
            self.rotation_q[L:, L:],
            self.rotation_index[:r, :r],
        )  # the parts that depend on position
        self.rotation_t = self.rotation.T
        self.embedding, self.routes = model.embed_tokens.weight.detach(), None
        self.layers = [part(absorbed, self) for absorbed in decoder.absorbed for part in (_Attend, _Feed)]
        drafts = (
            decoder.absorbed_mtp if config.num_hidden_layers in self.index_row else None
        )  # the cache may have no room for it
        self.mtp = [] if drafts is None else [part(drafts, self) for part in (_Attend, _Feed)]
        self.norm = _Norm(model.norm, self.x, self.h)
        self.head = column_split(model.lm_head.weight.detach())
        self.h_for_head = row_for_columns(self.h, self.head)

    def step(self, token: int, position: int) -> Tensor:
        """Logits (V,) of what follows the token at this position. `x` is left as the hidden state before the final
        norm; `routes`, when it is a list, gets the experts chosen (1, K) of each MoE layer."""
        self.x.copy_(self.embedding[token])
        self._run(self.layers, position)
        self.norm()
        return torch.bmm(self.h_for_head, self.head).view(-1)

    def mtp_step(self, joined: Tensor, position: int) -> None:
        """The prediction module's layer: joined (C,) → its hidden state, left in `x`."""
        self.x.copy_(joined)
        self._run(self.mtp, position)

    def _run(self, layers: list, position: int) -> None:
        cos, sin = self.decoder.rope_cos_sin[position]
        torch.mul(self.decoder.diagonal, cos, out=self.rotation).addcmul_(self.decoder.off_diagonal, sin)
        self.rotation_of_index.copy_(self.rotation)
        self.end, self.topk_indices = position + 1, None
        # One operation each gives the slices of all layers: where the new keys go, and all keys up to them.
        self.new_kv, self.new_rope, self.new_index = (
            store[:, position].unbind(0) for store in (self.kv, self.rope, self.index)
        )
        self.keys, self.index_keys = (store[:, : self.end].unbind(0) for store in (self.latent, self.index))
        for part in layers:
            part()
