"""What reinforcement learning adds beside what needs none: `python -m minglm.rl.measure control`.

The recipe `sum` is trained on problems of two kinds. On `easy` ones (its own) the start is right more often than not
when it answers greedily; on `hard` ones (larger digits) it is not. Each is asked for held-out problems, short ones as
in training and longer ones: samples and greedy answers before and after RL, and two ways that train nothing, sampling
the start colder and letting sixteen of its samples vote.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from minglm.inference.generate import generate
from minglm.inference.load import load_model
from minglm.rl import task_registry, tasks
from minglm.rl.config import Settings

KINDS: dict[str, dict[str, Any]] = {"easy": {"difficulty": [2]}, "hard": {"difficulty": [3]}}
COLD = 0.3
VOTES = 16
LONG = range(6, 9)  # steps of a longer problem; the median of those trained on is three
PROBLEMS = 400
VOTED = 100  # problems that are answered by vote
BEFORE = ("one sample", "greedy", f"one sample at temperature {COLD}", f"vote of {VOTES} samples")


def held_out(settings: Settings, count: int, longer: bool = False) -> list[tasks.Problem]:
    """`count` held-out problems of the recipe's task and difficulty; `longer`: of `LONG` steps."""
    task, index = task_registry.get(settings.task, settings.tail), 0
    out: list[tasks.Problem] = []
    while len(out) < count:
        problem = task.problem(task.heldout_seed(index), settings.difficulty[0])
        index += 1
        if not longer or len(problem.prompt) // 2 in LONG:  # a step is a letter and a digit
            out.append(problem)
    return out


def answers(
    run: str | Path, settings: Settings, problems: list[tasks.Problem], temperature: float = 1.0, seed: int = 0
) -> list[str]:
    """What a run's model writes to each problem, one sample; temperature 0 is greedy."""
    model, tokenizer, _ = load_model(run)
    out: list[str] = []
    for start in range(0, len(problems), settings.max_batch):
        part = problems[start : start + settings.max_batch]
        made = generate(
            model.eval(),
            [tasks.prompt_ids(tokenizer, p) for p in part],
            settings.max_new_tokens,
            temperature=temperature,
            seed=seed + start,
            stop=(tokenizer.eos,),
        )
        out += [tokenizer.decode(t) for t in made.tokens]
    return out


def share(settings: Settings, problems: list[tasks.Problem], said: list[str]) -> float:
    """Share of the answers that the task's checker finds right."""
    task = task_registry.get(settings.task, settings.tail)
    return sum(task.reward(p, text) == 1.0 for p, text in zip(problems, said, strict=True)) / len(problems)


def voted(run: str | Path, settings: Settings, problems: list[tasks.Problem]) -> float:
    """Share of problems where the result that most of `VOTES` samples end in is the right one."""
    many = [p for p in problems for _ in range(VOTES)]
    said = answers(run, settings, many, seed=1)
    results = [text.rpartition("#")[2] for text in said]
    winners = [Counter(results[i : i + VOTES]).most_common(1)[0][0] for i in range(0, len(results), VOTES)]
    return sum(w == p.answer for w, p in zip(winners, problems, strict=True)) / len(problems)


def rows(start: Path, run: Path, settings: Settings) -> list[dict[str, Any]]:
    """Every way of answering, on short and on longer problems: `way`, `problems`, `right` (a share)."""
    out = []
    for longer in (False, True):
        asked = held_out(settings, PROBLEMS, longer)
        found = {
            f"start, {BEFORE[0]}": share(settings, asked, answers(start, settings, asked)),
            f"start, {BEFORE[1]}": share(settings, asked, answers(start, settings, asked, 0.0)),
            f"start, {BEFORE[2]}": share(settings, asked, answers(start, settings, asked, COLD)),
            f"start, {BEFORE[3]}": voted(start, settings, asked[:VOTED]),
            f"after RL, {BEFORE[0]}": share(settings, asked, answers(run, settings, asked)),
            f"after RL, {BEFORE[1]}": share(settings, asked, answers(run, settings, asked, 0.0)),
        }
        kind = "longer" if longer else "as trained"
        out += [{"problems": kind, "way": way, "right": right} for way, right in found.items()]
    return out
