"""What the notebooks on reinforcement learning share: the model they start from, runs that start over when a cell is
run again, and the small worlds behind their sliders.

In smoke mode everything is tiny and knows nothing.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from minglm.course.lessons.live import Lines
from minglm.course.notebook import SMOKE, runs
from minglm.errors import InputError
from minglm.rl import control, measure, objectives, task_registry
from minglm.rl.config import load
from minglm.rl.modes import PartialBuffer
from minglm.rl.run import rl
from minglm.rl.warm_start import WarmStart, warm_start

TINY = {
    "updates": 2,
    "prompts_per_batch": 2,
    "samples_per_prompt": 4,
    "eval_problems": 8,
    "eval_every": 0,
    "max_new_tokens": 40,
    "max_batch": 16,
}
TINY_MODEL = dict(hidden_size=32, num_hidden_layers=2, n_routed_experts=4, moe_intermediate_size=16)


def start(recipe: str) -> Path:
    """The recipe's warm start, a supervised model; trained once, found again by every later notebook."""
    if SMOKE:
        return warm_start(
            WarmStart(task="sum", tail=0.5, steps=3, batch_size=2, seq_len=64, longest=40, model=TINY_MODEL),
            runs("rl") / "warm",
        )
    return measure.warm_started(recipe, runs("rl"), Lines("supervised warm start", "loss"))


def reinforce(name: str, recipe: str, warm: Path, engine: str = "local", **changes) -> tuple[Path, dict]:
    """Run `recipe` with some keys changed, from the beginning. Returns the run's folder and its summary."""
    run_dir = runs("rl") / name
    tiny = {**TINY, "over_sampling": 4} if changes.get("mode") == "april" else TINY
    settings = load(recipe, {**changes, **(tiny if SMOKE else {})})
    return run_dir, rl(
        settings, run_dir, warm, overwrite=True, engine=engine, show=Lines(name, "reward", settings.updates)
    )


def asked(run: Path, recipe: str, n: int, temperature: float = 1.0) -> list[tuple[str, str, bool]]:
    """n held-out problems of the recipe's task put to a run's model: (prompt, what it wrote, whether it is right)."""
    settings = load(recipe, {"max_new_tokens": TINY["max_new_tokens"]} if SMOKE else {})
    task = task_registry.get(settings.task, settings.tail)
    problems = control.held_out(settings, n)
    completions = control.answers(run, settings, problems, temperature)
    return [(p.prompt, text, task.reward(p, text) == 1.0) for p, text in zip(problems, completions, strict=True)]


def worked(recipe: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    """n training problems of the recipe's task with their worked solutions: (prompt, solution)."""
    settings = load(recipe)
    task = task_registry.get(settings.task, settings.tail)
    problems = [
        task.problem(task.train_seed(seed * 100_000 + i), settings.difficulty[i % len(settings.difficulty)])
        for i in range(n)
    ]
    return [(p.prompt, task.solution(p)) for p in problems]


def lengths(n: int, seed: int = 0, recipe: str = "long_tail") -> list[int]:
    """Lengths of n worked solutions with their end token, in characters, which are tokens here: what a long tail looks
    like before any model is involved."""
    return [len(solution) + 1 for _, solution in worked(recipe, n, seed)]


def one_token_a_step(todo: list[int], target: int, started: int, rounds: int) -> list[dict]:
    """Rollout rounds in a world where each step writes one token of every running answer, by APRIL's rule.

    Args:
        todo: lengths of the answers, in the order in which they are asked for.
        target: answers that make a batch. started: answers that run at once; with `target` the round is synchronous.

    Returns:
        For each round: steps, running (what each answer still lacked at the start), resumed (which of them had begun
        before), done (which ended), stale (share of the batch's tokens that earlier rounds wrote).

    Raises:
        InputError: fewer started than make a batch, or too few answers given.
    """
    if not 1 <= target <= started:
        raise InputError(
            f"started={started}: must be at least the target, {target}; start more answers than a batch needs"
        )
    waiting: PartialBuffer[tuple[int, int]] = PartialBuffer()  # (written, lacking)
    fresh, out = iter(todo), []
    for _ in range(rounds):
        answers = waiting.take(started)
        answers += [(0, n) for n in islice(fresh, started - len(answers))]
        if len(answers) < started:
            raise InputError(f"{len(todo)} answers: too few for {rounds} rounds of {started}; give more")
        steps = sorted(lacking for _, lacking in answers)[target - 1]
        done = [lacking <= steps for _, lacking in answers]
        batch = [a for a, ended in zip(answers, done, strict=True) if ended]
        out.append(
            {
                "steps": steps,
                "running": [n for _, n in answers],
                "resumed": [w > 0 for w, _ in answers],
                "done": done,
                "stale": sum(w for w, _ in batch) / sum(w + n for w, n in batch),
            }
        )
        waiting.put_back((w + steps, n - steps) for (w, n), ended in zip(answers, done, strict=True) if not ended)
    return out


def push(ratio: list[float], objective: str, **bounds) -> list[float]:
    """How hard an objective pushes a token of advantage 1 at the start of an update, where π = π_old, for ratios
    π_old/μ.

    It is the objective's own gradient with respect to log π, with its sign turned; REINFORCE pushes with 1.
    """
    out = []
    for r in ratio:
        logp = torch.zeros(1, 1, requires_grad=True)
        behaviour = -torch.tensor([[float(r)]]).log()
        loss, _ = objectives.objective(objective)(
            logp, torch.zeros(1, 1), behaviour, torch.ones(1), torch.ones(1, 1), clip=objectives.Clip(**bounds)
        )
        loss.backward()
        assert logp.grad is not None
        out.append(-float(logp.grad))
    return out
