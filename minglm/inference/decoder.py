"""The next few tokens of each sequence, with as few operations as possible: decoding is bound by their number.

`Decoder` computes what `Model.forward` computes for the newest positions of cached sequences (a test compares them),
after folding what does not change from step to step:

- the absorbed query: kv_b_proj's key half is multiplied into q_b_proj, its value half into o_proj,
  the softmax scale too;
- projections that read the same input become one matrix;
- rotary position is a small matrix for each token, shared by all layers; a single one when all stand at one position.

Every sequence has a position of its own, so one may join or leave while the others go on (`minglm.inference.engine`). A
step takes one token of each, or a few when drafts are checked (`minglm.inference.speculative`). A single token of a
single sequence is worth a way of its own (`minglm.inference.single_token`).

Shapes: B sequences, T new tokens of each, N = B·T, S cached positions, H heads, L latent width, r rope width, R = L +
r, Q q_lora_rank, Hi/Di indexer heads and width, C hidden, K chosen experts, k chosen keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.absorbed import AbsorbedLayer, column_split
from minglm.inference.single_token import OneToken
from minglm.model.attention import MLA
from minglm.model.cache import LatentCache
from minglm.model.layers import LATENT_EPS, RMSNorm, rope_table
from minglm.model.model import Model
from minglm.model.moe import MoE
from minglm.model.topk import largest

HEAD_COLUMN_SPLITS = 16


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear of x (N, in) and weight (out, in)."""
    if len(x) > 1:
        return F.linear(x, weight)
    parts = column_split(weight)
    return torch.bmm(x.expand(len(parts), 1, -1), parts).view(1, -1)


def _experts(h: Tensor, moe: MoE, chosen: Tensor, gates: Tensor) -> Tensor:
    """`Experts.forward` for a few tokens, h (N, C), chosen and gates (N, K) → (N, C): every expert gets as many rows as
    the busiest one, so that all of them are two batched products.
    Tokens chosen unevenly by many experts are left to the loop."""
    E, (N, K), experts = moe.experts.gate_up_proj.shape[0], chosen.shape, moe.experts
    rank = (
        h.new_zeros(N, E, dtype=torch.int64).scatter_(1, chosen, 1).cumsum(0)
    )  # the token's turn at an expert, from 1
    rows = int(rank[-1].max())
    if E * rows > 4 * N * K or h.device.type != "cpu":
        return experts.forward(h, chosen, gates)[0]
    slot = chosen * rows + rank.gather(1, chosen) - 1  # (N, K) places among E·rows
    token = slot.new_zeros(E * rows)  # places nobody takes repeat token 0
    token[slot] = torch.arange(N, device=h.device).unsqueeze(-1)
    inner = torch.bmm(h.index_select(0, token).view(E, rows, -1), experts.gate_up_proj.transpose(1, 2))
    g, u = inner.chunk(2, -1)
    out = torch.bmm(F.silu(g).mul_(u), experts.down_proj.transpose(1, 2)).flatten(0, 1)  # (E·rows, C)
    return F.embedding_bag(slot, out, mode="sum", per_sample_weights=gates.to(h.dtype))


class StepPositions:
    """Where the tokens of one step stand, as every layer needs it."""

    def __init__(self, decoder: Decoder, positions: Sequence[int], T: int):
        cache, config = decoder.cache, decoder.model.config
        B, r, device = len(positions), config.qk_rope_head_dim, cache.latent.device
        self.B, self.T, self.first = B, T, positions[0]
        self.low, self.end = min(positions), max(positions) + T
        self.together = self.low + T == self.end  # all sequences at the same position
        if self.together:  # one set of turns serves all
            at = torch.arange(self.first, self.end, device=device)  # (T,)
            self.alike, self.hidden = T == 1, None if T == 1 else at.unsqueeze(-1)
        else:
            at = torch.tensor(positions, device=device).unsqueeze(-1) + torch.arange(T, device=device)
            self.slots = (at + decoder.first_row[:B]).view(-1)  # (N,) rows of the flat cache
            self.alike, self.hidden = False, at.unsqueeze(-1)
        if self.hidden is not None:  # ([B,] T, S) True where a key lies in the future
            self.hidden = torch.arange(self.end, device=device) > self.hidden
        cos, sin = decoder.rope_cos_sin.index_select(0, at.view(-1)).unsqueeze(2).unbind(1)  # (N or T, 1, r) each
        rotation = torch.addcmul(decoder.diagonal * cos, decoder.off_diagonal, sin)  # (N or T, r, r)
        self.rotation_k = rotation
        self.rotation_q = decoder.eye_q.expand(len(rotation), -1, -1).clone()
        self.rotation_q[:, -r:, -r:] = rotation
        self.rotation_index = decoder.eye_i.expand(len(rotation), -1, -1).clone()
        self.rotation_index[:, :r, :r] = rotation
        self.topk_indices = None  # left by the last "full" layer for "shared" ones

    def rotated(self, x: Tensor, rotation: Tensor) -> Tensor:
        """x (N·h, D) of h heads, turned to each token's position, as (N, h, D)."""
        N, D = self.B * self.T, x.shape[-1]
        if self.alike:
            return torch.mm(x, rotation[0]).view(N, -1, D)
        if len(rotation) < N:
            rotation = rotation.repeat(self.B, 1, 1)
        return torch.bmm(x.view(N, -1, D), rotation)

    def write(self, store: Tensor, flat: Tensor, new: Tensor) -> None:
        """Put new (N, D) at the tokens' places in a layer's store (rows, max_len, D), which is also given flat."""
        if self.together:
            store[: self.B, self.first : self.end] = new.view(self.B, self.T, -1)
        else:
            flat.index_copy_(0, self.slots, new)


