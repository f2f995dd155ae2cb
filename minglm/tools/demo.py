"""`minglm demo`: corpus to chat model in minutes on two cores, every result left in `runs/demo` for the report.

Steps, each skipped when its result is there, so a killed demo goes on where it was:

    pretrain · long_context · dsa_warmup · sparse · sft     training stages (`data/recipes`), each a run folder
    samples · needle · scorecard                            what the model writes, finds and can do, one JSON each
    indexer_recall · cost_by_length                         what sparsity chooses and what it buys
    rl_sync · rl_april                                      a round of reinforcement learning, twice
    (`minglm/tools/demo_rl.py`)

`clustersim report runs/demo` then adds the projection for 100,000 chips and writes `report.html`.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from minglm import atomic
from minglm.config import ModelConfig
from minglm.data.tiny_world.loader import TinyWorldLoader
from minglm.data.tokenizer import Tokenizer
from minglm.errors import InputError, nearest
from minglm.evals.indexer_recall import indexer_recall
from minglm.evals.needle import needle_test
from minglm.evals.scorecard import scorecard
from minglm.inference.generate import generate
from minglm.inference.load import model_of
from minglm.model.attention import MLA, ForwardContext
from minglm.model.layers import rope_table
from minglm.model.model import Model
from minglm.runtime import machine, run_folder
from minglm.tools.demo_rl import rounds
from minglm.training import metrics, recipe
from minglm.training.loop import train
from minglm.training.tiny_world import VALIDATION_SEED

STAGES = ("pretrain", "long_context", "dsa_warmup", "sparse", "sft")
PROMPTS = ("Story\n", "Portrait\n", "Codes\n", "Sums\n")
QUESTIONS = (
    "What is 27+35?",
    "Repeat: lamp plums violin.",
    "Which is larger, 48 or 53?",
    "We call Mira Tolen amber falcon. We call Odo Reed silver otter. Now tell me. What do we call Odo Reed?",
    "We give Ada plums. We give Odo soup. We give Mira bread. What do we give Odo?",
    "Write as a card: the red lamp of Mira is in the kitchen.",
)


@dataclass(frozen=True)
class DemoSize:
    """How much a demo does: which recipes, and how thorough the tests at the end are. Lengths in tokens."""

    prefix: str  # of the recipes' names
    facts: int  # in each passage of the needle test
    problems: int  # of each line of the scorecard
    card_length: int  # of its passages; four facts are asked for in longer ones too
    lengths: tuple[int, ...]  # of the needle test's passages
    depths: tuple[float, ...]  # of the needles in them, 0 the beginning and 1 the end
    per_cell: int  # needles of each length and depth
    map_tokens: int  # of the passage whose indexer recall is measured
    cost_lengths: tuple[int, ...]  # of the sequences whose attention is timed
    repeats: int  # of each timing


SIZES = {
    "mini": DemoSize(
        prefix="tiny_",
        facts=4,
        problems=48,
        card_length=512,
        lengths=(128, 256, 512, 1024),
        depths=(0.1, 0.3, 0.5, 0.7, 0.9),
        per_cell=8,
        map_tokens=192,
        cost_lengths=(256, 512, 1024, 2048, 4096, 8192),
        repeats=5,
    ),
    "nano": DemoSize(
        prefix="ci_tiny_",
        facts=2,
        problems=3,
        card_length=160,
        lengths=(128, 160),
        depths=(0.2, 0.8),
        per_cell=2,
        map_tokens=64,
        cost_lengths=(64, 128, 256),
        repeats=2,
    ),
}


def run_demo(run_dir: Path, size: str = "mini", overwrite: bool = False, progress: bool = True) -> dict:
    """Do every step that has no result yet; returns the summary that `demo.json` holds.

    Raises:
        InputError: unknown size, a folder made by another size, or anything that a stage refuses.
    """
    if size not in SIZES:
        raise InputError(f"size {size!r}: not one of {', '.join(SIZES)}{nearest(size, SIZES)}")
    plan = SIZES[size]
    if overwrite:
        run_folder.set_aside(run_dir, "demo")
    with run_folder.writing(run_dir, "demo", "minglm demo"):
        return _run_demo(run_dir, size, plan, progress)


def _run_demo(run_dir: Path, size: str, plan: DemoSize, progress: bool) -> dict:
    size_there = _step(run_dir, "size", lambda: {"size": size})["size"]
    if size_there != size:
        raise InputError(
            f"{run_dir}: holds a demo of size {size_there!r}, not {size!r}; add --overwrite to start over, "
            "or use --run for another folder"
        )
    if (done := run_folder.result(run_dir / "demo.json")) is not None:
        print(
            f"{run_dir}: the demo is done; `--overwrite` starts over, `clustersim report {run_dir}` remakes the report"
        )
        return done

    began = time.monotonic()
    previous: Path | None = None
    stages: dict[str, dict[str, Any]] = {}
    steps = len(STAGES) + 6
    for number, stage in enumerate(STAGES, 1):
        settings = recipe.load(plan.prefix + stage)
        _say(number, steps, f"{stage}: {recipe.STAGES[stage]}", progress)
        train(settings, run_dir / stage, init_from=previous, progress=progress)
        rows = metrics.read(run_dir / stage / "metrics.csv")
        stages[stage] = _summary(rows, settings)
        previous = run_dir / stage
    model, tokenizer, config = model_of(run_dir / STAGES[-1])
    _say(len(STAGES) + 1, steps, "samples: what it writes", progress)
    samples = _step(run_dir, "samples", lambda: _samples(run_dir, model, tokenizer))
    _say(len(STAGES) + 2, steps, "needle test: unseen facts at every depth and length", progress)
    needle = _step(run_dir, "needle", lambda: _needle(plan, model, tokenizer, progress))
    _say(
        len(STAGES) + 3,
        steps,
        "scorecard: recall, skills, stories, unseen text, each beside what needs no skill",
        progress,
    )
    card = _step(run_dir, "scorecard", lambda: _scorecard(plan, run_dir, model, tokenizer))
    _say(len(STAGES) + 4, steps, "what the indexer chose, against where attention looked", progress)
    _step(run_dir, "indexer_recall", lambda: _indexer_recall(plan, model, tokenizer))
    _say(len(STAGES) + 5, steps, "cost of dense and sparse attention by length", progress)
    _step(run_dir, "cost_by_length", lambda: cost_by_length(config, plan.cost_lengths, plan.repeats, progress))
    _say(
        len(STAGES) + 6, steps, "reinforcement learning with a long tail of answers: synchronous, then APRIL", progress
    )
    rl = rounds(run_dir, size, progress)

    summary = {
        "size": size,
        "config": config.to_dict(),
        "stages": stages,
        "params": config.num_params(),
        "active_params": config.num_active_params(),
        "ln_vocab": math.log(config.vocab_size),
        "needle_with_context": needle["with_context"],
        "needle_without_context": needle["without_context"],
        "needle_facts": needle["facts"],
        "needle_rules": needle["rules"],
        "above_floor": card["floor"]["all"]["above"],
        "next_token": {name: q["accuracy"] for name, q in card["counts"].items()},
        "rl_answers_per_s": {mode: s["trajectories_per_s"] for mode, s in rl.items()},
        "samples": len(samples["samples"]),
        "seconds": round(sum(s["seconds"] for s in stages.values()), 1),
        "seconds_this_call": round(time.monotonic() - began, 1),
        "versions": machine.versions(),
        "cpu": machine.cpu_name(),
    }
    return _step(run_dir, "demo", lambda: summary)


def _say(number: int, steps: int, text: str, progress: bool) -> None:
    if progress:
        print(f"[{number}/{steps}] {text}", file=sys.stderr, flush=True)


def _step(run_dir: Path, name: str, compute: Callable[[], dict]) -> dict:
    """The result in `<name>.json`, computed and written in one rename when it is not there (or was cut off)."""
    path = run_dir / f"{name}.json"
    if (done := run_folder.result(path)) is not None:
        return done
    value = compute()
    atomic.write_json(path, value, durable=True)
    return value


def _summary(rows: list[dict], trained: recipe.Recipe) -> dict:
    """What one stage came to, for the table in the report."""
    last = rows[-1]
    validated = [r for r in rows if r.get("val_loss") is not None]
    speed = statistics.median(r["tokens_per_s"] for r in rows)
    return {
        "steps": len(rows),
        "tokens": len(rows) * trained.tokens_per_step,
        "seq_len": trained.seq_len,
        "first_loss": rows[0]["lm_loss"],
        "last_loss": last["lm_loss"],
        "val_loss": validated[-1]["val_loss"] if validated else None,
        "indexer_kl": last.get("indexer_kl"),
        "tokens_per_s": round(speed),
        "seconds": round(len(rows) * trained.tokens_per_step / speed, 1),
    }


def _samples(run_dir: Path, model: Model, tokenizer: Tokenizer) -> dict:
    """Continuations by the last stage before chat training, and two short chats by the last one."""
    base, _, _ = model_of(run_dir / "sparse")
    out = []
    for seed, prompt in enumerate(PROMPTS):
        ids = [tokenizer.bos, *tokenizer.encode(prompt)]
        answer = generate(base, [ids], 60, temperature=0.7, top_p=0.9, seed=seed, stop=(tokenizer.eos,))
        out.append({"kind": "continuation", "prompt": prompt, "text": tokenizer.decode(answer.tokens[0])})
    for question in QUESTIONS:
        ids = [tokenizer.bos, tokenizer.user, *tokenizer.encode(question), tokenizer.assistant]
        answer = generate(model, [ids], 36, stop=(tokenizer.eos,))
        out.append({"kind": "chat", "prompt": question, "text": tokenizer.decode(answer.tokens[0])})
    return {"samples": out}


def _needle(plan: DemoSize, model: Model, tokenizer: Tokenizer, progress: bool) -> dict:
    return needle_test(model, tokenizer, plan.lengths, plan.depths, plan.per_cell, progress=progress, facts=plan.facts)


def _scorecard(plan: DemoSize, run_dir: Path, model: Model, tokenizer: Tokenizer) -> dict:
    return scorecard(run_dir / STAGES[-1], model, tokenizer, plan.problems, plan.card_length)


def _indexer_recall(plan: DemoSize, model: Model, tokenizer: Tokenizer) -> dict:
    """The map for one unseen passage: the beginning of a long validation document."""
    unseen = TinyWorldLoader(1, plan.map_tokens, VALIDATION_SEED, {"chronicle": 1.0}, validation=True)
    return {**indexer_recall(model, unseen.batch(0).tokens[0]), "document": "an unseen chronicle"}


def cost_by_length(config: ModelConfig, lengths: tuple[int, ...], repeats: int, progress: bool = True) -> dict:
    """Forward time of one attention layer by sequence length: dense, and sparse with its indexer; medians of
    interleaved runs.

    The result is for reading side by side: both columns come from one process on one machine.
    """
    torch.manual_seed(0)
    layer = MLA(config, 0).eval()
    for p in layer.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0.0, 0.05)
    rows = []
    with torch.inference_mode():
        for length in tqdm(lengths, desc="cost by length", unit="length", disable=not progress):
            x = torch.randn(1, length, config.hidden_size)
            rope = rope_table(length, config.qk_rope_head_dim, config.rope_theta)
            times: dict[str, list[float]] = {"dense": [], "sparse": []}
            for _ in range(repeats + 1):
                for mode, taken in times.items():
                    start = time.perf_counter()
                    layer(x, ForwardContext(mode, rope))
                    taken.append(time.perf_counter() - start)
            dense, sparse = (statistics.median(t[1:]) for t in times.values())
            rows.append(
                {
                    "length": length,
                    "dense_s": dense,
                    "sparse_s": sparse,
                    "dense_over_sparse": dense / sparse,
                    "dense_flops": _attention_flops(config, length, False),
                    "sparse_flops": _attention_flops(config, length, True),
                }
            )
    return {"index_topk": config.index_topk, "rows": rows}


def _attention_flops(config: ModelConfig, length: int, sparse: bool) -> float:
    """FLOPs per token of scores, values and indexer, one layer."""
    parts = config.flops_breakdown(length, sparse)
    return (parts["attention"] + parts["indexer"]) / config.num_hidden_layers


def report(run_dir: Path, summary: dict) -> str:
    """What the command prints when the demo is done; `summary` is what `run_demo` returned."""
    trained = f"{summary['params'] / 1e6:.2f}M parameters ({summary['active_params'] / 1e6:.2f}M active)"
    tokens = sum(stage["tokens"] for stage in summary["stages"].values())
    speeds = ", ".join(f"{mode} {rate or 0:.0f} answers/s" for mode, rate in summary["rl_answers_per_s"].items())
    return (
        f"{run_dir}: {trained}, {tokens / 1e6:.2f}M tokens in {summary['seconds'] / 60:.1f} min of training; "
        f"validation loss {summary['stages']['sparse']['val_loss']:.3f} (ln V = {summary['ln_vocab']:.3f}), "
        f"chat loss {summary['stages']['sft']['last_loss']:.3f}\n"
        f"{summary['above_floor']:.3f} nats above the floor of its language; next token of unseen text right: "
        + ", ".join(f"{name} {rate:.1%}" for name, rate in summary["next_token"].items())
        + f"\nneedle, {summary['needle_facts']} facts: {summary['needle_with_context']:.0%} of the sentences right, "
        f"{summary['needle_without_context']:.0%} without the fact, "
        + ", ".join(f"{name} {rate:.0%}" for name, rate in summary["needle_rules"].items())
        + "\n"
        f"reinforcement learning: {speeds}\n"
        f"next: clustersim report {run_dir}"
    )
