"""The learner's model and loop on the tiny world, beside minglm's own model and optimiser on the same text.

Both start from the same weights and see the same batches, so their curves may be compared step by step. Attention is
dense, without drafts and without a balance loss: what the sheets up to build_4 have the learner write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from minglm import plots
from minglm.config import ModelConfig
from minglm.course.workshop.build.swap import load
from minglm.data.shards import Batch
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.model.model import Model
from minglm.training.optim import NS_FAST, MuonAdamW, cosine_with_warmup

STEPS, LR, WARMUP, BIAS_RATE = 150, 0.01, 10, 0.01
ROWS, LENGTH = 8, 64
OWN_SEED = 5  # not one of the band's
Losses = list[float]


def config() -> ModelConfig:
    """`nano` with the tiny world's vocabulary, without the module that drafts."""
    return ModelConfig.named("nano", vocab_size=800, num_nextn_predict_layers=0)


def batches(seed: int, steps: int) -> list[Batch]:
    """So many batches of the tiny world, (ROWS, LENGTH) each."""
    rows = TinyWorldLoader(ROWS, LENGTH, seed)
    return [rows.batch(step) for step in range(steps)]


def _model(seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(config())


def reference(seed: int, steps: int, muon: bool = True) -> Losses:
    """minglm's own loss curve, nats per token, one a step; without Muon, AdamW moves the matrices too."""
    model = _model(seed)
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=LR, muon=muon)
    losses = []
    for step, batch in enumerate(batches(seed, steps)):
        out = model(batch.tokens, batch.targets, mode="dense", indexer_loss=False)
        assert out.lm_loss is not None
        optimizer.zero_grad()
        out.lm_loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(cosine_with_warmup(step, steps, WARMUP, 0.1))
        if out.expert_counts is not None:
            model.update_router_bias(out.expert_counts, BIAS_RATE)
        losses.append(out.lm_loss.item())
    return losses


def _balance(model: nn.Module) -> None:
    """Move the bias of each of the learner's routers by what its layer counted."""
    for layer in getattr(model, "layers", ()):
        if layer.counts is not None:
            layer.mlp.gate.move_bias(layer.counts, BIAS_RATE)


def train_on_the_tiny_world(make: Callable[[ModelConfig], nn.Module], train: Callable, steps: int, seed: int) -> Losses:
    """The loss curve of a learner's model trained by the learner's `train` of sheet build_4.

    Args:
        make: the model from a configuration; it takes minglm's first weights by name, those of the indexer left out.
    """
    weights = {k: v for k, v in _model(seed).state_dict().items() if ".indexer." not in k}
    model = load(make(config()), weights)
    return train(model, batches(seed, steps), LR, WARMUP, _balance)


def own_curve(make: Callable[[ModelConfig], nn.Module], train: Callable, steps: int) -> dict[str, Losses]:
    """The learner's curve and, as a control, minglm's with AdamW alone; the first is missing while a part is blank."""
    try:
        mine = {"mine": train_on_the_tiny_world(make, train, steps, OWN_SEED)}
    except NotImplementedError:
        mine = {}
    return mine | {"control: AdamW alone": reference(OWN_SEED, steps, muon=False)}


def singular_values(orthogonalize: Callable, rows: int = 48, columns: int = 96) -> tuple[Any, str]:
    """Singular values of a matrix before and after the learner's five steps, or minglm's polynomial while blank."""
    torch.manual_seed(0)
    x = torch.randn(rows, columns) @ torch.diag(torch.logspace(0, -2, columns))
    before = torch.linalg.svdvals(x / x.norm())
    try:
        after = torch.linalg.svdvals(orthogonalize(x))
    except NotImplementedError:
        after, (a, b, c) = before, NS_FAST
        for _ in range(5):
            after = a * after + b * after**3 + c * after**5
        after = after.sort(descending=True).values
    fig = plots.figure("What Muon does to a matrix", "singular value, largest first", "size", log_y=True)
    plots.line(fig, range(1, rows + 1), before.tolist(), "before, norm 1", 1)
    plots.line(fig, range(1, rows + 1), after.tolist(), "after five steps", 0)
    return fig, (
        f"Line chart, vertical axis logarithmic. Before, the largest is {float(before[0] / before[-1]):.0f} times the "
        f"smallest; after, {float(after.max() / after.min()):.1f} times."
    )
