"""The warm start: a small model that half knows a task, made from worked solutions in a minute or two.

RL can only strengthen what a model sometimes does. From a model that knows nothing no answer is ever right and no group
teaches anything, so a run begins with a short supervised stage on the task's own solutions, stopped early on purpose.
The model is the project's own (MLA, DSA, experts, MTP) at a size that two cores train in minutes; its folder is a run
folder like any other: `minglm rl --init-from`, `minglm generate --checkpoint`.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minglm import atomic
from minglm.config import ModelConfig
from minglm.data.chat import encode_chat, stack
from minglm.errors import InputError
from minglm.rl import task_registry, tasks
from minglm.rl.tasks_tiny_world import HopTask
from minglm.runtime import run_folder, run_lock
from minglm.settings import MOST_SEED, BaseSettings, nonzero, setting, whole_numbers

# One token a character needs no wide vocabulary; what counts here is how many sequences a core decodes in a second.
MODEL = dict(
    vocab_size=104,
    hidden_size=64,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    intermediate_size=160,
    num_attention_heads=4,
    q_lora_rank=48,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    index_topk=64,
    index_n_heads=2,
    index_head_dim=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    mtp_depth=1,
    max_position_embeddings=768,
    rope_theta=10_000.0,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


@dataclass(frozen=True)
class WarmStart(BaseSettings):
    """What the supervised stage is. Raises InputError for a value that breaks a rule."""

    KIND = "warm_start"

    task: str = setting("division", "a task of minglm.rl.tasks")
    tail: float | None = setting(None, "spread of the solutions' lengths; null for the task's own", "", 0.0, 3.0)
    difficulty: list[int] = setting(None, "difficulties of the problems; null for [1]", check=whole_numbers)
    model: dict = setting({}, "config keys that differ from minglm.rl.warm_start.MODEL")
    steps: int = setting(400, "updates", "updates", 1)
    batch_size: int = setting(16, "rows of packed solutions in an update", "rows", 1)
    seq_len: int = setting(256, "length of a row", "tokens", 16)
    longest: int = setting(200, "longest solution that is taught", "tokens", 1)
    label_noise: float = setting(
        0.0,
        "task sum: part of the steps that go wrong in what is taught, all that follows included",
        "",
        0.0,
        0.9,
    )
    lr: float = setting(0.02, "peak learning rate of Muon", "", 0.0, check=nonzero)
    adam_lr: float = setting(0.005, "peak learning rate of AdamW", "", 0.0)
    seed: int = setting(0, "of weights and problems", "", 0, MOST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(task_registry.get(self.task, self.tail), HopTask):
            raise InputError(
                f"task {self.task}: starts from a chat model of the tiny world and has no warm start; give its run "
                "folder with --init-from"
            )
        if self.label_noise and self.task != "sum":
            raise InputError(
                f"label_noise={self.label_noise} with task {self.task}: only task sum has noisy demonstrations; "
                "leave it out"
            )
        self.config()

    def config(self) -> ModelConfig:
        """Of the model."""
        return ModelConfig.from_dict({**MODEL, **self.model})


def warm_start(
    recipe: WarmStart, run_dir: str | Path, show: Callable[[str], None] = lambda line: None, threads: int = 1
) -> Path:
    """Train it, or find it trained; while another process trains it, wait. Returns the run folder.

    Raises:
        InputError: the folder holds something else.
    """
    from minglm.training import checkpoint  # draws torch, which the process that coordinates a run does without

    run_dir = Path(run_dir)
    note, wanted = run_dir / "warm.json", recipe.to_dict()
    if not checkpoint.find(run_dir):
        with run_lock.hold(run_dir, "a warm start", wait=True):
            if not checkpoint.find(run_dir):  # else the one that we waited for made it
                atomic.write_json(note, wanted, durable=True)
                _train(recipe, run_dir, show, threads)
    if run_folder.result(note) != wanted:
        raise InputError(f"{run_dir}: holds another run; give another folder or delete it")
    return run_dir


def _train(recipe: WarmStart, run_dir: Path, show: Callable[[str], None], threads: int) -> None:
    import torch

    # All of these draw torch, too.
    from minglm.model.model import Model
    from minglm.training import checkpoint
    from minglm.training.optim import MuonAdamW, cosine_with_warmup
    from minglm.training.process import deterministic

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    tokenizer, config, started = tasks.task_tokenizer(), recipe.config(), time.perf_counter()
    torch.manual_seed(recipe.seed)
    model = Model(config).train()
    optimizer = MuonAdamW(model.named_parameters(), config, recipe.lr, recipe.adam_lr, weight_decay=0.0)
    rows = Rows(recipe, tokenizer)
    try:
        with deterministic():
            for step in range(recipe.steps):
                batch = rows.batch(step)
                optimizer.zero_grad()
                out = model(batch.tokens, batch.targets, mode="sparse", doc_start=batch.doc_start)
                loss = out.lm_loss + 0.3 * out.mtp_loss + 1e-4 * out.balance_loss
                (loss if out.indexer_kl is None else loss + out.indexer_kl).backward()
                optimizer.clip_grad_norm(1.0)
                optimizer.step(cosine_with_warmup(step, recipe.steps, max(1, recipe.steps // 20), 0.1))
                model.update_router_bias(out.expert_counts, 0.01)
                if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
                    show(
                        f"warm start: step {step + 1} of {recipe.steps}, loss {out.lm_loss.item():.3f}, "
                        f"{time.perf_counter() - started:.0f} s"
                    )
    finally:
        torch.set_num_threads(threads_before)
    tokenizer.save(run_dir / "tokenizer.json")
    atomic.write_json(run_dir / "config.json", config.to_hf())
    checkpoint.save(
        run_dir, recipe.steps, config, model.state_dict(), optimizer.state_dict(), {"recipe": None, "seed": recipe.seed}
    )


def for_recipe(warm: dict | None, settings, folder: Path, show: Callable[[str], None] = lambda line: None) -> Path:
    """The run folder of an RL recipe's warm start: task and difficulty are the recipe's unless it says otherwise; made
    once.

    Raises:
        InputError: the recipe has none, or a key of it is unknown.
    """
    if warm is None:
        raise InputError(
            "--init-from is missing: this recipe has no warm start; give the run folder of a trained model"
        )
    values = {"task": settings.task, "tail": settings.tail, "difficulty": settings.difficulty, **warm}
    if values["task"] != "sum":  # another task than the recipe's own has clean demonstrations
        values.pop("label_noise", None)
    recipe = WarmStart.from_dict(values)
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return warm_start(recipe, Path(folder) / f"rl_warm_{recipe.task}_{digest}", show, settings.threads)


class Rows:
    """Worked solutions packed into rows; `batch(step)` depends on recipe and step alone."""

    def __init__(self, recipe: WarmStart, tokenizer) -> None:
        self.recipe, self.tokenizer, self.task, self.next = (
            recipe,
            tokenizer,
            task_registry.get(recipe.task, recipe.tail),
            0,
        )

    def batch(self, step: int):
        """Rows of step `step`: tokens, targets and what counts, as `minglm.data.chat.stack` gives them."""
        r = self.recipe
        rng, packed = random.Random(f"{r.seed}/{step}"), []
        for _ in range(r.batch_size):
            parts, used = [], 0
            while True:
                ids, counted = self._one(rng)
                if used + len(ids) > r.seq_len + 1:
                    break
                parts.append((ids, counted))
                used += len(ids)
            packed.append(parts or [self._one(rng, short=True)])
        return stack(packed, r.seq_len, self.tokenizer.pad)

    def _one(self, rng, short: bool = False):
        r = self.recipe
        for _ in range(1000):
            problem = self.task.problem(self.task.train_seed(rng.randrange(1 << 30)), rng.choice(r.difficulty))
            turns = tasks.chat(self.task, problem)
            if r.label_noise:
                turns = (turns[0], ("assistant", noisy_sum(problem.prompt, rng, r.label_noise)))
            ids, counted = encode_chat(self.tokenizer, turns)
            if sum(counted) <= r.longest and len(ids) <= r.seq_len + 1:
                return ids, counted
        raise InputError(
            f"task {r.task}: no solution of at most longest={r.longest} tokens that fits seq_len={r.seq_len}; raise "
            "them"
        )


def noisy_sum(prompt: str, rng: random.Random, label_noise: float) -> str:
    """A worked running total of which a part of the steps is off by one or two; what follows goes on from the wrong
    total.

    What is imitated is then often wrong for no reason that the prompt shows, as in text that people wrote. The model
    learns the right step as the likeliest one and the errors with it; RL, which only sees right answers rewarded,
    unlearns them.

    >>> import random
    >>> noisy_sum("a7b4c9", random.Random(0), 0.0)
    'a7b11c20#20'
    """
    worked, total = "", 0
    for label, digit in zip(prompt[::2], prompt[1::2], strict=True):
        total += int(digit)
        if rng.random() < label_noise:
            total = max(0, total + rng.choice((-2, -1, 1, 2)))
        worked += f"{label}{total}"
    return f"{worked}#{total}"
