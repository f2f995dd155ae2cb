"""This machine as a chip: measured rates that the simulator takes as a chip entry, and the toy's own measured step.

Torch computes in fp32 here; the simulator counts 2 bytes per value, so `memory_bytes_per_s` is given for values of 2
bytes: half of the bytes that were really moved in a second. Everything is measured on one thread.
"""

from __future__ import annotations

import statistics
import time

import torch

from minglm.config import ModelConfig
from minglm.model.model import Model
from minglm.runtime import machine
from minglm.training.optim import MuonAdamW

LEAST_S = 0.03  # a reading is at least so long: some systems count processor time in steps of 16 ms


def _seconds(function, repeats: int) -> float:
    """Median processor seconds of one call; not the wall clock: another program's turn must not count as ours."""
    function()
    calls = 1
    readings: list[float] = []
    while len(readings) < repeats:
        begun = time.process_time()
        for _ in range(calls):
            function()
        took = time.process_time() - begun
        if took < LEAST_S and calls < 100_000:
            calls *= 4
            readings.clear()
        else:
            readings.append(took / calls)
    return statistics.median(readings)


def shapes(config: ModelConfig, tokens: int) -> list[tuple[int, int, int]]:
    """Matrix products (M, N, K) a training step of this model is made of: rows are tokens, an expert's share of them,
    or logits.
    """
    c, share = config, max(1, tokens * config.num_experts_per_tok // config.n_routed_experts)
    heads = c.num_attention_heads
    return [
        (tokens, c.q_lora_rank, c.hidden_size),
        (tokens, heads * c.qk_head_dim, c.q_lora_rank),
        (tokens, heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
        (tokens, c.hidden_size, heads * c.v_head_dim),
        (tokens, c.intermediate_size, c.hidden_size),
        (share, 2 * c.moe_intermediate_size, c.hidden_size),
        (share, c.hidden_size, c.moe_intermediate_size),
        (min(tokens, 1024), c.vocab_size, c.hidden_size),
    ]


def measure(config: ModelConfig, token_counts: tuple[int, ...], repeats: int = 7) -> dict:
    """Rates of this machine: a mapping with the keys of the files in data/chips, and `op_s`, the time of a tiny
    operation.

    Args:
        config: the model whose shapes are measured. token_counts: tokens in a step.
    """
    points = {}
    for tokens in token_counts:
        for m, n, k in shapes(config, tokens):
            a, b = torch.randn(m, k), torch.randn(n, k)
            points[m, n, k] = 2.0 * m * n * k / _seconds(lambda a=a, b=b: a @ b.T, repeats)
    large = torch.randn(32 * 2**20)
    target = torch.empty_like(large)
    moved = 2 * large.numel() * 4 / _seconds(lambda: target.copy_(large), repeats)  # read and written
    tiny = torch.randn(8, requires_grad=True)
    op_s = _seconds(lambda: [tiny + tiny for _ in range(200)], repeats) / 200
    square = torch.randn(1024, 1024)
    best = max(2.0 * 1024**3 / _seconds(lambda: square @ square, repeats), *points.values())
    memory = machine.total_memory_bytes()
    return {
        "chip": {
            "name": "this machine",
            "vendor": machine.cpu_name(),
            "peak_flops": {"bf16": f"{best / 1e12:.6f} TFLOPS"},
            "max_matmul_flops": f"{best / 1e12:.6f} TFLOPS",
            "memory_bytes": f"{memory / 2**30:.2f} GiB",
            "memory_bytes_per_s": f"{moved / 2 / 1e12:.6f} TB/s",
            "matmul_source": "measured here, fp32",
            "matmul_points": [[m, n, k, f"{rate / 1e12:.6f} TFLOPS"] for (m, n, k), rate in points.items()],
        },
        "op_s": op_s,
        "threads": torch.get_num_threads(),
    }


def step_seconds(config: ModelConfig, batch: int, seq: int, repeats: int = 5) -> float:
    """Median time of a training step of this model, dense attention, without the prediction module."""
    torch.manual_seed(0)
    model = Model(config)
    optimizer = MuonAdamW([(n, p) for n, p in model.named_parameters() if ".indexer." not in n], config)
    tokens = torch.randint(config.vocab_size, (batch, seq + 1))

    def step() -> None:
        optimizer.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:], mode="dense", mtp=False).lm_loss.backward()
        optimizer.step()

    return _seconds(step, repeats)
