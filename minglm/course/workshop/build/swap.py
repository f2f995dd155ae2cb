"""The learner's own parts inside the real model: swapped in one at a time, and the logits compared.

The sheets `build_*` have the learner write the model part by part. A part has the parameters of its counterpart in
`minglm.model`, under the same names, so weights move by name. What the model calls in another way than the learner
wrote it is translated here, and nowhere else.

Shapes: B batch, T query positions, S key positions, C hidden, H heads, V vocabulary, N tokens, R latent and rotary
width of a cached key, k chosen keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minglm.config import ModelConfig
from minglm.course.workshop import checking
from minglm.errors import InputError, nearest
from minglm.model.attention import MLA, ForwardContext, Query
from minglm.model.cache import LatentCache
from minglm.model.indexer import Indexer
from minglm.model.layers import RMSNorm, SwiGLU
from minglm.model.model import Model
from minglm.model.moe import MoE, Router
from minglm.model.sparse_attention import topk_mask

CLOSE = 1e-5  # largest difference of logits of order 1 that rounding in fp32 may make


# ---------------------------------------------------------------------- translations


class _SwappedAttention(MLA):
    """minglm's attention that takes some of its steps from the learner: functions by name in `mine`."""

    mine: dict[str, Any]

    def attend(
        self, q: Query, latent: Tensor, topk_indices: Tensor | None, ctx: ForwardContext, want_probs: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As `MLA.attend`; "sparse" takes over where keys were chosen."""
        if "sparse" in self.mine and topk_indices is not None:
            return self.mine["sparse"](q.nope, q.rope, latent, *self.up_projections(), topk_indices), None
        return super().attend(q, latent, topk_indices, ctx, want_probs)

    def dense(self, q: Query, latent: Tensor, ctx: ForwardContext, mask: Tensor | None = None) -> Tensor:
        """As `MLA.dense`, by "expanded"."""
        if "expanded" not in self.mine:
            return super().dense(q, latent, ctx, mask)
        allowed = ctx.causal_mask(q.nope.shape[1], latent.shape[1], latent.device) if mask is None else mask
        return self.mine["expanded"](q.nope, q.rope, latent, *self.up_projections(), allowed)

    def absorbed(self, q: Query, latent: Tensor, ctx: ForwardContext) -> Tensor:
        """As `MLA.absorbed`, by "absorbed"."""
        if "absorbed" not in self.mine:
            return super().absorbed(q, latent, ctx)
        allowed = ctx.causal_mask(q.nope.shape[1], latent.shape[1], latent.device)
        return self.mine["absorbed"](q.nope, q.rope, latent, *self.up_projections(), allowed)


class _WholeAttention(MLA):
    """minglm's attention whose output comes from the learner's MLA; the indexer's choice stays minglm's."""

    mine: nn.Module

    def forward(
        self, x: Tensor, ctx: ForwardContext, shared_topk: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `MLA.forward`, without a cache."""
        if ctx.cache is not None:
            raise InputError("a swapped MLA: has no cache; run it over whole sequences")
        index = self.index(x, self.project(x, ctx)[0], ctx)
        chosen = shared_topk if index is None else index.topk_indices
        allowed = None if chosen is None else topk_mask(chosen, x.shape[1]).unsqueeze(1)
        return self.mine(x, ctx.rope, allowed), None, chosen


class _SwappedMoE(MoE):
    """minglm's expert layer whose output comes from the learner's."""

    mine: nn.Module

    def forward(self, x: Tensor, want_loss: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
        """As `MoE.forward`, without a balance loss."""
        out, counts = self.mine(x)
        return out, None, counts


def _turned_into(module: nn.Module, kind: type[nn.Module], mine: Any) -> None:
    """Give a module of the model the methods of `kind`, and the learner's part to call."""
    module.__class__ = kind
    object.__setattr__(module, "mine", mine)  # not a submodule: parameters are counted once


# Name → the modules of the model that it replaces, and the learner's part made for one of them.
_MODULES: dict[str, tuple[type[nn.Module], Callable[[Callable, Any, ModelConfig], nn.Module]]] = {
    "RMSNorm": (RMSNorm, lambda part, old, config: part(old.weight.shape[0], old.eps)),
    "SwiGLU": (SwiGLU, lambda part, old, config: part(*old.gate_proj.weight.shape[::-1])),
    "Indexer": (Indexer, lambda part, old, config: part(config)),
    "Router": (Router, lambda part, old, config: part(config)),
    "MLA": (MLA, lambda part, old, config: part(config)),
    "MoE": (MoE, lambda part, old, config: part(config)),
}
_STEPS = ("expanded", "absorbed", "sparse")
PARTS = (*_MODULES, *_STEPS)


def swap(model: Model, name: str, part: Callable) -> int:
    """Put a learner's part into every place of a model where its counterpart stands, with that one's weights.

    Args:
        model: changed in place. name: one of `PARTS`. part: the learner's class or, for the three ways to attend,
            function, with the arguments that the sheets ask for.

    Returns: how many places took it.

    Raises:
        InputError: no such name, or the part's parameters have other names or shapes than its counterpart's.
    """
    if name not in PARTS:
        raise InputError(f"part {name!r}: not one of {', '.join(PARTS)}{nearest(name, PARTS)}")
    if name in _STEPS:
        layers = [m for m in model.modules() if isinstance(m, MLA)]
        for layer in layers:
            _turned_into(layer, _SwappedAttention, {**getattr(layer, "mine", {}), name: part})
        return len(layers)
    kind, make = _MODULES[name]
    places = [(where, m) for where, m in model.named_modules() if type(m) is kind]
    for where, old in places:
        new = make(part, old, model.config)
        weights = {k: v for k, v in old.state_dict().items() if not (name == "MLA" and k.startswith("indexer."))}
        load(new, weights)
        if name in ("MLA", "MoE"):  # the model asks these for more than the learner's part gives
            _turned_into(old, _WholeAttention if name == "MLA" else _SwappedMoE, new)
        else:
            parent, _, leaf = where.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
    return len(places)


def load(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """`load_state_dict` that says in one line what does not fit.

    Raises:
        InputError: a name is missing or too many, or a shape is another.
    """
    if fault := checking.misfit(module, weights):
        raise InputError(fault)
    module.load_state_dict(dict(weights))
    return module


# ---------------------------------------------------------------------- comparison


def subject(seed: int = 0, config: ModelConfig | None = None) -> Model:
    """A model (`nano`) whose logits are of order 1 and whose norms are not all ones, so that 1e-5 means something."""
    torch.manual_seed(seed)
    model = Model(config or ModelConfig.named("nano", initializer_range=0.1)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
        for router in (m for m in model.modules() if isinstance(m, Router)):
            router.e_score_correction_bias.normal_(0.0, 0.1)
    return model


@torch.no_grad()
def logits(model: Model, length: int = 48, seed: int = 1) -> dict[str, Tensor]:
    """Logits (2, length, V) of fixed tokens: "dense", "sparse" and, where attention can be cached, "decoded"."""
    tokens = torch.randint(2, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    out = {mode: model(tokens, mode=mode).logits for mode in ("dense", "sparse")}
    if not any(isinstance(m, _WholeAttention) for m in model.modules()):
        cache = LatentCache(model.config, len(tokens), length)
        steps = [model(tokens[:, t : t + 1], mode="dense", cache=cache).logits for t in range(length)]
        out["decoded"] = torch.cat(steps, 1)
    return out


def differences(parts: Mapping[str, Callable], seed: int = 0) -> dict[str, float]:
    """Each part alone in a model of its own: name → largest difference of any logit from minglm's.

    Args:
        parts: name → part, as `swap` takes them.
    """
    want = logits(subject(seed))
    out = {}
    for name, part in parts.items():
        model = subject(seed)
        swap(model, name, part)
        out[name] = max(float((got - want[mode]).abs().max()) for mode, got in logits(model).items())
    return out
