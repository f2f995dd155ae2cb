"""The model against transformers with the same weights: training steps, prefill, decoding; how prefill grows.

fp32, 2 threads, the size "bench" without its MTP module (transformers has none). transformers runs as the fastest of
its attention (eager, sdpa) and expert (eager, batched_mm, grouped_mm) implementations, chosen on a shorter run of the
same kind; batched_mm copies a weight matrix per token and is tried for decoding only. Repetitions alternate; figures
are medians. Both sides train on the language-model loss alone. A step beside what the cores multiply: `bench_share`.

MINGLM_BENCH_CPU_TIME=1 counts CPU seconds of one thread instead, for a rough ratio on a busy machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from minglm.config import ModelConfig
from minglm.data.shards import Batch
from minglm.inference.generate import generate
from minglm.interop.huggingface import export_hf
from minglm.model import attention as mla_module
from minglm.model.cache import LatentCache
from minglm.model.counts import StepCounts
from minglm.model.model import Model
from minglm.tools.bench_summary import answer
from minglm.training import halves

NAME = "model"
CPU_TIME = bool(os.environ.get("MINGLM_BENCH_CPU_TIME"))
clock = time.process_time if CPU_TIME else time.perf_counter
CONFIG = ModelConfig.named("bench", num_nextn_predict_layers=0)
PROMPT, NEW, REPEATS = 128, 128, 3
STEPS = ((8, 512, 2.0), (2, 2048, 4.0))  # rows, their length, times transformers that is asked for
LENGTHS = (4096, 8192, 16384, 32768)  # of prompts


def timed(work) -> float:
    start = clock()
    work()
    return clock() - start


def alternate(works: dict, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of each repetition of each, after one warm-up of each, repetitions interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            took = timed(work)
            if turn:
                seconds[name].append(took)
    return seconds


def per_second(seconds: dict[str, list[float]], count: Callable[[str], float]) -> dict[str, float]:
    """Median rate of each: `count(name)` of something over its seconds."""
    return {name: count(name) / statistics.median(s) for name, s in seconds.items()}


class Theirs:
    """transformers' model from our weights; `best` finds its fastest implementation for a kind of work."""

    def __init__(self, folder: str):
        from transformers import GlmMoeDsaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.folder, self.make = folder, GlmMoeDsaForCausalLM.from_pretrained

    def build(self, attention: str, experts: str):
        return self.make(self.folder, attn_implementation=attention, experts_implementation=experts)

    def best(self, prepare, experts=("eager", "grouped_mm")):
        """(fastest model, its name): `prepare(model)` gives the work to time, once warm and once measured."""
        took = {}
        for attention in ("eager", "sdpa"):
            for expert in experts:
                work = prepare(self.build(attention, expert))
                work()
                took[attention, expert] = timed(work)
        chosen = min(took, key=took.get)
        return self.build(*chosen), "/".join(chosen)


def tokens(B: int, T: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (B, T), generator=torch.Generator().manual_seed(B * T))


def our_step(model: Model, B: int, T: int, kl: bool = False):
    model.train()
    learns = [p for n, p in model.named_parameters() if kl or ".indexer." not in n]
    optimiser, row = torch.optim.AdamW(learns, lr=1e-5, fused=True), tokens(B, T + 1)
    x, y = row[:, :-1].contiguous(), row[:, 1:].contiguous()
    batch, counts = Batch(x, y, torch.zeros_like(x)), StepCounts.of([(y, None)])
    flops = x.numel() * CONFIG.train_flops_per_token(T)

    def loss(part: Batch):
        out = model(part.tokens, part.targets, indexer_loss=kl, counts=counts)
        return out.lm_loss + out.indexer_kl if kl else out.lm_loss, None

    def work():
        halves.backward(loss, halves.halves(batch, flops), learns)
        optimiser.step()
        optimiser.zero_grad()

    return work


def their_step(model, B: int, T: int):
    """The same tokens and targets; transformers' indexer never gets a gradient."""
    model.train()
    optimiser, row = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), tokens(B, T + 1)
    x, y = row[:, :-1].contiguous(), row[:, 1:].contiguous()

    def work():
        logits = model(x).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()

    return work


def our_prefill(model: Model, T: int):
    x = tokens(1, T)

    def work():
        with torch.inference_mode():
            model(x, cache=LatentCache(CONFIG, 1, T), last_only=True)

    return work


def their_prefill(model, T: int):
    x = tokens(1, T)

    def work():
        with torch.inference_mode():
            model(x, use_cache=True, logits_to_keep=1)

    return work


def their_decode(model, B: int, new: int):
    x = tokens(B, PROMPT)
    ask = dict(
        attention_mask=torch.ones_like(x), max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None
    )

    def work():
        with torch.inference_mode():
            model.generate(x, **ask)

    return work


def row(name, value, unit, ratio=None, target=None, note=""):
    return dict(
        name=name,
        value=value,
        unit=unit,
        ratio=ratio,
        target=None if target is None else f">= {target}",
        met=None if target is None else bool(ratio >= target),
        note=note,
    )


