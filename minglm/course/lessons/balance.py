"""Experiments of the mixture-of-experts notebook: a skewed stream of tokens and a router that is balanced by its bias.

Shapes: N tokens, C hidden, E experts, K chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minglm.config import ModelConfig
from minglm.model.moe import Router


def skewed_stream(config: ModelConfig, steps: int, tokens: int = 512, skew: float = 0.7, seed: int = 1):
    """`steps` batches (tokens, C) that all lean in one direction, as words of one language do; the same for each
    call.
    """
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(config.hidden_size, generator=generator)
    for _ in range(steps):
        yield skew * common + torch.randn(tokens, config.hidden_size, generator=generator)


def fixed_router(config: ModelConfig, seed: int = 0) -> Router:
    """A router whose weights stay as they are, so that only the bias can balance it."""
    router = Router(config)
    with torch.no_grad():
        router.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
    return router


@torch.no_grad()
def balance(config: ModelConfig, rate: float, steps: int = 200) -> Tensor:
    """Loads (steps, E) of a fixed router on the skewed stream while its bias moves by `rate` a step."""
    router, loads = fixed_router(config), []
    for x in skewed_stream(config, steps):
        chosen, _, _ = router(x)
        counts = torch.bincount(chosen.flatten(), minlength=config.n_routed_experts)
        router.move_bias(counts, rate)
        loads.append(counts)
    return torch.stack(loads).float()


def max_over_mean(loads: Tensor) -> Tensor:
    """How much more the busiest expert has to do than an even share: (…, E) → (…), 1 when all are equal."""
    return loads.amax(-1) / loads.mean(-1)
