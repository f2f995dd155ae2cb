"""What reinforcement learning adds beside what needs none: `python -m minglm.rl.measure control` and `hop`.

The recipe `sum` is trained on problems of two kinds. On `easy` ones (its own) the start is right more often than not
when it answers greedily; on `hard` ones (larger digits) it is not. The recipe `hop` starts from a chat model of the
tiny world that follows two facts in about half of the passages. Each is asked for held-out problems, as in training and
longer ones: samples and greedy answers before and after RL, and ways that train nothing: sampling the start colder,
letting sixteen of its samples vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
PROBLEMS, PASSAGES = 400, 128  # held-out problems of each kind; passages take longer to read
VOTED = 4  # one problem in so many is answered by vote
MORE_FACTS = (6, 8)  # of a longer passage; the recipe `hop` trains on two to four
BEFORE = (
    "one sample",
    "greedy",
    f"one sample at temperature {COLD}",
    f"vote of {VOTES} samples",
    f"any of {VOTES} samples",  # what a choice that is never wrong could make of them
)


def held_out(settings: Settings, count: int, longer: bool = False) -> list[tasks.Problem]:
    """`count` held-out problems of the recipe's task and difficulty; `longer`: of `LONG` steps."""
    task, index = task_registry.get(settings.task, settings.tail), 0
    out: list[tasks.Problem] = []
    while len(out) < count:
        problem = task.problem(task.heldout_seed(index), settings.difficulty[index % len(settings.difficulty)])
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


def longer_passages(settings: Settings, count: int) -> list[tasks.Problem]:
    """`count` held-out problems of the recipe's task with more facts than any that it trains on."""
    task = task_registry.get(settings.task, settings.tail)
    return [task.problem(task.heldout_seed(i), MORE_FACTS[i % len(MORE_FACTS)]) for i in range(count)]


def voted(run: str | Path, settings: Settings, problems: list[tasks.Problem]) -> tuple[float, float]:
    """(share of problems where the result that most of `VOTES` samples end in is the right one, share where any
    is)."""
    many = [p for p in problems for _ in range(VOTES)]
    said = answers(run, settings, many, seed=1)
    results = [text.rpartition("#")[2].strip() for text in said]
    groups = [results[i : i + VOTES] for i in range(0, len(results), VOTES)]
    vote = sum(Counter(g).most_common(1)[0][0] == p.answer for g, p in zip(groups, problems, strict=True))
    return vote / len(problems), sum(p.answer in g for g, p in zip(groups, problems, strict=True)) / len(problems)


def rows(
    start: Path, trained: Mapping[str, Path], settings: Settings, asked: Mapping[str, list[tasks.Problem]]
) -> list[dict[str, Any]]:
    """Every way of answering every kind of problems: `problems`, `way`, `right` (a share).

    start: run of the model before RL. trained: what was done to it → run. asked: kind of problems → problems.
    """
    out = []
    for kind, problems in asked.items():
        vote, some = voted(start, settings, problems[: len(problems) // VOTED])
        found = {
            f"start, {BEFORE[0]}": share(settings, problems, answers(start, settings, problems)),
            f"start, {BEFORE[1]}": share(settings, problems, answers(start, settings, problems, 0.0)),
            f"start, {BEFORE[2]}": share(settings, problems, answers(start, settings, problems, COLD)),
            f"start, {BEFORE[3]}": vote,
            f"start, {BEFORE[4]}": some,
        }
        for done, run in trained.items():
            found[f"{done}, {BEFORE[0]}"] = share(settings, problems, answers(run, settings, problems))
            found[f"{done}, {BEFORE[1]}"] = share(settings, problems, answers(run, settings, problems, 0.0))
        out += [{"problems": kind, "way": way, "right": right} for way, right in found.items()]
    return out
