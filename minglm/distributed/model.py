"""The model of `minglm.model.model`, split over a mesh: same modules, same names of weights, same numbers.

Every process is given the whole batch and works on its rows and positions. A loss comes out as the value for the whole
batch; its gradient is that of this process's summand only, and FSDP2 adds the summands of all. Sums, not means of
means: processes may have different numbers of targets, and the curve must be that of one process.

Shapes: B rows of the whole batch, T positions of the whole sequence, C hidden, E experts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils import _pytree

from minglm.distributed.collectives import total
from minglm.distributed.context_parallel import ContextParallel
from minglm.distributed.expert_parallel import ExpertParallel, balance_share, split_experts
from minglm.distributed.mesh import Mesh
from minglm.distributed.tensor_parallel import split_heads
from minglm.model.attention import ForwardContext
from minglm.model.counts import StepCounts
from minglm.model.decoder_layer import AuxLosses, DecoderLayer
from minglm.model.layers import head_loss, to_float32
from minglm.model.model import Model, Output
from minglm.model.moe import MoE
from minglm.model.mtp import MTP, shift_targets

# FSDP2 finds the tensors of an output, to know when backward reaches it, only in containers that torch knows.
if Output not in _pytree.SUPPORTED_NODES:
    _pytree.register_dataclass(Output)


class LayerOutput(NamedTuple):
    """What a layer makes on this process."""

    x: Tensor  # (B', T', C)
    kl: Tensor | None  # this process's summand of the indexer's KL
    balance: Tensor | None  # this process's summand of the balance loss
    counts: Tensor | None  # (E,) tokens per expert
    topk_indices: Tensor | None  # (B', T', k) keys that shared layers after this one read


class ShardedLayer(nn.Module):
    """`minglm.model.decoder_layer.DecoderLayer` on a mesh. What it makes besides x is returned too,
    so that FSDP2 sees all of its gradients."""

    def __init__(self, layer: DecoderLayer, mesh: Mesh) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn
        self.post_attention_layernorm, self.mlp = layer.post_attention_layernorm, layer.mlp
        self.mesh = mesh
        split_heads(self.self_attn, mesh)
        if isinstance(self.mlp, MoE):
            split_experts(self.mlp, mesh)

    def forward(self, x: Tensor, ctx: ForwardContext, shared_topk: Tensor | None = None) -> LayerOutput:
        """x (B', T', C) and the keys that the last full layer chose for these positions → what this layer makes of
        them."""
        cp = _context_parallel(ctx)
        attended, kl, topk_indices = self.self_attn(self.input_layernorm(x), ctx, shared_topk)
        x = x + attended
        x_norm = self.post_attention_layernorm(x)
        if not isinstance(self.mlp, MoE):
            return LayerOutput(x + self.mlp(x_norm), kl, None, None, topk_indices)
        flat = x_norm.flatten(0, -2)
        chosen, gates, scores = self.mlp.gate(flat)
        out, counts = self.mlp.experts(flat, chosen, gates)
        if self.mlp.shared_experts is not None:
            out = out + self.mlp.shared_experts(flat)
        balance = balance_share(
            scores.view(*x.shape[:2], -1), chosen.view(*x.shape[:2], -1), self.mesh, cp.batch, cp.length
        )
        return LayerOutput(x + out.view_as(x), kl, balance, counts, topk_indices)


class ShardedModel(Model):
    """`minglm.model.model.Model` for training on a mesh.

    Args:
        full: the whole model with its starting weights, the same in every process; it is taken apart.
        bf16: compute in bf16; sharded weights, gradients' sums and optimiser state stay fp32.
        reshard: drop gathered weights after the forward pass and gather them again for the backward (ZeRO-3). False
            keeps them in between (ZeRO-2): one gathering a step.

    On an accelerator each layer is a unit of its own, so that its exchange runs beside another layer's computation. On
    CPU nothing runs beside, and every exchange waits for the slower process, so all layers are one unit: one gathering
    and one reduction a step.
    """

    def __init__(self, full: Model, mesh: Mesh, bf16: bool = False, reshard: bool = False) -> None:
        nn.Module.__init__(self)
        self.config, self.mesh, self._rope = full.config, mesh, None
        self.shapes = {name: p.shape for name, p in full.named_parameters()}
        self.embed_tokens = full.embed_tokens  # in the order of Model: its methods walk the modules
        units = [ShardedLayer(layer, mesh) for layer in full.layers]
        self.layers = nn.ModuleList(units)  # type: ignore[assignment]  # called by this class alone
        self.norm, self.lm_head, self.mtp = full.norm, full.lm_head, full.mtp
        if self.mtp is not None:
            sharded_mtp = ShardedLayer(self.mtp.layer, mesh)
            self.mtp.layer = sharded_mtp  # type: ignore[assignment]  # as above
            units.append(sharded_mtp)
        self.to(mesh.device)
        policy = MixedPrecisionPolicy()
        if bf16:
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for layer in units:
            if isinstance(layer.mlp, MoE) and isinstance(layer.mlp.experts, ExpertParallel):
                experts: nn.Module = layer.mlp.experts
                fully_shard(experts, mesh=mesh.expert_mesh, reshard_after_forward=reshard, mp_policy=policy)
            if reshard or mesh.device.type != "cpu":
                fully_shard(layer, mesh=mesh.data_mesh, reshard_after_forward=reshard, mp_policy=policy)
        fully_shard(self, mesh=mesh.data_mesh, reshard_after_forward=reshard, mp_policy=policy)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # losses are summands already
                if mesh.device.type == "cpu":
                    module.set_force_sum_reduction_for_comms(True)  # gloo cannot average

    def forward(  # type: ignore[override]  # trains only: no cache, and always targets
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        mode: str = "sparse",
        doc_start: Tensor | None = None,
        mtp: bool = True,
        indexer_loss: bool = True,
        counts: StepCounts | None = None,
    ) -> Output:
        """As `Model.forward` with targets: the whole batch (B, T) in,
        the whole batch's losses and expert counts out."""
        self._check(tokens, targets, mode, doc_start, 0)
        counts = counts or StepCounts.of([(targets, doc_start)], self.config.mtp_depth if mtp else 0)
        rows, cp = self.mesh.rows(len(tokens)), ContextParallel(self.mesh, *tokens.shape)
        here = slice(cp.offset, cp.offset + cp.own)
        ctx = ForwardContext(
            mode,
            self.rope_slice(cp.offset, cp.own, tokens.device),
            cp.offset,
            None if doc_start is None else doc_start[rows, here],
            losses=True,
            indexer_loss=indexer_loss,
            indexer_grad=torch.is_grad_enabled(),
            query_weights=_cut(self._query_weights(targets, doc_start, counts), rows, here),
            context_parallel=cp,
        )
        aux = AuxLosses()
        with torch.set_grad_enabled(torch.is_grad_enabled() and mode != "warmup"):
            hidden, topk_indices = self.embed_tokens(tokens[rows, here]), None
            for layer in self.layers:
                hidden, kl, balance, loads, topk_indices = layer(hidden, ctx, topk_indices)
                aux.add(kl, balance, loads)
            lm = head_loss(self.norm(hidden), self.lm_head.weight, targets[rows, here], counts.targets[0])
            out = Output(lm_loss=lm)
            if mtp and self.mtp is not None:
                out.mtp_loss = self._depths(self.mtp, tokens, targets, doc_start, counts, hidden, ctx, aux)
        out.indexer_kl = torch.stack(aux.kl).mean() if aux.kl else None
        if aux.balance:
            out.balance_loss = torch.stack(aux.balance).sum() * (len(tokens) / counts.rows)
        return self._of_all(out, aux.counts)

    def _depths(
        self,
        module: MTP,
        tokens: Tensor,
        targets: Tensor,
        doc_start: Tensor | None,
        step: StepCounts,
        hidden: Tensor,
        ctx: ForwardContext,
        aux: AuxLosses,
    ) -> Tensor | None:
        """MTP loss, as `Model._mtp_loss`; a process needs tokens of the next one's part, never hidden states."""
        whole, rows = _context_parallel(ctx), self.mesh.rows(len(tokens))
        losses: list[Tensor] = []
        all_counts: Tensor | None = None  # all depths together
        for depth in range(1, min(self.config.mtp_depth, tokens.shape[1] - 1) + 1):
            cp = whole.shorter(depth)
            start, end = whole.offset, whole.offset + cp.own
            here = slice(start, end)
            part = replace(
                ctx,
                rope=ctx.rope[: cp.own],
                context_parallel=cp,
                doc_start=None if ctx.doc_start is None else ctx.doc_start[:, : cp.own],
                query_weights=_cut(self._query_weights(targets, doc_start, step, depth), rows, here),
            )
            hidden = hidden[:, : cp.own]
            if self.config.mtp_normed_hidden:  # as `Model.mtp_reads`
                hidden = (self.norm if depth == 1 else module.norm)(hidden)
            joined = module.join(hidden, self.embed_tokens(tokens[rows, start + depth : end + depth]))
            hidden, kl, balance, counts, _ = module.layer(joined, part)
            aux.add(kl, balance)
            all_counts = counts if all_counts is None else all_counts + counts
            labels = shift_targets(targets, depth, doc_start)[rows, here]
            losses.append(head_loss(module.norm(hidden), self.lm_head.weight, labels, step.targets[depth]))
        aux.add(None, None, all_counts)
        return torch.stack(losses).mean() if losses else None

    def _of_all(self, out: Output, counts: list[Tensor]) -> Output:
        """Each loss's value for the whole batch, in one exchange, and the expert counts of all in another."""
        names = [n for n in ("lm_loss", "mtp_loss", "balance_loss", "indexer_kl") if getattr(out, n) is not None]
        summed = total(torch.stack([to_float32(getattr(out, n)) for n in names]), self.mesh.data)
        for name, value in zip(names, summed.unbind(), strict=True):
            setattr(out, name, value)
        if counts:
            out.expert_counts = torch.stack(counts)
            dist.all_reduce(out.expert_counts, group=self.mesh.data)
        return out

    def accumulate(self, last: bool) -> None:
        """Whether the next backward pass is the last of an update: only then are gradients summed over processes."""
        assert isinstance(self, FSDPModule)  # `fully_shard` made it one
        self.set_requires_gradient_sync(last)


def _context_parallel(ctx: ForwardContext) -> ContextParallel:
    """The context's, which `ShardedModel.forward` made."""
    assert isinstance(ctx.context_parallel, ContextParallel)
    return ctx.context_parallel


def _cut(weights: Tensor | None, rows: slice, here: slice) -> Tensor | None:
    """This process's part of the queries' weights (B, T)."""
    return None if weights is None else weights[rows, here]
