"""The whole model: embedding, layers of (MLA + DSA) and (dense or expert feed-forward), final norm, head, MTP module.

Names of modules and shapes of weights follow transformers' `glm_moe_dsa`, so weights move between the two by name
(`minglm.interop.huggingface`).

How weights start (seed with torch.manual_seed):

    embedding, every matrix, router, experts    normal(0, initializer_range)
    norm weights                                1
    indexer key norm's bias, router bias        0

Shapes: B batch, T query positions, C hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.errors import InputError, nearest
from minglm.model.attention import ForwardContext
from minglm.model.cache import LatentCache
from minglm.model.counts import StepCounts, counted_queries, query_weights
from minglm.model.decoder_layer import AuxLosses, DecoderLayer
from minglm.model.layers import RMSNorm, head_loss, rope_table
from minglm.model.moe import Router
from minglm.model.mtp import MTP, shift_targets
from minglm.model.products import Linear

MODES = ("dense", "warmup", "sparse")


@dataclass
class Output:
    """What a forward returns. Losses are parts, unweighted: the trainer multiplies and adds them.

    `balance_loss` sums over MoE layers (an even load gives 1 for each), as DeepSeek-V3's coefficient expects;
    `indexer_kl` is the mean over the layers that ran an indexer, in nats per query; `mtp_loss` the mean over depths.
    All losses need targets; where the counts of a step are given they are summands of the step's losses
    (minglm/model/counts.py). `expert_counts` has one row per MoE layer, then one for the MTP layer when it ran (all
    depths together).
    """

    logits: Tensor | None = None  # (B, T, V); None when targets were given
    lm_loss: Tensor | None = None
    mtp_loss: Tensor | None = None
    balance_loss: Tensor | None = None
    indexer_kl: Tensor | None = None
    expert_counts: Tensor | None = None  # (MoE layers [+ 1], E) int64
    hidden: Tensor | None = None  # (B, T, C) before the final norm: what MTP reads


class Model(nn.Module):
    """GLM-5-like language model of any size; `Model(ModelConfig.named("glm5"))` builds under `torch.device("meta")`."""

    quantization: object | None = None  # the `minglm.quant.formats.Spec` of a model whose matrices are quantised

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (
            DecoderLayer(config, i, full=kind == "full", experts=i >= config.first_k_dense_replace)
            for i, kind in enumerate(config.indexer_types or ())
        )
        self.layers = cast("Sequence[DecoderLayer]", nn.ModuleList(layers))  # a ModuleList does not say of what
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.mtp = (
            MTP(config, DecoderLayer(config, config.num_hidden_layers, full=True, experts=True))
            if config.num_nextn_predict_layers
            else None
        )
        self._rope: Tensor | None = None  # (positions, rope/2) complex, grown when needed
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as in the table at the top of this file."""
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0.0, self.config.initializer_range)
            else:
                nn.init.constant_(p, 0.0 if name.endswith("bias") else 1.0)

    def forward(  # noqa: PLR0913  (options, by keyword)
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        mode: str = "sparse",
        doc_start: Tensor | None = None,
        cache: LatentCache | None = None,
        mtp: bool = True,
        indexer_loss: bool = True,
        last_only: bool = False,
        counts: StepCounts | None = None,
    ) -> Output:
        """Run the model, or the next tokens of cached sequences.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, targets[i] = token i+1, -100 ignored. Given: losses and no logits.
            mode: "dense": full causal attention, no indexer. "warmup": the same, while the indexer learns from the KL
                to that attention and nothing else has a gradient. "sparse": attention over the indexer's choice.
            doc_start: (B, T) int64, the first position each query may see (start of its document); None: 0 everywhere.
            cache: holds earlier tokens and takes the new ones.
            mtp: compute the MTP loss too (needs targets; skipped with a cache).
            indexer_loss: False skips the indexer's KL.
            last_only: logits of the last position only, (B, 1, V).
            counts: of the whole optimiser step, where this is one of several forward passes of it; None: it is all.

        Raises:
            InputError: unknown mode, tokens outside the vocabulary, a sequence longer than max_position_embeddings.
        """
        offset = cache.length if cache is not None else 0
        self._check(tokens, targets, mode, doc_start, offset)
        T = tokens.shape[1]
        if targets is not None and counts is None:
            counts = StepCounts.of([(targets, doc_start)], self.config.mtp_depth if mtp else 0)
        ctx = ForwardContext(
            mode,
            self.rope_slice(offset, T, tokens.device),
            offset,
            doc_start,
            cache,
            losses=targets is not None,
            indexer_loss=indexer_loss and targets is not None,
            indexer_grad=torch.is_grad_enabled(),
            query_weights=self._query_weights(targets, doc_start, counts),
        )
        aux = AuxLosses()
        with torch.set_grad_enabled(torch.is_grad_enabled() and mode != "warmup"):
            hidden, topk_indices = self.embed_tokens(tokens), None
            for layer in self.layers:
                hidden, topk_indices = layer(hidden, ctx, aux, topk_indices)
            if cache is not None:
                cache.advance(T)
            out = Output(hidden=hidden)
            if targets is None or counts is None:
                out.logits = self.lm_head(self.norm(hidden[:, -1:] if last_only else hidden))
            else:
                out.lm_loss = head_loss(self.norm(hidden), self.lm_head.weight, targets, counts.targets[0])
                if mtp and self.mtp is not None and cache is None:
                    out.mtp_loss = self._mtp_loss(tokens, targets, counts, hidden, ctx, aux)
        out.indexer_kl = torch.stack(aux.kl).mean() if aux.kl else None
        if aux.balance and counts is not None:  # each a mean over the rows of this pass
            out.balance_loss = torch.stack(aux.balance).sum() * (len(tokens) / counts.rows)
        out.expert_counts = torch.stack(aux.counts) if aux.counts else None
        return out

    @staticmethod
    def _query_weights(
        targets: Tensor | None, doc_start: Tensor | None, counts: StepCounts | None, depth: int = 0
    ) -> Tensor | None:
        """(B, T − depth) what each query's KL counts in the step's mean."""
        if targets is None or counts is None:
            return None
        return query_weights(counted_queries(targets, doc_start, depth), counts.queries[depth])

    def _mtp_loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        step: StepCounts,
        hidden: Tensor,
        ctx: ForwardContext,
        aux: AuxLosses,
    ) -> Tensor | None:
        """Mean cross-entropy over depths; see minglm/model/mtp.py for what meets what."""
        module, losses, main = self.require_mtp(), [], aux.counts
        counts: list[Tensor] = []
        aux.counts = counts
        for depth in range(1, min(self.config.mtp_depth, tokens.shape[1] - 1) + 1):
            positions = tokens.shape[1] - depth
            doc = ctx.doc_start
            part = replace(
                ctx,
                rope=ctx.rope[:positions],
                doc_start=None if doc is None else doc[:, :positions],
                query_weights=self._query_weights(targets, doc, step, depth),
            )
            hidden = self.mtp_step(self.mtp_reads(hidden[:, :positions], depth), tokens[:, depth:], part, aux)
            labels = shift_targets(targets, depth, doc)
            losses.append(head_loss(module.norm(hidden), self.lm_head.weight, labels, step.targets[depth]))
        aux.counts = main + ([torch.stack(counts).sum(0)] if counts else [])
        return torch.stack(losses).mean() if losses else None

    def mtp_reads(self, hidden: Tensor, depth: int) -> Tensor:
        """What the module reads at a depth (1: the first) of the hidden states (…, C) of the depth before.

        With `mtp_normed_hidden` they go through a norm first: the final one before depth 1, after that the module's
        own before the shared head, as inference engines run the published layer.
        """
        if not self.config.mtp_normed_hidden:
            return hidden
        return (self.norm if depth == 1 else self.require_mtp().norm)(hidden)

    def mtp_step(self, hidden: Tensor, tokens: Tensor, ctx: ForwardContext, aux: AuxLosses) -> Tensor:
        """One depth: hidden (B,T,C) as `mtp_reads` gives it and the tokens (B,T) it joins → hidden (B,T,C) of this
        depth."""
        module = self.require_mtp()
        return module.layer(module.join(hidden, self.embed_tokens(tokens)), ctx, aux)[0]

    def require_mtp(self) -> MTP:
        """The multi-token-prediction module.

        Raises:
            InputError: this model was made without one.
        """
        if self.mtp is None:
            raise InputError("num_nextn_predict_layers=0: this model has no multi-token-prediction module; use 1")
        return self.mtp

    def _check(self, tokens: Tensor, targets: Tensor | None, mode: str, doc_start: Tensor | None, offset: int) -> None:
        if mode not in MODES:
            raise InputError(f"mode {mode!r}: not one of {', '.join(MODES)}{nearest(mode, MODES)}")
        end = offset + tokens.shape[1]
        if end > self.config.max_position_embeddings:
            raise InputError(
                f"sequence of {end} tokens: longer than max_position_embeddings="
                f"{self.config.max_position_embeddings}; cut it or raise max_position_embeddings"
            )
        for name, t in (("targets", targets), ("doc_start", doc_start)):
            if t is not None and t.shape != tokens.shape:
                raise InputError(
                    f"{name} of shape {tuple(t.shape)}: must match tokens {tuple(tokens.shape)}; give one per token"
                )
        if tokens.shape[1] > 1 and tokens.device.type == "cpu":
            low, high = (int(v) for v in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise InputError(
                    f"token {low if low < 0 else high}: outside the vocabulary 0 to {self.config.vocab_size - 1}; "
                    "use the tokenizer this model was made with"
                )

    def rope_slice(self, offset: int, T: int, device: torch.device) -> Tensor:
        """Rotations (T, rope/2), complex, of the positions from `offset` on."""
        end = offset + T
        if self._rope is None or self._rope.shape[0] < end or self._rope.device != device:
            length = min(self.config.max_position_embeddings, max(1024, 2 * end))
            with torch.inference_mode(False):  # made while decoding, it must serve a training step later
                self._rope = rope_table(length, self.config.qk_rope_head_dim, self.config.rope_theta, device)
        return self._rope[offset:end]

    # ------------------------------------------------------------------ for the trainer

    def update_router_bias(self, expert_counts: Tensor, rate: float) -> None:
        """Move every router's bias toward balance: bias += rate·sign(mean − count). `expert_counts` as in `Output`."""
        routers = [m for m in self.modules() if isinstance(m, Router)]
        # Fewer counts than routers where the MTP module, whose router is the last, did not run.
        for router, counts in zip(routers, expert_counts, strict=False):
            router.move_bias(counts, rate)

    def indexer_parameters(self) -> list[nn.Parameter]:
        """The indexers' parameters: all that learns in "warmup", and nothing that the language-model loss moves."""
        return [p for name, p in self.named_parameters() if ".indexer." in name]
