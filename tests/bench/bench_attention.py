"""Sparse attention against dense causal attention done well: from which length the whole layer is faster.

One MLA layer of size "bench", fp32, 2 threads, k = 64. Dense: expanded keys, torch's fused causal attention with values
padded to the keys' width (unpadded shapes fall back to a slower path, shown). Sparse: the same layer with its indexer,
its top-k and the gathered attention. Forward alone, and backward apart. Repetitions alternate; figures are medians.
"""

from __future__ import annotations

import os
import statistics
import time

import torch
import torch.nn.functional as F

from minglm.config import ModelConfig
from minglm.model.attention import MLA, ForwardContext
from minglm.model.layers import rope_table
from minglm.tools.bench_summary import answer

NAME = "attention"
CPU_TIME = bool(os.environ.get("MINGLM_BENCH_CPU_TIME"))
clock = time.process_time if CPU_TIME else time.perf_counter
CONFIG = ModelConfig.named("bench")
LENGTHS, REPEATS = (1024, 2048, 3072, 4096, 6144, 8192, 16384), 5


def medians(works: dict, repeats: int = REPEATS) -> dict[str, float]:
    seconds = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = clock()
            work()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def layer() -> MLA:
    torch.manual_seed(0)
    mla = MLA(CONFIG, 0)
    for p in mla.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0.0, 0.1)
    return mla


def works(mla: MLA, T: int) -> dict:
    x = torch.randn(1, T, CONFIG.hidden_size, requires_grad=True)
    rope, grad = rope_table(T, mla.qk_rope_head_dim, CONFIG.rope_theta), torch.randn(1, T, CONFIG.hidden_size)

    def forward(mode):
        with torch.no_grad():
            return mla(x, ForwardContext(mode, rope))

    def both(mode):
        mla(x, ForwardContext(mode, rope))[0].backward(grad)

    return {
        f"{kind} {mode}": (lambda f=f, mode=mode: f(mode))
        for mode in ("dense", "sparse")
        for kind, f in (("forward", forward), ("both", both))
    }


def run() -> list[dict]:
    torch.set_num_threads(1 if CPU_TIME else 2)
    mla, rows, gains, backward_gains = layer(), [], {}, {}
    for T in LENGTHS:
        took = medians(works(mla, T), REPEATS if T <= 8192 else 2)
        back = {mode: took[f"both {mode}"] - took[f"forward {mode}"] for mode in ("dense", "sparse")}
        gains[T], backward_gains[T] = took["forward dense"] / took["forward sparse"], back["dense"] / back["sparse"]
        rows += [
            dict(
                name=f"layer forward, {T} tokens: sparse", value=1e3 * took["forward sparse"], unit="ms", ratio=gains[T]
            ),
            dict(name=f"layer forward, {T} tokens: dense", value=1e3 * took["forward dense"], unit="ms"),
            dict(
                name=f"layer backward, {T} tokens: sparse",
                value=1e3 * back["sparse"],
                unit="ms",
                ratio=backward_gains[T],
            ),
            dict(name=f"layer backward, {T} tokens: dense", value=1e3 * back["dense"], unit="ms"),
        ]
    for what, gain, target in (("forward", gains, 2048), ("backward", backward_gains, None)):
        wins = next((T for i, T in enumerate(LENGTHS) if all(gain[t] > 1 for t in LENGTHS[i:])), None)
        rows.append(
            dict(
                name=f"sparse layer {what} wins from",
                value=wins,
                unit="tokens",
                ratio=None,
                target=None if target is None else f"<= {target}",
                met=None if target is None else bool(wins and wins <= target),
            )
        )
        if target is not None:
            rows[-1] |= answer("sparse layer forward beats dense from", wins)
    q, k, v = (torch.randn(1, 8, 4096, w) for w in (48, 48, 32))
    took = medians(
        {
            "padded": lambda: F.scaled_dot_product_attention(q, k, F.pad(v, (0, 16)), is_causal=True),
            "unpadded": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        },
        3,
    )
    rows.append(
        dict(
            name="dense attention, 4096 tokens: padded values against unpadded",
            value=1e3 * took["padded"],
            unit="ms",
            ratio=took["unpadded"] / took["padded"],
        )
    )
    return rows
