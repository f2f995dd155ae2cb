"""The one training of the laboratories: a small model, batches, a setting, and the loss on text it never saw.

Attention is dense, without drafts: a step is short, and what is varied is the model's size, its text or its optimiser.
The loss on unseen text is given above the floor of the tiny world (`minglm.data.tiny_world.floor`), which is known.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

from minglm.config import ModelConfig
from minglm.data.shards import IGNORE, Batch
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.errors import InputError
from minglm.model.model import Model
from minglm.training.optim import MuonAdamW, cosine_with_warmup

VOCABULARY = 800  # of the tiny world
UNSEEN_ROWS, UNSEEN_LENGTH, UNSEEN_BATCHES, UNSEEN_SEED = 32, 64, 4, 1
CLIP = 1.0  # largest norm of a step's gradient


@dataclass(frozen=True)
class Setting:
    """How a model is trained. Learning rates are those of the optimiser, `lr` of matrices and `adam_lr` of all else;
    `warmup` counts steps; `end` is the share of the learning rate that is left at the last step of the cosine; `muon`
    False leaves all to AdamW; `embedding_std` is that of the embedding's first values, None for the model's own."""

    lr: float = 0.01
    adam_lr: float = 0.01
    warmup: int = 10
    end: float = 0.1
    weight_decay: float = 0.1
    bias_rate: float = 0.01
    muon: bool = True
    embedding_std: float | None = None


@dataclass(frozen=True)
class Trained:
    """A model and what it left: the loss of each step, nats per token."""

    model: Model
    losses: list[float]


def config(**changes: int) -> ModelConfig:
    """`nano` for the tiny world, with changes by field name."""
    return ModelConfig.named("nano", vocab_size=VOCABULARY, num_nextn_predict_layers=0, **changes)


def train(model_config: ModelConfig, batches: Iterable[Batch], steps: int, setting: Setting, seed: int = 0) -> Trained:
    """Train a new model for so many batches.

    Args:
        batches: at least `steps` of them. seed: of the first weights.

    Raises:
        InputError: no step.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: must be at least 1; give more, or more FLOPs")
    torch.manual_seed(seed)
    model = Model(model_config)
    if setting.embedding_std is not None:
        with torch.no_grad():
            model.embed_tokens.weight.mul_(setting.embedding_std / model_config.initializer_range)
    learning = [(n, p) for n, p in model.named_parameters() if ".indexer." not in n]
    optimizer = MuonAdamW(
        learning,
        model_config,
        lr=setting.lr,
        adam_lr=setting.adam_lr,
        weight_decay=setting.weight_decay,
        muon=setting.muon,
    )
    losses: list[float] = []
    for step, batch in zip(range(steps), batches, strict=False):
        out = model(batch.tokens, batch.targets, mode="dense", doc_start=batch.doc_start, indexer_loss=False)
        assert out.lm_loss is not None
        optimizer.zero_grad()
        out.lm_loss.backward()
        optimizer.clip_grad_norm(CLIP)
        optimizer.step(cosine_with_warmup(step, steps, setting.warmup, setting.end))
        if out.expert_counts is not None:
            model.update_router_bias(out.expert_counts, setting.bias_rate)
        losses.append(out.lm_loss.item())
    return Trained(model, losses)


@lru_cache(maxsize=2)
def _unseen(seed: int) -> tuple[tuple[Batch, ...], float]:
    """Batches of validation text, the same for everybody, and their floor in nats per target."""
    rows = TinyWorldLoader(UNSEEN_ROWS, UNSEEN_LENGTH, seed, validation=True)
    nats = targets = 0.0
    batches = []
    for step in range(UNSEEN_BATCHES):
        batch, floor = rows.batch(step), rows.floor(step)
        counted = batch.targets != IGNORE
        nats += float(floor.nats[counted].sum())
        targets += float(counted.sum())
        batches.append(batch)
    return tuple(batches), nats / targets


def floor(seed: int = UNSEEN_SEED) -> float:
    """What the unseen text costs one who knows the language, nats per token."""
    return _unseen(seed)[1]


@torch.no_grad()
def unseen_loss(model: Model, seed: int = UNSEEN_SEED) -> float:
    """Loss on unseen text, nats per token; `floor(seed)` is the least that is possible on average.

    Args:
        seed: of the text. Whoever chooses by one text is judged by another.
    """
    total = targets = 0.0
    for batch in _unseen(seed)[0]:
        out = model(batch.tokens, batch.targets, mode="dense", doc_start=batch.doc_start, indexer_loss=False)
        assert out.lm_loss is not None
        counted = float((batch.targets != IGNORE).sum())
        total += counted * out.lm_loss.item()
        targets += counted
    return total / targets