def training(ours: Model, theirs: Theirs) -> list[dict]:
    rows = []
    for B, T, target in STEPS:
        hf, name = theirs.best(lambda m, B=B, T=T: their_step(m, B, T))
        rate = per_second(alternate({"ours": our_step(ours, B, T), "hf": their_step(hf, B, T)}), lambda _, n=B * T: n)
        ratio = rate["ours"] / rate["hf"]
        rows += [
            row(f"train step {B}x{T}", rate["ours"], "tokens/s", ratio, target, f"transformers: {name}"),
            row(f"train step {B}x{T}, transformers ({name})", rate["hf"], "tokens/s"),
        ]
    return rows


def prefilling(ours: Model, theirs: Theirs) -> list[dict]:
    ours.eval()
    hf, name = theirs.best(lambda m: their_prefill(m.eval(), 2048))
    took = alternate({"ours": our_prefill(ours, 8192), "hf": their_prefill(hf.eval(), 8192)})
    rate = per_second(took, lambda _: 8192)
    return [
        row("prefill 8192", rate["ours"], "tokens/s", rate["ours"] / rate["hf"], 8, f"aim 20; transformers: {name}"),
        row(f"prefill 8192, transformers ({name})", rate["hf"], "tokens/s"),
    ]


def decoding(ours: Model, theirs: Theirs) -> list[dict]:
    ours.eval()
    every, names, works = ("eager", "batched_mm", "grouped_mm"), {}, {}
    for B in (1, 32):
        hf, names[B] = theirs.best(lambda m, B=B: their_decode(m.eval(), B, 16), every)
        works[f"hf {B}"] = their_decode(hf.eval(), B, NEW)
        works[f"ours {B}"] = lambda B=B: generate(ours, tokens(B, PROMPT), NEW)
    rate = per_second(alternate(works), lambda name: int(name.split()[1]) * NEW)
    return [
        row(
            "greedy decode, 1 sequence",
            rate["ours 1"],
            "tokens/s",
            rate["ours 1"] / rate["hf 1"],
            3,
            f"transformers: {names[1]}",
        ),
        row(f"greedy decode, 1 sequence, transformers ({names[1]})", rate["hf 1"], "tokens/s"),
        row(
            "greedy decode, 32 together, against one of transformers",
            rate["ours 32"],
            "tokens/s",
            rate["ours 32"] / rate["hf 1"],
            15,
        ),
        row(
            "greedy decode, 32 together, against 32 of transformers",
            rate["ours 32"],
            "tokens/s",
            rate["ours 32"] / rate["hf 32"],
            2,
        ),
        row(f"greedy decode, 32 together, transformers ({names[32]})", rate["hf 32"], "tokens/s"),
    ]


def growth(ours: Model) -> list[dict]:
    """Prefill seconds by length, the indexer's scores and top-k apart from everything else."""
    ours.eval()
    real, spent = mla_module.select_topk, [0.0]

    def counted(*args):
        start = clock()
        out = real(*args)
        spent[0] += clock() - start
        return out

    rows, rest = [], {}
    mla_module.select_topk = counted
    try:
        for T in LENGTHS:
            work, runs = our_prefill(ours, T), []
            work()
            for _ in range(REPEATS):
                spent[0] = 0.0
                total = timed(work)
                runs.append((total, spent[0]))
            total, indexer = sorted(runs)[len(runs) // 2]
            rest[T] = total - indexer
            rows += [
                row(f"prefill {T}: total", total, "s"),
                row(f"prefill {T}: indexer scores and top-k", indexer, "s"),
                row(f"prefill {T}: everything else", rest[T], "s"),
            ]
    finally:
        mla_module.select_topk = real
    shares, seconds = [100 * part / whole for whole, part in runs], [whole for whole, _ in runs]
    rows[-3] |= answer(f"prefill {T}: seconds", total, seconds)
    rows[-2] |= answer(f"prefill {T}: the indexer's share", statistics.median(shares), shares)
    grew = rest[LENGTHS[-1]] / rest[LENGTHS[0]]
    return [
        *rows,
        dict(
            name=f"prefill {LENGTHS[0]} to {LENGTHS[-1]}, everything but the indexer",
            value=grew,
            unit="times",
            ratio=grew,
            target="< 10",
            met=bool(grew < 10),
        ),
    ]


def run() -> list[dict]:
    torch.set_num_threads(1 if CPU_TIME else 2)
    torch.manual_seed(0)
    ours = Model(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(str(export_hf(ours, folder)))
        with torch.inference_mode():
            x = tokens(1, 1024)
            gap = (
                (ours.eval()(x[:, :64]).logits - theirs.build("eager", "eager").eval()(x[:, :64]).logits)
                .abs()
                .max()
                .item()
            )
        same = [
            dict(
                name="same weights: largest difference of logits over 64 tokens",
                value=gap,
                unit="logits",
                ratio=None,
                target="<= 1e-4",
                met=gap <= 1e-4,
            )
        ]
        return same + training(ours, theirs) + prefilling(ours, theirs) + decoding(ours, theirs) + growth(ours)
