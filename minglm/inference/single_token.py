"""One token of one sequence, what `minglm.inference.decoder.Decoder.step` does most while a person waits for an answer.

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

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.inference.absorbed import AbsorbedLayer, column_split, row_for_columns
from minglm.inference.rotary import RotaryMatrices
from minglm.model.cache import LatentCache
from minglm.model.indexer import Indexer
from minglm.model.layers import LATENT_EPS, RMSNorm
from minglm.model.model import Model
from minglm.model.moe import MoE
from minglm.model.topk import RowBuffers, largest_of_row


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


class _Step:
    """What all parts of one step share: buffers, and the slices of the cache that the token's position selects."""

    def __init__(self, model: Model, cache: LatentCache, rotary: RotaryMatrices):
        config, new, dtype = model.config, cache.latent.new_empty, cache.latent.dtype
        L, r = config.kv_lora_rank, config.qk_rope_head_dim
        self.rotary, self.index_row = rotary, cache.index_row
        self.x, self.h = new(config.hidden_size), new(config.hidden_size)  # hidden state; the same, normalised
        self.latent, self.index = cache.latent[:, 0], cache.index_keys[:, 0]  # (layers, max_len, R), (…, Di)
        self.kv, self.rope = self.latent[..., :L], self.latent[..., L:]
        self.store = self.latent.unbind(0)
        self.rotation_q = torch.eye(L + r, dtype=dtype)
        self.rotation_index = torch.eye(config.index_head_dim, dtype=dtype)
        # The parts of these that depend on position.
        self.rotation, self.rotation_of_index = self.rotation_q[L:, L:], self.rotation_index[:r, :r]
        self.rotation_t = self.rotation.T
        self.routes: list[Tensor] | None = None

    def move_to(self, position: int) -> None:
        """One operation each gives the slices of all layers: where the new keys go, and all keys up to them."""
        self.rotary.write(position, self.rotation)
        self.rotation_of_index.copy_(self.rotation)
        self.end = position + 1
        self.new_kv, self.new_rope, self.new_index = (
            store[:, position].unbind(0) for store in (self.kv, self.rope, self.index)
        )
        self.keys, self.index_keys = (store[:, : self.end].unbind(0) for store in (self.latent, self.index))


class _Attend:
    """x += attention of one layer; called with the keys that the last full layer chose, gives those for the next."""

    def __init__(self, absorbed: AbsorbedLayer, step: _Step, sparse: bool):
        mla, new = absorbed.mla, step.x.new_empty
        H, L, Q = mla.num_heads, mla.kv_lora_rank, mla.q_a_layernorm.weight.shape[0]
        R = L + mla.qk_rope_head_dim
        self.step, self.layer, self.L = step, mla.layer, L
        projected = new(absorbed.w_in.shape[0])  # of all that reads the layer's input
        q_a, kv, self.k_rope, *index = projected.split(absorbed.widths)
        self.norm_in, self.w_in = _Norm(absorbed.norm_in, step.x, step.h), _Product(absorbed.w_in, step.h, projected)
        q_latent, q = new(Q), new(H * R)
        self.norm_q, self.w_q = _Norm(mla.q_a_layernorm, q_a, q_latent), _Product(absorbed.w_q, q_latent, q)
        self.norm_kv = _Norm(mla.kv_a_layernorm, kv)
        self.q, self.rotated = q.view(H, R), new(H, R)
        self.keys = new(mla.topk, R)  # the chosen ones
        self.keys_t, self.values = self.keys.T, self.keys[:, :L]
        attended = new(H, L)
        self.attended, self.w_out = attended, _Product(absorbed.w_out, attended.view(-1), step.x, add=True)
        self.indexer = None
        if sparse and mla.indexer is not None:
            self.indexer = _Index(mla.indexer, mla.topk, step, step.index_row[mla.layer], q_latent, *index)

    def __call__(self, shared_topk: Tensor | None) -> Tensor | None:
        step, layer = self.step, self.layer
        self.norm_in()
        self.w_in()
        self.norm_q()
        self.w_q()
        torch.mm(self.q, step.rotation_q, out=self.rotated)  # (H, R)
        self.norm_kv(step.new_kv[layer])
        torch.mv(step.rotation_t, self.k_rope, out=step.new_rope[layer])
        topk_indices = shared_topk if self.indexer is None else self.indexer()
        if topk_indices is None:  # every key is read
            keys = step.keys[layer]  # (S, R)
            keys_t, values = keys.T, keys[:, : self.L]
        else:
            torch.index_select(step.store[layer], 0, topk_indices, out=self.keys)
            keys_t, values = self.keys_t, self.values
        torch.mm(torch.mm(self.rotated, keys_t).softmax(-1), values, out=self.attended)
        self.w_out()
        return topk_indices


