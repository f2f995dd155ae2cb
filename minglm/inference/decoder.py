"""The next few tokens of each sequence, with as few operations as possible: decoding is bound by their number.

`Decoder` computes what `Model.forward` computes for the newest positions of cached sequences (a test compares them),
on matrices that do not change from step to step (`minglm.inference.absorbed`) and with as few operations as that
allows:

- projections that read the same input are one matrix, up-projections are absorbed;
- rotary position is a small matrix for each token, shared by all layers; a single one when all stand at one position.

Every sequence has a position of its own, so one may join or leave while the others go on (`minglm.inference.engine`). A
step takes one token of each, or a few when drafts are checked (`minglm.inference.speculative`). Where this machine has
a C compiler, all layers of a step are one call of compiled code (`minglm.inference.compiled_step`); what stands here is
the text to read, and what runs elsewhere.

Shapes: B sequences, T new tokens of each, N = B·T, S cached positions, H heads, L latent width, r rope width, R = L +
r, Q q_lora_rank, Hi/Di indexer heads and width, C hidden, K chosen experts, k chosen keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minglm.errors import InputError
from minglm.inference.absorbed import AbsorbedLayer
from minglm.inference.compiled_step import CompiledStep
from minglm.inference.rotary import RotaryMatrices
from minglm.model.attention import MLA
from minglm.model.cache import LatentCache
from minglm.model.indexer import Indexer
from minglm.model.layers import LATENT_EPS, RMSNorm
from minglm.model.model import Model
from minglm.model.moe import MoE
from minglm.model.products import linear
from minglm.model.topk import largest
from minglm.quant.formats import Spec
from minglm.runtime.switch import fast


def _experts(h: Tensor, moe: MoE, chosen: Tensor, gates: Tensor) -> Tensor:
    """`Experts.forward` for a few tokens, h (N, C), chosen and gates (N, K) → (N, C): every expert gets as many rows as
    the busiest one, so that all of them are two batched products.
    Tokens chosen unevenly by many experts are left to the loop."""
    E, (N, K), experts = moe.experts.gate_up_proj.shape[0], chosen.shape, moe.experts
    # The token's turn at an expert, from 1.
    rank = h.new_zeros(N, E, dtype=torch.int64).scatter_(1, chosen, 1).cumsum(0)
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
        B, r, device = len(positions), decoder.rotary.width, decoder.cache.latent.device
        self.B, self.T, self.first = B, T, positions[0]
        self.low, self.end = min(positions), max(positions) + T
        self.together = self.low + T == self.end  # all sequences at the same position
        self.future: Tensor | None = None  # ([B,] T, S) True where a key lies in the future; None where none does
        if self.together:  # one set of rotations serves all
            here = torch.arange(self.first, self.end, device=device)  # (T,)
        else:
            here = torch.tensor(positions, device=device).unsqueeze(-1) + torch.arange(T, device=device)
            self.slots = (here + decoder.first_row[:B]).view(-1)  # (N,) rows of the flat cache
        self.alike = self.together and T == 1  # one rotation serves all
        if not self.alike:
            self.future = torch.arange(self.end, device=device) > here.unsqueeze(-1)
        self.rotation_k = decoder.rotary.at(here.view(-1))  # (N or T, r, r)
        n = len(self.rotation_k)
        self.rotation_q = decoder.eye_q.expand(n, -1, -1).clone()
        self.rotation_q[:, -r:, -r:] = self.rotation_k
        self.rotation_index = decoder.eye_index.expand(n, -1, -1).clone()
        self.rotation_index[:, :r, :r] = self.rotation_k

    def rotated(self, x: Tensor, rotation: Tensor) -> Tensor:
        """x (N·h, D) of h heads, rotated to each token's position, as (N, h, D)."""
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


class TopK(NamedTuple):
    """The keys that a full layer chose: positions (N, k), and which of them no key fills (N, k),
    or None for no such."""

    indices: Tensor
    empty: Tensor | None


