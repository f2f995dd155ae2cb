"""Eight broken trainings for notebook learn/23: the same small model and text, one fault in each, and what a log shows.

Every patient has the same curves: loss on training text, on unseen text, norm of the gradients, load of the busiest
expert. `diagnose` says whether a guess is right, and why.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch

from minglm import plots
from minglm.config import ModelConfig
from minglm.data.shards import Batch
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.errors import InputError, nearest
from minglm.model.model import Model
from minglm.training.optim import MuonAdamW, cosine_with_warmup

ROWS, LENGTH, LR, BIAS_RATE, EVERY = 8, 64, 0.01, 0.02, 5
HEALTHY = "healthy"
# Fault → what it is, and how its curves give it away.
FAULTS = {
    "rate too high": "The learning rate is fifty times too high: the loss jumps above its start, and stays high.",
    "gradients add up": "Gradients are never cleared: their norm grows from step to step, and the loss falls late.",
    "targets not moved": "The targets are the inputs: the loss goes to almost nothing, on unseen text as well. No "
    "model is that good.",
    "two batches again": "The same two batches come again and again: the loss on them falls to nothing while that on "
    "unseen text turns up.",
    "bias backwards": "The router's bias moves the wrong way: the busiest expert gets ever more work, and the loss "
    "hardly shows it.",
    "one kind after another": "The text is not mixed, one kind of document after the other: the loss jumps at each "
    "change, and unseen text is worse than before it.",
    "schedule too short": "The learning rate is zero after a third of the run: from there unseen text is level.",
    "weights start too large": "The first weights are too large: the loss starts far above ln(vocabulary), where a "
    "model that knows nothing would start.",
}
KINDS = ("codes", "sums", "copy", "questions")


@dataclass
class Log:
    """What a training writes down; `unseen` every `EVERY` steps as (step, loss)."""

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    busiest: list[float] = field(default_factory=list)
    unseen: list[tuple[int, float]] = field(default_factory=list)


def _config(fault: str) -> ModelConfig:
    start = 0.3 if fault == "weights start too large" else 0.02
    return ModelConfig.named("nano", vocab_size=800, num_nextn_predict_layers=0, initializer_range=start)


def _batches(fault: str, steps: int) -> list[Batch]:
    if fault == "one kind after another":
        part = max(1, steps // len(KINDS))
        rows = {kind: TinyWorldLoader(ROWS, LENGTH, 0, {kind: 1.0}) for kind in KINDS}
        return [rows[KINDS[min(step // part, len(KINDS) - 1)]].batch(step) for step in range(steps)]
    rows_of_all = TinyWorldLoader(ROWS, LENGTH, 0)
    found = [rows_of_all.batch(step % 2 if fault == "two batches again" else step) for step in range(steps)]
    return [b._replace(targets=b.tokens) for b in found] if fault == "targets not moved" else found


def train(fault: str, steps: int) -> Log:
    """One training with one fault, or none.

    Raises:
        InputError: no such fault.
    """
    if fault not in (*FAULTS, HEALTHY):
        raise InputError(f"fault {fault!r}: not one of {', '.join(FAULTS)}{nearest(fault, FAULTS)}")
    torch.manual_seed(0)
    model, log = Model(_config(fault)), Log()
    optimizer = MuonAdamW(model.named_parameters(), model.config, lr=LR * (50 if fault == "rate too high" else 1))
    fresh = TinyWorldLoader(ROWS, LENGTH, 1, validation=True).batch(0)
    if fault == "targets not moved":
        fresh = fresh._replace(targets=fresh.tokens)
    end = steps // 3 if fault == "schedule too short" else steps
    kept: dict[str, torch.Tensor] = {}
    for step, batch in enumerate(_batches(fault, steps)):
        out = model(batch.tokens, batch.targets, mode="dense", indexer_loss=False)
        optimizer.zero_grad()
        assert out.lm_loss is not None and out.expert_counts is not None
        out.lm_loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        if fault == "gradients add up":
            for name, grad in grads.items():
                kept[name] = grad.add_(kept.get(name, torch.zeros_like(grad))).clone()
        log.norm.append(float(optimizer.clip_grad_norm(1.0)))
        optimizer.step(cosine_with_warmup(step, end, 5, 0.0) if step < end else 0.0)
        sign = -1 if fault == "bias backwards" else 1
        model.update_router_bias(out.expert_counts, sign * BIAS_RATE)
        counts = out.expert_counts.float()
        log.busiest.append(float((counts.max(1).values / counts.mean(1)).max()))
        log.loss.append(out.lm_loss.item())
        if step % EVERY == EVERY - 1 or step == steps - 1:
            with torch.no_grad():
                unseen = model(fresh.tokens, fresh.targets, mode="dense").lm_loss
            assert unseen is not None
            log.unseen.append((step + 1, unseen.item()))
    return log


def ward(seed: int = 0) -> dict[str, str]:
    """Letter → fault, in an order that a seed decides."""
    order = list(FAULTS)
    random.Random(f"clinic/{seed}").shuffle(order)
    return dict(zip("ABCDEFGH", order, strict=True))


def chart(letter: str, log: Log, healthy: Log) -> tuple[Any, str]:
    """A patient's loss, seen and unseen, beside the healthy run's."""
    steps = range(1, len(log.loss) + 1)
    fig = plots.figure(f"Patient {letter}", "step", "loss (nats per token)")
    plots.line(fig, steps, log.loss, "its training text", 1)
    at, values = [s for s, _ in log.unseen], [v for _, v in log.unseen]
    plots.line(fig, at, values, "its unseen text", 3, markers=True)
    plots.line(fig, steps, healthy.loss, "healthy, training text", 0)
    plots.line(fig, [1, len(log.loss)], [math.log(800)] * 2, "knows nothing (ln 800)", 6)
    return fig, (
        f"Line chart. Patient {letter} starts at {log.loss[0]:.2f} and ends at {log.loss[-1]:.2f}, on unseen text at "
        f"{log.unseen[-1][1]:.2f}; the healthy run ends at {healthy.loss[-1]:.2f}."
    )


def laboratory(letter: str, log: Log, healthy: Log) -> tuple[Any, str]:
    """A patient's gradient norm and busiest expert beside the healthy run's."""
    steps = range(1, len(log.loss) + 1)
    fig = plots.figure(f"Patient {letter}, laboratory", "step", "gradient norm; load over the mean", log_y=True)
    for name, of, index in (("its", log, 1), ("healthy", healthy, 0)):
        plots.line(fig, steps, of.norm, f"{name} gradient norm", index)
        plots.line(fig, steps, of.busiest, f"{name} busiest expert", index + 2)
    return fig, (
        f"Line chart, vertical axis logarithmic. At the end patient {letter} has a gradient norm of {log.norm[-1]:.2g} "
        f"(healthy {healthy.norm[-1]:.2g}), its busiest expert {log.busiest[-1]:.1f} times the mean load (healthy "
        f"{healthy.busiest[-1]:.1f})."
    )


def diagnose(letter: str, guess: str, seed: int = 0) -> str:
    """What to say to a guess.

    Raises:
        InputError: no such patient, or no such fault.
    """
    faults = ward(seed)
    if letter not in faults:
        raise InputError(f"patient {letter!r}: not one of {', '.join(faults)}")
    if guess not in FAULTS:
        raise InputError(f"fault {guess!r}: not one of {', '.join(FAULTS)}{nearest(guess, FAULTS)}")
    if faults[letter] == guess:
        return f"{letter}: right. {FAULTS[guess]}"
    return f"{letter}: no. Were it that: {FAULTS[guess][0].lower()}{FAULTS[guess][1:]} Look again."
