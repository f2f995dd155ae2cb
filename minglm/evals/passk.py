"""Questions with answers that can be checked, asked of a chat model: the problems of `minglm.data.chat`, many tries
each.

Used by `minglm eval` and by the notebooks on fine-tuning and evaluation.
"""

from __future__ import annotations

import re

import numpy as np

from minglm.data.chat import TASKS, examples, lookup_example
from minglm.data.conversations import Example
from minglm.data.synthetic_facts import find_code, statement
from minglm.inference.generate import generate

ANSWER_TOKENS = 32
BATCH = 128
PASSAGE_TOKENS = 192


def problems(per_task: int, seed: int, tokenizer, passage_tokens: int = PASSAGE_TOKENS) -> dict[str, list[Example]]:
    """`per_task` problems of every task; a seed other than the training's gives problems it has most likely not
    seen.
    """
    return {
        task: hidden_facts(per_task, seed, tokenizer, passage_tokens)
        if task == "lookup"
        else examples(task, 10_000 + seed, per_task)
        for task in TASKS
    }


def hidden_facts(count: int, seed: int, tokenizer, passage_tokens: int = PASSAGE_TOKENS) -> list[Example]:
    """Lookups as training asks them: one fact somewhere in a passage, `passage_tokens` long with its question; names
    that training never shows.
    """
    rng = np.random.default_rng([seed, passage_tokens])
    drawn = [lookup_example(rng, tokenizer, passage_tokens, float(rng.random()), held_out=True) for _ in range(count)]
    return [
        Example("lookup", (("user", tokenizer.decode(e.prompt_ids[2:-1])), ("assistant", statement(e.name, e.code))))
        for e in drawn
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
    """Whether what counts in the answer is what counts in the expected one."""
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