class _Index:
    """Write the indexer's key and choose: (k,) positions, or None when all keys are read."""

    def __init__(self, ix: Indexer, k: int, step: _Step, row: int, q_latent: Tensor, key: Tensor, w: Tensor):
        new, q = step.x.new_empty, step.x.new_empty(ix.heads * ix.width)
        self.k, self.step, self.key, self.w, self.row = k, step, key, w, row
        self.norm = ix.k_norm.weight.detach(), ix.k_norm.bias.detach()
        self.w_q = _Product(ix.wq_b.weight.detach(), q_latent, q)
        self.q, self.rotated = q.view(ix.heads, -1), new(ix.heads, ix.width)
        self.chosen = RowBuffers(k, step.x)

    def __call__(self) -> Tensor | None:
        step = self.step
        key = F.layer_norm(self.key, self.key.shape, *self.norm, LATENT_EPS)
        torch.mv(step.rotation_index.T, key, out=step.new_index[self.row])
        if step.end <= self.k:
            return None
        self.w_q()
        torch.mm(self.q, step.rotation_index, out=self.rotated)
        dots = torch.mm(self.rotated, step.index_keys[self.row].T).relu_()  # (Hi, S)
        return largest_of_row(torch.mv(dots.T, self.w), self.k, self.chosen)


class _DenseFeedForward:
    """x += down(silu(gate(h)) · up(h)): a dense layer's feed-forward, or the shared expert."""

    def __init__(self, gate_up: Tensor, down: Tensor, step: _Step):
        inner = step.x.new_empty(gate_up.shape[0])  # (2F,)
        self.gate, self.up = inner.chunk(2)
        self.act = torch.empty_like(self.gate)
        self.w_in, self.w_out = _Product(gate_up, step.h, inner), _Product(down, self.act, step.x, add=True)

    def __call__(self) -> None:
        self.w_in()
        torch.mul(F.silu(self.gate), self.up, out=self.act)
        self.w_out()


class _RoutedExperts:
    """x += the chosen experts of h, weighted by their gates."""

    def __init__(self, absorbed: AbsorbedLayer, moe: MoE, step: _Step):
        self.step, self.router, self.bias = step, moe.gate.weight.detach(), moe.gate.e_score_correction_bias
        self.K, self.scale = moe.gate.k, moe.gate.scale
        self.gate_up, self.down = absorbed.expert_gate_up, absorbed.expert_down
        first, last = self.gate_up[0], self.down[0]
        inner = step.x.new_empty(self.K, first.shape[0] * first.shape[2])  # (K, 2F)
        self.inner = [row.view(len(first), 1, -1) for row in inner]
        self.gates, self.ups = inner.chunk(2, -1)
        self.acts = torch.empty_like(self.gates)
        self.h, self.rows = row_for_columns(step.h, first), [row_for_columns(row, last) for row in self.acts]
        self.x = step.x.view(len(last), 1, -1)

    def __call__(self) -> None:
        scores = torch.mv(self.router, self.step.h).sigmoid_()  # (E,)
        chosen = (scores + self.bias).topk(self.K, sorted=False).indices
        if self.step.routes is not None:
            self.step.routes.append(chosen.unsqueeze(0))
        picked, gates = chosen.tolist(), scores[chosen].tolist()
        for e, inner in zip(picked, self.inner, strict=True):
            torch.bmm(self.h, self.gate_up[e], out=inner)
        torch.mul(F.silu(self.gates), self.ups, out=self.acts)
        scale = self.scale / (sum(gates) + 1e-20)
        for e, row, gate in zip(picked, self.rows, gates, strict=True):
            self.x.baddbmm_(row, self.down[e], alpha=gate * scale)


