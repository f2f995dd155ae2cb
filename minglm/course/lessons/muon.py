"""Experiments of the Muon notebook: momenta of a real training, and a race of two optimisers from the same start."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.model.model import Model
from minglm.training.optim import MuonAdamW, cosine_with_warmup


def train(
    config: ModelConfig, kind: str, lr: float, steps: int, batch_size: int = 8, seq_len: int = 128, seed: int = 0
) -> dict:
    """Train on the tiny world, from the same weights on the same batches, with Muon or (`kind` "adamw") with AdamW
    alone.

    Returns losses (per step, nats), seconds, `optimizer_s` of them in the optimiser, and the optimiser itself.
    """
    loader = TinyWorldLoader(batch_size, seq_len, seed)
    torch.manual_seed(seed)
    model = Model(config)
    learning = [(n, p) for n, p in model.named_parameters() if ".indexer." not in n]
    optimizer = MuonAdamW(learning, config, lr, muon=kind == "muon")
    losses, inside, begun = [], 0.0, time.perf_counter()
    for step in range(steps):
        batch = loader.batch(step)
        out = model(batch.tokens, batch.targets, mode="dense", doc_start=batch.doc_start, mtp=False)
        optimizer.zero_grad()
        out.lm_loss.backward()
        started = time.perf_counter()
        optimizer.clip_grad_norm(1.0)
        optimizer.step(cosine_with_warmup(step, steps, max(1, steps // 10), 0.1))
        inside += time.perf_counter() - started
        model.update_router_bias(out.expert_counts, 0.01)
        losses.append(float(out.lm_loss.detach()))
    return {"losses": losses, "seconds": time.perf_counter() - begun, "optimizer_s": inside, "optimizer": optimizer}


def smooth(values: list[float], window: int = 10) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def singular_values(matrix: Tensor) -> list[float]:
    """Singular values as shares of the largest, falling."""
    values = torch.linalg.svdvals(matrix.double())
    return (values / values[0]).tolist()


def two_heads(strong: float = 20.0, rows: int = 16, columns: int = 48, seed: int = 0) -> Tensor:
    """A momentum of two heads (2·rows, columns) that live in the same directions, the first `strong` times as large."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, columns, generator=generator)
    return torch.cat((strong * shared, torch.randn(rows, rows, generator=generator) @ shared / rows**0.5))