class Decoder:
    """Continues the sequences of a filled cache.

    Args:
        model: its weights are absorbed now; `refresh` takes later changes in.
        cache: holds the prompts; `step` writes to it. Its first B rows are the sequences.
        mode: "sparse", or "dense" (which leaves indexer keys unwritten).
        record_routes: keep the experts each token chose in `routes`.
    """

    def __init__(self, model: Model, cache: LatentCache, mode: str = "sparse", record_routes: bool = False):
        self.model, self.cache, self.mode, self.sparse = model, cache, mode, mode == "sparse"
        quantization = getattr(model, "quantization", None)
        self.rounds = quantization is not None and quantization.rounds_activations
        if self.rounds and record_routes:
            raise InputError(
                f"record_routes with {quantization.format}: not kept while activations are rounded; quantise with "
                f"activations=False"
            )
        self.routes: list[Tensor] | None = [] if record_routes else None  # of the last step: (N, K) for each MoE layer
        self.hidden: Tensor | None = None  # of the last step: (N, C) before the final norm
        config, like = model.config, cache.latent
        r, options = config.qk_rope_head_dim, dict(dtype=like.dtype, device=like.device)
        self.first_row = torch.arange(like.shape[1], device=like.device).mul_(cache.max_len).unsqueeze(-1)  # (B, 1)
        rope_cos_sin = torch.view_as_real(rope_table(cache.max_len, r, config.rope_theta, like.device))  # (S, r/2, 2)
        self.rope_cos_sin = (
            rope_cos_sin.repeat_interleave(2, 1).transpose(1, 2).to(like.dtype).contiguous()
        )  # (S, 2, r)
        # A row vector times this is turned: pairs (0,1), (2,3), … by [[cos, sin], [-sin, cos]].
        self.diagonal = torch.eye(r, **options)
        self.off_diagonal = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * (r // 2)).to(**options)
        self.eye_q = torch.eye(config.kv_lora_rank + r, **options)
        self.eye_i = torch.eye(config.index_head_dim, **options)
        self.suits_one = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
        self.flat = [store.view(-1, store.shape[-1]) for store in cache.latent]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the model's present weights."""
        self.absorbed = [] if self.rounds else [AbsorbedLayer(layer) for layer in self.model.layers]
        self.absorbed_mtp = AbsorbedLayer(self.model.mtp.layer) if self.model.mtp is not None else None
        self.one = None  # made when the first single token comes

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """tokens (B, T) int64, those of row b at positions[b] … → logits of what follows each (B, T, V).

        Keys at these positions and after are overwritten;
        a caller that rejects tokens comes back with a lower position.
        """
        if self.rounds:
            return self._unfolded(tokens, positions)
        if self.routes is not None:
            self.routes = []
        if tokens.numel() == 1 and self.suits_one:
            one = self._short(self.routes)
            logits = one.step(tokens.item(), positions[0])
            self.hidden = one.x.clone().unsqueeze(0)
            return logits.view(1, 1, -1)
        step = StepPositions(self, positions, tokens.shape[1])
        x = self.model.embed_tokens(tokens.reshape(-1))
        for absorbed in self.absorbed:
            x = self._layer(x, absorbed, step)
        self.hidden = x
        return self.logits(x, self.model.norm).view(*tokens.shape, -1)

    def _short(self, routes: list[Tensor] | None) -> OneToken:
        if self.one is None:
            self.one = OneToken(self)
        self.one.routes = routes
        return self.one

    def _unfolded(self, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """The same by `Model.forward`: a quantised model rounds activations between matrices that folding would
        join."""
        B = len(positions)
        alike = all(at == positions[0] for at in positions)
        parts = [(0, B, positions[0])] if alike else [(b, b + 1, at) for b, at in enumerate(positions)]
        outs = [self.model(tokens[a:b], cache=self.cache.rows(a, b, at), mode=self.mode) for a, b, at in parts]
        self.hidden = torch.cat([out.hidden for out in outs]).flatten(0, 1)
        return torch.cat([out.logits for out in outs])

    @torch.inference_mode()
    def mtp_step(self, hidden: Tensor, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """The prediction module: hidden (B, T, C) joined with the tokens (B, T) that follow → its own hidden (B,
        T, C)."""
        joined = self.model.mtp.join(hidden, self.model.embed_tokens(tokens))
        if tokens.numel() == 1 and self.suits_one:
            one = self._short(None)
            one.mtp_step(joined.view(-1), positions[0])
            return one.x.clone().view_as(hidden)
        step, routes, self.routes = StepPositions(self, positions, tokens.shape[1]), self.routes, None
        out = self._layer(joined.flatten(0, 1), self.absorbed_mtp, step)
        self.routes = routes
        return out.view_as(hidden)

    def logits(self, hidden: Tensor, norm: RMSNorm) -> Tensor:
        h, weight = norm.forward(hidden), self.model.lm_head.weight
        if len(h) == 1 or len(weight) % HEAD_COLUMN_SPLITS or h.device.type != "cpu":
            return _linear(h, weight)
        # The widest matrix: torch's product of a few rows with it takes a third longer than one of its parts at a time.
        parts = column_split(weight, HEAD_COLUMN_SPLITS)
        return torch.bmm(h.expand(len(parts), -1, -1), parts).transpose(0, 1).flatten(1)

    def _layer(self, x: Tensor, absorbed: AbsorbedLayer, step: StepPositions) -> Tensor:
        return self._feed(self._attend(x, absorbed.mla, absorbed, step), absorbed)

    def _attend(self, x: Tensor, mla: MLA, absorbed: AbsorbedLayer, step: StepPositions) -> Tensor:
        B, T, N, L, R = step.B, step.T, len(x), mla.kv_lora_rank, mla.kv_lora_rank + mla.qk_rope_head_dim
        q_a, kv, k_rope, *index = _linear(absorbed.norm_in.forward(x), absorbed.w_in).split(absorbed.widths, -1)
        q_latent = mla.q_a_layernorm.forward(q_a)
        q = step.rotated(_linear(q_latent, absorbed.w_q).view(N * mla.num_heads, R), step.rotation_q)  # (N, H, R)
        store, flat = self.cache.latent[mla.layer], self.flat[mla.layer]
        step.write(
            store,
            flat,
            torch.cat((mla.kv_a_layernorm.forward(kv), step.rotated(k_rope, step.rotation_k).squeeze(1)), -1),
        )
        if self.sparse and mla.indexer is not None:
            step.topk_indices = self._choose(mla, q_latent, *index, step)
        if step.topk_indices is None:  # every visible key is read
            keys = store[:B, : step.end]  # (B, S, R)
            scores = torch.bmm(q.view(B, -1, R), keys.transpose(1, 2))  # (B, T·H, S)
            if step.hidden is not None:
                scores.view(B, T, mla.num_heads, -1).masked_fill_(step.hidden.unsqueeze(-2), -torch.inf)
        else:
            topk_indices, empty = step.topk_indices
            if B > 1:
                topk_indices = topk_indices.reshape(B, -1) + self.first_row[:B]
            keys = flat.index_select(0, topk_indices.reshape(-1)).view(N, -1, R)  # (N, k, R)
            scores = torch.bmm(q, keys.transpose(1, 2))  # (N, H, k)
            if empty is not None:
                scores.masked_fill_(empty.unsqueeze(1), -torch.inf)
        values = torch.bmm(scores.softmax(-1), keys[..., :L])
        return x + _linear(values.view(N, -1), absorbed.w_out)

    def _choose(self, mla: MLA, q_latent: Tensor, key: Tensor, w: Tensor, step: StepPositions):
        """The indexer's choice: (N, k) positions and which of them are empty (or None); None when all keys are read."""
        ix, store, B, N = mla.indexer, self.cache.index_store(mla.layer), step.B, len(key)
        key = step.rotated(
            F.layer_norm(key, key.shape[-1:], ix.k_norm.weight, ix.k_norm.bias, LATENT_EPS), step.rotation_index
        )
        step.write(store, store.view(-1, ix.width), key.squeeze(1))
        if step.end <= mla.topk:
            return None
        q = step.rotated(_linear(q_latent, ix.wq_b.weight).view(N * ix.heads, ix.width), step.rotation_index)
        dots = torch.bmm(q.view(B, -1, ix.width), store[:B, : step.end].transpose(1, 2)).relu_()  # (B, T·Hi, S)
        scores = torch.bmm(w.unsqueeze(1), dots.view(N, ix.heads, -1)).squeeze(1)  # (N, S)
        if step.hidden is not None:
            scores.view(B, step.T, -1).masked_fill_(step.hidden, -torch.inf)
        values, index = largest(scores, mla.topk)
        # Some query may see fewer than k keys; what else it was given lies in its future.
        return index[:, :-1], values[:, :-1] == -torch.inf if step.low < mla.topk else None

    def _feed(self, x: Tensor, absorbed: AbsorbedLayer) -> Tensor:
        h, out = absorbed.norm_ffn.forward(x), x
        if absorbed.always:
            g, u = _linear(h, absorbed.gate_up).chunk(2, -1)
            out = x + _linear(F.silu(g).mul_(u), absorbed.down)
        if absorbed.moe is None:
            return out
        chosen, gates, _ = absorbed.moe.gate.forward(h)
        if self.routes is not None:
            self.routes.append(chosen)
        return out + _experts(h, absorbed.moe, chosen, gates)