class _Layer:
    """x → x of one layer, in place."""

    def __init__(self, absorbed: AbsorbedLayer, step: _Step, sparse: bool):
        self.attend, self.norm = _Attend(absorbed, step, sparse), _Norm(absorbed.norm_ffn, step.x, step.h)
        self.feed_forward: list[_DenseFeedForward | _RoutedExperts] = []
        if absorbed.dense_mlp is not None:
            self.feed_forward.append(_DenseFeedForward(*absorbed.dense_mlp, step))
        if absorbed.moe is not None:
            self.feed_forward.append(_RoutedExperts(absorbed, absorbed.moe, step))

    def __call__(self, shared_topk: Tensor | None) -> Tensor | None:
        topk_indices = self.attend(shared_topk)
        self.norm()
        for part in self.feed_forward:
            part()
        return topk_indices


class SingleTokenDecoder:
    """Steps of the first sequence of a cache, in fp32 or fp64 on a CPU.

    Args:
        model: embedding, last norm and head are its own.
        layers, mtp: its absorbed layers, and that of its prediction module (None: `mtp_step` is not called).
        cache: holds the sequence in its first row; takes the new keys.
        rotary: of all positions of the cache.
        sparse: choose keys by the indexer; False reads them all and leaves indexer keys unwritten.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[AbsorbedLayer],
        mtp: AbsorbedLayer | None,
        cache: LatentCache,
        rotary: RotaryMatrices,
        sparse: bool,
    ):
        self.buffers = step = _Step(model, cache, rotary)
        self.embedding = model.embed_tokens.weight.detach()
        self.layers = [_Layer(absorbed, step, sparse) for absorbed in layers]
        has_room = model.config.num_hidden_layers in cache.index_row  # for the keys of the prediction module
        self.mtp = [_Layer(mtp, step, sparse)] if mtp is not None and has_room else []
        self.norm = _Norm(model.norm, step.x, step.h)
        self.head = column_split(model.lm_head.weight.detach())
        self.h_for_head = row_for_columns(step.h, self.head)
        self.topk_indices: Tensor | None = None  # (k,) keys that the last layer read in the last step; None: all

    @property
    def hidden(self) -> Tensor:
        """(C,) hidden state of the last step before the final norm, in a buffer that the next step overwrites."""
        return self.buffers.x

    def step(self, token: int, position: int, routes: list[Tensor] | None = None) -> Tensor:
        """Logits (V,) of what follows the token at this position; `routes`, when it is a list, gets the experts chosen
        (1, K) of each MoE layer."""
        self.buffers.x.copy_(self.embedding[token])
        self._run(self.layers, position, routes)
        self.norm()
        return torch.bmm(self.h_for_head, self.head).view(-1)

    def mtp_step(self, joined: Tensor, position: int) -> None:
        """The prediction module's layer: joined (C,) → its hidden state, left in `hidden`."""
        self.buffers.x.copy_(joined)
        self._run(self.mtp, position, None)

    def _run(self, layers: list[_Layer], position: int, routes: list[Tensor] | None) -> None:
        self.buffers.routes = routes
        self.buffers.move_to(position)
        topk_indices = None
        for layer in layers:
            topk_indices = layer(topk_indices)
        self.topk_indices = topk_indices