class Decoder:
    """Continues the sequences of a filled cache.

    Args:
        model: its weights are absorbed now; `refresh` takes later changes in.
        cache: holds the prompts; `step` writes to it. Its first B rows are the sequences.
        mode: "sparse", or "dense" (which leaves indexer keys unwritten).
        record_routes: keep the experts each token chose in `routes`.

    Raises:
        InputError: routes are wanted of a model that rounds activations.
    """

    def __init__(self, model: Model, cache: LatentCache, mode: str = "sparse", record_routes: bool = False):
        self.model, self.cache, self.mode, self.sparse = model, cache, mode, mode == "sparse"
        quantization: Spec | None = getattr(model, "quantization", None)
        self.rounds = quantization is not None and quantization.rounds_activations
        if quantization is not None and self.rounds and record_routes:
            raise InputError(
                f"record_routes with {quantization.format}: not kept while activations are rounded; quantise with "
                "activations=False"
            )
        self.routes: list[Tensor] | None = [] if record_routes else None  # of the last step: (N, K) for each MoE layer
        self.hidden: Tensor | None = None  # of the last step: (N, C) before the final norm
        config, like = model.config, cache.latent
        self.first_row = torch.arange(like.shape[1], device=like.device).mul_(cache.max_len).unsqueeze(-1)  # (B, 1)
        self.rotary = RotaryMatrices(config, cache.max_len, like)
        self.eye_q = torch.eye(config.kv_lora_rank + self.rotary.width, dtype=like.dtype, device=like.device)
        self.eye_index = torch.eye(config.index_head_dim, dtype=like.dtype, device=like.device)
        self.compiles = CompiledStep.fits(model, cache)
        self.flat = [store.view(-1, store.shape[-1]) for store in cache.latent]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Absorb the model's present weights."""
        self.absorbed = [] if self.rounds else [AbsorbedLayer(layer) for layer in self.model.layers]
        self.absorbed_mtp = AbsorbedLayer(self.model.mtp.layer) if self.model.mtp is not None else None
        self.compiled: CompiledStep | None = None  # made when the first step comes
        self.compiled_mtp: CompiledStep | None = None

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """tokens (B, T) int64, those of row b at positions[b] … → logits of what follows each (B, T, V).

        Keys at these positions and after are overwritten; a caller that rejects tokens comes back with a lower
        position.
        """
        if self.rounds:
            return self._by_model(tokens, positions)
        if self.routes is not None:
            self.routes = []
        if self.compiles and fast():
            if self.compiled is None:
                self.compiled = self._compiled(self.absorbed)
            x = self.model.embed_tokens(tokens.reshape(-1))
            logits = self.compiled.run(x, positions, tokens.shape[1], self.routes)
            assert logits is not None  # asked for
            self.hidden = x
            return logits.view(*tokens.shape, -1)
        step = StepPositions(self, positions, tokens.shape[1])
        x, topk = self.model.embed_tokens(tokens.reshape(-1)), None
        for absorbed in self.absorbed:
            x, topk = self._layer(x, absorbed, step, topk, self.routes)
        self.hidden = x
        return self.logits(x, self.model.norm).view(*tokens.shape, -1)

    def _compiled(self, layers: Sequence[AbsorbedLayer]) -> CompiledStep:
        return CompiledStep(self.model, layers, self.cache, self.rotary, self.sparse)

    def _by_model(self, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """The same by `Model.forward`: a quantised model rounds activations between matrices that absorbing would
        join."""
        B, first = len(positions), positions[0]
        together = all(position == first for position in positions)
        parts = [(0, B, first)] if together else [(b, b + 1, position) for b, position in enumerate(positions)]
        logits, hidden = [], []
        for start, stop, length in parts:
            out = self.model(tokens[start:stop], cache=self.cache.rows(start, stop, length), mode=self.mode)
            logits.append(out.logits)
            hidden.append(out.hidden)
        self.hidden = torch.cat(hidden).flatten(0, 1)
        return torch.cat(logits)

    @torch.inference_mode()
    def mtp_step(self, hidden: Tensor, tokens: Tensor, positions: Sequence[int]) -> Tensor:
        """The prediction module: hidden (B, T, C) joined with the tokens (B, T) that follow → its own hidden
        (B, T, C)."""
        joined = self.model.require_mtp().join(hidden, self.model.embed_tokens(tokens))
        assert self.absorbed_mtp is not None  # the model has the module
        if self.compiles and fast():
            if self.compiled_mtp is None:
                self.compiled_mtp = self._compiled([self.absorbed_mtp])
            x = joined.flatten(0, 1).contiguous()
            self.compiled_mtp.run(x, positions, tokens.shape[1], head=False)
            return x.view_as(hidden)
        step = StepPositions(self, positions, tokens.shape[1])
        return self._layer(joined.flatten(0, 1), self.absorbed_mtp, step, None, None)[0].view_as(hidden)

    def logits(self, hidden: Tensor, norm: RMSNorm) -> Tensor:
        """hidden (N, C) → logits (N, V), after this norm."""
        return linear(norm.forward(hidden), self.model.lm_head.weight)

    def _layer(
        self, x: Tensor, absorbed: AbsorbedLayer, step: StepPositions, topk: TopK | None, routes: list[Tensor] | None
    ) -> tuple[Tensor, TopK | None]:
        """x (N, C) and what the last full layer chose → x, and what the next layer may share."""
        x, topk = self._attend(x, absorbed, step, topk)
        return self._feed_forward(x, absorbed, routes), topk

    def _attend(
        self, x: Tensor, absorbed: AbsorbedLayer, step: StepPositions, topk: TopK | None
    ) -> tuple[Tensor, TopK | None]:
        mla, B, T, N = absorbed.mla, step.B, step.T, len(x)
        L, R = mla.kv_lora_rank, mla.kv_lora_rank + mla.qk_rope_head_dim
        q_a, kv, k_rope, *index = linear(absorbed.norm_in.forward(x), absorbed.w_in).split(absorbed.widths, -1)
        q_latent = mla.q_a_layernorm.forward(q_a)
        q = step.rotated(linear(q_latent, absorbed.w_q).view(N * mla.num_heads, R), step.rotation_q)  # (N, H, R)
        store, flat = self.cache.latent[mla.layer], self.flat[mla.layer]
        k_rope = step.rotated(k_rope, step.rotation_k).squeeze(1)
        step.write(store, flat, torch.cat((mla.kv_a_layernorm.forward(kv), k_rope), -1))
        if self.sparse and mla.indexer is not None:
            key, w = index
            topk = self._index(mla.indexer, mla, q_latent, key, w, step)
        if topk is None:  # every visible key is read
            keys = store[:B, : step.end]  # (B, S, R)
            scores = torch.bmm(q.view(B, -1, R), keys.transpose(1, 2))  # (B, T·H, S)
            if step.future is not None:
                scores.view(B, T, mla.num_heads, -1).masked_fill_(step.future.unsqueeze(-2), -torch.inf)
        else:
            indices, empty = topk
            if B > 1:
                indices = indices.reshape(B, -1) + self.first_row[:B]
            keys = flat.index_select(0, indices.reshape(-1)).view(N, -1, R)  # (N, k, R)
            scores = torch.bmm(q, keys.transpose(1, 2))  # (N, H, k)
            if empty is not None:
                scores.masked_fill_(empty.unsqueeze(1), -torch.inf)
        values = torch.bmm(scores.softmax(-1), keys[..., :L])
        return x + linear(values.view(N, -1), absorbed.w_out), topk

    def _index(
        self, ix: Indexer, mla: MLA, q_latent: Tensor, key: Tensor, w: Tensor, step: StepPositions
    ) -> TopK | None:
        """Write the indexer's keys and choose; None when all keys are read."""
        store, B, N = self.cache.index_store(mla.layer), step.B, len(key)
        key = F.layer_norm(key, key.shape[-1:], ix.k_norm.weight, ix.k_norm.bias, LATENT_EPS)
        step.write(store, store.view(-1, ix.width), step.rotated(key, step.rotation_index).squeeze(1))
        if step.end <= mla.topk:
            return None
        q = step.rotated(linear(q_latent, ix.wq_b.weight).view(N * ix.heads, ix.width), step.rotation_index)
        dots = torch.bmm(q.view(B, -1, ix.width), store[:B, : step.end].transpose(1, 2)).relu_()  # (B, T·Hi, S)
        scores = torch.bmm(w.unsqueeze(1), dots.view(N, ix.heads, -1)).squeeze(1)  # (N, S)
        if step.future is not None:
            scores.view(B, step.T, -1).masked_fill_(step.future, -torch.inf)
        values, indices = largest(scores, mla.topk)
        # Some query may see fewer than k keys; what else it was given lies in its future.
        return TopK(indices[:, :-1], values[:, :-1] == -torch.inf if step.low < mla.topk else None)

    def _feed_forward(self, x: Tensor, absorbed: AbsorbedLayer, routes: list[Tensor] | None) -> Tensor:
        h, out = absorbed.norm_ffn.forward(x), x
        if absorbed.dense_mlp is not None:
            gate_up, down = absorbed.dense_mlp
            g, u = linear(h, gate_up).chunk(2, -1)
            out = x + linear(F.silu(g).mul_(u), down)
        if absorbed.moe is None:
            return out
        chosen, gates, _ = absorbed.moe.gate.forward(h)
        if routes is not None:
            routes.append(chosen)
        return out + _experts(h, absorbed.moe, chosen, gates)
