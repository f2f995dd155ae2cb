"""The rollout engine against plain generation: the same requests through generate() in batches, one at a time, and
through the engine, with response lengths that have a long tail; drafts on and off with a trained checkpoint, if there
is one.

Repetitions alternate, figures are medians, 2 threads. generate() runs a batch until its longest is done; the engine
fills the places that shorter ones leave.
"""

from __future__ import annotations

import random
import statistics
import time

import torch

from minglm import datafiles
from minglm.config import ModelConfig
from minglm.inference.engine import Engine
from minglm.inference.generate import generate
from minglm.inference.request import Request
from minglm.model.model import Model

NAME = "engine"
BATCH, REQUESTS, PROMPT, CAP = 32, 64, 32, 128
TRAINED = datafiles.runs("demo", "sft")


def lengths(n: int) -> list[int]:
    """Response lengths with a long tail: lognormal, median 24, cut at CAP."""
    draw = random.Random(0)
    return [max(1, min(CAP, round(draw.lognormvariate(3.2, 0.9)))) for _ in range(n)]


def through_engine(model: Model, prompts, new, temperature=1.0, **how) -> Engine:
    engine = Engine(model, BATCH, PROMPT + CAP, **how)
    for i, (prompt, n) in enumerate(zip(prompts, new, strict=False)):
        engine.submit(Request(str(i), prompt, n, temperature, seed=i))
    while engine.running or engine.waiting:
        engine.step()
    return engine


def medians(works: dict, repeats: int = 3) -> dict[str, float]:
    took = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                took[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in took.items()}


def row(name, value, unit, ratio=None, note=""):
    return dict(name=name, value=value, unit=unit, ratio=ratio, target=None, met=None, note=note)


def batching() -> list[dict]:
    model = Model(ModelConfig.named("mini")).eval()
    prompts = torch.randint(0, model.config.vocab_size, (REQUESTS, PROMPT)).tolist()
    new = lengths(REQUESTS)

    def in_batches():
        for first in range(0, REQUESTS, BATCH):
            part = slice(first, first + BATCH)
            generate(model, prompts[part], max(new[part]), temperature=1.0, seed=first)

    few = REQUESTS // 8

    def one_by_one():
        for i in range(few):
            generate(model, prompts[i : i + 1], new[i], temperature=1.0, seed=i)

    took = medians({"engine": lambda: through_engine(model, prompts, new), "batch": in_batches, "one": one_by_one})
    rate = {"engine": sum(new) / took["engine"], "batch": sum(new) / took["batch"], "one": sum(new[:few]) / took["one"]}
    return [
        row(f"engine, {BATCH} at a time, {REQUESTS} requests", rate["engine"], "useful tokens/s"),
        row(
            f"generate() in batches of {BATCH}, run to the longest",
            rate["batch"],
            "useful tokens/s",
            rate["engine"] / rate["batch"],
            "ratio: engine over this",
        ),
        row(
            "generate() one at a time",
            rate["one"],
            "useful tokens/s",
            rate["engine"] / rate["one"],
            "ratio: engine over this",
        ),
    ]


def drafting() -> list[dict]:
    from minglm.inference.load import load_model

    model, tokenizer, _ = load_model(TRAINED)
    ids = tokenizer.encode(
        "def read_lines(path):\n    with open(path) as f:\n        return [line.strip() for line in f]\n" * 8
    )
    ids = getattr(ids, "ids", ids)
    rows = []
    for B in (1, 8):
        prompts, new = [ids[i : i + PROMPT] for i in range(B)], [64] * B
        took = medians(
            {n: (lambda n=n, p=prompts, k=new: through_engine(model.eval(), p, k, 0.0, speculate=n)) for n in (0, 1, 2)}
        )
        for n in (1, 2):
            rows.append(
                row(
                    f"greedy, {B} together, {n} drafts",
                    B * 64 / took[n],
                    "tokens/s",
                    took[0] / took[n],
                    "ratio: over no drafts",
                )
            )
            share = through_engine(model, prompts, new, 0.0, speculate=n).stats.acceptance
            rows.append(row(f"greedy, {B} together, {n} drafts: share right", 100 * share, "%"))
    return rows


def run() -> list[dict]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = batching()
    if not (TRAINED / "checkpoints").is_dir():
        return [*rows, row("drafts: skipped, no trained checkpoint in runs/demo/sft (make demo makes one)", None, "-")]
    return rows + drafting()
