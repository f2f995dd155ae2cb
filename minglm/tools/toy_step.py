"""The toy's training step on this machine's processor, timed: `python -m minglm.tools.toy_step` prints it as JSON.

`clustersim validate --local` predicts the same steps from the probe alone. Processor seconds on one thread.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

from minglm.config import ModelConfig
from minglm.model.model import Model
from minglm.training.optim import MuonAdamW

SIZES = ((2, 128), (4, 128), (8, 128), (4, 256))  # sequences, length


def step_seconds(config: ModelConfig, batch: int, seq: int, repeats: int = 5) -> float:
    """Median processor seconds of a training step, dense attention, without the prediction module."""
    torch.manual_seed(0)
    model = Model(config)
    optimizer = MuonAdamW([(n, p) for n, p in model.named_parameters() if ".indexer." not in n], config)
    tokens = torch.randint(config.vocab_size, (batch, seq + 1))
    readings = []
    for _ in range(repeats + 1):
        begun = time.process_time()
        optimizer.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:], mode="dense", mtp=False).lm_loss.backward()
        optimizer.step()
        readings.append(time.process_time() - begun)
    return statistics.median(readings[1:])


def main(argv: list[str] | None = None) -> int:
    """Print `{"steps": [[sequences, length, seconds], ...]}` of the model that is named (default mini)."""
    argv = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    config = ModelConfig.named(argv[0] if argv else "mini")
    print(json.dumps({"steps": [[b, t, step_seconds(config, b, t)] for b, t in SIZES]}))
    return 0


if __name__ == "__main__":
    from minglm.runtime.terminal import guard

    sys.exit(guard(main))
