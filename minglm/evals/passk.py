"""Questions with answers that can be checked, asked of a chat model, many tries each: the skills of the tiny world for
a model with its vocabulary (`minglm.evals.skills`), the problems of `minglm.data.chat` for another.

Used by `minglm eval` and by the notebooks on fine-tuning and evaluation.
"""

from __future__ import annotations

import re

from minglm.data.chat import TASKS, examples
from minglm.data.conversations import Example
from minglm.data.synthetic_facts import find_code
from minglm.evals import needle, skills
from minglm.inference.generate import generate

ANSWER_TOKENS = 32
BATCH = 128
PASSAGE_TOKENS = 192


def problems(per_task: int, seed: int, tokenizer, passage_tokens: int = PASSAGE_TOKENS) -> dict[str, list[Example]]:
    """`per_task` problems of every task; of the tiny world such as training never shows, else of another seed than
    training's.
    """
    if needle.is_tiny_world(tokenizer):
        asked = {s: skills.problems(s, per_task, seed) for s, skill in skills.SKILLS.items() if skill.turns == 1}
    else:
        asked = {task: examples(task, 10_000 + seed, per_task) for task in TASKS}
    return {**asked, "lookup": hidden_facts(per_task, seed, tokenizer, passage_tokens)}


def hidden_facts(
    count: int, seed: int, tokenizer, passage_tokens: int = PASSAGE_TOKENS, facts: int = 1
) -> list[Example]:
    """Lookups as training asks them: a fact among `facts` in a passage, `passage_tokens` long with its question; names
    that training never shows.
    """
    drawn = needle.problems(tokenizer, count, passage_tokens, facts, None, seed=seed)
    return [
        Example("lookup", (("user", tokenizer.decode(p.prompt_ids[2:-1])), ("assistant", p.expected))) for p in drawn
    ]


def answers(
    model,
    tokenizer,
    questions: list[Example],
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    mode: str = "sparse",
) -> list[list[str]]:
    """The model's answers, `samples` to each problem."""
    prompts = [
        [tokenizer.bos, tokenizer.user, *tokenizer.encode(e.messages[0][1]), tokenizer.assistant] for e in questions
    ]
    work = [(i, s) for i in range(len(prompts)) for s in range(samples)]
    out: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(work), BATCH):
        part = work[start : start + BATCH]
        completions = generate(
            model,
            [prompts[i] for i, _ in part],
            ANSWER_TOKENS,
            temperature=temperature,
            seed=[seed * 1_000_003 + i * 1009 + s for i, s in part],
            stop=(tokenizer.eos,),
            mode=mode,
        )
        for (i, _), ids in zip(part, completions.tokens, strict=True):
            out[i].append(tokenizer.decode(ids))
    return out


def what_counts(text: str) -> str:
    """The part of an answer that is judged: its code where it has one, else its last number, else all its words.

    >>> what_counts("The code of Tokiru is amber falcon."), what_counts("3 + 4 = 7"), what_counts(" Tokiru ")
    ('amber falcon', '7', 'Tokiru')
    """
    code = find_code(text)
    if code:
        return code
    numbers = re.findall(r"\d+", text)
    return numbers[-1] if numbers else " ".join(text.split())


def is_right(problem: Example, answer: str) -> bool:
    """Whether the answer is right: a lookup and a skill of the tiny world as a whole, else what counts in it."""
    expected = problem.messages[-1][1]
    if problem.task == "lookup":
        return answer.strip() == expected
    if problem.task in skills.SKILLS:
        return skills.is_right(problem.task, answer, expected)
    return what_counts(answer) == what_counts(problem.messages[-1][1])


def ask(
    model,
    tokenizer,
    questions: list[Example],
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    mode: str = "sparse",
) -> list[list[bool]]:
    """Which answers are right: one row for each problem, `samples` long."""
    return [
        [is_right(e, a) for a in row]
        for e, row in zip(
            questions, answers(model, tokenizer, questions, samples, temperature, seed, mode), strict=True
        )
    ]


def better(a: bool, b: bool) -> float:
    """A judge's vote for the first of two checked answers: 1, 0.5 (equally good) or 0."""
    return 0.5 + 0.5 * (bool(a) - bool(b))
