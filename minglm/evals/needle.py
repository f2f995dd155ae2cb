"""The needle test: is the fact that was asked for found among others, somewhere in a long passage?

An answer is right when the whole sentence is: the name that was asked for and its code. Names and codes are ones that
training never shows. Beside the model stand the same questions about passages without the fact, and three rules that
read no question: the code of the first fact, of the last (the nearest to the question), of a random one; each is given
the name for nothing. What a model has over the best of them is what looking up is worth.

Passages are stories of the tiny world for a model with its vocabulary (`minglm.data.tiny_world.needles`), text of the
Python documentation for another (`minglm.data.chat.lookup_example`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from minglm.data.chat import lookup_example
from minglm.data.synthetic_facts import SENTENCE
from minglm.data.tiny_world import needles as tiny_world
from minglm.data.tiny_world import vocabulary
from minglm.errors import InputError
from minglm.inference.generate import generate

ANSWER_TOKENS = 36  # the longest right answer (two sentences of a name of three words each) with room to spare
CELL_BATCH, CELL_TOKENS = 32, 16_384  # prompts together at most, and their tokens: long ones need memory
RULES = ("first fact", "last fact", "random fact")


@dataclass(frozen=True)
class Problem:
    """One question. `told` are the facts of the passage in its order, as (name, code)."""

    prompt_ids: list[int]
    question: str
    expected: str
    name: str
    told: tuple[tuple[str, str], ...]
    sentence: str  # of a fact, with {name} and {code}
    form: str = "plain"

    def is_right(self, answer: str) -> bool:
        """The whole sentence, name and code; several codes in any order."""
        return self._unordered(answer.strip()) == self._unordered(self.expected)

    def _unordered(self, sentence: str) -> str | tuple[str, list[str]]:
        start = self.sentence.format(name=self.name, code="").removesuffix(".")
        if self.form != "several" or not sentence.startswith(start) or not sentence.endswith("."):
            return sentence
        return start, sorted(sentence.removeprefix(start).removesuffix(".").split(" and "))

    def by_rule(self, rule: str, rng: random.Random) -> str:
        """What a rule of `RULES` says, which reads no question; '' where the passage has no fact."""
        told = list(self.told)
        if rule == "last fact":
            told.reverse()
        elif rule == "random fact":
            rng.shuffle(told)
        if not told:
            return ""
        if self.form == "several":  # a rule gives two codes, in the order of the passage
            two = [code for _, code in self.told if code in [c for _, c in told[:2]]]
            return self.sentence.format(name=self.name, code=" and ".join(two))
        if self.form == "hop":
            friend, code = told[0]
            return f"The friend of {self.name} is {friend}. {self.sentence.format(name=friend, code=code)}"
        return self.sentence.format(name=self.name, code=told[0][1])


def is_tiny_world(tokenizer) -> bool:
    """Whether a tokenizer is that of the tiny world."""
    return tokenizer.sha256 == vocabulary.tokenizer().sha256


def problems(  # noqa: PLR0913 (each is one axis of the test)
    tokenizer,
    count: int,
    length: int,
    facts: int = 4,
    depth: float | None = 0.5,
    form: str = "plain",
    seed: int = 7,
    context: bool = True,
    filler: np.ndarray | None = None,
) -> list[Problem]:
    """`count` questions for a model with this tokenizer; the same ones for the same arguments.

    Args:
        depth: of the fact that is asked for; None for anywhere.
        form: as in `minglm.data.tiny_world.needles.FORMS`; other vocabularies have the plain one.
        filler: token ids that passages of other vocabularies are cut from; default the validation part of Python's
            topic texts.
    """
    out = []
    for i in range(count):
        rng = random.Random(f"needle/{seed}/{length}/{facts}/{depth}/{form}/{i}")
        place = rng.random() if depth is None else depth
        if is_tiny_world(tokenizer):
            n = tiny_world.needles(rng, length, facts, place, form, held_out=True, context=context)
            out.append(Problem(n.prompt_ids, n.question, n.expected, n.name, n.told, tiny_world.SENTENCE, form))
        elif form == "plain":
            numbers = np.random.default_rng(rng.getrandbits(64))
            e = lookup_example(numbers, tokenizer, length, place, True, filler, context, facts)
            out.append(Problem(e.prompt_ids, e.question, e.expected, e.name, e.told, SENTENCE))
        else:
            raise InputError(f"form {form!r}: only the tiny world has it; use plain for a model of another corpus")
    return out


def answer(model, tokenizer, questions: Sequence[Problem], mode: str = "sparse") -> list[str]:
    """The model's answers, greedy."""
    out: list[str] = []
    longest = max((len(q.prompt_ids) for q in questions), default=1)
    together = max(1, min(CELL_BATCH, CELL_TOKENS // longest))
    for start in range(0, len(questions), together):
        part = [q.prompt_ids for q in questions[start : start + together]]
        made = generate(model, part, ANSWER_TOKENS, stop=(tokenizer.eos,), mode=mode)
        out += [tokenizer.decode(ids).strip() for ids in made.tokens]
    return out


def needle_test(  # noqa: PLR0913 (each is one axis of the test)
    model,
    tokenizer,
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    per_cell: int,
    seed: int = 7,
    filler: np.ndarray | None = None,
    mode: str = "sparse",
    progress: bool = True,
    facts: int = 1,
    form: str = "plain",
) -> dict:
    """Whole sentences right by depth and length on unseen needles, greedy decoding.

    Args:
        lengths: prompt lengths in tokens. depths: place of the needle, 0 the beginning and 1 the end. per_cell:
            questions for each (depth, length). facts: facts in each passage. form, filler: as in `problems`.

    Returns: accuracy [depth][length] in 0..1; over all `with_context`, `without_context`, `name_right` (the name that
        was asked for is repeated), `code_right` (the right code stands in the answer, whatever else does), `rules`
        (what each of `RULES` reaches on the same questions); counts, and a few examples.
    """
    cells = [(d, n) for d in depths for n in lengths]
    counts = dict.fromkeys(("with_context", "without_context", "name_right", "code_right"), 0)
    rules = dict.fromkeys(RULES, 0)
    table = [[0.0] * len(lengths) for _ in depths]
    examples: list[dict[str, Any]] = []
    shuffle = random.Random(seed)
    with tqdm(total=2 * len(cells) * per_cell, desc="needle test", unit="question", disable=not progress) as bar:
        for depth, length in cells:
            for context in (True, False):
                asked = problems(tokenizer, per_cell, length, facts, depth, form, seed, context, filler)
                answers = answer(model, tokenizer, asked, mode)
                hits = sum(p.is_right(a) for p, a in zip(asked, answers, strict=True))
                counts["with_context" if context else "without_context"] += hits
                bar.update(per_cell)
                if not context:
                    continue
                table[depths.index(depth)][lengths.index(length)] = hits / per_cell
                counts["name_right"] += sum(p.name in a for p, a in zip(asked, answers, strict=True))
                counts["code_right"] += sum(
                    dict(p.told).get(p.name, p.expected) in a for p, a in zip(asked, answers, strict=True)
                )
                for rule in RULES:
                    rules[rule] += sum(p.is_right(p.by_rule(rule, shuffle)) for p in asked)
                if len(examples) < 4 and depth == depths[len(depths) // 2]:
                    examples.append(
                        {
                            "length": length,
                            "depth": depth,
                            "question": asked[0].question,
                            "right": asked[0].expected,
                            "answer": answers[0],
                            "correct": asked[0].is_right(answers[0]),
                        }
                    )
    total = len(cells) * per_cell
    return {
        "lengths": list(lengths),
        "depths": list(depths),
        "facts": facts,
        "form": form,
        "per_cell": per_cell,
        "seed": seed,
        "mode": mode,
        "accuracy": table,
        **{name: count / total for name, count in counts.items()},
        "rules": {rule: count / total for rule, count in rules.items()},
        "questions": total,
        "examples": examples,
    }
